"""MPC: plans against brute force, errors and discounts by hand, the table against the plans, render speed, quality."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import Ladder, Observation, OptionError, ThroughputSample, create_abr, create_estimator
from abr.mpc import Mpc, PredictionErrors, best_plan
from abr.qoe import create_qoe, scaled_quality


def make_ladder(rates_bps=(1e6, 2e6, 4e6), segments=8, duration_s=2.0, **more):
    sizes = np.round(np.outer(np.full(segments, duration_s), rates_bps) / 8)
    return Ladder(rates_bps, sizes, np.full(segments, duration_s), **more)


def sample(rate_bps, size_bytes=250_000, finish_s=10.0):
    begin_s = finish_s - 8 * size_bytes / rate_bps
    return ThroughputSample(size_bytes, begin_s, begin_s, finish_s)


def observe(buffer_s, *samples, segment=1, last=0, **more):
    return Observation(10.0, segment, buffer_s, 20.0, last, samples, True, **more)


def brute_force(qoe, utility, times_s, durations_s, buffer_s, capacity_s, last):
    """Return the best first choice and value, straight from the definition."""
    best, choice = -np.inf, None
    for plan in itertools.product(range(times_s.shape[1]), repeat=len(times_s)):
        level_s, value, before = buffer_s, 0.0, last
        for k, m in enumerate(plan):
            value -= qoe.rebuffering * max(times_s[k, m] - level_s, 0.0)
            level_s = min(max(level_s - times_s[k, m], 0.0) + durations_s[k], capacity_s)
            value += utility[k, m] / qoe.unit
            value -= qoe.switching * abs(utility[k, m] - before) / qoe.unit
            before = utility[k, m]
        if value > best + 1e-12:
            best, choice = value, plan[0]
    return choice, best


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    horizon=st.integers(1, 4),
    representations=st.integers(1, 4),
    buffer_s=st.floats(0, 20),
)
def test_the_plan_is_the_best_of_all(seed, horizon, representations, buffer_s):
    generator = np.random.default_rng(seed)
    rates = np.sort(generator.uniform(1e5, 5e6, representations))
    ladder = make_ladder(rates, segments=horizon)
    qoe = create_qoe(ladder, "log" if seed % 2 else "linear", switching=0.7)  # at 1, every rise from `last` ties
    times_s = generator.uniform(0.1, 6.0, (horizon, representations))
    durations_s, last = np.full(horizon, 2.0), float(qoe.utility[0, seed % representations])
    plan = best_plan(
        qoe, slice(0, horizon), times_s, durations_s, buffer_s=buffer_s, capacity_s=20.0, last=last
    )  # fmt: skip
    choice, value = brute_force(qoe, qoe.utility, times_s, durations_s, buffer_s, 20.0, last)
    assert plan.value == pytest.approx(value)
    assert plan.representation == choice


def test_mpc_by_hand():
    # 2 Mbit/s, mu = 4: the top needs 4 s a segment. With 2 s of buffer one top segment rebuffers 2 s: never worth it.
    # With 12 s it can be afforded for five segments (10 s lost), and going straight up switches by 3 once.
    controller = create_abr("mpc", make_ladder(), buffer_capacity_s=20.0, estimator="naive")
    assert controller.choose(observe(2.0, sample(2e6))).representation == 1
    assert controller.choose(observe(12.0, sample(2e6))).representation == 2


def test_equal_plans_take_the_lower_or_as_pensieve_the_last():
    ladder = Ladder([1e6, 1e6], [[250_000, 250_000]] * 3, [2.0] * 3)
    for ties, expected in (("first", 0), ("last", 1)):
        controller = Mpc(ladder, create_qoe(ladder), create_estimator("naive"), buffer_capacity_s=20.0, ties=ties)
        assert controller.choose(observe(5.0, sample(2e6))).representation == expected


def test_errors_are_those_of_the_latest_five_predictions():
    errors, estimator = PredictionErrors(), create_estimator("naive", window=1)
    samples = []
    for rate_bps in (2e6, 1e6, 1e6, 2e6, 2e6, 2e6):  # each is predicted by the one before
        samples.append(sample(rate_bps))
        errors.update(samples, estimator.estimate(samples, 10.0))
        errors.update(samples, estimator.estimate(samples, 10.0))  # asked again: counted once
        if rate_bps == 1e6 and len(samples) == 2:
            assert errors.worst == pytest.approx(1.0)  # |2 - 1| / 1
    assert errors.worst == pytest.approx(1.0)
    samples.append(sample(2e6))
    errors.update(samples, estimator.estimate(samples, 10.0))
    assert errors.worst == pytest.approx(0.5)  # the first error is forgotten; |1 - 2| / 2 is left


def test_robustmpc_halves_the_rate_after_an_error_of_one():
    ladder = make_ladder()
    controller = create_abr("robustmpc", ladder, buffer_capacity_s=20.0, estimator="naive")
    first, second = sample(4e6, finish_s=5.0), sample(2e6, finish_s=10.0)
    assert controller.choose(observe(8.0, first)).estimate_bps == pytest.approx(4e6)
    # harmonic mean of 4 and 2 is 2.667; the prediction of 4 was wrong by |4 - 2| / 2 = 1
    assert controller.choose(observe(8.0, first, second, segment=2)).estimate_bps == pytest.approx(8e6 / 3 / 2)


def test_the_horizon_ends_with_the_programme():
    controller = create_abr("robustmpc", make_ladder(segments=3), buffer_capacity_s=20.0, estimator="naive")
    assert "over 1 segments" in controller.choose(observe(8.0, sample(4e6), segment=2)).reason


def test_before_anything_is_measured_the_lowest():
    assert create_abr("mpc", make_ladder(), buffer_capacity_s=20.0).choose(observe(0.0)).representation == 0


def test_a_rate_that_is_only_a_bound_does_not_hold_quality_down():
    ladder = make_ladder((8e3, 16e3, 32e3))
    lone_packet = ThroughputSample(1000, 9.0, 9.04, 9.04)
    decision = create_abr("mpc", ladder, buffer_capacity_s=20.0).choose(observe(10.0, lone_packet, last=1))
    assert decision.representation == 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_quality_is_scaled_whichever_way_it_points(sign):
    table = sign * np.array([[1.0, 2.0], [3.0, 5.0]])
    ladder = Ladder([1e6, 2e6], [[1, 2], [1, 2]], [2.0, 2.0], quality=table)
    assert scaled_quality(ladder) == pytest.approx(np.array([[0.0, 0.25], [0.5, 1.0]]))


def test_bits_that_buy_no_quality_are_saved():
    # In segments 1..5 the top looks no better than the middle: quality_mpc takes the middle, mpc the top.
    quality = np.tile([0.2, 0.9, 0.9], (8, 1))
    ladder = make_ladder(quality=quality)
    observation = observe(12.0, sample(40e6), last=1)
    chosen = {
        name: create_abr(name, ladder, buffer_capacity_s=20.0, estimator="naive").choose(observation).representation
        for name in ("mpc", "quality_mpc")
    }
    assert chosen == {"mpc": 2, "quality_mpc": 1}


def test_the_penalty_of_rebuffering_is_the_best_utility_as_in_the_papers():
    pensieve = make_ladder([3e5, 7.5e5, 1.2e6, 1.85e6, 2.85e6, 4.3e6])
    assert create_qoe(pensieve).rebuffering == 4.3
    assert create_qoe(pensieve, "log").rebuffering == pytest.approx(2.66, abs=0.005)
    assert create_qoe(pensieve, "hd").rebuffering == 8.0


@settings(max_examples=60)
@given(buffer_s=st.floats(0, 18), rate_bps=st.floats(3e5, 2e7), last=st.integers(0, 2))
def test_the_table_agrees_with_the_plan_almost_everywhere(buffer_s, rate_bps, last):
    """At a cell's own buffer and rate the table may lose only what interpolation between 0.2 s bins can lose."""
    ladder = make_ladder()
    table = create_abr("fastmpc", ladder, buffer_capacity_s=20.0, estimator="naive")
    bin_s = 20.0 / 99
    buffer_s = round(buffer_s / bin_s) * bin_s
    rate_bps = table._rates_bps[int(np.argmin(np.abs(np.log(table._rates_bps / rate_bps))))]
    choice = table.choose(observe(buffer_s, sample(rate_bps), last=last)).representation
    qoe, steps = create_qoe(ladder), slice(1, 6)
    times_s = 8 * ladder.segment_bytes[steps] / rate_bps
    arguments = {"buffer_s": buffer_s, "capacity_s": 20.0, "last": float(qoe.utility[0, last])}
    best = best_plan(qoe, steps, times_s, np.full(5, 2.0), **arguments)
    times_s[0, [m for m in range(3) if m != choice]] = np.inf
    chosen = best_plan(qoe, steps, times_s, np.full(5, 2.0), **arguments)
    assert chosen.value >= best.value - 0.25 * bin_s * qoe.rebuffering


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpc", {"horizon": 0}, "horizon"),
        ("mpc", {"horizon": 14}, "shorter horizon"),
        ("mpc", {"utility": "vmaf"}, "known: linear, log, hd, quality, log_quality"),
        ("mpc", {"utility": "hd"}, "6 representations, not 3"),
        ("mpc", {"rebuffering": -1.0}, "rebuffering"),
        ("mpc", {"switching": -1.0}, "switching"),
        ("quality_mpc", {}, "no measured quality"),
        ("fastmpc", {"utility": "quality"}, "quality_mpc"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(OptionError, match=message):
        create_abr(name, make_ladder(segments=20), buffer_capacity_s=20.0, **options)
