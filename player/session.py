"""A playback session as a state machine: it is told the time and what arrived, and says what to do next.

No I/O and no clock, so a virtual-time simulator and a real client drive the same object:

    action = session.next_action(now_s)      Request: fetch it;  Wait: come back then or at the next event;  Finished
    session.on_progress(now_s, bytes, ...)   so much has arrived; True: cancel the transfer and ask for the next action
    session.on_complete(now_s, transfer)     the request's last byte arrived
    session.on_error(now_s, reason, ...)     it failed or timed out
    session.take_kept()                      after progress, or a failure: what of the request to render by itself
    session.on_rendered(now_s, segment)      the downloaded segment became frames; only then can it be shown

Rules. One request at a time. A segment is requested when it fits under the buffer cap together with everything
downloaded and not yet played, rendered or not; one longer than the cap is requested when the buffer is empty. A failed
request is repeated `retries` times with growing pauses, then as often at the lowest representation (hls.js's emergency
switch); then the segment is skipped and playback jumps the gap (dash.js): its time counts as neither played nor
rebuffered. A controller may have a buffered segment fetched again in a better representation, or its missing layers,
until its first frame is shown. On a layered ladder the whole layers of a request that failed or was given up are kept:
the segment counts as arrived in the representation that they make up. With `conceal_s` a stop begins with made-up
frames, and stands still only after that; a layered segment that is waited for is shown as soon as its base is there,
while the rest of the request goes on: when it has come, the segment is shown with it from there on.
Always: startup + played + concealed + rebuffered = elapsed.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from abr import (
    Abr,
    Buffered,
    Decision,
    Ladder,
    Observation,
    Outcome,
    ThroughputSample,
)
from player.adviser import Adviser
from player.config import PlayerConfig
from player.errors import SessionError
from player.events import Event, RequestAbandoned, RequestFailed, SegmentPlayed, SegmentSkipped, SegmentUpgraded
from player.log import SegmentRow, SessionLog, build_log, session_summary
from player.meter import LinkMeter
from player.playback import MEDIA_TOLERANCE_S, Playback, PlaybackState
from player.render_queue import RenderQueue
from player.request import Action, Delivered, Finished, InFlight, Pending, Request, TransferLike, Wait
from player.stock import Stock

__all__ = ["Action", "Finished", "Request", "Session", "TransferLike", "Wait"]

log = logging.getLogger(__name__)


class Session:
    """One viewer watching one programme; see the module's docstring for the protocol."""

    def __init__(self, ladder: Ladder, abr: Abr, config: PlayerConfig | None = None) -> None:
        self.ladder = ladder
        self.config = config or PlayerConfig()
        self.controller = abr
        self._adviser = Adviser(abr, ladder)
        self._durations_s: list[float] = ladder.segment_duration_s.tolist()
        self._segments = len(self._durations_s)
        longest_s = max(self._durations_s)
        self.capacity_s = max(self.config.buffer_s, longest_s)
        if longest_s > self.config.buffer_s:
            log.warning(
                "segments of %.2f s do not fit in player.buffer_s=%g: each one will rebuffer",
                longest_s,
                self.config.buffer_s,
            )
        self._playback: Playback | None = None  # made at the first next_action, which starts the clock
        self._stock = Stock(ladder)
        self._segment = 0
        self._pending: Pending | None = None
        self._in_flight: InFlight | None = None
        self._rendering = RenderQueue(ladder)
        self._held_back_since_s: float | None = None
        self._meter = LinkMeter()
        self._last_representation: int | None = None
        self._rows: list[SegmentRow] = []
        self._seen_events = 0
        self._kept: Request | None = None

    # What a driver may ask.

    @property
    def state(self) -> PlaybackState:
        """What the viewer sees."""
        return PlaybackState.STARTUP if self._playback is None else self._playback.state

    @property
    def buffer_s(self) -> float:
        """Media downloaded and not yet played, rendered or not, in [0, capacity_s]."""
        return max(self._stock.downloaded_s - self._clock.played_s, 0.0) if self._playback else 0.0

    @property
    def playable_s(self) -> float:
        """Media rendered and not yet played."""
        return self._playback.playable_s if self._playback else 0.0

    @property
    def buffered(self) -> tuple[Buffered, ...]:
        """What is downloaded and has not begun to play, in order of playback."""
        return self._stock.buffered(self._playback.played_s if self._playback else 0.0)

    @property
    def wants_progress(self) -> bool:
        """Whether reports of progress can change anything; a simulator need not step without it."""
        upgrading = self._pending is not None and self._pending.held is not None
        return self._adviser.may_abandon or upgrading or self._shows_bases

    @property
    def _shows_bases(self) -> bool:
        """Whether a stop ends with the base layer of what is waited for."""
        return self.config.conceal_s > 0 and self.ladder.layer_bytes is not None

    def events(self) -> list[Event]:
        """Return everything that happened so far, in order of time."""
        return list(self._playback.events) if self._playback else []

    def log(self) -> SessionLog:
        """Return the session's tables and summary up to now."""
        for row in self._rows:
            if row.link_rate_bps is None:
                row.note_link(self._meter.at_decision(row.segment))
        return build_log(self._rows, self._clock, self.ladder)

    def summary(self) -> dict[str, float]:
        """Return the log's summary alone, for much less work."""
        return session_summary(self._rows, self._clock)

    def shown(self) -> list[tuple[int, int]]:
        """Return segment and representation of all that was rendered to be shown, in order."""
        return [(row.segment, row.representation) for row in self._rows if row.content_start_s is not None]

    # What a driver reports.

    def next_action(self, now_s: float) -> Action:
        """Say what to do at `now_s`. The first call starts the session's clock."""
        if self._playback is None:
            if not math.isfinite(now_s):
                raise SessionError(f"a session cannot start at {now_s} s")
            self._playback = Playback(now_s, conceal_s=self.config.conceal_s)
        self._advance(now_s)
        now_s = self._playback.now_s
        if self._playback.state is PlaybackState.ENDED:
            return Finished()
        if self._in_flight is not None:
            return Wait(max(self._in_flight.sent_s + self.config.timeout_s, now_s))
        if self._pending is None:
            self._pending = self._decide_upgrade() if self._is_full() else self._decide()
            if self._pending is None:
                return self._wait_for_playback(now_s)
        if now_s < self._pending.not_before_s:
            return Wait(self._pending.not_before_s)
        return self._send(now_s, self._pending)

    def on_progress(self, now_s: float, received_bytes: int, *, first_byte_s: float | None = None) -> bool:
        """Take in how much of the answer has arrived; return whether the request is given up.

        If so, the driver cancels the transfer and calls next_action, which asks for the segment in the representation
        that the controller named; what had arrived is thrown away (but see `take_kept`), counted, and a measurement of
        the link if `first_byte_s`, the arrival of its first byte, is known. If it is not given up, a whole part of it
        may be wanted at once: see `take_kept`.
        """
        in_flight = self._expect_in_flight("on_progress")
        request = in_flight.request
        in_flight.check_received(received_bytes)
        self._advance(now_s)
        if received_bytes == in_flight.before_bytes + request.size_bytes:
            return False
        if request.held is not None:
            if self._is_useful(in_flight):
                return False
            self._abandon(None, received_bytes, first_byte_s)  # too late
            return True
        if self._shows_bases and self._runs_dry():
            part = self._stock.whole_part(request, received_bytes)
            if part is not None:
                self._take_in_part(in_flight, part, first_byte_s)
                return False
        target = self._adviser.abandon(in_flight, self._observe(request.segment), received_bytes, first_byte_s)
        if target is not None:
            self._abandon(target, received_bytes, first_byte_s)
        return target is not None

    def on_complete(self, now_s: float, transfer: TransferLike) -> None:
        """Take in the answer to the request in flight, whole."""
        in_flight = self._expect_in_flight("on_complete")
        sample = in_flight.measure(transfer, now_s)
        self._advance(now_s)
        self._meter.add(sample)
        self._take_in(in_flight, sample)

    def on_error(
        self, now_s: float, reason: str, received_bytes: int = 0, *, first_byte_s: float | None = None
    ) -> None:
        """Take in that the request in flight failed; `reason` is "timeout" if it took too long.

        Args:
            received_bytes: what had arrived; thrown away (but see `take_kept`), counted, and a measurement of the link
                if `first_byte_s`, the arrival of its first byte, is known.
        """
        in_flight = self._expect_in_flight("on_error")
        request, pending = in_flight.request, self._expect_pending()
        in_flight.check_received(received_bytes)
        self._advance(now_s)
        kept = self._throw_away(received_bytes, first_byte_s)
        row = self._rows[request.segment]
        self._note(RequestFailed(self._clock.now_s, request.segment, reason, received_bytes))
        if kept:
            return
        if pending.fail(self._clock.now_s, self.config):
            row.retries += 1
            return
        self._pending = None
        if request.held is None:
            self._skip(request.segment)

    def take_kept(self) -> Request | None:
        """Return, once, the part that a request that has ended unfinished, or goes on, has brought whole: as if it had
        been asked for.

        The driver renders them as it does a whole answer. Always None on a ladder without layers.
        """
        kept, self._kept = self._kept, None
        return kept

    def on_rendered(self, now_s: float, segment: int, *, versions: int = 1) -> None:
        """Take in that a downloaded segment is rendered, so that it can be shown; new segments are, in order.

        Args:
            versions: how many of what arrived for it this stands for. A driver that had not begun a segment when an
                upgrade of it came renders the upgrade alone.
        """
        self._rendering.expect(segment)
        self._advance(now_s)
        now_s = self._clock.now_s
        for _ in range(versions):
            delivered, render_s = self._rendering.finish(segment, now_s)
            row = self._rows[segment]
            row.note_render(render_s)
            if delivered.fetched.request.held is not None:
                self._upgrade(delivered.fetched)
            else:
                row.rendered_s = now_s
                row.content_start_s = self._clock.append(segment, row.representation, row.duration_s)
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
        clock = self._clock
        clock.advance(now_s)
        if len(clock.events) > self._seen_events:
            self._note_plays()

    def _note_plays(self) -> None:
        events = self._clock.events
        for event in events[self._seen_events :]:
            if isinstance(event, SegmentPlayed) and event.segment is not None:
                self._rows[event.segment].play_start_s = event.time_s
                self._stock.show(event.segment)
        self._seen_events = len(events)

    def _expect_in_flight(self, caller: str) -> InFlight:
        if self._in_flight is None:
            raise SessionError(f"{caller} without a request in flight")
        return self._in_flight

    def _expect_pending(self) -> Pending:
        if self._pending is None:
            raise SessionError("a request without a decision")
        return self._pending

    def _take_in(self, fetched: InFlight, sample: ThroughputSample) -> None:
        """Count what `fetched` asked for as arrived, and let it be rendered."""
        request, row = fetched.request, self._rows[fetched.request.segment]
        self._stock.take_in(request)
        self._in_flight, self._pending = None, None
        self._rendering.add(Delivered(fetched, sample.finish_s))
        media_bytes = request.size_bytes - fetched.init_bytes
        if request.held is None:
            row.representation, row.size_bytes, row.init_bytes = request.representation, media_bytes, fetched.init_bytes
            row.arrive(sample)
            self._last_representation = request.representation
            self._segment += 1
        else:
            row.wasted_bytes += media_bytes  # until it is shown
            row.init_bytes += fetched.init_bytes
        self._tell(request, fetched.sent_s)

    def _throw_away(self, received_bytes: int, first_byte_s: float | None) -> bool:
        """End the request in flight; count and measure what had arrived. Return whether whole layers of it are kept."""
        in_flight, self._in_flight = self._expect_in_flight("the end of a request"), None
        request, now_s = in_flight.request, self._clock.now_s
        row = self._rows[request.segment]
        sample = in_flight.measure_part(received_bytes, first_byte_s, now_s)
        received_bytes -= in_flight.before_bytes
        row.wasted_bytes += received_bytes
        if self.state is PlaybackState.ENDED:  # an upgrade that nobody waits for any more
            return False
        if sample is not None:
            self._meter.add(sample)
        part = self._stock.whole_part(request, received_bytes)
        if part is None:
            return False
        row.wasted_bytes -= part.size_bytes
        init_bytes = self._stock.init_bytes(part.representation, part.held)
        # A driver that does not know when the first byte came knows that it has come.
        arrival = sample or ThroughputSample(received_bytes, in_flight.sent_s, now_s, now_s, complete=False)
        self._take_in(InFlight(part, in_flight.sent_s, init_bytes), arrival)
        self._kept = part
        return True

    def _take_in_part(self, in_flight: InFlight, part: Request, first_byte_s: float | None) -> None:
        """Take in the layers of a request under way that are whole; what lies above them goes on as their upgrade."""
        request, now_s = in_flight.request, self._clock.now_s
        init_bytes = self._stock.init_bytes(part.representation, part.held)
        arrival = ThroughputSample(part.size_bytes, in_flight.sent_s, first_byte_s or now_s, now_s, complete=False)
        self._take_in(InFlight(part, in_flight.sent_s, init_bytes), arrival)
        self._kept = part
        rest = replace(request, size_bytes=request.size_bytes - part.size_bytes, held=part.representation)
        self._in_flight = replace(
            in_flight, request=rest, init_bytes=in_flight.init_bytes - init_bytes, before_bytes=part.size_bytes
        )
        self._pending = Pending(request.segment, request.representation, now_s, part.representation, request.mode)

    def _is_useful(self, in_flight: InFlight) -> bool:
        """Say whether an upgrade under way can still be shown: before its segment begins, the rest of a split request
        as long as the segment plays."""
        segment = in_flight.request.segment
        if segment in self._stock:
            return True
        begun_s, row = self._rows[segment].content_start_s, self._rows[segment]
        if not in_flight.before_bytes or begun_s is None:
            return False
        return self._clock.played_s < begun_s + row.duration_s - MEDIA_TOLERANCE_S

    def _runs_dry(self) -> bool:
        """Say whether the viewer has seen all there is, and nothing is being rendered."""
        begun = self._clock.state is not PlaybackState.STARTUP
        return begun and not self._rendering and self._clock.playable_s <= MEDIA_TOLERANCE_S

    def _note(self, event: Event) -> None:
        """Log an event; what becomes of an upgrade under way after the end is no part of the session."""
        if self._clock.state is not PlaybackState.ENDED:
            self._clock.events.append(event)

    def _abandon(self, target: int | None, received_bytes: int, first_byte_s: float | None) -> None:
        """Give up the request in flight; fetch its segment in `target` next, or (None) decide afresh."""
        in_flight, pending = self._expect_in_flight("an abandonment"), self._expect_pending()
        request, row = in_flight.request, self._rows[in_flight.request.segment]
        kept = self._throw_away(received_bytes, first_byte_s)
        row.abandonments += 1
        self._note(RequestAbandoned(self._clock.now_s, request.segment, request.representation, received_bytes))
        if kept:
            return
        if target is None or self.config.reconsider_abandoned:
            self._pending = None
        else:
            pending.representation = target
        if target is not None:
            self._tell(request, in_flight.sent_s, target)

    def _tell(self, request: Request, sent_s: float, abandoned_for: int | None = None) -> None:
        """Let the controller hear how a request ended, if it wants to know."""
        if not self._adviser.learns:
            return
        observation, is_upgrade = self._observe(request.segment), request.held is not None
        self._adviser.learn(Outcome(observation, request.representation, sent_s, is_upgrade, abandoned_for))

    def _upgrade(self, fetched: InFlight) -> None:
        """Show a segment in the version that has just been rendered, unless its first frame has been shown.

        The rest of a request whose base was shown at once may come while the segment plays, and is shown from there on.
        """
        request, row, now_s = fetched.request, self._rows[fetched.request.segment], self._clock.now_s
        size_bytes = request.size_bytes - fetched.init_bytes
        if self._clock.upgrade(request.segment, request.representation):
            row.improve(request.representation, size_bytes, now_s, is_layer=self.ladder.layer_bytes is not None)
        elif not (fetched.before_bytes and row.raise_from(self._clock.played_s, request.representation, size_bytes)):
            return
        self._note(SegmentUpgraded(now_s, request.segment, request.representation))

    def _excess_s(self) -> float:
        """Return how much media must play before the next segment fits; not positive if it fits."""
        return self.buffer_s + self._durations_s[self._segment] - self.capacity_s

    def _is_full(self) -> bool:
        """Say whether there is no room, or nothing left, to fetch a further segment."""
        if self._segment == self._segments:
            return True
        full = self._excess_s() > MEDIA_TOLERANCE_S
        if full and self._held_back_since_s is None:
            self._held_back_since_s = self._clock.now_s
        return full

    def _wait_for_playback(self, now_s: float) -> Wait:
        """There is nothing to fetch: come back when there is room again, or when what is rendered has played."""
        if self._segment < self._segments:
            self._try_start()
            return Wait(now_s + self._excess_s() if self._clock.state is PlaybackState.PLAYING else math.inf)
        playable_s = self._clock.playable_s
        if self._clock.state is PlaybackState.PLAYING and playable_s > MEDIA_TOLERANCE_S:
            return Wait(now_s + playable_s)
        return Wait(math.inf)

    def _decide_upgrade(self) -> Pending | None:
        """Ask the controller what to improve while the link is idle."""
        self._try_start()
        if not self._adviser.may_upgrade:
            return None
        decision = self._adviser.upgrade(self._observe(self._segment))
        return None if decision is None else self._upgrade_of(decision)

    def _upgrade_of(self, decision: Decision) -> Pending:
        segment = self._segment if decision.segment is None else decision.segment
        held, now_s = self._stock.representation(segment), self._clock.now_s
        mode = self._rows[segment].render_mode
        modes = () if self.ladder.rendering is None else self.ladder.rendering.modes
        return Pending(segment, int(decision.representation), now_s, held, 0 if mode is None else modes.index(mode))

    def _decide(self) -> Pending:
        """Ask the controller for the next segment's representation and open its row."""
        observation = self._observe(self._segment)
        decision = self._adviser.choose(observation)
        self._held_back_since_s = None
        if decision.segment is not None:
            return self._upgrade_of(decision)
        # Waiting may not be what drains the buffer, nor prolong a startup or a stop.
        wait_s = max(decision.wait_s, self.config.min_wait_s)
        wait_s = min(wait_s, self._clock.playable_s) if observation.playing else 0.0
        self._meter.remember(observation)
        row = SegmentRow(
            segment=self._segment,
            representation=self._safe(int(decision.representation), observation),
            duration_s=self._durations_s[self._segment],
            decided_s=observation.now_s,
            buffer_s=observation.buffer_s,
            wait_s=wait_s,
            estimate_bps=None if decision.estimate_bps is None else float(decision.estimate_bps),
            reason=decision.reason,
            render_mode=None if self.ladder.rendering is None else self.ladder.rendering.modes[decision.mode],
        )
        if self._segment < len(self._rows):  # asked again after an abandonment
            row.carry_on(self._rows.pop())
        self._rows.append(row)
        return Pending(self._segment, row.representation, observation.now_s + wait_s, mode=int(decision.mode))

    def _safe(self, choice: int, observation: Observation) -> int:
        """Return the choice as far as the insufficient-buffer rule of the player allows, if it has one."""
        share = self.config.low_buffer_share
        if share is None or not observation.playing:
            return choice
        link = self._meter.at_decision(observation.segment_index)
        if link is None:
            return choice
        sizes = self.ladder.segment_bytes[observation.segment_index]
        limit_s = share * observation.buffer_s
        return next(
            (index for index in range(choice) if link.predict_transfer_s(int(sizes[index + 1])) > limit_s), choice
        )

    def _observe(self, segment: int) -> Observation:
        """Return what a controller may see now of the choice for `segment`."""
        clock, rendering = self._clock, self._rendering
        now_s, held_back_since_s = clock.now_s, self._held_back_since_s
        return Observation(
            now_s=now_s,
            segment_index=segment,
            buffer_s=self.buffer_s,
            buffer_capacity_s=self.capacity_s,
            last_representation=self._last_representation,
            samples=self._meter.recent,
            playing=clock.state is PlaybackState.PLAYING,
            render_speed=rendering.speed,
            passes_per_s=rendering.passes_per_s,
            render_queue_s=rendering.backlog_s(now_s),
            held_back_s=0.0 if held_back_since_s is None else now_s - held_back_since_s,
            buffered=self._stock.buffered(clock.played_s),
        )

    def _send(self, now_s: float, pending: Pending) -> Request:
        """Issue the request that `pending` calls for."""
        segment, representation = pending.segment, pending.representation
        size_bytes = self.ladder.upgrade_bytes(segment, representation, pending.held)
        init_bytes = self._stock.init_bytes(representation, pending.held)
        total_bytes = size_bytes + init_bytes
        request = Request(segment, representation, total_bytes, self.config.timeout_s, pending.held, pending.mode)
        if pending.held is None:
            row = self._rows[segment]
            row.representation, row.request_s = representation, now_s
            row.size_bytes, row.init_bytes = size_bytes, init_bytes
        self._in_flight = InFlight(request, now_s, init_bytes)
        return request

    def _skip(self, segment: int) -> None:
        """Give the segment up."""
        log.warning("segment %d skipped: every attempt failed", segment)
        self._note(SegmentSkipped(self._clock.now_s, segment))
        self._rows[segment].skipped = True
        self._pending = None
        self._segment += 1
        self._settle()

    def _media_to_come(self) -> bool:
        """Say whether a segment is on its way that will lengthen what can be played; upgrades will not."""
        if self._in_flight is not None and self._in_flight.request.held is None:
            return True
        return self._rendering.media_to_come

    def _settle(self) -> None:
        """After media was added or given up: start, resume or end playback if it is time."""
        if self._clock.state is PlaybackState.ENDED:
            return
        if self._segment == self._segments and not self._media_to_come():
            self._clock.close()
            self._note_plays()
        self._try_start()

    def _try_start(self) -> None:
        """Start or resume playback if enough is rendered, or if no more can come before it plays."""
        clock = self._clock
        if clock.state in (PlaybackState.PLAYING, PlaybackState.ENDED):
            return
        threshold_s = self.config.startup_s if clock.state is PlaybackState.STARTUP else self.config.rebuffer_s
        if clock.playable_s <= MEDIA_TOLERANCE_S:
            return
        idle = not self._media_to_come() and (self._pending is None or self._pending.held is not None)
        stuck = idle and (self._segment == self._segments or self._excess_s() > MEDIA_TOLERANCE_S)
        if stuck or clock.playable_s >= threshold_s - MEDIA_TOLERANCE_S:
            clock.start()
            self._note_plays()
