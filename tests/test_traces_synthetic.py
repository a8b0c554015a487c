"""Synthetic traces: the rates asked for, to the packet; the same seed, the same trace."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import MTU_BYTES, TraceError
from traces.synthetic import MARKOV_RATES_BPS, constant, markov, step


@pytest.mark.parametrize("rate_bps", [1e6, 12e6, 12.032e6, 100e3, 3.333e6, 5_000_001, 1e9])
def test_constant_is_exact_for_rates_people_type(rate_bps: float) -> None:
    trace = constant(rate_bps)
    assert trace.mean_bps == pytest.approx(rate_bps, rel=1e-15)
    assert trace.duration_s >= 10
    assert trace.opportunities_ms[-1] == trace.period_ms  # so that a Mahimahi file of it keeps its period


@given(st.floats(170e3, 1e8))
def test_constant_is_within_a_millionth_and_even(rate_bps: float) -> None:
    trace = constant(rate_bps)
    assert abs(trace.mean_bps / rate_bps - 1) < 1e-6
    gaps = np.diff(trace.opportunities_ms)
    assert gaps.max() - gaps.min() <= 1


def test_slow_constants_still_come_close() -> None:
    assert constant(997.3).mean_bps == pytest.approx(997.3, rel=1e-5)


def test_step_visits_each_rate() -> None:
    trace = step([1.2032e6, 0, 2.4064e6], dwell_s=2.5)
    assert trace.period_ms == 7500
    assert np.bincount(trace.opportunities_ms // 2500).tolist() == [250, 0, 500]


def test_markov_moves_between_neighbours_and_stays_for_its_mean() -> None:
    levels = [1.2032e6, 12.032e6, 48.128e6]  # a packet in 10 ms, in 1 ms and in 0.25 ms
    trace = markov(levels, dwell_s=5, duration_s=20_000, seed=1)
    assert trace.duration_s == 20_000
    rate_bps = trace.rate_bps(1.0)
    pure = [np.flatnonzero(np.abs(rate_bps / level - 1) < 0.05) for level in levels]
    assert sum(map(len, pure)) / rate_bps.size > 0.75  # the other seconds contain a change
    # Symmetric birth-death chain over 3 states with equal stays: 1/4, 1/2, 1/4 of the time.
    assert [len(seconds) / rate_bps.size for seconds in pure] == pytest.approx([0.25, 0.5, 0.25], abs=0.12)
    state = np.full(rate_bps.size, -1)
    for level, seconds in enumerate(pure):
        state[seconds] = level
    steady = state[:-1] != -1
    assert not ((state[:-1] == 0) & (state[1:] == 2) & steady).any()


def test_markov_is_its_seed() -> None:
    first, again, other = (markov(seed=seed) for seed in (7, 7, 8))
    assert first.opportunities_ms.tolist() == again.opportunities_ms.tolist()
    assert first.opportunities_ms.tolist() != other.opportunities_ms.tolist()
    # Pinned: a change here changes everybody's results.
    assert hashlib.sha256(first.opportunities_ms.astype("<i8").tobytes()).hexdigest()[:16] == "c34c824ab25c277f"
    assert first.rate_bps(1.0).max() <= max(MARKOV_RATES_BPS) + 8 * MTU_BYTES


@pytest.mark.parametrize(
    "call",
    [
        lambda: constant(0),
        lambda: constant(-1),
        lambda: constant(float("nan")),
        lambda: constant(1e12),
        lambda: constant(1e-3),
        lambda: step([]),
        lambda: step([0, 0]),
        lambda: step([1e6], dwell_s=0),
        lambda: step([1e6, -1]),
        lambda: step([1e6], dwell_s=1e7),
        lambda: step([1e6] * 9, dwell_s=8e4),
        lambda: markov([1e6]),
        lambda: markov(duration_s=0),
        lambda: markov(dwell_s=float("inf")),
        lambda: markov(dwell_s=0.001, duration_s=1e5),
    ],
)
def test_refuses_nonsense(call: Callable[[], object]) -> None:
    with pytest.raises(TraceError, match=r"found .*, expected") as caught:
        call()
    assert "\n" not in str(caught.value)
