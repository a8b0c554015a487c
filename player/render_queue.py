"""What has arrived and waits to be rendered, and how fast the device turned out to be. No I/O and no clock."""

from __future__ import annotations

import math

from abr import Ladder
from player.errors import SessionError
from player.request import Delivered


class RenderQueue:
    """Segments, and upgrades of segments, from their arrival to their frames.

    New segments are rendered in order of playback, an upgrade at any time after its segment. What had not been begun
    when an upgrade of it came is rendered once.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._waiting: list[Delivered] = []
        self._free_s = -math.inf
        self._measured: float | None = None
        self.speed: float | None = None
        """Media seconds rendered per second, of the last segment that took any time; None: none did."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def media_to_come(self) -> bool:
        """Whether a segment waits that will lengthen what can be played; upgrades will not."""
        return any(item.fetched.request.held is None for item in self._waiting)

    @property
    def passes_per_s(self) -> float | None:
        """Passes of the generator per second: as measured, at first the device profile's; None: rendering is free."""
        rendering = self._ladder.rendering
        return None if rendering is None else self._measured or rendering.passes_per_s

    def backlog_s(self, now_s: float) -> float:
        """Return what the device still needs for all that waits."""
        rate = self.passes_per_s
        if rate is None or not self._waiting:
            return 0.0
        latest = {item.segment: item for item in self._waiting}
        begun_s = max(self._waiting[0].finish_s, self._free_s)
        needed_s = sum(self._passes(item) for item in latest.values()) / rate
        return max(needed_s - max(now_s - begun_s, 0.0), 0.0)

    def add(self, delivered: Delivered) -> None:
        """Take in what has arrived."""
        self._waiting.append(delivered)

    def expect(self, segment: int) -> Delivered:
        """Return a segment's oldest entry; SessionError if it has none, or another segment is to be rendered first."""
        item = next((item for item in self._waiting if item.segment == segment), None)
        new = next((item for item in self._waiting if item.fetched.request.held is None), None)
        if item is None or (item.fetched.request.held is None and item is not new):
            first = new or (self._waiting[0] if self._waiting else None)
            expected = "none" if first is None else f"segment {first.segment}"
            raise SessionError(f"segment {segment} rendered, but {expected} is waiting to be")
        return item

    def finish(self, segment: int, now_s: float) -> tuple[Delivered, float]:
        """Take out what has become frames: a segment's oldest entry. Return it and the seconds that it took."""
        item = self.expect(segment)
        self._waiting.remove(item)
        render_s = max(now_s - max(item.finish_s, self._free_s), 0.0)
        self._free_s = now_s
        if render_s > 0:
            self.speed = float(self._ladder.segment_duration_s[segment]) / render_s
            # A version merged with its upgrade says nothing: which of the two was rendered, the driver alone knows.
            if self._ladder.rendering is not None and all(other.segment != segment for other in self._waiting):
                self._measured = self._passes(item) / render_s
        return item, render_s

    def _passes(self, item: Delivered) -> float:
        request, rendering = item.fetched.request, self._ladder.rendering
        return 0.0 if rendering is None else float(rendering.passes[item.segment, request.representation, request.mode])
