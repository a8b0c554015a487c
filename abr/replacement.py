"""Fast switching: after a step up, fetch buffered segments of lower quality again before new ones.

Spiteri, Sitaraman, Sparacio, MMSys 2018, Section 6 ("fast switching" of dash.js, "replacement" of Sabre).
"""

from __future__ import annotations

import dataclasses

from abr.base import Abandoning, Abr, Decision, Learning, Observation, Outcome, Progress
from abr.errors import OptionError

MARGIN = 1.5
"""A segment is worth replacing if it begins to play no sooner than this many segment durations from now."""


class FastSwitching:
    """Any controller, its choice spent on the buffered segment that plays first ("left") or last ("right") below it."""

    def __init__(self, inner: Abr, *, segment_s: float, side: str = "left") -> None:
        if side not in ("left", "right"):
            raise OptionError(f"unknown side {side!r}; known: left, right")
        self.inner, self.side, self._margin_s = inner, side, MARGIN * segment_s
        self._abandoning = inner if isinstance(inner, Abandoning) else None
        self._learning = inner if isinstance(inner, Learning) else None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        decision = self.inner.choose(observation)
        lower = [
            held.segment
            for held in observation.buffered
            if held.representation < decision.representation and held.starts_in_s >= self._margin_s
        ]
        if decision.segment is not None or not lower:
            return decision
        return dataclasses.replace(decision, segment=lower[0 if self.side == "left" else -1], wait_s=0.0)

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`."""
        return None if self._abandoning is None else self._abandoning.abandon(progress)

    def learn(self, outcome: Outcome) -> None:
        """See `abr.base.Learning`."""
        if self._learning is not None:
            self._learning.learn(outcome)
