"""Tables of text: numbers with their intervals, and Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.statistics import Interval

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A head, and rows with as many cells each; the first cell names the row."""

    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table as Markdown, numbers to the right."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.rows))


def number(value: float, digits: int = 3, *, scale: float = 1.0, sign: bool = False) -> str:
    """Return a number with that many digits after the point, or a dash for NaN."""
    if math.isnan(value):
        return NONE
    return f"{scale * value:+.{digits}f}" if sign else f"{scale * value:.{digits}f}"


def percent(value: float) -> str:
    """Return a share in percent, or a dash for NaN."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"


def span(one: Interval, digits: int = 3, *, scale: float = 1.0, sign: bool = False, unit: str = "") -> str:
    """Return an interval's ends, or a dash where there is no mean."""
    if math.isnan(one.mean):
        return NONE
    low, high = (number(value, digits, scale=scale, sign=sign) for value in (one.low, one.high))
    return f"{low} to {high}{unit}"
