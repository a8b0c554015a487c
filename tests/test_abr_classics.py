"""Rate, buffer and low-latency rules against cases worked by hand from their papers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abr import Ladder, Observation, OptionError, ThroughputSample, create_abr, known_names
from abr.chunk_map import ChunkMap
from abr.l2a import ALPHA, VL, project_on_simplex
from abr.rate_based import harmonic_mean_bps

RATES = (1e6, 2e6, 4e6)


def make_ladder(rates_bps=RATES, segments=40, duration_s=4.0, **more):
    sizes = np.round(np.outer(np.full(segments, duration_s), rates_bps) / 8)
    return Ladder(rates_bps, sizes, np.full(segments, duration_s), **more)


def sample(rate_bps, size_bytes=250_000):
    return ThroughputSample(size_bytes, 0.0, 0.0, 8 * size_bytes / rate_bps)


def choose(controller, buffer_s=10.0, samples=(), last=0, segment=1):
    return controller.choose(Observation(100.0, segment, buffer_s, 60.0, last, tuple(samples), True)).representation


# Pensieve's BB: reservoir 5 s, cushion 10 s, index floor(2 (Q - 5) / 10).


@pytest.mark.parametrize(("buffer_s", "expected"), [(0, 0), (5, 0), (9.99, 0), (10, 1), (14.99, 1), (15, 2), (50, 2)])
def test_bb_by_hand(buffer_s, expected):
    assert choose(create_abr("bb", make_ladder(), buffer_capacity_s=60.0), buffer_s) == expected


def test_bb_reaches_the_top_with_a_small_buffer():
    controller = create_abr("bb", make_ladder(), buffer_capacity_s=10.0)
    assert (controller.reservoir_s, controller.cushion_s) == pytest.approx((2.0, 4.0))
    assert choose(controller, 6.0) == 2


# Puffer's BBA: 15 s, sizes linear between 3 s and 12 s, the best quality that fits.


@pytest.mark.parametrize(("buffer_s", "expected"), [(3.0, 0), (5.9, 0), (6.1, 1), (11.9, 1), (12.0, 2)])
def test_puffer_bba_by_hand(buffer_s, expected):
    # f = 100 + 300 (Q - 3) / 9 kB: 200 kB at 6 s, 400 kB at 12 s.
    ladder = Ladder(RATES, [[100_000, 200_000, 400_000]] * 2, [2.0] * 2)
    assert choose(create_abr("puffer_bba", ladder, buffer_capacity_s=15.0), buffer_s) == expected


def test_puffer_bba_takes_the_best_quality_that_fits_and_of_equals_the_smaller():
    quality = [[0.2, 0.9, 0.5], [0.9, 0.9, 1.0]]
    ladder = Ladder(RATES, [[100_000, 200_000, 400_000]] * 2, [2.0] * 2, quality=quality)
    controller = create_abr("puffer_bba", ladder, buffer_capacity_s=15.0)
    assert choose(controller, 12.0, segment=0) == 1
    assert choose(controller, 8.0, segment=1) == 0


# BBA-1 and BBA-2 at the paper's 240 s.


def test_the_reservoir_is_what_the_lowest_rate_would_drain():
    # Every segment takes 1.5 times its duration at R_min: 120 segments of 4 s in 480 s drain 120 * 2 s, cut to 140 s.
    sizes = np.tile([750_000, 1_500_000, 3_000_000], (200, 1))
    controller = ChunkMap(Ladder(RATES, sizes, np.full(200, 4.0)), buffer_capacity_s=240.0)
    assert controller.reservoir_s(0) == 140.0
    assert controller.reservoir_s(190) == pytest.approx(20.0)  # ten segments are left
    assert ChunkMap(make_ladder(segments=200), buffer_capacity_s=240.0).reservoir_s(0) == 8.0


@pytest.mark.parametrize(
    ("buffer_s", "last", "expected"),
    [
        (8.0, 2, 0),  # the reservoir
        (216.0, 0, 2),
        (77.0, 0, 0),  # f = 0.5 MB + (Q - 8) / 208 * 1.5 MB: 1 MB, the next segment's middle version, at 77.3 s
        (78.0, 0, 1),
        (150.0, 1, 1),
        (150.0, 2, 2),  # f = 1.52 MB, R- is 1 MB: keep
        (77.0, 2, 1),  # f <= 1 MB: the lowest version above f
    ],
)
def test_bba1_by_hand(buffer_s, last, expected):
    controller = create_abr("bba1", make_ladder(segments=200), buffer_capacity_s=240.0)
    controller._buffer_before_s = buffer_s  # not rising: no outage protection yet
    assert choose(controller, buffer_s, last=last) == expected


def test_outage_protection_grows_while_the_buffer_rises_below_three_quarters():
    controller = create_abr("bba1", make_ladder(segments=200), buffer_capacity_s=240.0)
    for buffer_s in (4.0, 8.0, 8.0, 7.0, 12.0, 190.0):
        choose(controller, buffer_s)
    assert controller.outage_s == pytest.approx(3 * 0.4)


def test_bba2_steps_up_while_downloads_are_fast_and_hands_over_when_the_buffer_shrinks():
    controller = create_abr("bba2", make_ladder(segments=200), buffer_capacity_s=240.0)
    fast, slow = sample(20e6, 500_000), sample(4e6, 500_000)  # 0.2 s and 1 s for 4 s: gains 0.95 and 0.75
    assert choose(controller, 4.0, [fast], last=0) == 1
    assert choose(controller, 8.0, [slow], last=1) == 1  # 0.75 < 0.875 - 0.375 * 8 / 216
    assert choose(controller, 80.0, [slow], last=1) == 2  # 0.75 > 0.736
    assert choose(controller, 79.0, [fast], last=2) == 2  # shrunk: Algorithm 1, f = 1.01 MB > R- keeps
    assert not controller.startup
    assert choose(controller, 83.0, [fast], last=1) == 1  # no step up by speed any more


# RB and FESTIVE.


def test_the_harmonic_mean_by_hand():
    assert harmonic_mean_bps((sample(1e6), sample(2e6), sample(4e6))) == pytest.approx(3e6 / (1 + 0.5 + 0.25))


def test_rb_by_hand():
    controller = create_abr("rb", make_ladder(), buffer_capacity_s=60.0)
    assert choose(controller, samples=[sample(1e6), sample(4e6)]) == 0  # 1.6 Mbit/s
    assert choose(controller, samples=[sample(0.1e6), *[sample(4e6)] * 5]) == 2  # the sixth is forgotten


def test_festive_steps_up_after_as_many_votes_as_its_level():
    controller, last = create_abr("festive", make_ladder((1e6, 2e6, 3e6, 4e6)), buffer_capacity_s=60.0), 0
    chosen = []
    for _ in range(12):
        last = choose(controller, samples=[sample(20e6)], last=last)
        chosen.append(last)
    # One vote, then two, then three; but each step must pay for its switch. 3 -> 4 Mbit/s with both earlier steps in
    # the last five: 2^3 + 0 against 2^2 + 12 * 1/4 of staying. One decision later the first is out: 4 against 5.
    assert chosen == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]


def test_festive_steps_down_at_once_and_one_at_a_time():
    controller = create_abr("festive", make_ladder((1e6, 2e6, 3e6, 4e6)), buffer_capacity_s=60.0)
    assert choose(controller, samples=[sample(1.3e6)], last=3) == 2


def test_festive_stays_where_a_switch_gains_too_little():
    # 0.85 * 1.2 = 1.02: target 1 Mbit/s. Staying at 1.2 costs 1 + 12 * 0.2 = 3.4, moving 2 + 0. At 1.05: 1.6 against 2.
    for current_bps, expected in ((1.2e6, 0), (1.05e6, 1)):
        controller = create_abr("festive", make_ladder((1e6, current_bps)), buffer_capacity_s=60.0)
        assert choose(controller, samples=[sample(1.2e6)], last=1) == expected


# L2A and LoL+.


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([0.9, 0.7], [0.6, 0.4]),
        ([-1.0, -1.0], [0.5, 0.5]),
    ],
)
def test_projection_on_the_simplex_by_hand(point, expected):
    assert project_on_simplex(np.array(point)) == pytest.approx(np.array(expected))


def test_the_projection_survives_large_parts():
    assert project_on_simplex(np.array([1e17, 2e17, 0.0])).tolist() == [0, 1, 0]


@given(point=st.lists(st.floats(-10, 10), min_size=1, max_size=6))
def test_projection_lands_on_the_simplex(point):
    weights = project_on_simplex(np.array(point))
    assert np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1)


def test_l2a_by_hand():
    controller = create_abr("l2a", make_ladder((1e6, 2e6)), buffer_capacity_s=20.0)
    assert choose(controller, 1.0, [sample(4e6)]) == 1  # startup: 2 <= 0.9 * 4
    # w = (0, 1) + 4 / (2 alpha) * 2 VL * (1/4, 2/4), and on the simplex (0, 1): the mix is 2 Mbit/s.
    step = 4.0 / (2 * ALPHA) * 2 * VL
    assert choose(controller, 2.0, [sample(4e6)], last=1) == 1
    expected = project_on_simplex(np.array([step * 0.25, 1 + step * 0.5]))
    assert controller.weights == pytest.approx(expected)
    assert controller.queue == pytest.approx(max(0.0, VL - 4.0 + 4.0 * 2e6 * 1.0 / 4e6))


def test_l2a_falls_when_the_link_does():
    controller, last = create_abr("l2a", make_ladder((1e6, 2e6)), buffer_capacity_s=20.0), 1
    chosen = [last := choose(controller, 8.0, [sample(1.2e6)], last=last) for _ in range(4)]
    assert chosen[-1] == 0


def test_lolp_by_hand():
    controller = create_abr("lolp", make_ladder(), buffer_capacity_s=20.0)
    # 4 s of the present 4 Mbit/s at 3 Mbit/s take 5.3 s: more than 5 s leave. The largest lower one below 3 Mbit/s.
    assert choose(controller, 5.0, [sample(3e6)], last=2) == 1
    # 2.2 of |b| = 4.58 lies nearest to 2 of those not above 2.2 Mbit/s; 4 would pay 100-fold.
    assert choose(controller, 15.0, [sample(2.2e6)], last=1) == 1
    assert choose(controller, 15.0, [sample(40e6)], last=1) == 2


def test_the_map_learns():
    controller = create_abr("lolp", make_ladder(), buffer_capacity_s=20.0)
    before = controller.neurons.copy()
    choose(controller, 15.0, [sample(2.2e6)], last=1)
    pulled = controller.neurons[1, 0] - before[1, 0]
    assert 0 < pulled < 0.02 * (2.2e6 / controller.norm_bps - before[1, 0]) + 1e-12


# All of them.


@pytest.mark.parametrize("name", ["lowest", "highest"])
def test_the_bounds(name):
    assert choose(create_abr(name, make_ladder(), buffer_capacity_s=20.0), last=1) == {"lowest": 0, "highest": 2}[name]


SELF_CONTAINED = [name for name in known_names() if name != "oracle"]


@pytest.mark.parametrize("name", SELF_CONTAINED)
@pytest.mark.parametrize("rates", [[1e5], [1e5, 1e5], [1e4, 2e4, 8e4]])
def test_any_ladder_and_any_cap_get_an_answer(name, rates):
    generator = np.random.default_rng(5)
    for capacity_s in (1.0, 6.0, 300.0):
        sizes = np.maximum(generator.integers(1, 40_000, (6, len(rates))), 1)
        quality = generator.normal(size=sizes.shape)
        ladder = Ladder(rates, sizes, np.full(6, 3.0), quality=quality)
        controller, samples = create_abr(name, ladder, buffer_capacity_s=capacity_s), []
        last, now_s = None, 0.0
        for segment in range(6):
            buffer_s = float(generator.uniform(0, capacity_s))
            observation = Observation(now_s, segment, buffer_s, capacity_s, last, tuple(samples), segment > 0)
            decision = controller.choose(observation)
            last = decision.representation
            assert 0 <= last < len(rates)
            assert decision.wait_s >= 0
            assert decision.reason
            first_s, size = now_s + 0.03, int(sizes[segment, last])
            samples.append(ThroughputSample(size, now_s, first_s, first_s + generator.exponential()))
            now_s = samples[-1].finish_s


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bb", {"reservoir_s": 0.0}),
        ("bb", {"first": 3}),
        ("puffer_bba", {"low": 0.9}),
        ("rb", {"transfers": 0}),
        ("rb", {"first": "1"}),
        ("festive", {"memory": 0}),
        ("festive", {"alpha": 0.0}),
        ("l2a", {"target_s": -1.0}),
        ("lolp", {"least_buffer_s": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(OptionError):
        create_abr(name, make_ladder(), buffer_capacity_s=20.0, **options)
