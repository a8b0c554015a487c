"""The controller as the session hears it: optional methods asked for once, and every answer checked.

Controllers may be foreign code, so that an impossible answer is an `AbrError` that names the controller.
"""

from __future__ import annotations

import math

from abr import Abandoning, Abr, AbrError, Decision, Ladder, Learning, Observation, Outcome, Progress, Upgrading
from player.request import InFlight


class Adviser:
    """A controller behind one interface, whichever of the optional methods it has."""

    def __init__(self, abr: Abr, ladder: Ladder) -> None:
        self._abr, self._count = abr, ladder.representations
        self._modes = 1 if ladder.rendering is None else len(ladder.rendering.modes)
        self._name = type(abr).__name__
        self._abandoning = abr if isinstance(abr, Abandoning) else None
        self._learning = abr if isinstance(abr, Learning) else None
        self._upgrading = abr if isinstance(abr, Upgrading) else None

    @property
    def may_abandon(self) -> bool:
        """Whether reports of progress can change anything."""
        return self._abandoning is not None

    @property
    def may_upgrade(self) -> bool:
        """Whether the controller uses an idle link."""
        return self._upgrading is not None

    @property
    def learns(self) -> bool:
        """Whether the controller wants to know how requests end."""
        return self._learning is not None

    def choose(self, observation: Observation) -> Decision:
        """Return what to fetch next; its `segment` is set only if that is the upgrade of a buffered segment."""
        return self._checked(self._abr.choose(observation), observation)

    def upgrade(self, observation: Observation) -> Decision | None:
        """Return what to improve while the link is idle, if anything."""
        if self._upgrading is None or not observation.buffered:
            return None
        decision = self._upgrading.upgrade(observation)
        if decision is None:
            return None
        decision = self._checked(decision, observation)
        if decision.segment is None:
            raise AbrError(f"controller {self._name} names no segment to upgrade")
        return decision

    def abandon(
        self, in_flight: InFlight, observation: Observation, received_bytes: int, first_byte_s: float | None
    ) -> int | None:
        """Return the representation to fetch instead of the one under way, or None to go on."""
        if self._abandoning is None:
            return None
        request = in_flight.request
        size_bytes, sent_s = request.size_bytes, in_flight.sent_s
        progress = Progress(observation, request.representation, size_bytes, received_bytes, sent_s, first_byte_s)
        target = self._abandoning.abandon(progress)
        if target is None:
            return None
        if target not in range(progress.representation):
            raise AbrError(f"controller {self._name} abandons representation {progress.representation} for {target!r}")
        return int(target)

    def learn(self, outcome: Outcome) -> None:
        """Tell the controller how a request ended; a controller that does not learn is told nothing."""
        if self._learning is not None:
            self._learning.learn(outcome)

    def _checked(self, decision: Decision, observation: Observation) -> Decision:
        name = f"controller {self._name}"
        if not isinstance(decision, Decision):
            raise AbrError(f"{name} answered {decision!r}, not a Decision")
        if decision.representation not in range(self._count):
            raise AbrError(f"{name} chose {decision.representation!r}; the ladder has 0..{self._count - 1}")
        if not (math.isfinite(decision.wait_s) and decision.wait_s >= 0):
            raise AbrError(f"{name} asked to wait {decision.wait_s} s")
        if decision.mode not in range(self._modes):
            raise AbrError(f"{name} chose render mode {decision.mode!r}; there are 0..{self._modes - 1}")
        if decision.segment is not None:
            held = next((item for item in observation.buffered if item.segment == decision.segment), None)
            if held is None or decision.representation <= held.representation:
                raise AbrError(
                    f"{name} upgrades segment {decision.segment!r} to {decision.representation}: not possible"
                )
        return decision
