"""Comparing rate-distortion curves: Bjontegaard deltas, and where two curves cross. Numbers in, numbers out.

The delta rate is Bjontegaard's (VCEG-M33, 2001) with the piecewise cubic interpolation that JVET's common test
conditions use (PCHIP, Fritsch and Carlson 1980) of the logarithm of the rate over the quality. Nothing is extrapolated:
where the two curves share too little of the quality axis there is no number, and the reason is given instead.

A curve enters as the points that no cheaper point equals or exceeds. Measured curves are not always monotone, a second
point at the same rate says nothing, and a quality must belong to one rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

LEAST_OVERLAP = 0.1
"""Share of the shorter curve's range that both must cover; over less than that a mean says little."""
_CROSSING_STEPS = 2048


@dataclass(frozen=True)
class Curve:
    """A rate-distortion curve: points of rising rate and rising quality."""

    log_rate: np.ndarray  # [n] natural logarithm of bit/s
    quality: np.ndarray  # [n], higher is better

    @classmethod
    def of(cls, rates_bps: Sequence[float], values: Sequence[float], *, higher_is_better: bool = True) -> Curve:
        """Return the curve through measured points, in any order; metrics where lower is better are negated."""
        sign = 1.0 if higher_is_better else -1.0
        points = sorted(zip(rates_bps, values, strict=True), key=lambda point: (point[0], -sign * point[1]))
        kept: list[tuple[float, float]] = []
        for rate_bps, value in points:
            if not kept or sign * value > kept[-1][1]:
                kept.append((float(np.log(rate_bps)), sign * value))
        log_rate, quality = np.array(kept, np.float64).reshape(-1, 2).T
        return cls(log_rate, quality)

    def __len__(self) -> int:
        return len(self.quality)


@dataclass(frozen=True)
class Delta:
    """How far one curve lies from another on average, or why that cannot be said."""

    value: float | None  # of a rate: relative, -0.5 is half; of a quality: in the metric's own unit
    overlap: float  # share of the shorter curve's range, 0 to 1
    reason: str = ""  # why there is no value


@dataclass(frozen=True)
class Crossing:
    """Where one curve stops being better than another."""

    rate_bps: float
    better_above: bool  # whether the first curve is better above this rate


def bd_rate(anchor: Curve, test: Curve) -> Delta:
    """Return the mean relative difference in rate at equal quality, negative where `test` needs less."""
    delta = _mean_difference((anchor.quality, anchor.log_rate), (test.quality, test.log_rate), "qualities")
    return Delta(None if delta.value is None else float(np.expm1(delta.value)), delta.overlap, delta.reason)


def bd_quality(anchor: Curve, test: Curve) -> Delta:
    """Return the mean difference in quality at equal rate, positive where `test` is better."""
    return _mean_difference((anchor.log_rate, anchor.quality), (test.log_rate, test.quality), "rates")


def crossings(anchor: Curve, test: Curve) -> list[Crossing]:
    """Return where `test` starts or stops being better than `anchor`, over the rates that both have, lowest first."""
    if min(len(anchor), len(test)) < 2:
        return []
    low, high = max(anchor.log_rate[0], test.log_rate[0]), min(anchor.log_rate[-1], test.log_rate[-1])
    if low >= high:
        return []
    grid = np.linspace(low, high, _CROSSING_STEPS)
    of_test, of_anchor = (PchipInterpolator(curve.log_rate, curve.quality)(grid) for curve in (test, anchor))
    lead = of_test - of_anchor
    places = np.flatnonzero(np.sign(lead[:-1]) * np.sign(lead[1:]) < 0)
    shares = lead[places] / (lead[places] - lead[places + 1])
    rates = np.exp(grid[places] + shares * (grid[1] - grid[0]))
    return [Crossing(float(rate), bool(lead[place + 1] > 0)) for rate, place in zip(rates, places, strict=True)]


def _mean_difference(anchor: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], axis: str) -> Delta:
    """Return the mean of test - anchor over the part of the x axis that both (x, y) cover."""
    if min(len(anchor[0]), len(test[0])) < 2:
        return Delta(None, 0.0, "fewer than two points")
    low, high = max(anchor[0][0], test[0][0]), min(anchor[0][-1], test[0][-1])
    shorter = min(anchor[0][-1] - anchor[0][0], test[0][-1] - test[0][0])
    overlap = max(0.0, float((high - low) / shorter))
    if not overlap:
        higher = "all higher" if test[0][0] > anchor[0][-1] else "all lower"
        return Delta(None, 0.0, f"no overlap, {axis} {higher}")
    if overlap < LEAST_OVERLAP:
        return Delta(None, overlap, f"overlap of {100 * overlap:.0f} % only")
    areas = [float(PchipInterpolator(*points).integrate(low, high)) for points in (anchor, test)]
    return Delta((areas[1] - areas[0]) / (high - low), overlap)
