"""Motion between key prompts: rendered key frames, warped along coarse fields and blended, make the frames between.

Interpolating prompts, as the paper does, fades one picture into the next: what moves is seen twice. Here only the key
frames are rendered. Coarse fields say how far the content moves from each *anchor* to the next; anchors are the key
frames and frames between them. A frame is the blend of the key frames around it, each warped along the fields that lie
between (bilateral motion compensation, as in frame-rate conversion). Fields cost far fewer bytes than prompts, so there
are more of them: content may turn and speed up between two key prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOTION_STEP_PX = 0.5
"""Quantization step of motion: value in pixels of the generated frame = step * code."""
CELL_PX = 32
"""Side in pixels of the square that one vector stands for, its neighbours' being blended in bilinearly."""
_LATTICE_PX = 4  # paths are followed on a lattice this wide, which bends far less than a cell, and stretched


def motion_grid(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the motion field of frames of a size in pixels."""
    return max(1, round(height / CELL_PX)), max(1, round(width / CELL_PX))


def motion_anchors(offsets: np.ndarray, interval: int) -> np.ndarray:
    """Return anchors int64 [A]: the key frames `offsets` [K] and frames evenly between, `interval` apart at most."""
    steps = [(first, last, -(-(last - first) // interval)) for first, last in pairwise(offsets)]
    parts = [np.round(np.linspace(first, last, count, endpoint=False)) for first, last, count in steps]
    return np.concatenate([*parts, offsets[-1:]]).astype(np.int64)


@dataclass(frozen=True)
class Between:
    """Where each of n frames lies between its two key prompts, and between its two anchors."""

    left: Tensor
    """int64 [n], index of the key prompt at or before the frame; the last key prompt is nobody's left."""
    share: Tensor
    """float32 [n], 0 at the left key prompt, 1 at the next one."""
    field: Tensor
    """int64 [n], index of the anchor at or before the frame, likewise, and of the field that starts there."""
    part: Tensor
    """float32 [n], 0 at that anchor, 1 at the next one."""
    at_key: tuple[bool, ...]
    """For each anchor whether it is a key frame."""

    @classmethod
    def of(cls, offsets: np.ndarray, frames: int, anchors: Sequence[int] | np.ndarray = ()) -> Between:
        """Place the frames 0 .. frames - 1 between key prompts at frame `offsets` [K], K >= 2.

        Args:
            anchors: frames [A] that a motion field starts or ends at, the key frames among them; without any, the key
                frames.
        """
        stops = np.asarray(anchors) if len(anchors) else offsets
        positions = np.arange(frames)
        left, share = _between(offsets, positions)
        field, part = _between(stops, positions)
        return cls(left, share, field, part, tuple(np.isin(stops, offsets).tolist()))

    def to(self, device: torch.device) -> Between:
        """Return the same places on a device."""
        return Between(
            self.left.to(device), self.share.to(device), self.field.to(device), self.part.to(device), self.at_key
        )

    def __getitem__(self, chosen: Tensor) -> Between:
        """Return the places of some of the frames."""
        return Between(self.left[chosen], self.share[chosen], self.field[chosen], self.part[chosen], self.at_key)


def _between(points: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return which of the rising `points` each position follows, and its share of the way to the next one."""
    left = np.clip(np.searchsorted(points, positions, side="right") - 1, 0, len(points) - 2)
    share = (positions - points[left]) / (points[left + 1] - points[left])
    return torch.from_numpy(left), torch.from_numpy(share.astype(np.float32))


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

    Content at x in a frame, at share p between the anchors a and a + 1, is at x - p m and at x + (1 - p) m there, m
    being the field between them at x. From there it is followed from anchor to anchor, by the field between them at the
    place it has come to, until both key frames are reached.

    Args:
        keys: the key frames [K, C, H, W].
        motion: [A - 1, 2, rows, columns], m from each anchor to the next in pixels, horizontal then vertical.
        between: where the n frames lie.
    """
    height, width = keys.shape[2:]
    lattice = max(1, height // _LATTICE_PX), max(1, width // _LATTICE_PX)
    fields = _stretch(motion, lattice)
    scale = fields.new_tensor([lattice[1] / width, lattice[0] / height])[:, None, None]
    part = between.part.to(fields.dtype)[:, None, None, None]
    field = fields[between.field]
    back, ahead = -part * field, (1 - part) * field
    if not all(between.at_key):
        to_left, to_right = _paths(fields, between.at_key, scale)
        back = back + warp(to_left[between.field], back * scale)
        ahead = ahead + warp(to_right[between.field + 1], ahead * scale)
    left = warp(keys[between.left], _stretch(back, (height, width)))
    right = warp(keys[between.left + 1], _stretch(ahead, (height, width)))
    share = between.share.to(keys.dtype)[:, None, None, None]
    return (1 - share) * left + share * right


def _stretch(fields: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(fields, size=size, mode="bilinear", align_corners=False)


def _paths(fields: Tensor, at_key: Sequence[bool], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the content at each anchor is from its place in the key frame before, and in the one behind.

    Args:
        fields: [A - 1, 2, h, w], displacement from anchor to anchor in pixels, on the lattice.
        at_key: [A], whether an anchor is a key frame, where both are zero.
        scale: [2, 1, 1], lattice points a pixel.

    Returns: two tensors [A, 2, h, w] in pixels.
    """
    still = torch.zeros_like(fields[:1])
    to_left, to_right = [still], [still]
    for field, stop in zip(fields.split(1), at_key[1:], strict=True):
        to_left.append(still if stop else warp(to_left[-1], -field * scale) - field)
    for field, stop in zip(fields.split(1)[::-1], at_key[-2::-1], strict=True):
        to_right.append(still if stop else warp(to_right[-1], field * scale) + field)
    return torch.cat(to_left), torch.cat(to_right[::-1])
