"""The packet transport: every packet of its TCP connections simulated over Mahimahi links, event by event.

The path, server to client and back, nests as in `mm-delay D mm-link up down`:

    server -> loss -> delay D -> [on/off] -> downlink (trace) -> client -> loss -> [uplink (trace)] -> delay D -> server

Times in whole microseconds. Links think in milliseconds: a packet reaching one within millisecond t uses
opportunities from t + 1 on, and leaves at the start of its opportunity's millisecond.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from emulator.config import CONTROL_BYTES, HEADER_BYTES, NEVER_US, LinkConfig
from emulator.connection import Connection
from emulator.elements import BernoulliLoss, Delay, OnOff
from emulator.fifo import Packet
from emulator.link import Link
from emulator.transfer import Rewindable, Transfer, check_request
from traces import Trace


class PacketTransport(Rewindable):
    """Persistent HTTP/1.1 connections simulated packet by packet; see `emulator.transport.Transport`.

    Args:
        trace: downlink opportunities.
        config: everything else about the network.
        uplink: opportunities of the uplink (unlimited queue); None: the uplink only delays.
    """

    def __init__(self, trace: Trace, config: LinkConfig, *, uplink: Trace | None = None) -> None:
        self._config = config
        self._downlink = Link(trace, config.create_queue())
        self._uplink = None if uplink is None else Link(uplink)
        self._loss = BernoulliLoss(config.loss, seed=config.seed)
        self._uplink_loss = BernoulliLoss(config.uplink_loss, seed=config.seed + 1)
        self._gate = OnOff(config.on_s, config.off_s, seed=config.seed + 2) if config.off_s else None
        self._to_link = Delay(config.delay_us)
        self._to_server = Delay(config.delay_us)
        self._open: list[Connection] = []  # the client's, in order
        self._alive: list[Connection] = []  # those, and abandoned ones whose server does not know it yet
        self._asked: list[Connection] = []  # those that take part in the current request
        self._missing = 0  # of those, how many still wait for something

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Fetch an object; see `Transport.request`."""
        request = check_request(size_bytes, request_s, deadline_s, previous_finish_us=self._finish_us)
        self._requests += 1
        self._run(request.request_us, waiting=False)
        self._ask(size_bytes, request.request_us)
        self._run(request.deadline_us, waiting=True)
        # A connection with an exchange left is still shaking hands.
        clients = [connection.client for connection in self._asked if not connection.exchanges]
        first_us = min((client.first_byte_us for client in clients if client.first_byte_us is not None), default=None)
        if first_us is not None and not self._missing:
            self._finish_us = max(client.message_us or 0 for client in clients)
            return request.completed(first_us, self._finish_us)
        self._finish_us = request.deadline_us
        received_bytes = self._in_order_by()(self._finish_us)
        self._abort()
        return request.cut(first_us, received_bytes)

    def _save(self) -> dict[str, Any]:
        for connection in self._open:
            connection.client.progress = []  # of a response that is over
        # One copy of everything: the sender's packets are the link's and the client's, and must stay so.
        return copy.deepcopy({name: value for name, value in self.__dict__.items() if name != "_config"})

    def _in_order_by(self) -> Callable[[int], int]:
        timelines = [connection.timeline() for connection in self._asked]
        return lambda time_us: sum(body_bytes_by(time_us) for body_bytes_by in timelines)

    def _ask(self, size_bytes: int, now_us: int) -> None:
        """Ask for an equal part of the object on every connection; open those that are not."""
        parts = max(min(self._config.connections, size_bytes), 1)
        while len(self._open) < parts:
            connection = Connection(self._config)
            self._open.append(connection)
            self._alive.append(connection)
        self._asked = self._open[:parts]
        self._missing = parts
        for place, connection in enumerate(self._asked):
            connection.ask(size_bytes * (place + 1) // parts - size_bytes * place // parts)
            self._go_on(connection, now_us)

    def _go_on(self, connection: Connection, now_us: int) -> None:
        """Start a connection's next exchange; what is not yet acknowledged goes with it."""
        exchange = connection.exchanges.popleft()
        acked = connection.client.take_pending()
        if acked:
            self._send_up(now_us, HEADER_BYTES, (connection, acked))
        connection.client.expect(len(exchange.response))
        self._send_up(now_us, exchange.uplink_bytes, (connection, exchange))

    def _abort(self) -> None:
        """Close the connections: the server learns of it one delay later, sent packets stay on their way."""
        self._missing = 0
        for connection in self._asked:
            connection.abandoned = True  # nobody answers its packets from now on
            connection.client.take_pending()
            connection.client.take_lost_message()
            self._open.remove(connection)
            self._send_up(self._finish_us, CONTROL_BYTES, (connection, None), certain=True)

    def _send_up(self, now_us: int, size_bytes: int, item: tuple[Connection, Any], *, certain: bool = False) -> None:
        """Send something from the client towards the server, unless it is lost there."""
        if not certain and self._uplink_loss.drops():
            item[0].client.lose(now_us, item[1])
            return
        if self._uplink is None:
            self._to_server.arrive(now_us, item)
        else:
            for packet in self._uplink.arrive(now_us // 1000, size_bytes, item):
                self._to_server.arrive(packet.departure_ms * 1000, packet.tag)

    def _run(self, until_us: int, *, waiting: bool) -> None:
        """Process events up to and including `until_us`; when `waiting`, only until all that was asked for has arrived.

        At equal times the links go first: an arrival cannot use an opportunity of its own millisecond.
        """
        downlink, uplink = self._downlink, self._uplink
        to_link, to_server = self._to_link.items, self._to_server.items
        while self._missing or not waiting:
            down_us = downlink.next_busy_ms * 1000
            arrival_us = to_link[0][0] if to_link else NEVER_US
            up_us = NEVER_US if uplink is None else uplink.next_busy_ms * 1000
            server_us = to_server[0][0] if to_server else NEVER_US
            timer_us, timed = NEVER_US, None
            for connection in self._alive:
                due_us = connection.timer_us
                if due_us < timer_us:
                    timer_us, timed = due_us, connection
            now_us = min(down_us, arrival_us, up_us, server_us, timer_us)
            if now_us > until_us or now_us == NEVER_US:
                return
            if now_us == down_us:
                self._deliver(downlink.advance(now_us // 1000))
            elif now_us == up_us and uplink is not None:
                for packet in uplink.advance(now_us // 1000):
                    self._to_server.arrive(now_us, packet.tag)
            elif now_us == arrival_us:
                self._reach_link(now_us, to_link.popleft()[1])
            elif now_us == server_us:
                self._serve(now_us, *to_server.popleft()[1])
            elif timed is not None:
                self._on_timer(now_us, timed)

    def _reach_link(self, now_us: int, item: tuple[Connection, Any]) -> None:
        if self._gate is None or not self._gate.drops(now_us):
            self._downlink.arrive(now_us // 1000, item[1].size_bytes, item)

    def _on_timer(self, now_us: int, connection: Connection) -> None:
        """Let a delayed acknowledgement or a lost message of the client's go, or the server's timer run out."""
        client = connection.client
        if client.ack_due_us == now_us:
            self._send_up(now_us, HEADER_BYTES, (connection, client.take_pending()))
        elif client.resend_us == now_us:
            message = client.take_lost_message()
            if message is not None:
                self._send_up(now_us, message.uplink_bytes, (connection, message))
        elif connection.sender is not None:
            connection.sender.on_timer(now_us)
            self._send_down(now_us, connection)

    def _serve(self, now_us: int, connection: Connection, item: Any) -> None:
        """Let the server take in what the client has sent."""
        connection.serve(now_us, item)
        if item is None:
            self._alive.remove(connection)
        else:
            self._send_down(now_us, connection)

    def _send_down(self, now_us: int, connection: Connection) -> None:
        """Put what the sender wants to send on its way, unless it is lost there."""
        if connection.sender is None:
            return
        for transmission in connection.sender.take_outbox():
            if not self._loss.drops():
                self._to_link.arrive(now_us, (connection, transmission))

    def _deliver(self, packets: list[Packet]) -> None:
        """Let packets reach the client, which acknowledges them and goes on when a message is whole."""
        for packet in packets:
            connection, transmission = packet.tag
            if connection.abandoned:
                continue
            now_us = packet.departure_ms * 1000
            client = connection.client
            was_complete = client.message_us is not None
            acked = client.receive(now_us, transmission)
            if acked:
                self._send_up(now_us, HEADER_BYTES, (connection, acked))
            if client.message_us is not None and not was_complete:
                if connection.exchanges:
                    self._go_on(connection, now_us)
                else:
                    self._missing -= 1
