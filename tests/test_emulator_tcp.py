"""The sending half of TCP, driven by hand."""

import math

import pytest

from emulator.tcp import RttEstimator, TcpSender, Transmission

RTT_US = 100_000


def make_estimator() -> RttEstimator:
    return RttEstimator(initial_rto_us=1_000_000, min_rto_us=200_000, max_rto_us=60_000_000)


def make_sender(window: int = 10, *, idle_restart: bool = True) -> TcpSender:
    return TcpSender(initial_window_packets=window, idle_restart=idle_restart, rtt=make_estimator())


def ack(sender: TcpSender, now_us: int, sent: list[Transmission]) -> list[Transmission]:
    out = []
    for transmission in sent:
        sender.on_ack(now_us, transmission)
        out += sender.take_outbox()
    return out


def test_timeout_follows_rfc_6298_with_the_floor_on_the_variation():
    rtt = make_estimator()
    assert rtt.rto_us == 1_000_000
    assert rtt.probe_us is None
    rtt.sample(400_000)
    assert rtt.rto_us == 400_000 + 4 * 200_000
    rtt.sample(400_000)
    assert rtt.rto_us == 400_000 + 4 * 150_000
    for _ in range(50):
        rtt.sample(400_000)
    assert rtt.rto_us == pytest.approx(600_000)  # SRTT + 200 ms
    rtt.back_off()
    assert rtt.rto_us == pytest.approx(1_200_000)
    for _ in range(20):
        rtt.back_off()
    assert rtt.rto_us == 60_000_000


def test_slow_start_doubles_per_round_trip():
    sender = make_sender()
    sender.write(0, [1504] * 1000)
    flight = sender.take_outbox()
    sizes = [len(flight)]
    for round_trip in (1, 2, 3):
        flight = ack(sender, round_trip * RTT_US, flight)
        sizes.append(len(flight))
    assert sizes == [10, 20, 40, 80]


def test_unused_window_does_not_grow():
    sender = make_sender()
    sender.write(0, [1504] * 4)  # less than half the window in flight
    ack(sender, RTT_US, sender.take_outbox())
    assert sender.window == 10


def test_congestion_avoidance_adds_about_one_packet_per_round_trip():
    sender = make_sender()
    sender.threshold = 10
    sender.write(0, [1504] * 100)
    ack(sender, RTT_US, sender.take_outbox())
    assert sender.window == pytest.approx(11, abs=0.1)


def test_three_later_acknowledgements_declare_a_loss_and_halve_the_window_once():
    sender = make_sender()
    sender.write(0, [1504] * 100)
    first = sender.take_outbox()
    out = ack(sender, RTT_US, first[2:4])  # 0 and 1 are missing, two later ones are not enough
    assert all(sent.segment >= 10 for sent in out)
    assert sender.threshold == math.inf
    before = sender.window
    out = ack(sender, RTT_US, [first[4]])
    assert sender.threshold == before / 2
    assert sender.window == before / 2
    out += ack(sender, RTT_US, first[5:])
    assert [sent.segment for sent in out[:2]] == [0, 1]  # losses first
    assert sender.window == before / 2


def test_a_lost_retransmission_is_detected_too():
    sender = make_sender()
    sender.write(0, [1504] * 100)
    first = sender.take_outbox()
    out = ack(sender, RTT_US, first[1:])
    again = next(sent for sent in out if sent.segment == 0)
    threshold = sender.threshold
    out = ack(sender, 2 * RTT_US, [sent for sent in out if sent is not again])
    out += ack(sender, 3 * RTT_US, [sent for sent in out if sent.segment])
    assert 0 in [sent.segment for sent in out]
    assert sender.threshold < threshold  # a second episode: the retransmission belonged to a later flight


def test_an_overtaken_tail_is_lost_after_a_quarter_round_trip():
    sender = make_sender()
    sender.write(0, [1504] * 5)
    sent = sender.take_outbox()
    assert ack(sender, RTT_US, [*sent[:3], sent[4]]) == []
    assert sender.timer_us == RTT_US + RTT_US / 4
    sender.on_timer(RTT_US + RTT_US // 4)
    assert [again.segment for again in sender.take_outbox()] == [3]


def test_a_silent_tail_is_probed_once_and_then_times_out():
    sender = make_sender()
    sender.write(0, [1504] * 5)
    sent = sender.take_outbox()
    ack(sender, RTT_US, sent[:3])
    assert sender.timer_us == RTT_US + 2 * RTT_US  # 2 SRTT of silence
    sender.on_timer(3 * RTT_US)
    assert [probe.segment for probe in sender.take_outbox()] == [4]
    assert sender.window == 10  # a probe alone changes nothing
    assert sender.timer_us == 3 * RTT_US + RTT_US + 4 * RTT_US / 2  # RTO after one sample
    sender.on_timer(int(sender.timer_us))
    assert sender.window == 1
    assert sender.threshold == 5
    assert [again.segment for again in sender.take_outbox()] == [3]


def test_there_is_one_probe_at_a_time():
    sender = make_sender()
    sender.write(0, [1504])
    ack(sender, RTT_US, sender.take_outbox())  # the round trip is known
    sender.write(RTT_US, [1504] * 3)
    flight = sender.take_outbox()
    sender.on_timer(3 * RTT_US)
    assert [probe.segment for probe in sender.take_outbox()] == [flight[-1].segment]
    assert ack(sender, 4 * RTT_US, flight[:1]) == []
    sender.on_timer(10 * RTT_US)  # the probe is still out, so this is a timeout
    assert [again.segment for again in sender.take_outbox()] == [flight[1].segment]
    assert sender.window == 1


def test_a_probe_repairs_the_loss_it_repeats_but_the_window_is_halved():
    sender = make_sender()
    sender.write(0, [1504] * 5)
    sent = sender.take_outbox()
    ack(sender, RTT_US, sent[:4])
    sender.on_timer(3 * RTT_US)
    (probe,) = sender.take_outbox()
    assert ack(sender, 4 * RTT_US, [probe]) == []
    assert sender.in_flight == 0
    assert sender.timer_us is None
    assert sender.window == 5


def test_a_spurious_timeout_is_undone():
    sender = make_sender()
    sender.write(0, [1504] * 10)
    sent = sender.take_outbox()
    sender.on_timer(1_000_000)  # before the first sample there is no probe
    assert [again.segment for again in sender.take_outbox()] == [0]
    assert sender.window == 1
    assert ack(sender, 1_500_000, sent[:1]) == []  # the original arrived after all
    assert sender.window == 11
    assert sender.threshold == math.inf
    ack(sender, 1_500_000, sent[1:])
    assert sender.in_flight == 1  # only the needless retransmission is still out


def test_timeouts_back_off():
    sender = make_sender()
    sender.write(0, [1504])
    sender.take_outbox()
    expiries = []
    for _ in range(3):
        assert sender.timer_us is not None
        expiries.append(sender.timer_us)
        sender.on_timer(int(sender.timer_us))
        assert len(sender.take_outbox()) == 1
    assert expiries == [1_000_000, 3_000_000, 7_000_000]


@pytest.mark.parametrize(("idle_restart", "window"), [(True, 10), (False, 30)])
def test_the_window_falls_back_after_idle_time(idle_restart, window):
    sender = make_sender(idle_restart=idle_restart)
    sender.write(0, [1504] * 30)
    flight = ack(sender, RTT_US, sender.take_outbox())
    ack(sender, 2 * RTT_US, flight)
    sender.window = 30
    sender.write(3 * RTT_US, [1504] * 5)  # not idle for longer than the timeout
    assert sender.window == 30
    ack(sender, 4 * RTT_US, sender.take_outbox())
    sender.write(4 * RTT_US + 10_000_000, [1504] * 5)
    assert sender.window == window
