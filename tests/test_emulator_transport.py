"""Both transports against hand-worked transfers, their promises, and each other."""

import math
import random

import numpy as np
import pytest

from emulator import MODELS, LinkConfig, Transport, TransportError, create_transport
from emulator.compare import compare, spread
from emulator.fluid_flow import Schedule
from traces import Trace, TraceConfig, load_trace

TWELVE_MBPS = Trace(name="12", opportunities_ms=np.array([1], dtype=np.int64), period_ms=1)  # one MTU per ms
both = pytest.mark.parametrize("model", MODELS)


def make(model: str, trace: Trace = TWELVE_MBPS, **settings: object) -> Transport:
    return create_transport(trace, LinkConfig(model=model, **settings))  # type: ignore[arg-type]


def random_trace(seed: int, opportunities: int = 2000, period_ms: int = 5000) -> Trace:
    times = np.sort(np.random.default_rng(seed).integers(0, period_ms + 1, opportunities))
    return Trace(name=f"random {seed}", opportunities_ms=times.astype(np.int64), period_ms=period_ms)


@both
def test_first_request_by_hand(model):
    """RTT 40 ms: SYN-ACK reaches the link at 40, leaves at 41; the response reaches it at 81, leaves from 82 on."""
    transfer = make(model).request(5_000, 0.0)  # with 250 bytes of header: 4 packets
    assert transfer.first_byte_s == 0.082
    assert transfer.finish_s == 0.085
    assert transfer.complete
    assert transfer.received_bytes == transfer.size_bytes == 5_000


@both
def test_later_requests_skip_the_handshake(model):
    transport = make(model)
    transport.request(1_000, 0.0)
    transfer = transport.request(1_000, 1.0)
    assert (transfer.first_byte_s, transfer.finish_s) == (1.041, 1.041)


@both
@pytest.mark.parametrize(("handshake_rtts", "first_byte_s"), [(0, 0.041), (1, 0.082), (2, 0.123)])
def test_handshake_round_trips(model, handshake_rtts, first_byte_s):
    assert make(model, handshake_rtts=handshake_rtts).request(0, 0.0).first_byte_s == first_byte_s


@both
def test_slow_start_by_hand(model):
    """28 kB = 20 packets = 10 at once and 10 more a round trip after the first: 1 + 40 + 1 + 40 + 10 ms."""
    transport = make(model)
    transport.request(0, 0.0)
    transfer = transport.request(28_000, 1.0)
    assert transfer.finish_s == pytest.approx(1.041 + 0.041 + 0.009, abs=1e-9)


@both
def test_a_busy_link_delivers_one_mtu_per_opportunity(model):
    transport = make(model, delay_ms=1.0, queue="infinite")
    size_bytes = 2_000_000
    packets = -(-(size_bytes + 250) // 1448)
    transfer = transport.request(size_bytes, 0.0)
    assert transfer.finish_s - transfer.first_byte_s == pytest.approx((packets - 1) / 1000, abs=0.004)


@both
def test_idle_connection_starts_slowly_again(model):
    def last_two(pause_s: float, *, idle_restart: bool) -> float:
        transport = make(model, delay_ms=50.0, idle_restart=idle_restart)
        finish_s = transport.request(1_000_000, 0.0).finish_s
        return transport.request(100_000, finish_s + pause_s).finish_s - finish_s - pause_s

    warm_s = last_two(0.05, idle_restart=True)
    assert warm_s == pytest.approx(0.170, abs=0.002)  # one round trip and 70 packets
    assert last_two(5.0, idle_restart=True) > warm_s + 0.1
    assert last_two(5.0, idle_restart=False) == pytest.approx(warm_s, abs=0.002)


@both
@pytest.mark.parametrize("size_bytes", [0, 1, 1198, 1199])
def test_tiny_objects(model, size_bytes):
    transfer = make(model).request(size_bytes, 0.0)
    packets = 1 if size_bytes <= 1198 else 2  # 250 + 1198 = 1448
    assert transfer.complete
    assert transfer.finish_s == pytest.approx(0.081 + packets / 1000)


@both
def test_outage_of_many_seconds(model):
    """One opportunity a millisecond up to 100 ms, then nothing until the lap's end at 30 s."""
    trace = Trace(name="outage", opportunities_ms=np.append(np.arange(1, 101), 30_000), period_ms=30_000)
    transfer = make(model, trace).request(60_000, 0.0)
    assert transfer.first_byte_s == 0.082
    assert 30.0 < transfer.finish_s < 30.2


@both
def test_a_deadline_cuts_the_transfer_and_closes_the_connection(model):
    transport = make(model, congestion_control="reno")
    cut = transport.request(5_000_000, 0.0, deadline_s=1.0)
    assert not cut.complete
    assert cut.finish_s == 1.0
    assert 0.75e6 < cut.received_bytes < 1.25e6
    # The queue's 256 packets and those under way still leave before the new handshake's answer.
    after = transport.request(5_000, 1.0)
    assert after.complete
    assert 1.27 < after.first_byte_s < 1.40
    assert transport.request(5_000, 5.0).first_byte_s == 5.041  # the connection persists again


@both
def test_a_deadline_before_the_first_byte(model):
    transport = make(model)
    cut = transport.request(5_000, 2.0, deadline_s=2.05)
    assert (cut.first_byte_s, cut.finish_s, cut.received_bytes, cut.complete) == (2.05, 2.05, 0, False)
    assert transport.request(5_000, 2.0500, deadline_s=2.0500).finish_s == 2.05
    assert transport.request(5_000, 3.0).first_byte_s == 3.082


@both
def test_a_deadline_met_exactly_is_met(model):
    assert make(model).request(5_000, 0.0, deadline_s=0.085).complete
    assert not make(model).request(5_000, 0.0, deadline_s=0.0849).complete


@both
def test_a_full_queue_loses_packets_but_every_byte_arrives(model):
    transport = make(model, queue_packets=20)
    transfer = transport.request(3_000_000, 0.0)
    assert transfer.complete
    assert 2.07 < transfer.finish_s < 3.0  # 2 073 packets; a window that keeps being halved wastes some capacity


@both
def test_losses_are_seeded_and_slow_transfers_down(model):
    def total_s(seed: int, loss: float) -> float:
        transport = make(model, loss=loss, seed=seed)
        now_s = 0.0
        for _ in range(20):
            now_s = transport.request(100_000, now_s + 1).finish_s
        return now_s

    assert total_s(1, 0.05) == total_s(1, 0.05)
    assert total_s(1, 0.05) != total_s(2, 0.05)
    assert total_s(1, 0.05) > total_s(1, 0.0) + 0.5


def test_losses_cost_both_models_alike_on_average():
    """Mean time of 960 transfers of 28 kB at 2 % loss; standard error about 1.3 %."""
    means = {}
    for model in MODELS:
        total_s = 0.0
        for seed in range(24):
            transport = make(model, loss=0.02, seed=seed)
            for request in range(40):
                transfer = transport.request(28_000, request * 10.0)
                total_s += transfer.finish_s - transfer.request_s
        means[model] = total_s / 960
    assert means["fluid"] == pytest.approx(means["packet"], rel=0.08)


@both
def test_no_capacity_is_invented(model):
    """Whatever is asked, no more bytes arrive in any span than the trace can carry, and nothing before one RTT."""
    for seed in range(4):
        draw = random.Random(seed)
        trace = random_trace(seed)
        transport = make(model, trace, queue_packets=draw.choice([10, 256]), loss=draw.choice([0.0, 0.02]))
        now_s = 0.0
        for _ in range(20):
            size_bytes = draw.choice([0, 1, 2_000, 30_000, 400_000])
            transfer = transport.request(size_bytes, now_s, now_s + draw.choice([0.03, 0.5, math.inf]))
            assert now_s <= transfer.first_byte_s <= transfer.finish_s
            assert transfer.received_bytes == size_bytes or not transfer.complete
            assert transfer.received_bytes <= trace.capacity_bytes(now_s * 1000, transfer.finish_s * 1000)
            if transfer.complete:
                assert transfer.first_byte_s >= now_s + 0.040
            now_s = transfer.finish_s + draw.choice([0.0, 0.3, 2.0])


def test_one_probe_goes_out_per_tail_on_a_very_slow_link():
    """One opportunity per 300 ms. The handshake takes 0.1 s, so a probe goes out before any acknowledgement comes.

    The first response's copy of its last, short packet shares an opportunity with the next response; the second's does
    not, and costs the third 0.3 s. By then the round trip is known.
    """
    trace = Trace("slow", np.arange(300, 30_001, 300), 30_000)
    transport = create_transport(trace, LinkConfig(model="packet", response_header_bytes=450))
    now_s, taken_s = 0.2, []
    for size_bytes in (3187, 3613, 3613, 3613, 3613):
        finish_s = transport.request(size_bytes, now_s).finish_s
        taken_s.append(finish_s - now_s)
        now_s = finish_s
    assert taken_s == pytest.approx([1.0, 0.9, 1.2, 0.9, 0.9])


def test_an_uplink_trace_delays_requests():
    slow = Trace(name="slow", opportunities_ms=np.array([1000], dtype=np.int64), period_ms=1000)
    config = LinkConfig(model="packet", handshake_rtts=0)
    transfer = create_transport(TWELVE_MBPS, config, uplink=slow).request(0, 0.0)
    assert transfer.finish_s == pytest.approx(1.041)
    with pytest.raises(TransportError, match="uplink"):
        create_transport(TWELVE_MBPS, LinkConfig(model="fluid"), uplink=slow)


def test_schedule_is_the_traces_own():
    trace = load_trace("lte", share=10)
    schedule = Schedule(trace)
    for time_ms in (0, 1, 999, trace.period_ms - 1, trace.period_ms, 3 * trace.period_ms + 17):
        assert schedule.count_until_us(time_ms * 1000 + 999) == trace.count_until(time_ms)
    for k in (0, 1, 1000, trace.opportunities_ms.size, 5 * trace.opportunities_ms.size + 3):
        assert schedule.opportunity_us(k) == trace.opportunity_ms(k) * 1000


@pytest.mark.parametrize("name", ["lte", "umts", "5g", "starlink"])
@pytest.mark.parametrize("rtt_ms", [20, 40, 150])
def test_models_agree_on_real_traces(name, rtt_ms):
    """1 kB to 5 MB, back to back or after pauses: half the transfer times within 0.1 %, 95 % of them within 5 %."""
    pairs = compare(load_trace(name), LinkConfig(delay_ms=rtt_ms / 2), requests=40, seed=3)
    found = spread(pairs)
    assert found.median <= 0.001
    assert found.p95 <= 0.05
    assert abs(found.mean_signed) <= 0.02


def test_models_agree_with_other_queues():
    trace = load_trace("lte", share=10)
    for settings in ({"queue_packets": 32}, {"queue": "infinite"}, {"queue_packets": 0, "queue_bytes": 150_000}):
        found = spread(compare(trace, LinkConfig(**settings), requests=40, seed=4))
        assert found.median <= 0.01
        assert found.p95 <= 0.20


def test_models_agree_with_small_packets():
    found = spread(compare(load_trace("lte"), LinkConfig(mss_bytes=500), requests=30, seed=5))
    assert found.median <= 0.01
    assert found.p95 <= 0.20


def test_a_very_long_transfer_runs_at_the_links_rate():
    transfer = make("fluid").request(200_000_000, 0.0)
    assert transfer.finish_s == pytest.approx(200_000_250 / 1448 / 1000, rel=0.02)


@both
@pytest.mark.parametrize(
    ("size_bytes", "rtt_ms", "rate_bps", "apparent_bps"),
    [(28_000, 40, 1e6, 0.80e6), (28_000, 40, 20e6, 2.59e6), (28_000, 100, 20e6, 1.08e6), (5_000, 40, 5e6, 0.81e6)],
)
def test_small_objects_misread_the_link(model, size_bytes, rtt_ms, rate_bps, apparent_bps):
    """Size over time of a small object, against figures worked out without headers (hence the 8 %)."""
    trace = load_trace(TraceConfig(name="constant", rate_bps=rate_bps))
    transport = make(model, trace, delay_ms=rtt_ms / 2)
    transport.request(0, 0.0)
    transfer = transport.request(size_bytes, 5.0)
    assert size_bytes * 8 / (transfer.finish_s - 5.0) == pytest.approx(apparent_bps, rel=0.08)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "exact"}, "known: fluid, packet"),
        ({"queue": "fifo"}, "known: infinite, droptail, drophead, codel, pie"),
        ({"delay_ms": -1.0}, "delay_ms is -1"),
        ({"delay_ms": math.nan}, "delay_ms is nan"),
        ({"loss": 0.9}, "loss is 0.9"),
        ({"mss_bytes": 1449}, "1 to 1448"),
        ({"queue_packets": 0}, "neither queue_packets nor queue_bytes"),
        ({"queue_bytes": 100}, "one packet already takes 1504"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(TransportError, match=message):
        LinkConfig(**settings)


@both
def test_bad_requests_are_refused(model):
    transport = make(model)
    with pytest.raises(TransportError, match="0 or more"):
        transport.request(-1, 0.0)
    with pytest.raises(TransportError, match="finite"):
        transport.request(1, math.nan)
    with pytest.raises(TransportError, match="deadline"):
        transport.request(1, 2.0, deadline_s=1.0)
    transport.request(1, 0.0)
    with pytest.raises(TransportError, match="while the last transfer"):
        transport.request(1, 0.01)


def test_drophead_needs_the_packet_model():
    assert make("packet", queue="drophead", queue_packets=30).request(500_000, 0.0).complete
    with pytest.raises(TransportError, match="drophead"):
        make("fluid", queue="drophead")
