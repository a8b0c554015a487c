"""The oracle against brute force over all plans, by hand, and in sessions whose future it knows."""

import itertools

import numpy as np
import pytest

from abr import Ladder, Observation, OptionError, ThroughputSample, create_abr
from abr.oracle import best_path
from abr.qoe import create_qoe
from emulator import LinkConfig, create_transport
from experiments.future import link_future
from traces import TraceConfig, load_trace

RATES = (1e6, 2e6, 4e6)


def make_ladder(segments, duration_s=2.0):
    return Ladder(RATES, np.outer(np.full(segments, duration_s), RATES) / 8, np.full(segments, duration_s))


def steps(*rates_bps, width_s=3.0):
    """Return the future of a link whose rate changes every `width_s` and stays at the last."""
    edges_s = np.append(np.arange(len(rates_bps)) * width_s, 1e5)
    done = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * rates_bps / 8)])

    def finish_s(sizes, request_s):
        return np.interp(np.interp(request_s, edges_s, done) + sizes, done, edges_s)

    return finish_s


def brute_force(ladder, qoe, finish_s, capacity_s):
    best = -np.inf
    for plan in itertools.product(range(len(RATES)), repeat=ladder.segments):
        now_s = buffer_s = value = 0.0
        for k, m in enumerate(plan):
            wait_s = max(buffer_s + 2.0 - capacity_s, 0.0)
            now_s, buffer_s = now_s + wait_s, buffer_s - wait_s
            arrival_s = float(finish_s(np.array([ladder.segment_bytes[k, m]]), np.array([now_s]))[0])
            late_s = max(arrival_s - now_s - buffer_s, 0.0)
            value += RATES[m] / 1e6 - (qoe.rebuffering * late_s if k else 0.0)
            value -= abs(RATES[m] - RATES[plan[k - 1]]) / 1e6 if k else 0.0
            buffer_s, now_s = max(buffer_s - (arrival_s - now_s), 0.0) + 2.0, arrival_s
        best = max(best, value)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    ladder, future = make_ladder(7), steps(*generator.uniform(0.3e6, 5e6, 8))
    qoe = create_qoe(ladder, rebuffering=generator.uniform(0.5, 4.3))
    path = best_path(ladder, qoe, future, capacity_s=8.0, grid_s=0.01, slack_s=100.0)
    assert path.qoe == pytest.approx(brute_force(ladder, qoe, future, 8.0), abs=0.02)
    coarse = best_path(ladder, qoe, future, capacity_s=8.0, slack_s=100.0)
    assert path.qoe - 0.5 <= coarse.qoe <= path.qoe + 0.02  # playable on any grid, so never above the best


def test_a_fast_link_is_worth_the_top_throughout():
    path = best_path(make_ladder(5), create_qoe(make_ladder(5)), steps(1e9), capacity_s=20.0)
    assert path.representations == (2, 2, 2, 2, 2)
    assert path.qoe == pytest.approx(20.0)


def test_it_saves_for_an_outage_that_no_other_controller_sees():
    # 4 Mbit/s for 6 s, then 0.25: the top would use the six seconds up with 3 segments.
    path = best_path(make_ladder(8), create_qoe(make_ladder(8)), steps(4e6, 4e6, 0.25e6), capacity_s=40.0)
    assert max(path.representations) < 2


def test_it_follows_its_plan_and_plans_anew_when_reality_strays():
    ladder = make_ladder(6)
    controller = create_abr("oracle", ladder, buffer_capacity_s=20.0, finish_s=steps(3e6))
    first = controller.choose(Observation(0.0, 0, 0.0, 20.0))
    assert "planned 0" in first.reason
    size = int(ladder.segment_bytes[0, first.representation])
    on_time_s = 8 * size / 3e6
    on_time, late = (ThroughputSample(size, 0.0, 0.0, time_s) for time_s in (on_time_s, on_time_s + 4.0))
    follow = controller.choose(Observation(on_time_s, 1, 2.0, 20.0, first.representation, (on_time,), True))
    assert "planned 1" in follow.reason
    again = controller.choose(Observation(late.finish_s, 1, 2.0, 20.0, first.representation, (late,), True))
    assert "planned 0" in again.reason


@pytest.mark.parametrize("options", [{}, {"finish_s": 3}, {"finish_s": steps(1e6), "grid_s": 0.0}])
def test_without_a_future_it_is_refused(options):
    with pytest.raises(OptionError):
        create_abr("oracle", make_ladder(3), buffer_capacity_s=20.0, **options)


@pytest.mark.parametrize(("name", "size"), [("umts", 20_000), ("lte", 400_000), ("fcc", 100_000)])
def test_the_future_of_a_link_is_what_the_emulator_makes_of_it(name, size):
    trace, config = load_trace(TraceConfig(name=name)), LinkConfig()
    future, transport, now_s = link_future(trace, config), create_transport(trace, config), 0.0
    errors = []
    for _ in range(40):
        transfer = transport.request(size, now_s)
        expected_s = float(future(np.array([size]), np.array([now_s]))[0])
        errors.append((transfer.finish_s - expected_s) / (expected_s - now_s))
        now_s = transfer.finish_s + 1.0
    assert abs(float(np.median(errors[1:]))) < 0.1  # the first one waits for the handshake
