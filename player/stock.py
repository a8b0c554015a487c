"""What a session has downloaded: segments that have not begun to play, and init segments. No I/O and no clock."""

from __future__ import annotations

from dataclasses import replace

from abr import Buffered, Ladder
from player.request import Request


class Stock:
    """Downloaded segments from their arrival to their first frame on the screen; init segments for good."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._durations_s: list[float] = ladder.segment_duration_s.tolist()
        self._segments: dict[int, tuple[int, float]] = {}  # segment -> representation, content time
        self._inits: set[int] = set()
        self.downloaded_s = 0.0
        """Content time of all segments that have arrived."""

    def __contains__(self, segment: int) -> bool:
        return segment in self._segments

    def representation(self, segment: int) -> int:
        """Return what is held of a segment."""
        return self._segments[segment][0]

    def buffered(self, played_s: float) -> tuple[Buffered, ...]:
        """Return the segments, in order of playback, when `played_s` of content time has been shown."""
        items = self._segments.items()
        return tuple([Buffered(index, held, content_s - played_s) for index, (held, content_s) in items])

    def init_bytes(self, representation: int, held: int | None) -> int:
        """Return the size of the init segments that a request needs and that are not at hand."""
        if self._ladder.init_bytes is None:
            return 0
        new = self._needed(representation, held) - self._inits
        return int(self._ladder.init_bytes[sorted(new)].sum()) if new else 0

    def whole_part(self, request: Request, received_bytes: int) -> Request | None:
        """Return the part of an unfinished request that its whole layers make up; None if there is no use for any.

        Layers arrive lowest first, each behind its init segment if that is new.
        """
        layers, held = self._ladder.layer_bytes, request.held
        if layers is None or (held is not None and request.segment not in self):
            return None
        whole, size_bytes = held, 0
        for layer in range(0 if held is None else held + 1, request.representation + 1):
            end = (
                size_bytes + int(layers[request.segment, layer]) + self.init_bytes(layer, layer - 1 if layer else None)
            )
            if end > received_bytes:
                break
            whole, size_bytes = layer, end
        return None if whole is None or whole == held else replace(request, representation=whole, size_bytes=size_bytes)

    def take_in(self, request: Request) -> None:
        """Add what a request has brought: a new segment, or an upgrade that may be too late to count."""
        segment = request.segment
        self._inits |= self._needed(request.representation, request.held)
        if request.held is None:
            self._segments[segment] = (request.representation, self.downloaded_s)
            self.downloaded_s += self._durations_s[segment]
        elif segment in self._segments:
            self._segments[segment] = (request.representation, self._segments[segment][1])

    def show(self, segment: int) -> None:
        """Note that a segment has begun to play."""
        self._segments.pop(segment, None)

    def _needed(self, representation: int, held: int | None) -> set[int]:
        """Return the representations whose init segments decode `representation`: all of its layers', or its own."""
        if self._ladder.layer_bytes is None:
            return {representation}
        return set(range(0 if held is None else held + 1, representation + 1))
