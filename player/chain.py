"""Chained prompt streams: every interval starts from a share of the latent before it, as the published system does.

Such a stream decodes from its first segment on and in order only. Its init segment says the share and holds the latent
that the first frame starts from. No I/O and no torch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from player.errors import BitstreamError

_HEAD = struct.Struct(">fHHH")  # carry; channels, rows and columns of the latent
_MAX_VALUES = 1 << 20  # of a latent; SD-Turbo's has 16 384


@dataclass(frozen=True)
class Chain:
    """How a stream's latents hang together: input = carry * latent before + (1 - carry) * noise."""

    carry: float  # above 0, below 1, as a float32; Promptus: 0.05
    shape: tuple[int, int, int]  # C, h, w
    latent: bytes = field(repr=False)  # big-endian float32, what the first frame's input takes for the latent before

    def __post_init__(self) -> None:
        if not 0 < self.carry < 1:
            raise BitstreamError(f"chained stream: carry {self.carry:g}, expected above 0 and below 1")
        channels, rows, columns = self.shape
        if not 1 <= channels * rows * columns <= _MAX_VALUES or len(self.latent) != 4 * channels * rows * columns:
            raise BitstreamError(f"chained stream: a latent of {self.shape} in {len(self.latent)} bytes")
        if not np.isfinite(self.array()).all():
            raise BitstreamError("chained stream: its latent holds values that are not finite")

    @classmethod
    def of(cls, carry: float, latent: np.ndarray) -> Chain:
        """Return the chain that starts from a latent float32 [C, h, w]."""
        return cls(float(np.float32(carry)), tuple(latent.shape), latent.astype(">f4").tobytes())

    def array(self) -> np.ndarray:
        """Return the first latent, float32 [C, h, w]."""
        return np.frombuffer(self.latent, ">f4").astype(np.float32).reshape(self.shape)

    def pack(self) -> bytes:
        """Return the bytes that stand in the init segment."""
        return _HEAD.pack(self.carry, *self.shape) + self.latent


def unpack_chain(data: bytes) -> Chain:
    """Return the chain of bytes that `Chain.pack` could have written; raise BitstreamError for others."""
    if len(data) < _HEAD.size:
        raise BitstreamError(f"chained stream: {len(data)} bytes, expected {_HEAD.size} or more")
    carry, *shape = _HEAD.unpack_from(data)
    return Chain(carry, (shape[0], shape[1], shape[2]), data[_HEAD.size :])
