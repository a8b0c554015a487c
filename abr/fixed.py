"""`fixed`, `lowest`, `highest`: always the same representation, the yardsticks for every other controller."""

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


def lowest_controller(ladder: Ladder, *, buffer_capacity_s: float) -> Fixed:
    """Build `lowest`: the least rebuffering any controller can have."""
    return Fixed(ladder, buffer_capacity_s=buffer_capacity_s, representation=0)


def highest_controller(ladder: Ladder, *, buffer_capacity_s: float) -> Fixed:
    """Build `highest`: the best quality at any price in rebuffering."""
    return Fixed(ladder, buffer_capacity_s=buffer_capacity_s, representation=-1)
