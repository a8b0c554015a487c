"""The playout half of a session: what is rendered, what is shown when, startup and rebuffering. No I/O and no clock.

Media is counted on two lines. *Programme time* is where a segment lies in the programme. *Content time* leaves out
skipped segments, so it grows by exactly one second per second of playback: the playhead is the content time shown.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, replace

from player.errors import SessionError
from player.events import (
    ConcealmentEnded,
    ConcealmentStarted,
    Event,
    PlaybackEnded,
    PlaybackStarted,
    RebufferingEnded,
    RebufferingStarted,
    RepresentationSwitched,
    SegmentPlayed,
)

MEDIA_TOLERANCE_S = 1e-9
"""Amounts of media this close are equal: sums of floating-point durations differ by less."""
CLOCK_TOLERANCE_S = 1e-6
"""How far a driver's clock may step back without complaint: links count in whole microseconds."""


class PlaybackState(enum.Enum):
    """What the viewer sees."""

    STARTUP = "startup"
    PLAYING = "playing"
    CONCEALING = "concealing"
    REBUFFERING = "rebuffering"
    ENDED = "ended"


@dataclass(frozen=True)
class Span:
    """An uninterrupted stretch of playback."""

    wall_s: float
    """Session time at which it began."""
    content_s: float
    """Content time at which it began."""


@dataclass(frozen=True)
class _Queued:
    """A rendered segment whose first frame has not been shown."""

    content_s: float
    segment: int
    representation: int


class Playback:
    """Playhead and rendered media. The session tells it the time, what was rendered, and when it may start."""

    def __init__(self, start_s: float, *, conceal_s: float = 0.0) -> None:
        """Args: conceal_s: how long a stop may be filled with made-up frames before it is rebuffering."""
        self.start_s = start_s
        self._conceal_s = conceal_s
        self.now_s = start_s
        self.state = PlaybackState.STARTUP
        self.played_s = 0.0
        self.rendered_s = 0.0
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self._startup_delay_s: float | None = None
        self._ended_stops_s: list[float] = []
        self._stop_start_s = 0.0
        self._closed = False
        self._queue: deque[_Queued] = deque()
        self._last: _Queued | None = None
        self._awaited = 0

    @property
    def playable_s(self) -> float:
        """Rendered media not yet shown."""
        return max(self.rendered_s - self.played_s, 0.0)

    @property
    def startup_delay_s(self) -> float:
        """Seconds before the first frame; until then, and if there never is one, all of the time so far."""
        return self.now_s - self.start_s if self._startup_delay_s is None else self._startup_delay_s

    @property
    def rebuffered_s(self) -> float:
        """Seconds that playback stood still after it had begun, an unfinished stop included."""
        return sum(self._rebuffered_part_s(stop_s) for stop_s in self._stops_s())

    @property
    def concealed_s(self) -> float:
        """Seconds filled with made-up frames while the media was late."""
        return sum(self._stops_s()) - self.rebuffered_s

    def advance(self, now_s: float) -> None:
        """Let time pass: show what can be shown, and note when it ran out."""
        if not now_s >= self.now_s - CLOCK_TOLERANCE_S:  # also refuses NaN
            raise SessionError(f"time went backwards: {now_s:.6f} s after {self.now_s:.6f} s")
        if self.state is PlaybackState.ENDED:
            return
        now_s = max(now_s, self.now_s)
        if self.state is PlaybackState.CONCEALING:
            self._stop_concealing(now_s)
        if self.state is PlaybackState.PLAYING:
            now_s = self._play(now_s)
        self.now_s = now_s

    def _play(self, now_s: float) -> float:
        """Let playback run until `now_s`; return the time then, which is earlier if the programme ends before."""
        span, rendered_s = self.spans[-1], self.rendered_s
        reach_s = span.content_s + (now_s - span.wall_s)
        played_s = min(reach_s, rendered_s)
        self._show(played_s)
        if reach_s < rendered_s - MEDIA_TOLERANCE_S:
            self.played_s = played_s
            return now_s
        run_out_s = span.wall_s + (rendered_s - span.content_s)
        if self._closed:
            self.played_s = rendered_s
            now_s = max(run_out_s, self.now_s)
            self._end(now_s)
        elif reach_s > rendered_s + MEDIA_TOLERANCE_S:
            self.played_s = rendered_s
            self._stop_start_s = min(run_out_s, now_s)
            self.state = PlaybackState.CONCEALING
            if self._conceal_s > 0:
                self.events.append(ConcealmentStarted(self._stop_start_s, self._awaited))
            self._stop_concealing(now_s)
        else:
            self.played_s = played_s
        return now_s

    def append(self, segment: int, representation: int, duration_s: float) -> float:
        """Add a rendered segment behind the others; return the content time at which it begins."""
        content_s = self.rendered_s
        self._queue.append(_Queued(content_s, segment, representation))
        self.rendered_s += duration_s
        self._awaited = segment + 1
        return content_s

    def upgrade(self, segment: int, representation: int) -> bool:
        """Show a segment in another version of it; False if its first frame has been shown already."""
        for place, item in enumerate(self._queue):
            if item.segment == segment:
                self._queue[place] = replace(item, representation=representation)
                return True
        return False

    def close(self) -> None:
        """Say that no more media will come."""
        self._closed = True
        if self.state is not PlaybackState.PLAYING and self.playable_s <= MEDIA_TOLERANCE_S:
            self._end(self.now_s)
        else:
            self.advance(self.now_s)

    def start(self) -> None:
        """Begin or resume playback now."""
        now_s, first = self.now_s, self._queue[0].segment if self._queue else None
        if self.state is PlaybackState.STARTUP:
            self._startup_delay_s = now_s - self.start_s
            self.events.append(PlaybackStarted(now_s, first, self._startup_delay_s))
        else:
            self._finish_stop(now_s)
        self.state = PlaybackState.PLAYING
        self.spans.append(Span(now_s, self.played_s))
        self._show(self.played_s)

    def _show(self, content_s: float) -> None:
        """Note each segment whose first frame comes at or before `content_s`."""
        queue, span = self._queue, self.spans[-1]
        while queue and queue[0].content_s <= content_s:
            item = queue.popleft()
            time_s = span.wall_s + (item.content_s - span.content_s)
            last, self._last = self._last, item
            if last is not None and last.representation != item.representation:
                switched = RepresentationSwitched(time_s, item.segment, last.representation, item.representation)
                self.events.append(switched)
            self.events.append(SegmentPlayed(time_s, item.segment, item.representation))

    def _stops_s(self) -> list[float]:
        """Return how long each stop lasted, the present one included."""
        stopped = self.state in (PlaybackState.CONCEALING, PlaybackState.REBUFFERING)
        return [*self._ended_stops_s, self.now_s - self._stop_start_s] if stopped else self._ended_stops_s

    def _rebuffered_part_s(self, stop_s: float) -> float:
        """Return how much of a stop of `stop_s` was not concealed."""
        return max(stop_s - self._conceal_s, 0.0)

    def _stop_concealing(self, now_s: float) -> None:
        """Stand still from the moment on at which the stop has been concealed as long as may be."""
        if now_s - self._stop_start_s >= self._conceal_s:
            end_s = self._stop_start_s + self._conceal_s
            if self._conceal_s > 0:
                self.events.append(ConcealmentEnded(end_s, self._awaited, self._conceal_s))
            self.state = PlaybackState.REBUFFERING
            self.events.append(RebufferingStarted(end_s, self._awaited))

    def _finish_stop(self, now_s: float) -> None:
        """Note the end of a stop."""
        stop_s, awaited = now_s - self._stop_start_s, self._queue[0].segment if self._queue else None
        self._ended_stops_s.append(stop_s)
        if self.state is PlaybackState.REBUFFERING:
            self.events.append(RebufferingEnded(now_s, awaited, self._rebuffered_part_s(stop_s)))
        else:
            self.events.append(ConcealmentEnded(now_s, awaited, stop_s))

    def _end(self, time_s: float) -> None:
        """Note the end of the programme."""
        if self.state in (PlaybackState.CONCEALING, PlaybackState.REBUFFERING):
            self._finish_stop(time_s)
        elif self.state is PlaybackState.STARTUP:
            self._startup_delay_s = time_s - self.start_s
        self.state = PlaybackState.ENDED
        self.events.append(PlaybackEnded(time_s, self._last.segment if self._last else None))
