"""Frames that a prompt player makes up when the next segment is late: the last motion goes on, and comes to rest.

A prompt says more than its picture: which way the content moves, or which way the prompt does. Both go on beyond the
segment's last key prompt at the speed that they had there, which falls off as exp(-t / DRIFT_S): the picture drifts
DRIFT_S seconds' worth of motion at most, and so stays near what was really sent, however long the wait.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from player.bitstream import Segment
from player.motion import warp
from player.pixels import to_pixels

DRIFT_S = 0.25
"""Time constant of the speed's decay (docs/prompt_ideas.md: what it does to quality)."""


def drift_frames(count: int, fps: float, *, gap: int) -> Tensor:
    """Return how many frames' worth of motion lie between the last key prompt and each of `count` frames after the end.

    Args:
        count: n, frames to make up.
        fps: frames per second.
        gap: frames from the last key prompt to the segment's last frame; 0, or -1 where the key is the next frame.

    Returns: float32 [n], rising to at most DRIFT_S * fps.
    """
    later = torch.arange(1, count + 1, dtype=torch.float32) + gap
    reach = DRIFT_S * fps
    return reach * (1 - torch.exp(-later / reach))


def extend_prompts(factors: Tensor, interval: int, drift: Tensor) -> Tensor:
    """Return factors [n, ...] of prompts beyond the last of `factors` [K, ...], `drift` [n] frames further on."""
    last = factors[-1:]
    step = (last - factors[-2:-1]) / interval if len(factors) > 1 else torch.zeros_like(last)
    return last + drift.to(factors).reshape(-1, *(1,) * (factors.dim() - 1)) * step


def extend_picture(key: Tensor, motion: Tensor, interval: int, drift: Tensor) -> np.ndarray:
    """Return frames uint8 [n, H, W, 3] that carry a segment's last motion on.

    Args:
        key: the segment's last frame [1, 3, H, W] in [-1, 1].
        motion: that towards it [2, rows, columns], in pixels.
        interval: frames that this motion took.
        drift: [n] frames of it that are to be added.
    """
    field = functional.interpolate(motion[None], size=key.shape[2:], mode="bilinear", align_corners=False)
    moved = [warp(key, -float(frames) / interval * field) for frames in drift]
    return torch.cat([to_pixels(frame) for frame in moved]).cpu().numpy()


def last_interval(segment: Segment) -> int:
    """Return the frames between the last two key prompts, or anchors of motion; 1 where there is but one."""
    places = segment.all_anchors
    return int(places[-1] - places[-2]) if len(places) > 1 else 1
