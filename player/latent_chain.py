"""Rendering of chained prompt streams: frames of an interval start from the latent of the key frame before them.

The published system's rule (Promptus, generation.py): the first frame's input is carry * stored latent + (1 - carry) *
noise; every later frame's is made likewise of the clean latent of the last key frame before it. So the frames of an
interval, its closing key frame included, share one input and are rendered as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from player.chain import Chain
from player.errors import DecodeError, GeneratorMismatchError
from player.generator import Generator

FIRST_NUMBER = 1  # of a stream's segments: player.manifest.START_NUMBER


@dataclass(frozen=True)
class _Place:
    """Where decoding stands: the segment decoded last, the latents that it began with and ended on."""

    number: int
    before: Tensor  # [C, h, w], of the last key frame before the segment
    after: Tensor  # [C, h, w], of the segment's last key frame that is shown


class LatentChain:
    """What a decoder of a chained stream carries from segment to segment."""

    def __init__(self, chain: Chain, generator: Generator) -> None:
        """Start at the stream's first latent; raise GeneratorMismatchError if the generator has other latents."""
        shape = tuple(generator.start_latent.shape)
        if chain.shape != shape:
            raise GeneratorMismatchError(f"chained stream of latents {chain.shape}, but the generator has {shape}")
        if generator.layout is not None:
            raise GeneratorMismatchError("chained stream, but the generator makes its start latents of prompts")
        self._carry, self._generator = chain.carry, generator
        self._noise = generator.start_latent.detach().float()
        self._first = torch.from_numpy(chain.array()).to(generator.device)
        self._place: _Place | None = None

    def latents(self, number: int, embeddings: Tensor, offsets: np.ndarray, *, batch: int) -> Iterator[Tensor]:
        """Yield the clean latents float32 [n, C, h, w] of a segment, interval by interval.

        Args:
            number: of the segment in its stream: the first, the one after the last decoded, or that one again.
            embeddings: [T, L, D] of all its frames.
            offsets: frames [K] of its key prompts, from 0 on; the last may be T.
            batch: most frames at a time.

        Raises:
            DecodeError: the segment before it was not decoded.
        """
        first_latent = latent = self._before(number)
        frames = len(embeddings)
        shown = [int(offset) for offset in offsets if offset < frames]
        begin, after = 0, latent
        for end in dict.fromkeys([*shown, frames - 1]):
            start = self._mix(latent)
            for part in embeddings[begin : end + 1].split(batch):
                clean = self._generator.denoise(part, start)
                yield clean
            latent, begin = clean[-1], end + 1
            if end in shown:
                after = latent
        self._place = _Place(number, first_latent, after)

    def after(self, number: int) -> Tensor:
        """Return what frames made up after a segment start from [C, h, w]; it must be the one decoded last."""
        if self._place is None or self._place.number != number:
            raise DecodeError(
                f"segment {number} of a chained stream is not the one decoded last; nothing can follow it"
            )
        return self._mix(self._place.after)

    def _before(self, number: int) -> Tensor:
        place = self._place
        if number == FIRST_NUMBER:
            return self._first
        if place is not None and number == place.number + 1:
            return place.after
        if place is not None and number == place.number:
            return place.before
        last = "none" if place is None else str(place.number)
        raise DecodeError(
            f"segment {number} of a chained stream was asked for without segment {number - 1} before it (decoded last: "
            f"{last}); such a stream plays in order, from segment {FIRST_NUMBER} on"
        )

    def _mix(self, latent: Tensor) -> Tensor:
        """Return the UNet's input float32 [C, h, w] after a latent [C, h, w]."""
        return self._carry * latent + (1 - self._carry) * self._noise
