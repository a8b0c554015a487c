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

Here is how requests are made and end; `player.state` says when playback starts and stops, `player.choices` asks the
controller.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from abr import Abr, Buffered, Ladder, ThroughputSample
from player.choices import Choices
from player.config import PlayerConfig
from player.errors import SessionError
from player.events import Event, RequestAbandoned, RequestFailed, SegmentSkipped, SegmentUpgraded
from player.log import SessionLog, build_log, session_summary
from player.playback import MEDIA_TOLERANCE_S, PlaybackState
from player.request import Action, Delivered, Finished, InFlight, Pending, Request, TransferLike, Wait
from player.state import SessionState

__all__ = ["Action", "Finished", "Request", "Session", "TransferLike", "Wait"]

log = logging.getLogger(__name__)


class Session:
    """One viewer watching one programme; see the module's docstring for the protocol."""

    def __init__(self, ladder: Ladder, abr: Abr, config: PlayerConfig | None = None) -> None:
        self.ladder = ladder
        self.config = config or PlayerConfig()
        self.controller = abr
        self._state = SessionState(ladder, self.config)
        self._choices = Choices(self._state, abr)
        self._kept: Request | None = None

    # What a driver may ask.

    @property
    def state(self) -> PlaybackState:
        """What the viewer sees."""
        return self._state.viewer

    @property
    def buffer_s(self) -> float:
        """Media downloaded and not yet played, rendered or not, in [0, capacity_s]."""
        return self._state.buffer_s

    @property
    def capacity_s(self) -> float:
        """The buffer cap, or the longest segment, if that is longer."""
        return self._state.capacity_s

    @property
    def playable_s(self) -> float:
        """Media rendered and not yet played."""
        playback = self._state.playback
        return playback.playable_s if playback else 0.0

    @property
    def buffered(self) -> tuple[Buffered, ...]:
        """What is downloaded and has not begun to play, in order of playback."""
        playback = self._state.playback
        return self._state.stock.buffered(playback.played_s if playback else 0.0)

    @property
    def wants_progress(self) -> bool:
        """Whether reports of progress can change anything; a simulator need not step without it."""
        pending = self._state.pending
        upgrading = pending is not None and pending.held is not None
        return self._choices.may_abandon or upgrading or self._shows_bases

    @property
    def _shows_bases(self) -> bool:
        """Whether a stop ends with the base layer of what is waited for."""
        return self.config.conceal_s > 0 and self.ladder.layer_bytes is not None

    def events(self) -> list[Event]:
        """Return everything that happened so far, in order of time."""
        playback = self._state.playback
        return list(playback.events) if playback else []

    def log(self) -> SessionLog:
        """Return the session's tables and summary up to now."""
        for row in self._state.rows:
            if row.link_rate_bps is None:
                row.note_link(self._state.meter.at_decision(row.segment))
        return build_log(self._state.rows, self._state.clock, self.ladder)

    def summary(self) -> dict[str, float]:
        """Return the log's summary alone, for much less work."""
        return session_summary(self._state.rows, self._state.clock)

    def shown(self) -> list[tuple[int, int]]:
        """Return segment and representation of all that was rendered to be shown, in order."""
        return [(row.segment, row.representation) for row in self._state.rows if row.content_start_s is not None]

    @property
    def reduced_segments(self) -> int:
        """Segments shown that were rendered with fewer frames than they have."""
        rendering = self.ladder.rendering
        shown = [row.render_mode for row in self._state.rows if row.content_start_s is not None]
        return 0 if rendering is None else sum(mode != rendering.modes[0] for mode in shown)

    # What a driver reports.

    def next_action(self, now_s: float) -> Action:
        """Say what to do at `now_s`. The first call starts the session's clock."""
        state = self._state
        state.begin(now_s)
        state.advance(now_s)
        now_s = state.clock.now_s
        if state.viewer is PlaybackState.ENDED:
            return Finished()
        if state.in_flight is not None:
            return Wait(max(state.in_flight.sent_s + self.config.timeout_s, now_s))
        if state.pending is None:
            choices = self._choices
            state.pending = choices.idle_upgrade() if choices.is_full() else choices.next_segment()
            if state.pending is None:
                return self._wait_for_playback(now_s)
        if now_s < state.pending.not_before_s:
            return Wait(state.pending.not_before_s)
        return self._send(now_s, state.pending)

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
        self._state.advance(now_s)
        if received_bytes == in_flight.before_bytes + request.size_bytes:
            return False
        if request.held is not None:
            if self._is_useful(in_flight):
                return False
            self._abandon(None, received_bytes, first_byte_s)  # too late
            return True
        if self._shows_bases and self._state.runs_dry():
            part = self._state.stock.whole_part(request, received_bytes)
            if part is not None:
                self._take_in_part(in_flight, part, first_byte_s)
                return False
        target = self._choices.abandon(in_flight, received_bytes, first_byte_s)
        if target is not None:
            self._abandon(target, received_bytes, first_byte_s)
        return target is not None

    def on_complete(self, now_s: float, transfer: TransferLike) -> None:
        """Take in the answer to the request in flight, whole."""
        in_flight = self._expect_in_flight("on_complete")
        sample = in_flight.measure(transfer, now_s)
        self._state.advance(now_s)
        self._state.meter.add(sample)
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
        self._state.advance(now_s)
        kept = self._throw_away(received_bytes, first_byte_s)
        row = self._state.rows[request.segment]
        self._state.note(RequestFailed(self._state.clock.now_s, request.segment, reason, received_bytes))
        if kept:
            return
        if pending.fail(self._state.clock.now_s, self.config):
            row.retries += 1
            return
        self._state.pending = None
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
        self._state.rendering.expect(segment)
        self._state.advance(now_s)
        now_s = self._state.clock.now_s
        for _ in range(versions):
            delivered, render_s = self._state.rendering.finish(segment, now_s)
            row = self._state.rows[segment]
            row.note_render(render_s)
            if delivered.fetched.request.held is not None:
                self._upgrade(delivered.fetched)
            else:
                row.rendered_s = now_s
                row.content_start_s = self._state.clock.append(segment, row.representation, row.duration_s)
        self._state.settle()

    # What it asks for.

    def _wait_for_playback(self, now_s: float) -> Wait:
        """There is nothing to fetch: come back when there is room again, or when what is rendered has played."""
        state = self._state
        if state.segment < state.segments:
            state.try_start()
            return Wait(now_s + state.excess_s() if state.viewer is PlaybackState.PLAYING else math.inf)
        playable_s = state.clock.playable_s
        if state.viewer is PlaybackState.PLAYING and playable_s > MEDIA_TOLERANCE_S:
            return Wait(now_s + playable_s)
        return Wait(math.inf)

    def _send(self, now_s: float, pending: Pending) -> Request:
        """Issue the request that `pending` calls for."""
        segment, representation = pending.segment, pending.representation
        size_bytes = self.ladder.upgrade_bytes(segment, representation, pending.held)
        init_bytes = self._state.stock.init_bytes(representation, pending.held)
        total_bytes = size_bytes + init_bytes
        request = Request(segment, representation, total_bytes, self.config.timeout_s, pending.held, pending.mode)
        if pending.held is None:
            row = self._state.rows[segment]
            row.representation, row.request_s = representation, now_s
            row.size_bytes, row.init_bytes = size_bytes, init_bytes
        self._state.in_flight = InFlight(request, now_s, init_bytes)
        return request

    # How a request ends.

    def _expect_in_flight(self, caller: str) -> InFlight:
        if self._state.in_flight is None:
            raise SessionError(f"{caller} without a request in flight")
        return self._state.in_flight

    def _expect_pending(self) -> Pending:
        if self._state.pending is None:
            raise SessionError("a request without a decision")
        return self._state.pending

    def _take_in(self, fetched: InFlight, sample: ThroughputSample) -> None:
        """Count what `fetched` asked for as arrived, and let it be rendered."""
        request, row = fetched.request, self._state.rows[fetched.request.segment]
        self._state.stock.take_in(request)
        self._state.in_flight, self._state.pending = None, None
        self._state.rendering.add(Delivered(fetched, sample.finish_s))
        media_bytes = request.size_bytes - fetched.init_bytes
        if request.held is None:
            row.representation, row.size_bytes, row.init_bytes = request.representation, media_bytes, fetched.init_bytes
            row.arrive(sample)
            self._choices.last_representation = request.representation
            self._state.segment += 1
        else:
            row.wasted_bytes += media_bytes  # until it is shown
            row.init_bytes += fetched.init_bytes
        self._choices.tell(request, fetched.sent_s)

    def _throw_away(self, received_bytes: int, first_byte_s: float | None) -> bool:
        """End the request in flight; count and measure what had arrived. Return whether whole layers of it are kept."""
        in_flight, self._state.in_flight = self._expect_in_flight("the end of a request"), None
        request, now_s = in_flight.request, self._state.clock.now_s
        row = self._state.rows[request.segment]
        sample = in_flight.measure_part(received_bytes, first_byte_s, now_s)
        received_bytes -= in_flight.before_bytes
        row.wasted_bytes += received_bytes
        if self.state is PlaybackState.ENDED:  # an upgrade that nobody waits for any more
            return False
        if sample is not None:
            self._state.meter.add(sample)
        part = self._state.stock.whole_part(request, received_bytes)
        if part is None:
            return False
        row.wasted_bytes -= part.size_bytes
        init_bytes = self._state.stock.init_bytes(part.representation, part.held)
        # A driver that does not know when the first byte came knows that it has come.
        arrival = sample or ThroughputSample(received_bytes, in_flight.sent_s, now_s, now_s, complete=False)
        self._take_in(InFlight(part, in_flight.sent_s, init_bytes), arrival)
        self._kept = part
        return True

    def _take_in_part(self, in_flight: InFlight, part: Request, first_byte_s: float | None) -> None:
        """Take in the layers of a request under way that are whole; what lies above them goes on as their upgrade."""
        request, now_s = in_flight.request, self._state.clock.now_s
        init_bytes = self._state.stock.init_bytes(part.representation, part.held)
        arrival = ThroughputSample(part.size_bytes, in_flight.sent_s, first_byte_s or now_s, now_s, complete=False)
        self._take_in(InFlight(part, in_flight.sent_s, init_bytes), arrival)
        self._kept = part
        rest = replace(request, size_bytes=request.size_bytes - part.size_bytes, held=part.representation)
        self._state.in_flight = replace(
            in_flight, request=rest, init_bytes=in_flight.init_bytes - init_bytes, before_bytes=part.size_bytes
        )
        self._state.pending = Pending(request.segment, request.representation, now_s, part.representation, request.mode)

    def _is_useful(self, in_flight: InFlight) -> bool:
        """Say whether an upgrade under way can still be shown: before its segment begins, the rest of a split request
        as long as the segment plays."""
        segment = in_flight.request.segment
        if segment in self._state.stock:
            return True
        begun_s, row = self._state.rows[segment].content_start_s, self._state.rows[segment]
        if not in_flight.before_bytes or begun_s is None:
            return False
        return self._state.clock.played_s < begun_s + row.duration_s - MEDIA_TOLERANCE_S

    def _abandon(self, target: int | None, received_bytes: int, first_byte_s: float | None) -> None:
        """Give up the request in flight; fetch its segment in `target` next, or (None) decide afresh."""
        in_flight, pending = self._expect_in_flight("an abandonment"), self._expect_pending()
        request, row = in_flight.request, self._state.rows[in_flight.request.segment]
        kept = self._throw_away(received_bytes, first_byte_s)
        row.abandonments += 1
        now_s = self._state.clock.now_s
        self._state.note(RequestAbandoned(now_s, request.segment, request.representation, received_bytes))
        if kept:
            return
        if target is None or self.config.reconsider_abandoned:
            self._state.pending = None
        else:
            pending.representation = target
        if target is not None:
            self._choices.tell(request, in_flight.sent_s, target)

    def _upgrade(self, fetched: InFlight) -> None:
        """Show a segment in the version that has just been rendered, unless its first frame has been shown.

        The rest of a request whose base was shown at once may come while the segment plays, and is shown from there on.
        """
        request, clock = fetched.request, self._state.clock
        row, size_bytes = self._state.rows[request.segment], request.size_bytes - fetched.init_bytes
        if clock.upgrade(request.segment, request.representation):
            is_layer = self.ladder.layer_bytes is not None
            row.improve(request.representation, size_bytes, clock.now_s, is_layer=is_layer)
        elif not (fetched.before_bytes and row.raise_from(clock.played_s, request.representation, size_bytes)):
            return
        self._state.note(SegmentUpgraded(clock.now_s, request.segment, request.representation))

    def _skip(self, segment: int) -> None:
        """Give the segment up."""
        log.warning("segment %d skipped: every attempt failed", segment)
        self._state.note(SegmentSkipped(self._state.clock.now_s, segment))
        self._state.rows[segment].skipped = True
        self._state.pending = None
        self._state.segment += 1
        self._state.settle()
