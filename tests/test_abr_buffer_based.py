"""BBA-0 against cases worked by hand from Algorithm 1 of Huang et al. (SIGCOMM 2014)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import Ladder, Observation, OptionError, create_abr


def make_ladder(bitrates_bps, duration_s=4.0, segments=3):
    sizes = np.round(np.outer(np.full(segments, duration_s), bitrates_bps) / 8)
    return Ladder(np.array(bitrates_bps, dtype=float), sizes, np.full(segments, duration_s))


def choose(controller, buffer_s, last):
    observation = Observation(0.0, 0, buffer_s, 240.0, last_representation=last)
    return controller.choose(observation).representation


# f rises from 1 Mbit/s at 90 s to 5 at 216 s: 4/126 Mbit/s a second; f(121.5 s) = 2, f(153 s) = 3, f(184.5 s) = 4.
PAPER_LADDER = make_ladder([1e6, 2e6, 3e6, 4e6, 5e6])


@pytest.mark.parametrize(
    ("buffer_s", "last", "expected"),
    [
        (0.0, 4, 0),  # in the reservoir: lowest, whatever came before
        (90.0, 4, 0),  # its end belongs to it
        (216.0, 0, 4),  # end of the cushion: highest
        (236.0, 2, 4),
        (121.0, 0, 0),  # f = 1.98 < R+ = 2: keep
        (122.0, 0, 1),  # f = 2.02 >= R+ = 2: highest below f is 2
        (160.0, 0, 2),  # f = 3.22: highest below is 3
        (160.0, 1, 2),
        (160.0, 2, 2),  # R+ = 4 not reached, R- = 2 not reached: keep
        (160.0, 3, 3),  # f = 3.22 > R- = 3: keep although f < 4 (hysteresis)
        (152.0, 3, 2),  # f = 2.97 <= R- = 3: lowest above f is 3
        (122.0, 4, 2),  # f = 2.02 <= R- = 4: lowest above f is 3
        (100.0, 2, 1),  # f = 1.32 <= R- = 2: lowest above f is 2
        (100.0, None, 0),  # start: last is taken as the lowest
    ],
)
def test_algorithm_1_at_the_papers_240_seconds(buffer_s, last, expected):
    controller = create_abr("bba", PAPER_LADDER, buffer_capacity_s=240.0)
    assert (controller.reservoir_s, controller.upper_s) == (90.0, 216.0)
    assert choose(controller, buffer_s, last) == expected


def test_reservoir_and_cushion_scale_with_a_small_buffer():
    controller = create_abr("bba", make_ladder([1e5, 2e5], duration_s=2.0), buffer_capacity_s=20.0)
    assert controller.reservoir_s == pytest.approx(7.5)
    assert controller.upper_s == pytest.approx(18.0)  # 90 % of 20 s, and just what a player of 2 s segments reaches


def test_the_highest_rate_stays_in_reach_when_segments_are_long():
    controller = create_abr("bba", make_ladder([1e5, 2e5], duration_s=10.0), buffer_capacity_s=20.0)
    assert controller.upper_s == pytest.approx(10.0)
    assert controller.reservoir_s == pytest.approx(10.0 * 90 / 216)
    assert choose(controller, 10.0, 0) == 1


def test_a_segment_as_long_as_the_buffer_plays_lowest():
    controller = create_abr("bba", make_ladder([1e5, 2e5], duration_s=30.0), buffer_capacity_s=20.0)
    assert choose(controller, 0.0, 1) == 0


def test_equal_bitrates_do_no_harm():
    controller = create_abr("bba", make_ladder([1e5, 1e5]), buffer_capacity_s=20.0)
    assert [choose(controller, level, 1) for level in (0.0, 9.0, 12.0, 16.0)] == [0, 1, 1, 1]


@pytest.mark.parametrize("options", [{"reservoir": 0.0}, {"cushion": 1.2}, {"reservoir": 0.6, "cushion": 0.6}])
def test_shares_out_of_range_are_refused(options):
    with pytest.raises(OptionError):
        create_abr("bba", PAPER_LADDER, buffer_capacity_s=20.0, **options)


@settings(deadline=None)
@given(
    bitrates=st.lists(st.integers(1, 10_000), min_size=1, max_size=8).map(
        lambda rates: [1e3 * r for r in sorted(rates)]
    ),
    capacity_s=st.floats(1, 300),
    duration_s=st.floats(0.1, 20),
    levels=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    data=st.data(),
)
def test_more_buffer_never_lowers_the_choice(bitrates, capacity_s, duration_s, levels, data):
    controller = create_abr("bba", make_ladder(bitrates, duration_s), buffer_capacity_s=capacity_s)
    last = data.draw(st.integers(0, len(bitrates) - 1))
    low, high = (choose(controller, level * capacity_s, last) for level in sorted(levels))
    assert 0 <= low <= high < len(bitrates)
