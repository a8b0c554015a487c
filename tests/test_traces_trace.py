"""Trace: the wrap rule, share, offset and rates, checked against the endless list of opportunities written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces import MTU_BYTES, Trace, TraceError


def make(times: list[int], period_ms: int | None = None) -> Trace:
    return Trace("t", np.array(times, dtype=np.int64), times[-1] if period_ms is None else period_ms)


def written_out(trace: Trace, until_ms: int) -> list[int]:
    """All opportunities up to a time, by the rule itself."""
    laps = until_ms // trace.period_ms + 2
    every = sorted(k * trace.period_ms + int(s) for k in range(laps) for s in trace.opportunities_ms)
    return [time for time in every if time <= until_ms]


@st.composite
def small_traces(draw: st.DrawFn) -> Trace:
    period = draw(st.integers(1, 40))
    times = sorted(draw(st.lists(st.integers(0, period), min_size=1, max_size=12)))
    if draw(st.booleans()):
        times[-1] = period
    return make(times, period)


@given(small_traces(), st.integers(-5, 150))
def test_count_until_is_the_number_written_out(trace: Trace, time_ms: int) -> None:
    assert trace.count_until(time_ms) == (len(written_out(trace, time_ms)) if time_ms >= 0 else 0)


@given(small_traces())
def test_opportunity_times_are_those_written_out(trace: Trace) -> None:
    expected = written_out(trace, 150)
    assert np.asarray(trace.opportunity_ms(np.arange(len(expected)))).tolist() == expected
    assert isinstance(trace.opportunity_ms(0), int)


@given(small_traces(), st.integers(0, 100), st.integers(0, 100))
def test_starting_at_only_moves_the_clock(trace: Trace, offset_ms: int, time_ms: int) -> None:
    moved = trace.starting_at(offset_ms / 1000)
    offset_ms %= trace.period_ms
    before = trace.count_until(offset_ms - 1) if offset_ms else 0
    assert moved.period_ms == trace.period_ms
    assert moved.count_until(time_ms) == trace.count_until(time_ms + offset_ms) - before


@given(small_traces(), st.integers(1, 15))
def test_share_takes_every_nth_of_a_lap(trace: Trace, n: int) -> None:
    shared = trace.share(n)
    assert shared.period_ms == trace.period_ms
    assert shared.opportunities_ms.tolist() == trace.opportunities_ms.tolist()[::n]


@given(small_traces(), st.integers(0, 100), st.integers(0, 100))
def test_capacity_adds_up(trace: Trace, a: int, b: int) -> None:
    lo, hi = sorted((a, b))
    assert trace.capacity_bytes(0, lo) + trace.capacity_bytes(lo, hi) == trace.capacity_bytes(0, hi)
    assert trace.capacity_bytes(-1, hi) == MTU_BYTES * trace.count_until(hi)


def test_the_seam_of_two_laps_has_both_opportunities() -> None:
    trace = make([0, 5])
    assert np.asarray(trace.opportunity_ms(np.arange(6))).tolist() == [0, 5, 5, 10, 10, 15]
    assert trace.count_until(5) == 3


def test_one_line_of_1_is_12_mbit() -> None:
    assert make([1]).mean_bps == 12_032_000
    assert make([1]).rate_bps(0.01, 1.0).tolist() == [12_032_000 * 0.9] + [12_032_000] * 99


def test_count_takes_arrays_and_fractions() -> None:
    trace = make([1, 2, 2, 4])
    assert np.asarray(trace.count_until(np.array([-1, 0, 1, 2, 3, 4, 5]))).tolist() == [0, 0, 1, 3, 3, 4, 5]
    assert trace.count_until(1.999) == 1
    assert trace.count_until(-0.5) == 0


def test_rate_has_whole_bins_and_runs_into_the_next_lap() -> None:
    trace = make([0, 400, 1000, 1200], 1500)
    assert (trace.rate_bps(1.0) / (8 * MTU_BYTES)).tolist() == [2, 4]  # second bin: 1000, 1200, 1500, 1900
    assert (trace.rate_bps(0.5) / (8 * MTU_BYTES)).tolist() == [4, 0, 4]
    assert trace.rate_bps(1.0, duration_s=3.0).sum() / (8 * MTU_BYTES) == 8
    assert trace.percentile_bps(50) == 3 * 8 * MTU_BYTES
    assert trace.duration_s == 1.5
    assert trace.mean_bps == pytest.approx(4 * 8 * MTU_BYTES / 1.5)


def test_times_cannot_be_changed() -> None:
    times = np.array([1, 2], dtype=np.int64)
    trace = Trace("t", times, 2)
    with pytest.raises(ValueError, match="read-only"):
        trace.opportunities_ms[0] = 7
    assert times.flags.writeable


@pytest.mark.parametrize(
    ("times", "period_ms"),
    [([], 5), ([1, 2], 0), ([1, 2], -3), ([3, 2], 5), ([-1, 2], 5), ([1, 9], 5), ([1], 10**12)],
)
def test_refuses_what_is_no_trace(times: list[int], period_ms: int) -> None:
    with pytest.raises(TraceError, match=r"^t: found .*, expected "):
        Trace("t", np.array(times, dtype=np.int64), period_ms)
    with pytest.raises(TraceError, match=r"found float64"):
        Trace("t", np.array([1.0]), 5)  # type: ignore[arg-type]


def test_refuses_bad_arguments() -> None:
    trace = make([1, 2])
    for call in (
        lambda: trace.share(0),
        lambda: trace.share(1.5),  # type: ignore[arg-type]
        lambda: trace.starting_at(-1),
        lambda: trace.starting_at(float("nan")),
        lambda: trace.rate_bps(0.0005),
        lambda: trace.rate_bps(float("inf")),
        lambda: trace.rate_bps(1, 0),
        lambda: trace.percentile_bps(101),
        lambda: trace.opportunity_ms(-1),
        lambda: trace.capacity_bytes(5, 4),
    ):
        with pytest.raises(TraceError, match=r"found .*, expected"):
            call()
