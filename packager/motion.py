"""Estimate the motion between key frames, where the fit of a segment starts, and place key frames where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from player.motion import Between, frames_between, motion_grid

# Coarse to fine: (side of the frames in pixels against the full side, steps of descent, step size in full pixels).
_SCALES = ((1 / 16, 40, 3.0), (1 / 8, 40, 1.5), (1 / 4, 40, 0.7))
_SHARES = (0.25, 0.5, 0.75)  # the frames between two key frames that are looked at
# Mean absolute difference (range 2) that a pixel of difference between neighbouring vectors must win: still or
# featureless parts then follow what surrounds them.
_SMOOTHNESS = 1e-3
_SHORTEST = 5
"""Intervals of fewer frames than twice this are not split."""


def estimate_motion(frames: Tensor, offsets: np.ndarray) -> Tensor:
    """Return the motion [K - 1, 2, rows, columns] in pixels between key frames, as `player.motion` reads it.

    Descends on the mean absolute difference between true frames and those blended from the true key frames, coarse to
    fine, so that motion is found up to about 1/8 of the frame. Zero where no frame lies between.

    Args:
        frames: the segment [T, 3, H, W] in [-1, 1].
        offsets: the key frames [K].
    """
    height, width = frames.shape[2:]
    motion = torch.zeros(max(len(offsets) - 1, 0), 2, *motion_grid(height, width), device=frames.device)
    inner = [round(a + s * (b - a)) for a, b in pairwise(offsets) if b - a > 1 for s in _SHARES]
    if not inner:
        return motion
    chosen = torch.tensor(sorted(set(inner)), device=frames.device)
    between = Between.of(offsets, len(frames)).to(frames.device)[chosen]
    key_frames = frames[torch.from_numpy(offsets).to(frames.device)]
    motion.requires_grad_(True)
    for scale, steps, rate in _SCALES:
        keys, targets = (
            functional.interpolate(f, scale_factor=scale, mode="area") for f in (key_frames, frames[chosen])
        )
        optimizer = torch.optim.Adam([motion], lr=rate)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            error = (frames_between(keys, motion * scale, between) - targets).abs().mean()
            rough = motion.diff(dim=2).abs().mean() + motion.diff(dim=3).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            (error + _SMOOTHNESS * rough).backward()
            optimizer.step()
    return motion.detach()


def place_key_frames(frames: Tensor, cuts: Sequence[int], tolerance: float) -> np.ndarray:
    """Return the frames int64 [K] that carry key prompts, as few as motion can fill the gaps between.

    The first and last frame of every scene are key frames. An interval is halved as long as the frames between, blended
    from its true key frames along their motion, miss the true ones by more than `tolerance`.

    Args:
        frames: the segment [T, 3, H, W] in [-1, 1].
        cuts: the frames that open a new scene, increasing, none of them 0.
        tolerance: mean squared error, for a range of 2.
    """
    settled = {edge for first, after in pairwise([0, *cuts, len(frames)]) for edge in (first, after - 1)}
    offsets = np.array(sorted(settled))
    while True:
        motion = estimate_motion(frames, offsets)
        middles = [
            (a + b) // 2
            for a, b, field in zip(offsets, offsets[1:], motion, strict=False)
            if b - a >= 2 * _SHORTEST and _blend_error(frames, int(a), int(b), field) > tolerance
        ]
        if not middles:
            return offsets
        offsets = np.sort(np.concatenate([offsets, middles])).astype(np.int64)


@torch.no_grad()
def _blend_error(frames: Tensor, first: int, last: int, field: Tensor) -> float:
    """Return the mean squared error of three frames between `first` and `last`, blended along `field`."""
    chosen = torch.tensor([round(first + s * (last - first)) for s in _SHARES], device=frames.device)
    between = Between.of(np.array([0, last - first]), last - first + 1).to(frames.device)[chosen - first]
    blended = frames_between(frames[[first, last]], field[None], between)
    return (blended - frames[chosen]).square().mean().item()
