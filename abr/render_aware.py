"""Any controller under the device's render speed: fewer frames where all of them would be late.

The inner controller chooses the representation as ever. Of the render modes of that segment (`abr.rendering`), the
first one is taken that the device can keep up with,

    passes / speed  <=  0.95 x duration,

and that is done before the segment is due while playback runs: queue + passes / speed <= buffer. If none keeps up at
this representation, lower ones are tried, as a ladder of smaller pictures would want; if none does at all, the cheapest
mode is taken. An upgrade is dropped if the segment could not be rendered again before it plays.
"""

from __future__ import annotations

import dataclasses

from abr.base import Abandoning, Abr, Decision, Ladder, Learning, Observation, Outcome, Progress, Upgrading
from abr.errors import OptionError

SAFETY = 0.95
"""Share of a segment's duration that its rendering may take: the device has other things to do."""


class RenderAware:
    """A controller and a render mode for each of its choices."""

    def __init__(self, inner: Abr, ladder: Ladder) -> None:
        """Raise OptionError if the ladder does not say what rendering costs."""
        if ladder.rendering is None:
            raise OptionError("the ladder does not say what rendering costs")
        self.inner, self.ladder, self.rendering = inner, ladder, ladder.rendering
        self._abandoning = inner if isinstance(inner, Abandoning) else None
        self._learning = inner if isinstance(inner, Learning) else None
        self._upgrading = inner if isinstance(inner, Upgrading) else None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        decision = self.inner.choose(observation)
        if decision.segment is not None:
            if self._is_renderable(decision, observation):
                return decision
            # The upgrade falls away; what the next segment is to be, the inner controller did not say: as the last one.
            held = observation.last_representation or 0
            decision = dataclasses.replace(decision, segment=None, representation=held)
        speed = observation.passes_per_s or self.rendering.passes_per_s
        passes = self.rendering.passes[observation.segment_index]  # [R, M]
        duration_s = float(self.ladder.segment_duration_s[observation.segment_index])
        due_s = observation.buffer_s - observation.render_queue_s if observation.playing else duration_s
        limit_s = min(SAFETY * duration_s, max(due_s, 0.0))
        for representation in range(decision.representation, -1, -1):
            for mode, needed in enumerate(passes[representation]):
                if needed / speed <= limit_s:
                    return self._with_mode(decision, representation, mode, needed / speed, limit_s)
        cheapest = passes.min(axis=1)  # [R]
        representation = decision.representation
        if cheapest.min() < cheapest[representation]:
            representation = int(cheapest.argmin())
        mode = int(passes[representation].argmin())
        return self._with_mode(decision, representation, mode, passes[representation, mode] / speed, limit_s)

    def upgrade(self, observation: Observation) -> Decision | None:
        """See `abr.base.Upgrading`."""
        decision = None if self._upgrading is None else self._upgrading.upgrade(observation)
        return decision if decision is not None and self._is_renderable(decision, observation) else None

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`."""
        return None if self._abandoning is None else self._abandoning.abandon(progress)

    def learn(self, outcome: Outcome) -> None:
        """See `abr.base.Learning`."""
        if self._learning is not None:
            self._learning.learn(outcome)

    def _with_mode(
        self, decision: Decision, representation: int, mode: int, needed_s: float, limit_s: float
    ) -> Decision:
        name = self.rendering.modes[mode]
        reason = f"{decision.reason}; {name}: renders in {needed_s:.2f} s, limit {limit_s:.2f} s"
        return dataclasses.replace(decision, representation=representation, mode=mode, reason=reason)

    def _is_renderable(self, decision: Decision, observation: Observation) -> bool:
        """Say whether the device could render an upgrade, all of its frames, before the segment plays."""
        held = next(item for item in observation.buffered if item.segment == decision.segment)
        speed = observation.passes_per_s or self.rendering.passes_per_s
        needed_s = float(self.rendering.passes[held.segment, decision.representation, 0]) / speed
        return observation.render_queue_s + needed_s <= held.starts_in_s
