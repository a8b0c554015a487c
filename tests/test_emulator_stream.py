"""Byte streams over the emulated path, in virtual time: the packet model with payload."""

import math
import random

import pytest

from emulator import LinkConfig, create_transport
from emulator.config import HEADER_BYTES
from emulator.errors import RealTimeError
from emulator.path import NEVER_US
from emulator.stream import BUFFER_BYTES, Connection, Network
from traces import load_trace

HEADER = 250  # of the response, as in LinkConfig


class Exchange:
    """A client that asks once over a network and a server that answers at once."""

    def __init__(self, network, size_bytes):
        self.network = network
        self.received = bytearray()
        self.finish_us = None
        self.held = []
        self.body = bytes(i * 7 % 251 for i in range(size_bytes))
        self.connection = Connection(network, hold_client=lambda on: None, hold_server=self.held.append)
        self.connection.open(0, self._ask)

    def _ask(self, now_us):
        self.connection.up.push(now_us, self.network.config.request_bytes + HEADER_BYTES, self._answer)

    def _answer(self, now_us):
        self.connection.down.write(now_us, bytes(HEADER) + self.body, self.received.extend)
        self.connection.down.push(now_us, 1, self._finish)

    def _finish(self, now_us):
        self.finish_us = now_us

    def run(self, until_us=NEVER_US - 1, step_us=None):
        while self.finish_us is None and (next_us := self.network.next_us) <= until_us:
            self.network.run(next_us if step_us is None else next_us + step_us)


@pytest.mark.parametrize("size_bytes", [1, 28_000, 300_000])
@pytest.mark.parametrize(
    "fields", [{}, {"queue_packets": 20}, {"queue": "infinite", "delay_ms": 3.7}, {"quick_acks": 0}]
)
def test_an_object_takes_as_long_as_in_the_packet_model(size_bytes, fields):
    trace = load_trace("lte", share=10)
    config = LinkConfig(model="packet", **fields)
    expected = create_transport(trace, config).request(size_bytes, 0.0)
    exchange = Exchange(Network(trace, config), size_bytes)
    # The packet that reports the end is one the model does not send; it may need one opportunity more.
    exchange.run()
    assert bytes(exchange.received[HEADER:]) == exchange.body
    slack_ms = int(trace.opportunity_ms(trace.count_until(expected.finish_s * 1000))) - expected.finish_s * 1000
    assert expected.finish_s * 1e6 <= exchange.finish_us <= (expected.finish_s * 1000 + slack_ms) * 1000 + 1


def test_a_connection_in_use_equals_the_packet_model_to_the_microsecond():
    trace, config, draw = load_trace("lte", share=10), LinkConfig(model="packet"), random.Random(1)
    transport, network = create_transport(trace, config), Network(trace, config)
    connection = Connection(network, hold_client=lambda on: None, hold_server=lambda on: None)
    now_us = 1000
    for number in range(20):
        size_bytes = round(10 ** draw.uniform(3, 5.5))
        received = bytearray()

        def ask(time_us, *, size_bytes=size_bytes, received=received):
            def answer(time_us):
                connection.down.write(time_us, bytes(HEADER + size_bytes), received.extend)

            connection.down.acknowledge(time_us)
            connection.up.push(time_us, config.request_bytes + HEADER_BYTES, answer)

        network.run(now_us)
        if number == 0:
            connection.open(now_us, ask)
        else:
            ask(now_us)
        finish_us = now_us
        while len(received) < HEADER + size_bytes:
            finish_us = network.next_us
            network.run(finish_us)
        assert finish_us == round(transport.request(size_bytes, now_us / 1e6).finish_s * 1e6)
        now_us = finish_us + draw.choice([1, 100_000, 1_000_000])


def test_lost_packets_are_sent_again_and_arrive_in_order():
    network = Network(load_trace("lte", share=10), LinkConfig(loss=0.1, seed=3))
    exchange = Exchange(network, 200_000)
    exchange.run()
    assert network.down.packets_lost > 5
    assert bytes(exchange.received[HEADER:]) == exchange.body


def test_a_driver_that_wakes_late_changes_no_time():
    def finish_us(step_us):
        exchange = Exchange(Network(load_trace("umts"), LinkConfig(loss=0.02)), 100_000)
        exchange.run(step_us=step_us)
        return exchange.finish_us

    assert finish_us(None) == finish_us(37_000)


def test_a_source_is_held_while_too_much_waits():
    exchange = Exchange(Network(load_trace("lte", share=10), LinkConfig()), 2 * BUFFER_BYTES)
    exchange.run(until_us=1_000_000)
    assert exchange.held == [True]
    exchange.run()
    assert exchange.held[-1] is False
    assert len(exchange.received) == HEADER + 2 * BUFFER_BYTES


def test_a_reset_reaches_the_server_one_delay_later_and_ends_the_connection():
    network = Network(load_trace("lte"), LinkConfig(delay_ms=30))
    exchange = Exchange(network, 5_000_000)
    exchange.run(until_us=500_000)
    closed = []
    exchange.connection.reset(500_000, closed.append)
    exchange.run(until_us=10_000_000)
    assert closed == [530_000]
    assert network.connections == set()
    assert network.next_us == NEVER_US
    assert exchange.finish_us is None


def test_connections_share_the_link():
    network = Network(load_trace("lte", share=10), LinkConfig(queue="infinite"))
    alone = Exchange(Network(load_trace("lte", share=10), LinkConfig(queue="infinite")), 300_000)
    alone.run()
    pair = [Exchange(network, 300_000), Exchange(network, 300_000)]
    while any(one.finish_us is None for one in pair):
        network.run(network.next_us)
    assert min(one.finish_us for one in pair) > alone.finish_us
    assert all(math.isfinite(one.finish_us) and bytes(one.received[HEADER:]) == one.body for one in pair)


@pytest.mark.parametrize("fields", [{"uplink_loss": 0.1}, {"off_s": 1.0}])
def test_what_streams_do_not_emulate_is_refused(fields):
    with pytest.raises(RealTimeError):
        Network(load_trace("lte"), LinkConfig(**fields))
