"""Delay, loss and on/off elements."""

import pytest

from emulator import LinkError
from emulator.elements import BernoulliLoss, Delay, OnOff, cross, parse_element


def test_delay_is_first_in_first_out():
    delay = Delay(30)
    delay.arrive(10, "a")
    delay.arrive(12, "b")
    assert delay.advance(39) == []
    assert delay.advance(42) == [(40, "a"), (42, "b")]
    with pytest.raises(LinkError, match="0 or more"):
        Delay(-1)


def test_loss_is_seeded_and_has_its_rate():
    draws = [[loss.drops() for _ in range(20_000)] for loss in (BernoulliLoss(0.1, seed=1), BernoulliLoss(0.1, seed=1))]
    assert draws[0] == draws[1]
    assert sum(draws[0]) / 20_000 == pytest.approx(0.1, abs=0.01)  # 4.7 standard deviations
    assert not any(BernoulliLoss(0.0).drops() for _ in range(100))
    with pytest.raises(LinkError, match="0 <= p < 1"):
        BernoulliLoss(1.0)


def test_fixed_periods_alternate_and_start_on():
    gate = OnOff(2.0, 1.0, fixed=True)
    times_s = [0.0, 1.999, 2.0, 2.999, 3.0, 4.999, 5.0, 300.5, 302.5]
    assert [gate.drops(round(time_s * 1e6)) for time_s in times_s] == [0, 0, 1, 1, 0, 0, 1, 0, 1]


def test_exponential_periods_have_their_means():
    gate = OnOff(0.3, 0.1, seed=5)
    off = sum(gate.drops(time_ms * 1000) for time_ms in range(1_000_000))
    assert off / 1_000_000 == pytest.approx(0.25, abs=0.03)  # 2 500 cycles: 4 standard deviations are about 0.025


@pytest.mark.parametrize(("on_s", "off_s", "dropped"), [(1.0, 0.0, 0), (0.0, 1.0, 100)])
def test_never_off_and_never_on(on_s, off_s, dropped):
    for fixed in (False, True):
        gate = OnOff(on_s, off_s, fixed=fixed)
        assert sum(gate.drops(time_ms * 1000) for time_ms in range(0, 10_000, 100)) == dropped


def test_elements_nest_in_the_order_given():
    packets = [(time_us, 1504) for time_us in range(0, 5_000_000, 500_000)]
    through = cross([parse_element("delay=1000"), parse_element("intermittent=2,1")], packets)
    assert [time_us / 1e6 for time_us, _ in through] == [1.0, 1.5, 3.0, 3.5, 4.0, 4.5]
    through = cross([parse_element("intermittent=2,1"), parse_element("delay=1000")], packets)
    assert [time_us / 1e6 for time_us, _ in through] == [1.0, 1.5, 2.0, 2.5, 4.0, 4.5, 5.0, 5.5]


@pytest.mark.parametrize(
    "text", ["delay", "delay=-1", "delay=x", "loss=1,2", "loss=1", "onoff=1", "onoff=0,0", "jam=1"]
)
def test_bad_elements_are_refused(text):
    with pytest.raises(LinkError, match="expected"):
        parse_element(text)
