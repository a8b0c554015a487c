"""The generator as fits use it: in parts if memory asks for it, in a precision of its own, compiled if wanted."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from packager.errors import BuildError
from packager.features import feature_distance, load_features
from packager.fit_config import FitConfig, descent_dtype
from player.device_memory import most_frames
from player.engine import compiled
from player.engine_parts import shared_copy
from player.generator import Generator

log = logging.getLogger(__name__)

_MOST_PLAIN_PLACES = 1024


class Forward:
    """Renders embeddings for the descent of one or more fits, all frames of a step together."""

    def __init__(self, generator: Generator, config: FitConfig) -> None:
        self.generator, self.dtype = generator, descent_dtype(config.autocast, generator.device)
        self.at_once = config.frames_at_once
        """Most frames that pass the generator together; 0: all."""
        self._features = load_features(generator.device) if config.feature_weight else None
        self._feature_weight = config.feature_weight
        self._halved = False
        self._descend = compiled(generator.generate, config.compile)
        if config.compile == "off" and self._gains_by_plain_attention():
            unet = shared_copy(generator.unet)
            unet.set_attn_processor(AttnProcessor())
            self._descend = partial(generator.generate, unet=unet)

    def descent(self, embeddings: Tensor) -> Tensor:
        """Return frames float32 [n, 3, H, W] of embeddings [n, L, D], rendered in the precision of the descent."""
        with torch.autocast(embeddings.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if not self.at_once or len(embeddings) <= self.at_once:
                return self._descend(embeddings).float()
            parts = embeddings.split(self.at_once)
            return torch.cat([checkpoint(self._descend, part, use_reentrant=False) for part in parts]).float()

    @torch.no_grad()
    def exact(self, embeddings: Tensor) -> Tensor:
        """Return frames float32 [n, 3, H, W] of embeddings [n, L, D] in the generator's own precision."""
        parts = embeddings.split(self.at_once or len(embeddings))
        return torch.cat([self.generator.generate(part) for part in parts]).float()

    def feature_losses(self, output: Tensor, target: Tensor, windows: torch.Generator | None = None) -> Tensor:
        """Return the weighted feature distance [n] of frames [n, 3, H, W]; 0 where the fit has no such term.

        Args:
            output, target: rendered and true frames.
            windows: what the descent draws the window from that is compared, in the precision of the descent; None:
                whole frames, in float32.
        """
        if self._features is None:
            return output.new_zeros(len(output))
        enabled = windows is not None and self.dtype != torch.float32
        with torch.autocast(output.device.type, self.dtype, enabled=enabled):
            return self._feature_weight * feature_distance(self._features, output, target, windows)

    def _gains_by_plain_attention(self) -> bool:
        """Return whether attention is descended faster as plain products than by torch's fused kernel, whose gradient
        takes twice the time on a CPU (docs/RESULTS.md); they hold a number for each pair of places of the latent."""
        small = self.generator.start_latent[0].numel() <= _MOST_PLAIN_PLACES
        return self.generator.device.type == "cpu" and self.dtype == torch.bfloat16 and small

    def shrink(self, count: int, error: torch.OutOfMemoryError) -> None:
        """Let half of a step's `count` frames pass together from now on, once; the second time raise BuildError."""
        device = self.generator.device
        count = min(self.at_once or count, count)
        if self._halved or count == 1:
            raise BuildError(
                f"the fit ran out of memory on {device} with {count} frames at once; give a smaller "
                "fit.frames_at_once (--frames-at-once), or free memory"
            ) from error
        self._halved, self.at_once = True, (count + 1) // 2
        log.warning("%s ran out of memory; fitting %d frames at once from now on", device, self.at_once)


def frames_with_gradient(generator: Generator, config: FitConfig) -> int:
    """Return how many frames at a time fit a CUDA device's memory with what their gradient needs.

    Raises:
        BuildError: not even one.
    """
    forward = Forward(generator, replace(config, frames_at_once=0, compile="off"))
    shape = generator.tokens, generator.width

    def work(count: int) -> None:
        embeddings = torch.zeros(count, *shape, device=generator.device, requires_grad=True)
        forward.descent(embeddings).square().mean().backward()

    try:
        found = most_frames(generator.device, work)
    except torch.OutOfMemoryError as error:
        raise BuildError(
            f"generator {generator.id}: the gradient of one frame does not fit the memory that {generator.device} has "
            "free; a smaller decoder such as madebyollin/taesd needs less (--decoder)"
        ) from error
    log.info("%s: %d frames at a time with gradient", generator.device, found)
    return found
