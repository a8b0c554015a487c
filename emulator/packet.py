"""The packet transport: every packet of a TCP connection simulated over Mahimahi links, event by event.

The path, server to client and back, nests as in `mm-delay D mm-link up down`:

    server -> loss -> delay D -> downlink (trace) -> client -> [uplink (trace)] -> delay D -> server

Times in whole microseconds. Links think in milliseconds: a packet reaching one within millisecond t uses
opportunities from t + 1 on, and leaves at the start of its opportunity's millisecond.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from emulator.config import CONTROL_BYTES, HEADER_BYTES, MAX_RTO_MS, NEVER_US, LinkConfig
from emulator.elements import BernoulliLoss, Delay
from emulator.fifo import Packet
from emulator.link import Link
from emulator.queues import create_queue
from emulator.tcp import RttEstimator, TcpSender, Transmission
from emulator.transfer import Rewindable, Transfer, check_request
from traces import Trace


class PacketTransport(Rewindable):
    """A persistent HTTP/1.1 connection simulated packet by packet; see `emulator.transport.Transport`.

    Args:
        trace: downlink opportunities.
        config: everything else about the network.
        uplink: opportunities of the uplink (unlimited queue); None: the uplink only delays.
    """

    def __init__(self, trace: Trace, config: LinkConfig, *, uplink: Trace | None = None) -> None:
        limits = (0, 0) if config.queue == "infinite" else (config.queue_packets, config.queue_bytes)
        self._config = config
        self._downlink = Link(trace, create_queue(config.queue, limit_packets=limits[0], limit_bytes=limits[1]))
        self._uplink = None if uplink is None else Link(uplink)
        self._loss = BernoulliLoss(config.loss, seed=config.seed)
        self._to_link = Delay(config.delay_us)
        self._to_server = Delay(config.delay_us)
        # A connection is a number: packets of an earlier one are still carried, but nobody answers them.
        self._client_connection = 0
        self._server_connection = 0
        self._sender: TcpSender | None = None
        self._connected = False
        self._expected = 0  # the segment that the client waits for next
        self._early: set[int] = set()  # segments that came ahead of it
        self._message_end = 0  # first segment after the message that the client waits for
        self._message_us: int | None = None  # when its last packet arrived
        self._first_byte_us: int | None = None
        self._response_start = 0  # first segment of the response that the client waits for
        self._progress: list[tuple[int, int]] = []  # (time in us, segment expected from then on) of the message

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Fetch an object; see `Transport.request`."""
        request = check_request(size_bytes, request_s, deadline_s, previous_finish_us=self._finish_us)
        self._requests += 1
        until_us = request.deadline_us
        self._run(request.request_us, waiting=False)
        now_us: int | None = request.request_us
        if not self._connected:
            self._open()
            for _ in range(self._config.handshake_rtts):
                if now_us is not None:
                    now_us = self._exchange(now_us, [CONTROL_BYTES], CONTROL_BYTES, until_us)
            self._first_byte_us = None
        self._response_start = self._message_end
        if now_us is not None:
            uplink_bytes = self._config.request_bytes + HEADER_BYTES
            now_us = self._exchange(now_us, self._response(size_bytes), uplink_bytes, until_us)
        if now_us is not None and self._first_byte_us is not None:
            self._finish_us = now_us
            return request.completed(self._first_byte_us, now_us)
        self._finish_us = until_us
        self._abort()
        delivered_bytes = (self._expected - self._response_start) * self._config.mss_bytes
        return request.cut(self._first_byte_us, delivered_bytes - self._config.response_header_bytes)

    def _save(self) -> dict[str, Any]:
        # One copy of everything: the sender's packets are the link's and the client's, and must stay so.
        return copy.deepcopy({name: value for name, value in self.__dict__.items() if name != "_config"})

    def _in_order_by(self) -> Callable[[int], int]:
        progress, mss_bytes = self._progress, self._config.mss_bytes
        start_bytes = self._response_start * mss_bytes + self._config.response_header_bytes

        def in_order_by(time_us: int) -> int:
            count = bisect_right(progress, time_us, key=lambda entry: entry[0])
            return progress[count - 1][1] * mss_bytes - start_bytes if count else 0

        return in_order_by

    def _response(self, size_bytes: int) -> list[int]:
        """Return the sizes on the link of the packets that carry a response."""
        full, rest = divmod(self._config.response_header_bytes + size_bytes, self._config.mss_bytes)
        return [self._config.packet_bytes] * full + ([rest + HEADER_BYTES] if rest else [])

    def _open(self) -> None:
        """Start a connection on the client's side; its first packet tells the server."""
        self._client_connection += 1
        self._connected = True
        self._expected = self._message_end = 0
        self._early.clear()

    def _abort(self) -> None:
        """Close the connection: the server learns of it one delay later, sent packets stay on their way."""
        self._send_up(self._finish_us, CONTROL_BYTES, (self._client_connection, None))
        self._client_connection += 1  # nobody answers the old one's packets from now on
        self._connected = False

    def _exchange(self, now_us: int, response: list[int], uplink_bytes: int, until_us: int) -> int | None:
        """Send one message up and wait for all of `response`; return its arrival, None if `until_us` came first."""
        self._message_end += len(response)
        self._message_us = self._first_byte_us = None
        self._progress = []
        self._send_up(now_us, uplink_bytes, (self._client_connection, response))
        self._run(until_us, waiting=True)
        return self._message_us

    def _send_up(self, now_us: int, size_bytes: int, item: tuple[int, object]) -> None:
        """Send something from the client towards the server."""
        if self._uplink is None:
            self._to_server.arrive(now_us, item)
        else:
            for packet in self._uplink.arrive(now_us // 1000, size_bytes, item):
                self._to_server.arrive(packet.departure_ms * 1000, packet.tag)

    def _run(self, until_us: int, *, waiting: bool) -> None:
        """Process events up to and including `until_us`; when `waiting`, stop once the awaited message is complete.

        At equal times the links go first: an arrival cannot use an opportunity of its own millisecond.
        """
        downlink, uplink = self._downlink, self._uplink
        to_link, to_server = self._to_link.items, self._to_server.items
        while not (waiting and self._message_us is not None):
            down_us = downlink.next_busy_ms * 1000
            arrival_us = to_link[0][0] if to_link else NEVER_US
            link_us = min(down_us, arrival_us)
            up_us = NEVER_US if uplink is None else uplink.next_busy_ms * 1000
            server_us = to_server[0][0] if to_server else NEVER_US
            sender = self._sender
            timer_us = NEVER_US if sender is None or sender.timer_us is None else math.ceil(sender.timer_us)
            now_us = min(link_us, up_us, server_us, timer_us)
            if now_us > until_us or now_us == NEVER_US:
                return
            if now_us == down_us:
                self._deliver(downlink.advance(now_us // 1000))
            elif now_us == up_us and uplink is not None:
                for packet in uplink.advance(now_us // 1000):
                    self._to_server.arrive(now_us, packet.tag)
            elif now_us == arrival_us:
                transmission = to_link.popleft()[1]
                downlink.arrive(now_us // 1000, transmission[1].size_bytes, transmission)
            elif now_us == server_us:
                self._serve(now_us, *to_server.popleft()[1])
            elif sender is not None:
                sender.on_timer(now_us)
                self._send_down(now_us)

    def _serve(self, now_us: int, connection: int, item: object) -> None:
        """Let the server take in an acknowledgement, a message (a list: its response) or a reset (None)."""
        if connection > self._server_connection:
            self._server_connection = connection
            config = self._config
            rtt = RttEstimator(
                initial_rto_us=round(config.initial_rto_ms * 1000),
                min_rto_us=round(config.min_rto_ms * 1000),
                max_rto_us=MAX_RTO_MS * 1000,
            )
            self._sender = TcpSender(
                initial_window_packets=config.initial_window_packets, idle_restart=config.idle_restart, rtt=rtt
            )
        sender = self._sender
        if connection < self._server_connection or sender is None:
            return
        if isinstance(item, Transmission):
            sender.on_ack(now_us, item)
        elif isinstance(item, list):
            sender.write(now_us, item)
        else:
            self._sender = None
            return
        self._send_down(now_us)

    def _send_down(self, now_us: int) -> None:
        """Put what the sender wants to send on its way, unless it is lost there."""
        if self._sender is None:
            return
        for transmission in self._sender.take_outbox():
            if not self._loss.drops():
                self._to_link.arrive(now_us, (self._server_connection, transmission))

    def _deliver(self, packets: list[Packet]) -> None:
        """Let packets reach the client, which acknowledges each and notes when its message is whole."""
        for packet in packets:
            connection, transmission = packet.tag
            if connection != self._client_connection:
                continue
            now_us = packet.departure_ms * 1000
            segment = transmission.segment
            if segment == self._expected:
                if self._first_byte_us is None:
                    self._first_byte_us = now_us
                self._expected += 1
                while self._early and self._expected in self._early:
                    self._early.remove(self._expected)
                    self._expected += 1
                self._progress.append((now_us, self._expected))
                if self._expected == self._message_end:
                    self._message_us = now_us
            elif segment > self._expected:
                self._early.add(segment)
            self._send_up(now_us, HEADER_BYTES, (connection, transmission))
