"""Means with bootstrap intervals; differences are taken pair by pair before they come here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that it lies in."""

    mean: float
    low: float
    high: float

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return `mean [low, high]`."""
        mean, low, high = (f"{value * scale:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval:
    """Return the mean of `values` and its percentile-bootstrap interval (Efron 1979), values drawn with replacement.

    Args:
        values: one or more finite numbers, independent of each other.
        seed: equal seeds and values give equal intervals.
    """
    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(data), size=(DRAWS, len(data)))
    low, high = np.quantile(data[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(data.mean()), float(low), float(high))
