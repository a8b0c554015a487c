"""Renderers for weak devices: two-stage generation and features shared between frames (PromptMobile, arXiv 2503.16112).

Both give other frames than the generator itself, for less work; docs/RESULTS.md says how much of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from player.engine import Engine, Pending, RenderOptions
from player.errors import DecodeError
from player.fast_decoder import load_fast_decoder
from player.feature_cache import FeatureCache
from player.generator import Generator
from player.pixels import to_pixels


class ShortcutEngine(Engine):
    """Renders the embeddings of consecutive frames by shortcuts; used like `player.engine.Engine`."""

    def __init__(self, generator: Generator, options: RenderOptions) -> None:
        """Prepare what `options.shortcut` names; raise GeneratorError if this generator has it not."""
        shortcut = options.shortcut
        assert shortcut is not None
        super().__init__(generator, replace(options, compile="off", cuda_graphs=False))
        self._decode: Callable[[Tensor], Tensor] = generator.decode_latents
        if shortcut.two_stage:
            fast = load_fast_decoder(generator.decoder, generator.folder).eval().requires_grad_(False)
            self._decode = fast.to(generator.device, next(generator.decoder.parameters()).dtype)
        self.cache: FeatureCache | None = None
        if shortcut.cached:
            self.cache = FeatureCache(generator, depth=shortcut.cache_depth, threshold=shortcut.cache_threshold)

    def _generate(self, embeddings: Tensor) -> Tensor:
        generator = self.generator
        if self.cache is None:
            latents = torch.cat([generator.denoise(part) for part in embeddings.split(self.batch)])
        else:
            latents = self.cache.denoise(embeddings, self.batch)
        frames = torch.cat([self._decode(part).float() for part in latents.split(self.batch)])
        if not torch.isfinite(frames).all():
            raise DecodeError(f"generator {generator.id} rendered values that are not finite")
        return frames

    def _submit(self, embeddings: Tensor) -> Pending:
        pixels = to_pixels(self._generate(embeddings))
        return Pending(pixels, torch.ones(1, dtype=torch.bool, device=pixels.device), self.generator.id)
