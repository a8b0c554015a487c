"""What a session fetches next: what its controller may see, and what becomes of the answer. No I/O and no clock."""

from __future__ import annotations

from abr import Abr, Decision, Observation, Outcome
from player.adviser import Adviser
from player.log import SegmentRow
from player.playback import MEDIA_TOLERANCE_S, PlaybackState
from player.request import InFlight, Pending, Request
from player.state import SessionState


class Choices:
    """The controller's side of a session: it is asked here, and hears here how its choices ended."""

    def __init__(self, state: SessionState, abr: Abr) -> None:
        self._state, self._ladder = state, state.ladder
        self._adviser = Adviser(abr, state.ladder)
        self._held_back_since_s: float | None = None
        self.last_representation: int | None = None
        """Of the segment that arrived last."""

    @property
    def may_abandon(self) -> bool:
        """Whether reports of progress can change anything."""
        return self._adviser.may_abandon

    def is_full(self) -> bool:
        """Say whether there is no room, or nothing left, to fetch a further segment."""
        state = self._state
        if state.segment == state.segments:
            return True
        full = state.excess_s() > MEDIA_TOLERANCE_S
        if full and self._held_back_since_s is None:
            self._held_back_since_s = state.clock.now_s
        return full

    def next_segment(self) -> Pending:
        """Ask the controller for the next segment's representation and open its row."""
        state = self._state
        observation = self._observe(state.segment)
        decision = self._adviser.choose(observation)
        self._held_back_since_s = None
        if decision.segment is not None:
            return self._upgrade_of(decision)
        # Waiting may not be what drains the buffer, nor prolong a startup or a stop.
        wait_s = max(decision.wait_s, state.config.min_wait_s)
        wait_s = min(wait_s, state.clock.playable_s) if observation.playing else 0.0
        state.meter.remember(observation)
        row = SegmentRow(
            segment=state.segment,
            representation=self._safe(int(decision.representation), observation),
            duration_s=state.durations_s[state.segment],
            decided_s=observation.now_s,
            buffer_s=observation.buffer_s,
            wait_s=wait_s,
            estimate_bps=None if decision.estimate_bps is None else float(decision.estimate_bps),
            reason=decision.reason,
            render_mode=None if self._ladder.rendering is None else self._ladder.rendering.modes[decision.mode],
        )
        if state.segment < len(state.rows):  # asked again after an abandonment
            row.carry_on(state.rows.pop())
        state.rows.append(row)
        return Pending(state.segment, row.representation, observation.now_s + wait_s, mode=int(decision.mode))

    def idle_upgrade(self) -> Pending | None:
        """Ask the controller what to improve while the link is idle."""
        self._state.try_start()
        if not self._adviser.may_upgrade:
            return None
        decision = self._adviser.upgrade(self._observe(self._state.segment))
        return None if decision is None else self._upgrade_of(decision)

    def abandon(self, in_flight: InFlight, received_bytes: int, first_byte_s: float | None) -> int | None:
        """Return the representation to fetch instead of the one under way, or None to go on."""
        observation = self._observe(in_flight.request.segment)
        return self._adviser.abandon(in_flight, observation, received_bytes, first_byte_s)

    def tell(self, request: Request, sent_s: float, abandoned_for: int | None = None) -> None:
        """Let the controller hear how a request ended, if it wants to know."""
        if not self._adviser.learns:
            return
        observation, is_upgrade = self._observe(request.segment), request.held is not None
        self._adviser.learn(Outcome(observation, request.representation, sent_s, is_upgrade, abandoned_for))

    def _upgrade_of(self, decision: Decision) -> Pending:
        state = self._state
        segment = state.segment if decision.segment is None else decision.segment
        held, now_s = state.stock.representation(segment), state.clock.now_s
        mode = state.rows[segment].render_mode
        modes = () if self._ladder.rendering is None else self._ladder.rendering.modes
        return Pending(segment, int(decision.representation), now_s, held, 0 if mode is None else modes.index(mode))

    def _safe(self, choice: int, observation: Observation) -> int:
        """Return the choice as far as the insufficient-buffer rule of the player allows, if it has one."""
        share = self._state.config.low_buffer_share
        if share is None or not observation.playing:
            return choice
        link = self._state.meter.at_decision(observation.segment_index)
        if link is None:
            return choice
        sizes = self._ladder.segment_bytes[observation.segment_index]
        limit_s = share * observation.buffer_s
        return next(
            (index for index in range(choice) if link.predict_transfer_s(int(sizes[index + 1])) > limit_s), choice
        )

    def _observe(self, segment: int) -> Observation:
        """Return what a controller may see now of the choice for `segment`."""
        state, clock, rendering = self._state, self._state.clock, self._state.rendering
        now_s, held_back_since_s = clock.now_s, self._held_back_since_s
        return Observation(
            now_s=now_s,
            segment_index=segment,
            buffer_s=state.buffer_s,
            buffer_capacity_s=state.capacity_s,
            last_representation=self.last_representation,
            samples=state.meter.recent,
            playing=clock.state is PlaybackState.PLAYING,
            render_speed=rendering.speed,
            passes_per_s=rendering.passes_per_s,
            render_queue_s=rendering.backlog_s(now_s),
            held_back_s=0.0 if held_back_since_s is None else now_s - held_back_since_s,
            buffered=state.stock.buffered(clock.played_s),
        )
