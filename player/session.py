"""A playback session as a state machine: it is told the time and what arrived, and says what to do next.

No I/O and no clock, so a virtual-time simulator and a real client drive the same object:

    action = session.next_action(now_s)      Request: fetch it;  Wait: come back then or at the next event;  Finished
    session.on_progress(now_s, bytes, ...)   so much has arrived; True: cancel the transfer and ask for the next action
    session.on_complete(now_s, transfer)     the request's last byte arrived
    session.on_error(now_s, reason, ...)     it failed or timed out
    session.on_rendered(now_s, segment)      the downloaded segment became frames; only then can it be shown

Rules. One request at a time. A segment is requested when it fits under the buffer cap together with everything
downloaded and not yet played, rendered or not; one longer than the cap is requested when the buffer is empty. A failed
request is repeated `retries` times with growing pauses, then as often at the lowest representation (hls.js's emergency
switch); then the segment is skipped and playback jumps the gap (dash.js): its time counts as neither played nor
rebuffered. Always: startup + played + rebuffered = elapsed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from abr import (
    Abandoning,
    Abr,
    AbrError,
    Decision,
    Ladder,
    Observation,
    Progress,
    SlowStartEstimator,
    ThroughputSample,
)
from player.config import PlayerConfig
from player.errors import SessionError
from player.events import Event, RequestAbandoned, RequestFailed, SegmentPlayed, SegmentSkipped
from player.log import SegmentRow, SessionLog, build_log
from player.playback import CLOCK_TOLERANCE_S, MEDIA_TOLERANCE_S, Playback, PlaybackState

log = logging.getLogger(__name__)

SAMPLE_HISTORY = 64
"""Transfers a controller gets to see."""
MAX_BACKOFF_S = 60.0
"""Longest pause between two attempts."""


@dataclass(frozen=True)
class Request:
    """Fetch this segment now; report within `timeout_s`."""

    segment: int
    representation: int
    size_bytes: int
    """Bytes to fetch: the segment and, if the representation is used for the first time, its init segment."""
    timeout_s: float


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_s` (may be infinite) unless something arrives earlier."""

    until_s: float


@dataclass(frozen=True)
class Finished:
    """The session is over."""


Action = Request | Wait | Finished


class TransferLike(Protocol):
    """What a driver reports of a finished download; `emulator.Transfer` is one."""

    @property
    def request_s(self) -> float: ...
    @property
    def first_byte_s(self) -> float: ...
    @property
    def finish_s(self) -> float: ...
    @property
    def size_bytes(self) -> int: ...


@dataclass
class _Pending:
    """The segment to fetch next, as decided, and how the attempts at it went."""

    segment: int
    representation: int
    not_before_s: float
    failures: int = 0


@dataclass(frozen=True)
class _InFlight:
    request: Request
    sent_s: float


class Session:
    """One viewer watching one programme; see the module's docstring for the protocol."""

    def __init__(self, ladder: Ladder, abr: Abr, config: PlayerConfig | None = None) -> None:
        self.ladder = ladder
        self.config = config or PlayerConfig()
        self._abr = abr
        longest_s = float(ladder.segment_duration_s.max())
        self.capacity_s = max(self.config.buffer_s, longest_s)
        if longest_s > self.config.buffer_s:
            log.warning(
                "segments of %.2f s do not fit in player.buffer_s=%g: each one will rebuffer",
                longest_s,
                self.config.buffer_s,
            )
        self._playback: Playback | None = None  # made at the first next_action, which starts the clock
        self._downloaded_s = 0.0  # content time
        self._segment = 0
        self._pending: _Pending | None = None
        self._in_flight: _InFlight | None = None
        self._rendering: deque[int] = deque()
        self._samples: deque[ThroughputSample] = deque(maxlen=SAMPLE_HISTORY)
        self._last_representation: int | None = None
        self._have_init: set[int] = set()
        self._rows: list[SegmentRow] = []
        self._render_free_s = -math.inf
        self._render_speed: float | None = None
        self._estimator = SlowStartEstimator()
        self._seen_events = 0

    # What a driver may ask.

    @property
    def state(self) -> PlaybackState:
        """What the viewer sees."""
        return PlaybackState.STARTUP if self._playback is None else self._playback.state

    @property
    def buffer_s(self) -> float:
        """Media downloaded and not yet played, rendered or not, in [0, capacity_s]."""
        return max(self._downloaded_s - self._clock.played_s, 0.0) if self._playback else 0.0

    @property
    def playable_s(self) -> float:
        """Media rendered and not yet played."""
        return self._playback.playable_s if self._playback else 0.0

    @property
    def wants_progress(self) -> bool:
        """Whether reports of progress can change anything; a simulator need not step without it."""
        return isinstance(self._abr, Abandoning)

    def events(self) -> list[Event]:
        """Return everything that happened so far, in order of time."""
        return list(self._playback.events) if self._playback else []

    def log(self) -> SessionLog:
        """Return the session's tables and summary up to now."""
        return build_log(self._rows, self._clock, self.ladder)

    # What a driver reports.

    def next_action(self, now_s: float) -> Action:
        """Say what to do at `now_s`. The first call starts the session's clock."""
        if self._playback is None:
            if not math.isfinite(now_s):
                raise SessionError(f"a session cannot start at {now_s} s")
            self._playback = Playback(now_s)
        self._advance(now_s)
        now_s = self._playback.now_s
        if self._playback.state is PlaybackState.ENDED:
            return Finished()
        if self._in_flight is not None:
            return Wait(max(self._in_flight.sent_s + self.config.timeout_s, now_s))
        if self._segment == self.ladder.segments:
            return self._wait_for_playback(now_s)
        if self._pending is None:
            excess_s = self._excess_s()
            if excess_s > MEDIA_TOLERANCE_S:
                self._try_start()
                return Wait(now_s + excess_s if self._playback.state is PlaybackState.PLAYING else math.inf)
            self._pending = self._decide(now_s)
        if now_s < self._pending.not_before_s:
            return Wait(self._pending.not_before_s)
        return self._send(now_s, self._pending)

    def on_progress(self, now_s: float, received_bytes: int, *, first_byte_s: float | None = None) -> bool:
        """Take in how much of the answer has arrived; return whether the request is given up.

        If so, the driver cancels the transfer and calls next_action, which asks for the segment in the representation
        that the controller named. What had arrived is thrown away, but counted, and a measurement of the link if
        `first_byte_s`, the arrival of its first byte, is known.
        """
        in_flight = self._expect_in_flight("on_progress")
        request, pending = in_flight.request, self._expect_pending()
        if not 0 <= received_bytes <= request.size_bytes:
            raise SessionError(f"{received_bytes} bytes received of {request.size_bytes}")
        self._advance(now_s)
        if not isinstance(self._abr, Abandoning) or received_bytes == request.size_bytes:
            return False
        progress = Progress(
            observation=self._observe(request.segment),
            representation=request.representation,
            size_bytes=request.size_bytes,
            received_bytes=received_bytes,
            request_s=in_flight.sent_s,
            first_byte_s=first_byte_s,
        )
        target = self._abr.abandon(progress)
        if target is None:
            return False
        if target not in range(request.representation):
            name = type(self._abr).__name__
            raise AbrError(f"controller {name} abandons representation {request.representation} for {target!r}")
        self._throw_away(received_bytes, first_byte_s)
        self._rows[request.segment].abandonments += 1
        event = RequestAbandoned(self._clock.now_s, request.segment, request.representation, received_bytes)
        self._clock.events.append(event)
        pending.representation = int(target)
        return True

    def on_complete(self, now_s: float, transfer: TransferLike) -> None:
        """Take in the answer to the request in flight, whole."""
        in_flight = self._expect_in_flight("on_complete")
        request = in_flight.request
        if transfer.size_bytes != request.size_bytes:
            raise SessionError(f"{transfer.size_bytes} bytes arrived, but {request.size_bytes} were requested")
        if transfer.finish_s > now_s + CLOCK_TOLERANCE_S or transfer.request_s < in_flight.sent_s - CLOCK_TOLERANCE_S:
            raise SessionError(
                f"{transfer} does not lie between its request at {in_flight.sent_s} s and now, {now_s} s"
            )
        try:
            sample = ThroughputSample(transfer.size_bytes, transfer.request_s, transfer.first_byte_s, transfer.finish_s)
        except AbrError as error:
            raise SessionError(f"impossible transfer: {error}") from error
        self._advance(now_s)
        self._samples.append(sample)
        row = self._rows[request.segment]
        row.first_byte_s, row.finish_s = transfer.first_byte_s, transfer.finish_s
        row.downloaded = True
        self._have_init.add(request.representation)
        self._downloaded_s += float(self.ladder.segment_duration_s[request.segment])
        self._last_representation = request.representation
        self._rendering.append(request.segment)
        self._in_flight, self._pending = None, None
        self._segment += 1

    def on_error(
        self, now_s: float, reason: str, received_bytes: int = 0, *, first_byte_s: float | None = None
    ) -> None:
        """Take in that the request in flight failed; `reason` is "timeout" if it took too long.

        Args:
            received_bytes: what had arrived; thrown away, but counted, and a measurement of the link if
                `first_byte_s`, the arrival of its first byte, is known.
        """
        in_flight = self._expect_in_flight("on_error")
        request, pending = in_flight.request, self._expect_pending()
        if not 0 <= received_bytes <= request.size_bytes:
            raise SessionError(f"{received_bytes} bytes received of {request.size_bytes}")
        self._advance(now_s)
        self._throw_away(received_bytes, first_byte_s)
        row = self._rows[request.segment]
        self._clock.events.append(RequestFailed(self._clock.now_s, request.segment, reason, received_bytes))
        pending.failures += 1
        pause_s = min(self.config.backoff_s * 2.0 ** min(pending.failures - 1, 60), MAX_BACKOFF_S)
        if pending.failures > self.config.retries:
            if pending.representation == 0:
                self._skip(request.segment)
                return
            pending.representation, pending.failures, pause_s = 0, 0, min(self.config.backoff_s, MAX_BACKOFF_S)
        row.retries += 1
        pending.not_before_s = self._clock.now_s + pause_s

    def on_rendered(self, now_s: float, segment: int) -> None:
        """Take in that the oldest downloaded segment is rendered, so that it can be shown."""
        if not self._rendering or self._rendering[0] != segment:
            expected = f"segment {self._rendering[0]}" if self._rendering else "none"
            raise SessionError(f"segment {segment} rendered, but {expected} is waiting to be")
        self._advance(now_s)
        now_s = self._clock.now_s
        self._rendering.popleft()
        row = self._rows[segment]
        duration_s = float(self.ladder.segment_duration_s[segment])
        begin_s = self._render_free_s if row.finish_s is None else max(row.finish_s, self._render_free_s)
        render_s = now_s - begin_s
        self._render_speed = duration_s / render_s if render_s > 0 else None
        self._render_free_s = now_s
        row.rendered_s, row.render_s = now_s, max(render_s, 0.0)
        row.content_start_s = self._clock.append(segment, row.representation, duration_s)
        self._settle()

    # How it decides.

    @property
    def _clock(self) -> Playback:
        if self._playback is None:
            raise SessionError("the session has not begun: call next_action first")
        return self._playback

    def _advance(self, now_s: float) -> None:
        """Let playback run up to `now_s` and note in the segments' rows when they began to play."""
        if not math.isfinite(now_s):
            raise SessionError(f"time must be finite, not {now_s}")
        self._clock.advance(now_s)
        self._note_plays()

    def _note_plays(self) -> None:
        events = self._clock.events
        for event in events[self._seen_events :]:
            if isinstance(event, SegmentPlayed) and event.segment is not None:
                self._rows[event.segment].play_start_s = event.time_s
        self._seen_events = len(events)

    def _expect_in_flight(self, caller: str) -> _InFlight:
        if self._in_flight is None:
            raise SessionError(f"{caller} without a request in flight")
        return self._in_flight

    def _expect_pending(self) -> _Pending:
        if self._pending is None:
            raise SessionError("a request without a decision")
        return self._pending

    def _throw_away(self, received_bytes: int, first_byte_s: float | None) -> None:
        """End the request in flight without a segment; count and measure what had arrived."""
        in_flight, self._in_flight = self._expect_in_flight("the end of a request"), None
        self._rows[in_flight.request.segment].wasted_bytes += received_bytes
        if first_byte_s is not None and received_bytes > 0:
            times_s = (in_flight.sent_s, first_byte_s, self._clock.now_s)
            try:
                self._samples.append(ThroughputSample(received_bytes, *times_s, complete=False))
            except AbrError as error:
                raise SessionError(f"impossible transfer: {error}") from error

    def _excess_s(self) -> float:
        """Return how much media must play before the next segment fits; not positive if it fits."""
        return self.buffer_s + float(self.ladder.segment_duration_s[self._segment]) - self.capacity_s

    def _wait_for_playback(self, now_s: float) -> Wait:
        """All is downloaded: come back when what is rendered has played."""
        playable_s = self._clock.playable_s
        if self._clock.state is PlaybackState.PLAYING and playable_s > MEDIA_TOLERANCE_S:
            return Wait(now_s + playable_s)
        return Wait(math.inf)

    def _decide(self, now_s: float) -> _Pending:
        """Ask the controller for the next segment's representation and open its row."""
        observation = self._observe(self._segment)
        decision = self._checked(self._abr.choose(observation))
        # Waiting may not be what drains the buffer, nor prolong a startup or a stop.
        wait_s = min(decision.wait_s, self._clock.playable_s) if observation.playing else 0.0
        link = self._estimator.estimate(observation.samples, now_s)
        self._rows.append(
            SegmentRow(
                segment=self._segment,
                representation=int(decision.representation),
                duration_s=float(self.ladder.segment_duration_s[self._segment]),
                decided_s=now_s,
                buffer_s=observation.buffer_s,
                wait_s=wait_s,
                estimate_bps=None if decision.estimate_bps is None else float(decision.estimate_bps),
                link_rate_bps=link.rate_bps if link else None,
                link_rate_is_bound=link.is_bound if link else None,
                reason=decision.reason,
            )
        )
        return _Pending(self._segment, int(decision.representation), now_s + wait_s)

    def _observe(self, segment: int) -> Observation:
        """Return what a controller may see now of the choice for `segment`."""
        return Observation(
            now_s=self._clock.now_s,
            segment_index=segment,
            buffer_s=self.buffer_s,
            buffer_capacity_s=self.capacity_s,
            last_representation=self._last_representation,
            samples=tuple(self._samples),
            playing=self._clock.state is PlaybackState.PLAYING,
            render_speed=self._render_speed,
        )

    def _checked(self, decision: Decision) -> Decision:
        """Return a controller's decision if the session can carry it out; controllers may be foreign code."""
        name, count = type(self._abr).__name__, self.ladder.representations
        if not isinstance(decision, Decision):
            raise AbrError(f"controller {name} answered {decision!r}, not a Decision")
        if decision.representation not in range(count):
            raise AbrError(f"controller {name} chose {decision.representation!r}; the ladder has 0..{count - 1}")
        if not (math.isfinite(decision.wait_s) and decision.wait_s >= 0):
            raise AbrError(f"controller {name} asked to wait {decision.wait_s} s")
        return decision

    def _send(self, now_s: float, pending: _Pending) -> Request:
        """Issue the request that `pending` calls for."""
        representation = pending.representation
        init_bytes = 0
        if self.ladder.init_bytes is not None and representation not in self._have_init:
            init_bytes = int(self.ladder.init_bytes[representation])
        segment_bytes = int(self.ladder.segment_bytes[pending.segment, representation])
        row = self._rows[pending.segment]
        row.representation, row.request_s = representation, now_s
        row.size_bytes, row.init_bytes = segment_bytes, init_bytes
        request = Request(pending.segment, representation, segment_bytes + init_bytes, self.config.timeout_s)
        self._in_flight = _InFlight(request, now_s)
        return request

    def _skip(self, segment: int) -> None:
        """Give the segment up."""
        log.warning("segment %d skipped: every attempt failed", segment)
        self._clock.events.append(SegmentSkipped(self._clock.now_s, segment))
        self._rows[segment].skipped = True
        self._pending = None
        self._segment += 1
        self._settle()

    def _settle(self) -> None:
        """After media was added or given up: start, resume or end playback if it is time."""
        if self._segment == self.ladder.segments and not self._rendering and self._in_flight is None:
            self._clock.close()
        self._try_start()
        self._note_plays()

    def _try_start(self) -> None:
        """Start or resume playback if enough is rendered, or if no more can come before it plays."""
        clock = self._clock
        if clock.state is PlaybackState.STARTUP:
            threshold_s = self.config.startup_s
        elif clock.state is PlaybackState.REBUFFERING:
            threshold_s = self.config.rebuffer_s
        else:
            return
        if clock.playable_s <= MEDIA_TOLERANCE_S:
            return
        idle = not self._rendering and self._in_flight is None and self._pending is None
        stuck = idle and (self._segment == self.ladder.segments or self._excess_s() > MEDIA_TOLERANCE_S)
        if stuck or clock.playable_s >= threshold_s - MEDIA_TOLERANCE_S:
            clock.start()
            self._note_plays()
