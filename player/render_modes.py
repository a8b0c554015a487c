"""Render modes: which frames of a prompt segment a slow device makes, and what that costs. No torch.

    full    every frame
    half    every second frame, shown twice
    third   every third frame, shown three times
    keys    the key frames alone, each shown until the next, the first from the start

Costs are in passes (`abr.rendering`). With motion the generator makes the key frames, and every frame that is shown
costs a warp; without it every frame that is shown costs a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abr import Ladder, Rendering
from player.bitstream import Segment, read_init, read_segment
from player.presentation import Presentation
from player.prompt_stream import key_neighbours

MODES = ("full", "half", "third", "keys")
_STEPS = {"full": 1, "half": 2, "third": 3}


@dataclass(frozen=True)
class Device:
    """What a viewer's device does."""

    frames_per_s: float
    """Frames per second with the whole generator: passes per second."""
    warp_cost: float
    """Cost of a warped frame in passes."""


def shown_frames(segment: Segment, mode: str) -> np.ndarray:
    """Return which frame of a segment stands on the screen at each of its T frame times, int64 [T]."""
    places = np.arange(segment.frames)
    if mode in _STEPS:
        return places // _STEPS[mode] * _STEPS[mode]
    keys = key_frames(segment)
    return keys[np.maximum(np.searchsorted(keys, places, side="right") - 1, 0)]


def key_frames(segment: Segment) -> np.ndarray:
    """Return the frames that key prompts stand at, int64 [K]; one behind the segment's end is left out."""
    return segment.offsets[segment.offsets < segment.frames]


def count_work(segment: Segment, mode: str) -> tuple[int, int]:
    """Return how many frames the generator makes and how many are warped."""
    made = np.unique(shown_frames(segment, mode))
    if segment.motion is None:
        return len(made), 0
    if mode == "keys":
        return len(made), 0
    needed = key_neighbours(segment.offsets, made, int(segment.all_anchors[-1]), segment.cuts)
    return len(np.unique(needed)), len(made)


def rendering_of(
    prompts: Presentation, device: Device, quality: np.ndarray | None, modes: Sequence[str] = MODES
) -> Rendering:
    """Return what rendering a package of prompts costs on a device.

    Args:
        prompts: an independent ladder of prompts.
        quality: [S, R, M] measured quality of each mode, or None.
    """
    shape = (prompts.segments, len(prompts.representations), len(modes))
    passes, rates = np.empty(shape), np.empty(shape)
    for rung in range(shape[1]):
        info = read_init(prompts.read_init(rung))
        for number in range(shape[0]):
            segment = read_segment(info, prompts.read_segment(number, rung))
            duration_s = segment.frames / float(prompts.manifest.fps)
            for place, mode in enumerate(modes):
                generated, warped = count_work(segment, mode)
                passes[number, rung, place] = generated + device.warp_cost * warped
                rates[number, rung, place] = len(np.unique(shown_frames(segment, mode))) / duration_s
    return Rendering(device.frames_per_s, tuple(modes), passes, rates, quality)


def with_rendering(ladder: Ladder, rendering: Rendering) -> Ladder:
    """Return a programme's ladder with what rendering costs; a clip's costs are repeated as the clip is."""
    from dataclasses import replace

    index = np.arange(ladder.segments) % rendering.shape[0]
    quality = None if rendering.quality is None else rendering.quality[index]
    passes, rates = rendering.passes[index], rendering.frame_rate[index]
    return replace(ladder, rendering=replace(rendering, passes=passes, frame_rate=rates, quality=quality))
