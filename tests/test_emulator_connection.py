"""The two ends of a connection, and what its options do to a transfer over the packet model."""

import numpy as np
import pytest

from emulator import MODELS, LinkConfig, Transport, TransportError, create_transport
from emulator.config import HANDSHAKES, NEVER_US
from emulator.connection import Client
from emulator.tcp import Transmission
from traces import Trace

TWELVE_MBPS = Trace(name="12", opportunities_ms=np.array([1], dtype=np.int64), period_ms=1)  # one MTU per ms


def make(model: str = "packet", **settings: object) -> Transport:
    return create_transport(TWELVE_MBPS, LinkConfig(model=model, **settings))  # type: ignore[arg-type]


def segments(acked: list[Transmission]) -> list[int]:
    return [transmission.segment for transmission in acked]


def receive(client: Client, now_us: int, segment: int) -> list[int]:
    return segments(client.receive(now_us, Transmission(segment, segment, 1504, 0)))


def test_every_second_packet_is_acknowledged_or_a_late_one():
    client = Client(LinkConfig(quick_acks=0))
    client.expect(9)
    assert receive(client, 1000, 0) == []
    assert client.ack_due_us == 41_000
    assert receive(client, 2000, 1) == [0, 1]
    assert client.ack_due_us == NEVER_US
    assert receive(client, 3000, 2) == []
    assert segments(client.take_pending()) == [2]  # its timer, or a request


def test_gaps_are_reported_at_once():
    client = Client(LinkConfig(quick_acks=0))
    client.expect(9)
    assert receive(client, 0, 1) == [1]  # out of order
    assert receive(client, 0, 3) == [3]
    assert receive(client, 0, 0) == [0]  # fills one gap, another is left
    assert receive(client, 0, 2) == [2]
    assert receive(client, 0, 4) == []
    assert client.expected == 5


def test_the_first_packets_are_acknowledged_at_once():
    client = Client(LinkConfig(quick_acks=3))
    client.expect(9)
    assert [receive(client, 0, segment) for segment in range(6)] == [[0], [1], [2], [], [3, 4], []]


def test_a_lost_acknowledgement_is_part_of_the_next():
    client = Client(LinkConfig(ack_every=1))
    client.expect(9)
    acked = client.receive(0, Transmission(0, 0, 1504, 0))
    client.lose(0, acked)
    assert receive(client, 1000, 1) == [0, 1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("handshake", HANDSHAKES)
def test_handshakes_cost_their_round_trips(model, handshake):
    """41 ms each: 20 up, 20 down, and the next opportunity."""
    transfer = make(model, handshake=handshake).request(0, 0.0)
    assert transfer.first_byte_s == pytest.approx(0.041 * (HANDSHAKES[handshake] + 1))


def test_delayed_acknowledgements_by_hand():
    """3 packets, then 4, from window 1 with no quick acks: the first waits 40 ms for its acknowledgement.

    The request reaches the server at 20, packet 0 the client at 41. Its acknowledgement leaves at 81 and is there at
    101: two packets arrive at 122 and 123, so they are acknowledged at once; the rest at 164, 165.
    """
    transport = make(handshake="none", initial_window_packets=1, quick_acks=0, min_rto_ms=1000)
    assert transport.request(5 * 1448 - 250, 0.0).finish_s == pytest.approx(0.165)
    prompt = make(handshake="none", initial_window_packets=1, ack_every=1)
    assert prompt.request(5 * 1448 - 250, 0.0).finish_s == pytest.approx(0.041 * 3 + 0.001)


@pytest.mark.parametrize("model", MODELS)
def test_a_receive_window_limits_the_rate(model):
    """20 packets per round trip of 40 ms and a little: 1 448 000 bytes are 1000 packets, 50 round trips."""
    transport = make(model, receive_window_bytes=20 * 1448)
    transport.request(200_000, 0.0)
    transfer = transport.request(1_448_000, 1.0)
    assert transfer.finish_s - 1.0 == pytest.approx(50 * 0.0415, rel=0.06)


def test_cubic_recovers_faster_than_reno():
    """A loss now and then on a long fat path: CUBIC keeps more of its window."""

    def total_s(congestion_control: str) -> float:
        transport = make(congestion_control=congestion_control, delay_ms=100, loss=0.001, seed=4, queue="infinite")
        return transport.request(20_000_000, 0.0).finish_s

    assert total_s("cubic") < 0.8 * total_s("reno")


def test_several_connections_share_an_object_and_the_link():
    """20 packets take two round trips on one connection, and one on two."""
    one, two = make(), make(connections=2)
    for transport in (one, two):
        transport.request(10, 0.0)
    assert one.request(28_000, 1.0).finish_s == pytest.approx(1.091)
    assert two.request(28_000, 1.0).finish_s == pytest.approx(1.061, abs=0.002)
    size_bytes = 3_000_000
    transfer = two.request(size_bytes, 2.0)
    assert transfer.received_bytes == size_bytes
    assert transfer.finish_s - 2.0 > size_bytes / 1448 / 1000


def test_several_connections_are_cut_and_opened_again():
    transport = make(connections=3)
    download = transport.begin(600_000, 0.0)
    progress = [download.received_bytes(time_s) for time_s in (0.05, 0.2, 0.3, download.finish_s)]
    assert progress[0] == 0
    assert progress == sorted(progress)
    assert progress[-1] == 600_000
    transfer = download.cancel(0.3)
    assert transfer.received_bytes == progress[2]
    assert transport.request(1, 1.0).first_byte_s == pytest.approx(1.082)  # a handshake again


def test_lost_requests_and_acknowledgements_cost_time_but_no_bytes():
    clean, lossy = make(), make(uplink_loss=0.3, seed=2)
    total_s = {}
    for name, transport in (("clean", clean), ("lossy", lossy)):
        now_s = 0.0
        for _ in range(30):
            transfer = transport.request(50_000, now_s)
            assert transfer.complete
            now_s = transfer.finish_s
        total_s[name] = now_s
    assert total_s["lossy"] > total_s["clean"] + 5  # about one request in three waits a second or more


def test_a_link_that_goes_off_loses_packets_for_a_while():
    steady, broken = make(), make(on_s=0.5, off_s=0.5, seed=3)
    assert broken.request(3_000_000, 0.0).complete
    assert broken.request(3_000_000, 60.0).finish_s > steady.request(3_000_000, 60.0).finish_s + 0.5


@pytest.mark.parametrize("queue", ["codel", "pie"])
def test_managed_queues_keep_the_delay_low(queue):
    def waiting_s(**settings: object) -> float:
        """How long a new connection's first packet waits behind a download cut after 8 s."""
        transport = make(queue_packets=1000, **settings)
        transport.request(20_000_000, 0.0, 8.0)
        return transport.request(0, 8.0).first_byte_s - 8.082

    assert waiting_s(queue="droptail") > 0.3
    assert waiting_s(queue=queue) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"congestion_control": "bbr"}, "known: cubic, reno"),
        ({"handshake": "dtls"}, "known: tcp, tls13"),
        ({"compat": "ns3"}, "known: none, mahimahi"),
        ({"receive_window_bytes": 1000}, "two packets take 2896"),
        ({"ack_every": 0}, "ack_every is 0"),
        ({"connections": 0}, "connections is 0"),
        ({"uplink_loss": 1.0}, "uplink_loss is 1"),
        ({"codel_target_ms": 0}, "codel_target_ms is 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(TransportError, match=message):
        LinkConfig(**settings)


@pytest.mark.parametrize("settings", [{"queue": "pie"}, {"connections": 2}, {"uplink_loss": 0.1}, {"off_s": 1.0}])
def test_the_fluid_model_refuses_what_it_cannot_do(settings):
    with pytest.raises(TransportError, match=r"use .*model packet"):
        make("fluid", **settings)
