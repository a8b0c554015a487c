"""CUBIC and NewReno against numbers worked out by hand from their RFCs."""

import math

import pytest

from emulator import TransportError
from emulator.congestion import CongestionControl, Cubic, Reno, create_congestion_control

RTT_US = 100_000


def after_loss(control: CongestionControl, window: float) -> CongestionControl:
    control.window = window
    control.on_loss(0)
    return control


def run(control: CongestionControl, from_s: float, until_s: float, *, rtt_us: int = RTT_US) -> float:
    """Acknowledge a full window per round trip, a packet at a time; return the window at the end."""
    now_us = from_s * 1e6
    while now_us < until_s * 1e6:
        for _ in range(int(control.window)):
            control.on_acks(now_us, 1, rtt_us)
        now_us += rtt_us
    return control.window


@pytest.mark.parametrize("name", ["reno", "cubic"])
def test_slow_start_adds_what_is_acknowledged_up_to_the_threshold(name):
    control = create_congestion_control(name, 10.0)
    control.on_acks(0, 10, RTT_US)
    assert control.window == 20
    control.threshold = 25
    control.on_acks(RTT_US, 20, RTT_US)
    assert 25 < control.window < 27.5


def test_reno_adds_one_packet_per_round_trip_and_halves():
    reno = after_loss(Reno(10.0), 60)
    assert (reno.window, reno.threshold) == (30, 30)
    assert run(reno, 0, 1.0) == pytest.approx(40, rel=0.01)


def test_many_acknowledgements_at_once_are_as_good_as_one_by_one():
    for control in (Reno, Cubic):
        single, several = after_loss(control(10.0), 200), after_loss(control(10.0), 200)
        for round_trip in range(1, 30):
            count = int(single.window)
            for _ in range(count):
                single.on_acks(round_trip * RTT_US, 1, RTT_US)
            for part in range(8):
                several.on_acks(round_trip * RTT_US, count * (part + 1) // 8 - count * part // 8, RTT_US)
        assert several.window == pytest.approx(single.window, rel=0.01)


def test_cubic_returns_to_its_plateau_in_k_seconds_and_leaves_it_like_a_cube():
    """W_max 400 at RTT 100 ms: window 280 at first, K = cbrt(120 / 0.4) = 6.69 s; W(K / 2) = 400 - 120 / 8 = 385."""
    cubic = after_loss(Cubic(10.0), 400)
    assert (cubic.window, cubic.threshold) == pytest.approx((280, 280))
    k_s = math.cbrt(300) if hasattr(math, "cbrt") else 300 ** (1 / 3)
    assert run(cubic, 0, k_s / 2) == pytest.approx(385, rel=0.01)
    assert run(cubic, k_s / 2, k_s) == pytest.approx(400, rel=0.01)
    assert run(cubic, k_s, 2 * k_s) == pytest.approx(520, rel=0.02)  # 400 + 0.4 K^3


def test_cubic_is_never_slower_than_reno_at_short_round_trips():
    """RTT 10 ms: Reno's part grows by 0.53 packets per round trip up to the old window, by 1 beyond it."""
    cubic = after_loss(Cubic(10.0), 20)
    grown = run(cubic, 0, 0.5, rtt_us=10_000)  # 50 round trips
    assert grown == pytest.approx(20 + (50 - 6 / (9 / 17)), rel=0.04)


def test_cubic_gives_way_when_it_did_not_get_back():
    """A loss at 80 after one at 100 (fast convergence): the plateau is 80 * 0.85 = 68; from 56 it takes cbrt(30) s."""
    cubic = after_loss(Cubic(10.0), 100)
    after_loss(cubic, 80)
    assert cubic.window == pytest.approx(56)
    assert run(cubic, 0, 30 ** (1 / 3), rtt_us=1_000_000) == pytest.approx(68, rel=0.03)


def test_cubic_does_not_count_idle_time():
    counted, idle = after_loss(Cubic(10.0), 400), after_loss(Cubic(10.0), 400)
    run(counted, 0, 1)
    run(idle, 0, 1)
    idle.on_idle(60e6)
    assert run(idle, 61, 62) == pytest.approx(run(counted, 1, 2))


@pytest.mark.parametrize(("name", "threshold"), [("reno", 50), ("cubic", 70)])
def test_a_timeout_starts_again_from_one_packet(name, threshold):
    control = create_congestion_control(name, 100.0)
    control.on_timeout(0)
    assert (control.window, control.threshold) == (1, threshold)
    control.on_timeout(1)
    assert (control.window, control.threshold) == (1, threshold)
    control.on_acks(RTT_US, threshold, RTT_US)
    assert control.window == pytest.approx(threshold, abs=1)


def test_unknown_names_are_refused():
    with pytest.raises(TransportError, match="known: cubic, reno"):
        create_congestion_control("bbr", 10.0)
