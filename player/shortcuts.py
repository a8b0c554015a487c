"""The renderer `cached`: other frames than the generator's own, for less work (docs/RESULTS.md: how much of each)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from player.engine import Engine, Pending, RenderOptions
from player.errors import DecodeError
from player.feature_cache import FeatureCache
from player.generator import Generator
from player.pixels import to_pixels


class ShortcutEngine(Engine):
    """Renders the embeddings of consecutive frames with shared features; used like `player.engine.Engine`."""

    def __init__(self, generator: Generator, options: RenderOptions) -> None:
        """Prepare what `options.shortcut` says; raise GeneratorError if this generator has no such depth."""
        shortcut = options.shortcut
        assert shortcut is not None
        # what is computed changes from segment to segment, which graphs and compiled code do not
        super().__init__(generator, replace(options, reuse=False, merge_keys=False, compile="off", cuda_graphs=False))
        self.cache = FeatureCache(generator, depth=shortcut.cache_depth, threshold=shortcut.cache_threshold)

    def _generate(self, embeddings: Tensor) -> Tensor:
        latents = self.cache.denoise(embeddings, self.batch)
        frames = torch.cat([self.generator.decode_latents(part).float() for part in latents.split(self.batch)])
        if not torch.isfinite(frames).all():
            raise DecodeError(f"generator {self.generator.id} rendered values that are not finite")
        return frames

    def _submit(self, embeddings: Tensor) -> Pending:
        pixels = to_pixels(self._generate(embeddings))
        return Pending(pixels, torch.ones(1, dtype=torch.bool, device=pixels.device), self.generator.id)
