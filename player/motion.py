"""Motion between key prompts: rendered key frames, warped along coarse fields and blended, make the frames between.

Interpolating prompts, as the paper does, fades one picture into the next: what moves is seen twice. Here only the key
frames are rendered. Coarse fields say how far the content moves from each *anchor* to the next; anchors are the key
frames and frames between them. A frame is the blend of the key frames around it, each warped along the fields that lie
between (bilateral motion compensation, as in frame-rate conversion). Fields cost far fewer bytes than prompts, so there
are more of them: content may turn and speed up between two key prompts. Before the first key frame of a scene, and
behind its last one, a frame is that one alone, warped: key frames stand in the middle of what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from player.prompt import dequantize
from player.prompt_stream import Segment, key_neighbours
from player.prompt_stream import motion_anchors as motion_anchors

CELL_PX = 32
"""Side in pixels of the square that one vector stands for, its neighbours' being blended in bilinearly."""
_LATTICE_PX = 4  # paths are followed on a lattice this wide, which bends far less than a cell, and stretched


def motion_grid(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the motion field of frames of a size in pixels."""
    return max(1, round(height / CELL_PX)), max(1, round(width / CELL_PX))


def motion_fields(segment: Segment, device: torch.device) -> Tensor:
    """Return the motion [A - 1, 2, rows, columns] of a segment that has it, in pixels of the generated frame."""
    assert segment.motion is not None
    codes = torch.from_numpy(segment.motion).to(device)
    return dequantize(codes, torch.tensor(segment.motion_step_px, device=device))


@dataclass(frozen=True)
class Route:
    """In which order the content at anchors is followed to key frames: at all anchors next to one at once, then at
    those behind them, and so on. Places 0 .. A - 1 are the anchors on the way to the key frame before them, places
    A .. 2 A - 1 the anchors, last one first, on the way to the key frame behind. A way that no key frame lies on ends
    at the first or the last anchor; nobody asks for it."""

    levels: tuple[tuple[Tensor, Tensor], ...]
    """Of each further step from key frames two int64 [n]: through which of the last step's places, counted there, each
    of this step's places is reached, and those places themselves."""
    order: Tensor
    """int64 [2 A], where each place is among those of the key frames and then of all levels."""

    @classmethod
    def of(cls, at_key: np.ndarray) -> Route:
        """Plan for anchors of which `at_key` [A] says whether they are key frames."""
        starts = np.concatenate([at_key, at_key[::-1]])
        starts[[0, len(at_key)]] = True
        places = np.arange(len(starts))
        away = places - np.maximum.accumulate(np.where(starts, places, 0))  # anchors from the key frame
        levels = [np.flatnonzero(away == level) for level in range(away.max() + 1)]
        steps = [
            (torch.from_numpy(np.searchsorted(before, here - 1)), torch.from_numpy(here))
            for before, here in pairwise(levels)
        ]
        return cls(tuple(steps), torch.from_numpy(np.argsort(np.concatenate(levels))))

    def to(self, device: torch.device) -> Route:
        """Return the same route on a device."""
        levels = tuple((before.to(device), here.to(device)) for before, here in self.levels)
        return Route(levels, self.order.to(device))


@dataclass(frozen=True)
class Between:
    """Where each of n frames lies between the key prompts of its scene, and between its two anchors."""

    left: Tensor
    """int64 [n], index of the key prompt at or before the frame (before it at the last anchor); the one behind it if
    there is none."""
    right: Tensor
    """int64 [n], index of the key prompt behind the frame; the left one if there is none."""
    share: Tensor
    """float32 [n], 0 at the left key prompt and behind the last, 1 at the right one and before the first."""
    field: Tensor
    """int64 [n], index of the anchor at or before the frame, likewise, and of the field that starts there."""
    part: Tensor
    """float32 [n], 0 at that anchor, 1 at the next one."""
    route: Route
    """From anchors to key frames."""

    @classmethod
    def of(
        cls,
        offsets: np.ndarray,
        frames: int,
        anchors: Sequence[int] | np.ndarray = (),
        cuts: Sequence[int] | np.ndarray = (),
    ) -> Between:
        """Place the frames 0 .. frames - 1 between key prompts at frame `offsets` [K].

        Args:
            anchors: frames [A] that a motion field starts or ends at, A >= 2, the key frames among them; without any,
                the key frames.
            cuts: frames that open a new scene, rising; every scene has a key prompt. A frame is made of those of its
                own scene alone.
        """
        stops = np.asarray(anchors) if len(anchors) else offsets
        positions = np.arange(frames)
        left, right = key_neighbours(offsets, positions, stops[-1], cuts)
        share = (positions - offsets[left]) / np.maximum(offsets[right] - offsets[left], 1)
        only_right = (offsets[left] > positions) | (offsets[left] >= stops[-1])  # of a key prompt alone
        share = np.where(left < right, share, only_right).astype(np.float32)
        field = np.clip(np.searchsorted(stops, positions, side="right") - 1, 0, len(stops) - 2)
        part = ((positions - stops[field]) / (stops[field + 1] - stops[field])).astype(np.float32)
        made = [torch.from_numpy(values) for values in (left, right, share, field, part)]
        return cls(made[0], made[1], made[2], made[3], made[4], Route.of(np.isin(stops, offsets)))

    def to(self, device: torch.device) -> Between:
        """Return the same places on a device."""
        left, right, share, field, part = (place.to(device) for place in self._places)
        return Between(left, right, share, field, part, self.route.to(device))

    def __getitem__(self, chosen: Tensor) -> Between:
        """Return the places of some of the frames."""
        left, right, share, field, part = (place[chosen] for place in self._places)
        return Between(left, right, share, field, part, self.route)

    @property
    def _places(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.left, self.right, self.share, self.field, self.part


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
    """Return the frames [n, C, H, W] that lie between key frames, or beside them.

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
    if between.route.levels:
        to_left, to_right = _paths(fields, between.route, scale)
        back = back + warp(to_left[between.field], back * scale)
        ahead = ahead + warp(to_right[between.field + 1], ahead * scale)
    left = warp(keys[between.left], _stretch(back, (height, width)))
    right = warp(keys[between.right], _stretch(ahead, (height, width)))
    share = between.share.to(keys.dtype)[:, None, None, None]
    return (1 - share) * left + share * right


def _stretch(fields: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(fields, size=size, mode="bilinear", align_corners=False)


def _paths(fields: Tensor, route: Route, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the content at each anchor is from its place in the key frame before, and in the one behind.

    Args:
        fields: [A - 1, 2, h, w], displacement from anchor to anchor in pixels, on the lattice.
        route: from anchors to key frames.
        scale: [2, 1, 1], lattice points a pixel.

    Returns: two tensors [A, 2, h, w] in pixels; zero at key frames. Of no use where there is no key frame on the way.
    """
    still = torch.zeros_like(fields[:1])
    steps = torch.cat([still, -fields, still, fields.flip(0)])  # that lead to each place
    starts = len(route.order) - sum(len(here) for _, here in route.levels)
    reached = [still.expand(starts, -1, -1, -1)]
    for before, here in route.levels:
        step = steps[here]
        reached.append(warp(reached[-1][before], step * scale) + step)
    to_left, to_right = torch.cat(reached)[route.order].chunk(2)
    return to_left, to_right.flip(0)
