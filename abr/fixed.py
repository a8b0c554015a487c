"""`fixed`: always the same representation, the yardstick for every other controller."""

from __future__ import annotations

from abr.base import Decision, Ladder, Observation
from abr.errors import OptionError


class Fixed:
    """Choose one representation throughout; negative numbers count from the top, -1 being the highest."""

    def __init__(self, ladder: Ladder, *, buffer_capacity_s: float, representation: int = 0) -> None:
        count = ladder.representations
        if not -count <= representation < count:
            raise OptionError(f"representation {representation}: the ladder has 0..{count - 1} (or -1 for the highest)")
        self.representation = representation % count

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        return Decision(self.representation, reason="fixed")
