"""What a session knows between two calls, and when playback starts, stops and ends. No I/O and no clock.

The viewer sees a `Playback`; it starts, or resumes, once enough is rendered, or when nothing more can come before it
plays. The session asks its controller by the same knowledge (`player.choices`).
"""

from __future__ import annotations

import logging
import math

from abr import Ladder
from player.config import PlayerConfig
from player.errors import SessionError
from player.events import Event, SegmentPlayed
from player.log import SegmentRow
from player.meter import LinkMeter
from player.playback import MEDIA_TOLERANCE_S, Playback, PlaybackState
from player.render_queue import RenderQueue
from player.request import InFlight, Pending
from player.stock import Stock

log = logging.getLogger(__name__)


class SessionState:
    """A session's clock, what it has downloaded, what is under way, and one row for each segment so far."""

    def __init__(self, ladder: Ladder, config: PlayerConfig) -> None:
        self.ladder, self.config = ladder, config
        self.durations_s: list[float] = ladder.segment_duration_s.tolist()
        self.segments = len(self.durations_s)
        longest_s = max(self.durations_s)
        self.capacity_s = max(config.buffer_s, longest_s)
        """The buffer cap, or the longest segment, if that is longer."""
        if longest_s > config.buffer_s:
            log.warning(
                "segments of %.2f s do not fit in player.buffer_s=%g: each one will rebuffer",
                longest_s,
                config.buffer_s,
            )
        self.playback: Playback | None = None  # made by `begin`, which starts the clock
        self.stock = Stock(ladder)
        self.rendering = RenderQueue(ladder)
        self.meter = LinkMeter()
        self.segment = 0
        """The next one to be downloaded."""
        self.pending: Pending | None = None
        self.in_flight: InFlight | None = None
        self.rows: list[SegmentRow] = []
        self._seen_events = 0

    # The clock, and what the viewer sees.

    def begin(self, now_s: float) -> None:
        """Start the session's clock, unless it runs."""
        if self.playback is None:
            if not math.isfinite(now_s):
                raise SessionError(f"a session cannot start at {now_s} s")
            self.playback = Playback(now_s, conceal_s=self.config.conceal_s)

    @property
    def clock(self) -> Playback:
        """The playback, which keeps the time."""
        if self.playback is None:
            raise SessionError("the session has not begun: call next_action first")
        return self.playback

    @property
    def viewer(self) -> PlaybackState:
        """What the viewer sees."""
        return PlaybackState.STARTUP if self.playback is None else self.playback.state

    @property
    def buffer_s(self) -> float:
        """Media downloaded and not yet played, rendered or not, in [0, capacity_s]."""
        return max(self.stock.downloaded_s - self.clock.played_s, 0.0) if self.playback else 0.0

    def advance(self, now_s: float) -> None:
        """Let playback run up to `now_s` and note in the segments' rows when they began to play."""
        if not math.isfinite(now_s):
            raise SessionError(f"time must be finite, not {now_s}")
        clock = self.clock
        clock.advance(now_s)
        if len(clock.events) > self._seen_events:
            self._note_plays()

    def note(self, event: Event) -> None:
        """Log an event; what becomes of an upgrade under way after the end is no part of the session."""
        if self.clock.state is not PlaybackState.ENDED:
            self.clock.events.append(event)

    def _note_plays(self) -> None:
        events = self.clock.events
        for event in events[self._seen_events :]:
            if isinstance(event, SegmentPlayed) and event.segment is not None:
                self.rows[event.segment].play_start_s = event.time_s
                self.stock.show(event.segment)
        self._seen_events = len(events)

    # When playback starts, stops and ends.

    def excess_s(self) -> float:
        """Return how much media must play before the next segment fits; not positive if it fits."""
        return self.buffer_s + self.durations_s[self.segment] - self.capacity_s

    def runs_dry(self) -> bool:
        """Say whether the viewer has seen all there is, and nothing is being rendered."""
        begun = self.clock.state is not PlaybackState.STARTUP
        return begun and not self.rendering and self.clock.playable_s <= MEDIA_TOLERANCE_S

    def settle(self) -> None:
        """After media was added or given up: start, resume or end playback if it is time."""
        if self.clock.state is PlaybackState.ENDED:
            return
        if self.segment == self.segments and not self._media_to_come():
            self.clock.close()
            self._note_plays()
        self.try_start()

    def try_start(self) -> None:
        """Start or resume playback if enough is rendered, or if no more can come before it plays."""
        clock = self.clock
        if clock.state in (PlaybackState.PLAYING, PlaybackState.ENDED):
            return
        threshold_s = self.config.startup_s if clock.state is PlaybackState.STARTUP else self.config.rebuffer_s
        if clock.playable_s <= MEDIA_TOLERANCE_S:
            return
        idle = not self._media_to_come() and (self.pending is None or self.pending.held is not None)
        stuck = idle and (self.segment == self.segments or self.excess_s() > MEDIA_TOLERANCE_S)
        if stuck or clock.playable_s >= threshold_s - MEDIA_TOLERANCE_S:
            clock.start()
            self._note_plays()

    def _media_to_come(self) -> bool:
        """Say whether a segment is on its way that will lengthen what can be played; upgrades will not."""
        if self.in_flight is not None and self.in_flight.request.held is None:
            return True
        return self.rendering.media_to_come
