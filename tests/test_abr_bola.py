"""BOLA-BASIC against Sabre's constants and cases worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import Ladder, Observation, OptionError, create_abr

BIG_BUCK_BUNNY_KBPS = [230, 331, 477, 688, 991, 1427, 2056, 2962, 5027, 6000]


def make_ladder(bitrates_bps, duration_s=3.0, segments=2):
    sizes = np.maximum(np.round(np.outer(np.full(segments, duration_s), bitrates_bps) / 8), 1)
    return Ladder(np.array(bitrates_bps, dtype=float), sizes, np.full(segments, duration_s))


def decide(controller, buffer_s, segment=0):
    return controller.choose(Observation(0.0, segment, buffer_s, 25.0))


def choose(controller, buffer_s):
    return decide(controller, buffer_s).representation


@pytest.fixture
def sabre():
    """Sabre's BOLA on Big Buck Bunny: 25 s of buffer, 3 s segments, gp = 5."""
    return create_abr("bola", make_ladder([1e3 * rate for rate in BIG_BUCK_BUNNY_KBPS]), buffer_capacity_s=25.0, gp=5)


def test_sabres_v(sabre):
    assert sabre.v_s == pytest.approx(2.66298, abs=5e-6)  # (25 - 3) / (ln(6000/230) + 5)


def test_sabres_switch_points(sabre):
    switch_ms = [11107, 12078, 13052, 14026, 14997, 15969, 16941, 18099, 19094]
    for index, level_ms in enumerate(switch_ms):
        assert choose(sabre, level_ms / 1000 - 0.002) == index
        assert choose(sabre, level_ms / 1000 + 0.002) == index + 1


def test_sabres_highest_levels(sabre):
    levels_ms = 1000 * sabre.v_s * (sabre.utilities + sabre.gp)
    expected = [13314, 14284, 15257, 16232, 17204, 18175, 19147, 20120, 21528, 22000]
    # bound by truncation to whole milliseconds and by Sabre's rounding
    assert np.max(np.abs(levels_ms - expected)) <= 1.0


def test_constants_from_the_buffer_cap_by_hand():
    # 1 and 2 Mbit/s, 2 s segments, 20 s of buffer: u = (0, ln 2), a = ln 2 / (2 - 1) = 0.6931
    # V = (20 - 2 - 4) / (0.6931 + 0.6931) = 10.0989; gp = 4 / V + 0.6931 = 1.0892
    controller = create_abr("bola", make_ladder([1e6, 2e6], duration_s=2.0), buffer_capacity_s=20.0)
    assert controller.v_s == pytest.approx(14 / (2 * math.log(2)))
    assert controller.gp == pytest.approx(4 / controller.v_s + math.log(2))
    # tie at 4 s: (V gp - 4) / 1 = (V (gp + ln 2) - 4) / 2
    assert choose(controller, 3.99) == 0
    assert choose(controller, 4.01) == 1


def test_above_the_highest_level_it_waits_for_the_highest():
    controller = create_abr("bola", make_ladder([1e6, 2e6], duration_s=2.0), buffer_capacity_s=20.0)
    assert decide(controller, 18.0).wait_s == pytest.approx(0.0, abs=1e-12)
    decision = decide(controller, 19.5)
    assert decision.representation == 1
    assert decision.wait_s == pytest.approx(1.5)


def test_ties_go_to_the_lower():
    ladder = Ladder([1e6, 2e6], [[100, 100], [100, 100]], [2.0, 2.0])
    controller = create_abr("bola", ladder, buffer_capacity_s=20.0)
    controller.utilities = np.zeros(2)  # equal utility, equal size: equal score
    assert choose(controller, 0.0) == 0


def test_the_real_size_of_the_segment_counts():
    # In segment 1 the higher representation costs as much as the lower one, so it wins at any buffer.
    ladder = Ladder([1e6, 2e6], [[250_000, 500_000], [250_000, 250_000]], [2.0, 2.0])
    controller = create_abr("bola", ladder, buffer_capacity_s=20.0)
    assert decide(controller, 0.0, segment=0).representation == 0
    assert decide(controller, 0.0, segment=1).representation == 1


@pytest.mark.parametrize("rates", [[1e6], [1e6, 1e6]])
def test_a_ladder_without_a_choice_plays_lowest(rates):
    controller = create_abr("bola", make_ladder(rates), buffer_capacity_s=20.0)
    assert choose(controller, 5.0) == 0


def test_a_segment_longer_than_the_cap_plays_lowest_on_the_empty_buffer():
    controller = create_abr("bola", make_ladder([1e6, 2e6], duration_s=30.0), buffer_capacity_s=20.0)
    assert choose(controller, 0.0) == 0


@pytest.mark.parametrize("options", [{"gp": 0.0}, {"gp": math.nan}, {"low_buffer": 0.0}, {"low_buffer": 1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError):
        create_abr("bola", make_ladder([1e6, 2e6]), buffer_capacity_s=20.0, **options)


@settings(deadline=None)
@given(
    rates=st.lists(st.integers(1, 10_000), min_size=1, max_size=8).map(lambda rates: [1e3 * r for r in sorted(rates)]),
    sizes=st.data(),
    capacity_s=st.floats(1, 300),
    duration_s=st.floats(0.1, 20),
    gp=st.none() | st.floats(0.1, 10),
    levels=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_more_buffer_never_lowers_the_choice(rates, sizes, capacity_s, duration_s, gp, levels):
    row = sorted(sizes.draw(st.lists(st.integers(1, 10**6), min_size=len(rates), max_size=len(rates))))
    ladder = Ladder(rates, [row], [duration_s])
    controller = create_abr("bola", ladder, buffer_capacity_s=capacity_s, gp=gp)
    low, high = (choose(controller, level * capacity_s) for level in sorted(levels))
    assert 0 <= low <= high < len(rates)
