"""The renderer: decodes segments and says how long each took, so that slow rendering can count as rebuffering."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from player.decoder import Decoder


@dataclass(frozen=True)
class RenderedSegment:
    """Frames of one segment and what they cost."""

    frames: np.ndarray  # [T, H, W, 3] uint8
    render_s: float  # seconds of wall clock, host copy included


@dataclass
class Renderer:
    """Renders whole segments, one batch each, and keeps their times.

    `clock` returns seconds; tests pass their own. Decoding ends in host memory, so a device's queue is drained by then
    and the time is whole.
    """

    clock: Callable[[], float] = time.perf_counter
    frames: int = 0
    """Frames rendered so far."""
    busy_s: float = 0.0
    """Seconds spent on them."""
    times_s: list[float] = field(default_factory=list)
    """Seconds of each segment, in order."""

    def render(self, decoder: Decoder, segment: bytes) -> RenderedSegment:
        """Decode one segment's bytes and time it."""
        began = self.clock()
        frames = decoder.decode(segment)
        taken = self.clock() - began
        self.frames += len(frames)
        self.busy_s += taken
        self.times_s.append(taken)
        return RenderedSegment(frames, taken)

    @property
    def frames_per_s(self) -> float | None:
        """Mean speed in frames/s, None before the first segment."""
        return self.frames / self.busy_s if self.busy_s > 0 else None
