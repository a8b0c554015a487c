"""Statistics of a study: means with bootstrap intervals by trace, and schemes compared on equal links.

Sessions over one trace are not independent, so whole traces are drawn with replacement, as many as there are; an
interval holds the middle 95 % of the means. Two schemes are compared session by session, on the same trace, share and
start offset: what a hard trace does to both cancels. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.errors import ExperimentError

DRAWS = 10_000
LEVEL = 0.95
LINK = ("trace", "share", "offset_s")
"""What two sessions must have in common to be a pair."""


@dataclass(frozen=True)
class Interval:
    """A mean over sessions and its bootstrap interval by trace."""

    mean: float
    low: float
    high: float
    sessions: int
    traces: int

    def overlaps(self, other: Interval) -> bool:
        """Say whether the two intervals share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Comparison:
    """Scheme a against scheme b in one column, over the links that both were run on."""

    difference: Interval
    """Of a - b."""
    effect_size: float
    """Cohen's d of paired samples: mean over traces of their mean differences / the standard deviation of those."""
    higher_share: float
    """Share of pairs in which a has the higher value; ties count half."""
    overlap: bool
    """Whether the intervals of the two schemes by themselves overlap: which is ahead then rests on the pairing."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves zero out."""
        return self.difference.low > 0 or self.difference.high < 0


def interval(table: pd.DataFrame, column: str, *, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Return the mean of a column over sessions and its interval; rows without a value are left out."""
    rows = table[["trace", column]].dropna()
    if rows.empty:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    groups = rows.groupby("trace", sort=True)[column].agg(["sum", "count"])
    low, high = np.quantile(_means(groups.to_numpy(np.float64), seed, draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(rows[column].mean()), float(low), float(high), len(rows), len(groups))


def draw_means(table: pd.DataFrame, columns: Sequence[str], *, seed: int = 0, draws: int = 2000) -> NDArray[np.float64]:
    """Return bootstrap means [draws, columns], each row from one drawing of traces; for ellipses."""
    rows = table[["trace", *columns]].dropna()
    groups = [rows.groupby("trace", sort=True)[name].agg(["sum", "count"]).to_numpy(np.float64) for name in columns]
    return np.stack([_means(group, seed, draws) for group in groups], axis=1)


def compare(a: pd.DataFrame, b: pd.DataFrame, column: str, *, seed: int = 0, draws: int = DRAWS) -> Comparison:
    """Compare two schemes, each given by its sessions, in a column.

    Raises:
        ExperimentError: they have no link in common, or a scheme has several sessions over one.
    """
    sides = [one[[*LINK, column]].dropna() for one in (a, b)]
    if any(side.duplicated(list(LINK)).any() for side in sides):
        raise ExperimentError(f"comparison by {column}: a scheme has several sessions over one link; select one")
    pairs = sides[0].merge(sides[1], on=list(LINK), suffixes=("_a", "_b"))
    if pairs.empty:
        raise ExperimentError(f"comparison by {column}: the schemes have no trace and offset in common")
    pairs["difference"] = pairs[f"{column}_a"] - pairs[f"{column}_b"]
    by_trace = pairs.groupby("trace")["difference"].mean()
    spread = float(by_trace.std(ddof=1)) if len(by_trace) > 1 else math.nan
    sign = np.sign(pairs["difference"])
    alone = [interval(side, column, seed=seed, draws=draws) for side in sides]
    return Comparison(
        difference=interval(pairs, "difference", seed=seed, draws=draws),
        effect_size=float(by_trace.mean()) / spread if spread > 0 else math.nan,
        higher_share=float(((sign + 1) / 2).mean()),
        overlap=alone[0].overlaps(alone[1]),
    )


def _means(groups: NDArray[np.float64], seed: int, draws: int) -> NDArray[np.float64]:
    """Return the means [draws] over sessions when whole traces are drawn; `groups` [traces, 2]: sum and count."""
    chosen = np.random.default_rng(seed).integers(len(groups), size=(draws, len(groups)))
    totals = groups[chosen].sum(axis=1)
    means: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
    return means
