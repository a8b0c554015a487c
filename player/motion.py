"""Motion between key prompts: rendered key frames, warped along a coarse field and blended, make the frames between.

Interpolating prompts, as the paper does, fades one picture into the next: what moves is seen twice. Here only the key
frames are rendered. A coarse field says how far the content moves from one key frame to the next; a frame between them
is the blend of both, each warped by its share of the way (bilateral motion compensation, as in frame-rate conversion).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOTION_STEP_PX = 0.5
"""Quantization step of motion: value in pixels of the generated frame = step * code."""
CELL_PX = 32
"""Side in pixels of the square that one vector stands for, its neighbours' being blended in bilinearly."""


def motion_grid(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the motion field of frames of a size in pixels."""
    return max(1, round(height / CELL_PX)), max(1, round(width / CELL_PX))


@dataclass(frozen=True)
class Between:
    """Where each of n frames lies between its two key prompts."""

    left: Tensor
    """int64 [n], index of the key prompt at or before the frame; the last key prompt is nobody's left."""
    share: Tensor
    """float32 [n], 0 at the left key prompt, 1 at the next one."""

    @classmethod
    def of(cls, offsets: np.ndarray, frames: int) -> Between:
        """Place the frames 0 .. frames - 1 between key prompts at frame `offsets` [K], K >= 2."""
        positions = np.arange(frames)
        left = np.clip(np.searchsorted(offsets, positions, side="right") - 1, 0, len(offsets) - 2)
        share = (positions - offsets[left]) / (offsets[left + 1] - offsets[left])
        return cls(torch.from_numpy(left), torch.from_numpy(share.astype(np.float32)))

    def to(self, device: torch.device) -> Between:
        """Return the same places on a device."""
        return Between(self.left.to(device), self.share.to(device))

    def __getitem__(self, chosen: Tensor) -> Between:
        """Return the places of some of the frames."""
        return Between(self.left[chosen], self.share[chosen])


def warp(frames: Tensor, displacement: Tensor) -> Tensor:
    """Return frames [n, C, H, W] read at x + displacement, bilinearly; the border continues beyond the frame.

    Args:
        frames: [n, C, H, W].
        displacement: [n, 2, H, W] in pixels, horizontal then vertical.
    """
    height, width = frames.shape[2:]
    rows = torch.arange(height, dtype=displacement.dtype, device=frames.device)[:, None]
    columns = torch.arange(width, dtype=displacement.dtype, device=frames.device)
    x = (columns + displacement[:, 0]) * (2 / width) + (1 / width - 1)
    y = (rows + displacement[:, 1]) * (2 / height) + (1 / height - 1)
    return functional.grid_sample(
        frames, torch.stack([x, y], dim=-1), mode="bilinear", padding_mode="border", align_corners=False
    )


def frames_between(keys: Tensor, motion: Tensor, between: Between) -> Tensor:
    """Return the frames [n, C, H, W] that lie between key frames.

    Content at x in a frame at share s is found at x - s m in the left key frame and at x + (1 - s) m in the right one.

    Args:
        keys: the key frames [K, C, H, W].
        motion: [K - 1, 2, rows, columns], m from each key frame to the next in pixels, horizontal then vertical.
        between: where the n frames lie.
    """
    size = keys.shape[2:]
    field = functional.interpolate(motion, size=size, mode="bilinear", align_corners=False)[between.left]
    share = between.share.to(keys.dtype)[:, None, None, None]
    left, right = keys[between.left], keys[between.left + 1]
    return (1 - share) * warp(left, -share * field) + share * warp(right, (1 - share) * field)
