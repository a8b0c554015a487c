"""Between 8-bit pictures and the tensors that networks see."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_pixels(frames: Tensor) -> Tensor:
    """Return uint8 [T, H, W, 3] of frames [T, 3, H, W], clipped to [-1, 1] and rounded to nearest."""
    levels = (frames.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)


def from_pixels(frames: np.ndarray) -> Tensor:
    """Return float32 [T, 3, H, W] in [-1, 1] of uint8 [T, H, W, 3], channels last in memory; undoes to_pixels."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
