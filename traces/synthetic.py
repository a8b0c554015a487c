"""Synthetic traces: constant, step, Markov-modulated. Pure functions; randomness only from a seed."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from traces.errors import TraceError
from traces.formats import RateSeries
from traces.trace import MAX_PERIOD_MS, MTU_BYTES, Trace

STEP_RATES_BPS = (5e6, 1e6)
MARKOV_RATES_BPS = (0.5e6, 1e6, 2e6, 4e6, 8e6)

_MTU_BITS = 8 * MTU_BYTES
_HIGHEST_RATE_BPS = 1e10
_SHORTEST_PERIOD_MS = 10_000  # so that a rate's plot and 1-s statistics have something to show


def constant(rate_bps: float, *, name: str | None = None) -> Trace:
    """Return a link of constant rate.

    The opportunities are spaced as evenly as whole milliseconds allow. The period is chosen so that a whole number of
    them fits: the mean is exact where the rate in MTUs per ms has a small denominator (1, 5, 12 Mbit/s, ...), otherwise
    within one part per million (from 170 kbit/s up; slower ones have fewer opportunities in the longest period, a day).
    """
    _check_rate(rate_bps)
    per_ms = Fraction(rate_bps) / (_MTU_BITS * 1000)
    longest_ms = max(20_000, min(86_400_000, int(1_200_000 / per_ms)))
    best = per_ms.limit_denominator(longest_ms)
    if best == 0:
        raise TraceError(f"constant: found {rate_bps:g} bit/s, expected at least one MTU in {longest_ms // 1000} s")
    laps = math.ceil(_SHORTEST_PERIOD_MS / best.denominator)
    count, period_ms = best.numerator * laps, best.denominator * laps
    times = -(-np.arange(1, count + 1, dtype=np.int64) * period_ms // count)  # ceil; the last one is the period
    return Trace(name=name or f"constant {rate_bps / 1e6:g} Mbit/s", opportunities_ms=times, period_ms=period_ms)


def step(rates_bps: Sequence[float] = STEP_RATES_BPS, *, dwell_s: float = 30.0, name: str = "step") -> Trace:
    """Return a link that visits each rate in turn for dwell_s, again and again."""
    if not rates_bps:
        raise TraceError("step: found no rates, expected at least one")
    _check_time(dwell_s, "dwell_s")
    edges = np.arange(len(rates_bps) + 1) * float(dwell_s)
    return _from_levels(edges, [_check_rate(rate, zero=True) for rate in rates_bps], name)


def markov(
    rates_bps: Sequence[float] = MARKOV_RATES_BPS,
    *,
    dwell_s: float = 30.0,
    duration_s: float = 600.0,
    seed: int = 0,
    name: str = "markov",
) -> Trace:
    """Return a Markov-modulated link: a continuous-time birth-death chain over the rates, in the order given.

    The chain starts in a state drawn uniformly, stays for an exponential time of mean dwell_s, then moves to the state
    above or below with equal probability (at either end to the only neighbour). The last stay is cut at duration_s, and
    the trace repeats from there. Mersenne Twister, so a seed means the same trace with every Python and numpy.
    """
    if len(rates_bps) < 2:
        raise TraceError(f"markov: found {len(rates_bps)} rate(s), expected at least 2 states")
    _check_time(dwell_s, "dwell_s")
    _check_time(duration_s, "duration_s")
    if duration_s / dwell_s > 1e6:
        raise TraceError(f"markov: found {duration_s / dwell_s:.3g} changes of state, expected at most 1e6")
    levels = [_check_rate(rate, zero=True) for rate in rates_bps]
    chance = random.Random(seed)
    state = int(chance.random() * len(levels))
    stays: list[float] = []
    visited: list[float] = []
    left_s = float(duration_s)
    while left_s > 0:
        stay_s = min(left_s, -dwell_s * math.log(1 - chance.random()))
        stays.append(stay_s)
        visited.append(levels[state])
        left_s -= stay_s
        up = chance.random() < 0.5
        if state in (0, len(levels) - 1):
            up = state == 0
        state += 1 if up else -1
    edges = np.array([0.0, *accumulate(stays)])
    edges[-1] = duration_s
    return _from_levels(edges, visited, name)


def _from_levels(edges_s: np.ndarray, rates_bps: Sequence[float], name: str) -> Trace:
    """Return the trace of a piecewise-constant rate."""
    if edges_s[-1] * 1000 > MAX_PERIOD_MS:
        raise TraceError(f"{name}: found {edges_s[-1]:g} s, expected at most {MAX_PERIOD_MS // 1000} s (7 days)")
    return RateSeries(edges_s, np.array(rates_bps, dtype=np.float64)).to_trace(name)


def _check_rate(rate_bps: float, *, zero: bool = False) -> float:
    """Return a rate; TraceError unless it is finite and above 0 (or 0, where that is allowed)."""
    if not math.isfinite(rate_bps) or rate_bps < 0 or (rate_bps == 0 and not zero):
        raise TraceError(f"rate_bps: found {rate_bps}, expected a rate {'>=' if zero else '>'} 0 bit/s")
    if rate_bps > _HIGHEST_RATE_BPS:
        raise TraceError(f"rate_bps: found {rate_bps:g} bit/s, expected at most {_HIGHEST_RATE_BPS:g}")
    return float(rate_bps)


def _check_time(time_s: float, what: str) -> None:
    """TraceError unless a time is finite and at least one ms."""
    if not math.isfinite(time_s) or time_s < 0.001:
        raise TraceError(f"{what}: found {time_s} s, expected at least 0.001")
