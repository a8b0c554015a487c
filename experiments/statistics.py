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
"""What two sessions must have in common to be a pair, on any data set."""
CONDITIONS = ("video", "seed", "session_s", "buffer_s", "delay_ms", "loss", "link_model")
"""What they must have in common besides, where the data set has it, as any column with a dot: that is a swept key."""


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


def conditions(table: pd.DataFrame) -> list[str]:
    """Return the columns in which two sessions must be equal to be a pair, codec and controller left aside."""
    return [*LINK, *(name for name in table if name in CONDITIONS or "." in name)]


def pair(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[str], *, on: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row for each pair of sessions under equal conditions: `on`, and every column as NAME_a and NAME_b.

    Args:
        on: columns that must be equal; None: `conditions` of both tables.

    Raises:
        ExperimentError: they have no session in common, or a scheme has several sessions under equal conditions.
    """
    keys = [name for name in conditions(a) if name in b] if on is None else list(on)
    sides = [one[[*keys, *columns]].dropna(subset=list(columns)) for one in (a, b)]
    what = f"comparison by {', '.join(columns)}"
    if any(side.duplicated(keys).any() for side in sides):
        raise ExperimentError(f"{what}: a scheme has several sessions over one link; select one")
    renamed = [
        side.rename(columns={name: f"{name}_{mark}" for name in columns})
        for side, mark in zip(sides, "ab", strict=True)
    ]
    pairs = renamed[0].merge(renamed[1], on=keys)
    if pairs.empty:
        raise ExperimentError(f"{what}: the schemes have no trace and offset in common")
    return pairs


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    column: str,
    *,
    on: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Compare two schemes, each given by its sessions, in a column; pairs and errors are those of `pair`."""
    pairs = pair(a, b, [column], on=on)
    pairs["difference"] = pairs[f"{column}_a"] - pairs[f"{column}_b"]
    by_trace = pairs.groupby("trace")["difference"].mean()
    spread = float(by_trace.std(ddof=1)) if len(by_trace) > 1 else math.nan
    sign = np.sign(pairs["difference"])
    alone = [interval(side, column, seed=seed, draws=draws) for side in (a, b)]
    return Comparison(
        difference=interval(pairs, "difference", seed=seed, draws=draws),
        effect_size=float(by_trace.mean()) / spread if spread > 0 else math.nan,
        higher_share=float(((sign + 1) / 2).mean()),
        overlap=alone[0].overlaps(alone[1]),
    )


def reduction(pairs: pd.DataFrame, column: str, *, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Return 1 - mean of COLUMN_a / mean of COLUMN_b over pairs, with its interval by trace.

    NaN where b's mean is zero: nothing is left to reduce. Drawings in which b's mean is zero are left out of the
    interval.
    """
    rows = pairs[["trace", f"{column}_a", f"{column}_b"]].dropna()
    if rows.empty:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    sums = rows.groupby("trace", sort=True)[[f"{column}_a", f"{column}_b"]].sum().to_numpy(np.float64)
    chosen = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    totals = sums[chosen].sum(axis=1)
    whole = sums.sum(axis=0)
    if whole[1] <= 0:
        return Interval(math.nan, math.nan, math.nan, len(rows), len(sums))
    values = 1 - totals[totals[:, 1] > 0, 0] / totals[totals[:, 1] > 0, 1]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(1 - whole[0] / whole[1]), float(low), float(high), len(rows), len(sums))


def _means(groups: NDArray[np.float64], seed: int, draws: int) -> NDArray[np.float64]:
    """Return the means [draws] over sessions when whole traces are drawn; `groups` [traces, 2]: sum and count."""
    chosen = np.random.default_rng(seed).integers(len(groups), size=(draws, len(groups)))
    totals = groups[chosen].sum(axis=1)
    means: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
    return means
