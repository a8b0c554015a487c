"""Elements in series: what crosses a path, and when."""

import numpy as np

from emulator import BernoulliLoss, Link
from emulator.path import NEVER_US, downlink_path, uplink_path
from traces import Trace


def every(period_ms):
    return Trace("test", np.array([period_ms]), period_ms)


def test_a_downlink_delays_first_and_a_late_look_changes_no_time():
    path = downlink_path(2_500, Link(every(10)))
    path.arrive(0, 1504, "a")  # reaches the link at 2.5 ms
    path.arrive(7_600, 1504, "b")  # at 10.1 ms: after the opportunity of 10
    assert path.next_us == 2_500
    assert path.advance(35_000) == [(10_000, "a"), (20_000, "b")]
    assert path.next_us == NEVER_US


def test_an_uplink_delays_last():
    path = uplink_path(2_500, Link(every(10)))
    path.arrive(300, 1504, "a")
    assert path.next_us == 10_000
    assert path.advance(10_000) == []
    assert path.next_us == 12_500
    assert path.advance(12_500) == [(12_500, "a")]


def test_without_a_link_a_path_only_delays():
    path = downlink_path(1_000, None)
    path.arrive(1, 99, "a")
    assert path.advance(1_000) == []
    assert path.advance(1_001) == [(1_001, "a")]


def test_departures_at_an_arrival_are_not_lost():
    path = uplink_path(0, Link(every(1)))
    path.arrive(100, 1504, "a")
    path.arrive(5_200, 1504, "b")  # serves "a" on the way
    assert path.next_us == 1_000
    assert path.advance(6_000) == [(1_000, "a"), (6_000, "b")]


def test_losses_are_counted_and_come_before_the_delay():
    path = downlink_path(10, None, BernoulliLoss(0.5, seed=1))
    for number in range(100):
        path.arrive(0, 100, number)
    crossed = path.advance(10)
    assert 0 < path.packets_lost < 100
    assert len(crossed) == 100 - path.packets_lost
