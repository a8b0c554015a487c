"""A fitted segment at a target size: components are dropped and U quantized more coarsely, without another fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from player.bitstream import KeyPrompt, Segment

_USUAL = 2.0  # steps of U up to this factor lose less than a dropped component does
_COARSEST = 16.0
_HALVINGS = 7  # of the range of factors: 2**(3 / 2**7) is 2 %


def coarsen(segment: Segment, rank: int, factor: float) -> Segment:
    """Return the like segment with zeros for the components from `rank` on and steps of U `factor` times as large."""
    keep = np.arange(segment.rank) < rank
    keys = tuple(
        KeyPrompt(
            key.frame_offset,
            np.where(keep, np.round(key.u / factor), 0).astype(np.int16),
            np.where(keep[:, None], key.v, 0).astype(np.int16),
        )
        for key in segment.keys
    )
    return replace(segment, u_scale=(segment.u_scale * factor).astype(np.float32), keys=keys)


def meet_bytes(segment: Segment, allowed_bytes: float, write: Callable[[Segment], bytes]) -> bytes:
    """Return the written segment of most bytes found within `allowed_bytes`, or the smallest there is.

    First the rank is chosen, as the largest that fits with steps of twice the size, then the steps.
    """

    def fits(rank: int, factor: float) -> bool:
        return len(write(coarsen(segment, rank, factor))) <= allowed_bytes

    low, high = 1, segment.rank
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle, _USUAL) else (low, middle - 1)
    if fits(low, 1.0):
        return write(coarsen(segment, low, 1.0))
    fine, coarse = (1.0, _USUAL) if fits(low, _USUAL) else (_USUAL, _COARSEST)
    for _ in range(_HALVINGS):
        middle_factor = (fine * coarse) ** 0.5
        fine, coarse = (fine, middle_factor) if fits(low, middle_factor) else (middle_factor, coarse)
    return write(coarsen(segment, low, coarse))
