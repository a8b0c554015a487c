"""Byte streams over the emulated path: the packet model's TCP carrying real payload. No I/O and no clock.

`Network` owns the two directions of the path and handles everything that is due strictly in the order of time, so a
driver that wakes late delivers late, but does not shift the schedule behind it. The rules of what counts on the link
are those of `emulator.packet`: full packets of `mss_bytes` and 56 bytes of headers, a handshake before the first
request, delayed acknowledgements on the uplink. Acknowledgements of the client's data ride on responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from emulator.config import CONTROL_BYTES, HEADER_BYTES, LinkConfig
from emulator.connection import Client as Receiver
from emulator.elements import BernoulliLoss
from emulator.errors import RealTimeError
from emulator.link import Link
from emulator.path import NEVER_US, Path, downlink_path, uplink_path
from emulator.queues import PacketQueue
from emulator.tcp import Transmission, create_sender
from traces import Trace

BUFFER_BYTES = 4 * 1024 * 1024
"""Most bytes of one stream that wait here before its source is held, as a send buffer would (Linux: tcp_wmem)."""

_LEAST_BUFFER_BYTES = 64 * 1024

Deliver = Callable[[int], None]
"""Called with the time in us at which something crossed."""


class Network:
    """Downlink, uplink and the connections over them.

    Args:
        trace: the downlink's opportunities.
        config: everything else about the network; `model` is not looked at.
        uplink: the uplink's opportunities (unlimited queue); None: the uplink only delays.
        queue: the downlink's queue, instead of the one that `config` describes.
        keep_log: record the downlink's event lines.
        keep_uplink_log: record the uplink's.
    """

    def __init__(
        self,
        trace: Trace,
        config: LinkConfig,
        *,
        uplink: Trace | None = None,
        queue: PacketQueue | None = None,
        keep_log: bool = False,
        keep_uplink_log: bool = False,
    ) -> None:
        if config.uplink_loss or config.off_s:
            raise RealTimeError("byte streams have no uplink_loss and no outages (off_s); the shell has uplink loss")
        if queue is None:
            queue = config.create_queue()
        self.config = config
        self.downlink = Link(trace, queue, keep_log=keep_log)
        self.uplink = None if uplink is None else Link(uplink, keep_log=keep_uplink_log)
        self.down = downlink_path(config.delay_us, self.downlink, BernoulliLoss(config.loss, seed=config.seed))
        self.up = uplink_path(config.delay_us, self.uplink)
        self.back = uplink_path(config.delay_us, None)
        self.connections: set[Connection] = set()

    @property
    def next_us(self) -> int:
        """When something happens next; NEVER_US if all is quiet."""
        timers = [stream.timer_us for connection in self.connections for stream in connection.streams]
        return min(self.down.next_us, self.up.next_us, self.back.next_us, *timers, NEVER_US)

    def run(self, now_us: int) -> None:
        """Let everything happen that is due by `now_us`."""
        while (event_us := self.next_us) <= now_us:
            for path in (self.down, self.up, self.back):
                for time_us, cross in path.advance(event_us):
                    cross(time_us)
            for connection in list(self.connections):
                for stream in connection.streams:
                    stream.on_time(event_us)


class Connection:
    """One TCP connection over a network: a stream each way.

    Args:
        network: the network.
        hold_client: told when the client's side may not be read any further (True), and when it may again.
        hold_server: likewise for the server's side.
    """

    def __init__(
        self, network: Network, *, hold_client: Callable[[bool], None], hold_server: Callable[[bool], None]
    ) -> None:
        self._network = network
        self.up = Stream(network.config, network.up, network.back, hold_client)
        self.down = Stream(network.config, network.down, network.up, hold_server)
        self.streams = (self.up, self.down)
        network.connections.add(self)

    def open(self, now_us: int, opened: Deliver) -> None:
        """Shake hands: `config.opening_rtts` round trips, then `opened`."""
        self._shake(self._network.config.opening_rtts, opened, now_us)

    def _shake(self, round_trips: int, opened: Deliver, now_us: int) -> None:
        if round_trips == 0:
            opened(now_us)
        else:
            self._network.up.arrive(now_us, CONTROL_BYTES, partial(self._answer, round_trips, opened))

    def _answer(self, round_trips: int, opened: Deliver, now_us: int) -> None:
        self.down.push(now_us, CONTROL_BYTES, partial(self._shake, round_trips - 1, opened))

    def close(self) -> None:
        """End the connection at both ends; packets on their way still take their turns."""
        for stream in self.streams:
            stream.stop()
        self._network.connections.discard(self)

    def reset(self, now_us: int, closed: Deliver) -> None:
        """Let the client vanish: the server hears of it when the reset has crossed the uplink."""
        self.up.stop()

        def arrived(time_us: int) -> None:
            self.close()
            closed(time_us)

        self._network.up.arrive(now_us, CONTROL_BYTES, arrived)


class Stream:
    """One direction of a connection: packets over a path by the model's TCP, delivered in order."""

    def __init__(self, config: LinkConfig, path: Path, return_path: Path, hold: Callable[[bool], None]) -> None:
        self._sender = create_sender(config)
        self._path = path
        self._return_path = return_path
        self._hold = hold
        self._mss_bytes = config.mss_bytes
        self._waiting: dict[int, tuple[int, Deliver]] = {}  # segment: its size on the link, what delivers it
        self._pushed = 0  # segments
        self._delivered = 0  # segments
        self._receiver = Receiver(config)
        self._backlog_bytes = 0
        self._room_bytes = _LEAST_BUFFER_BYTES
        self._held = False
        self._stopped = False

    @property
    def timer_us(self) -> int:
        """When `on_time` has something to do."""
        if self._stopped:
            return NEVER_US
        timer_us = self._sender.timer_us
        return min(NEVER_US if timer_us is None else math.ceil(timer_us), self._receiver.ack_due_us)

    def on_time(self, now_us: int) -> None:
        """Tell the sender if its timer has run out; send an acknowledgement that was put off long enough."""
        if self._stopped:
            return
        if self._receiver.ack_due_us <= now_us:
            self.acknowledge(now_us)
        timer_us = self._sender.timer_us
        if timer_us is not None and timer_us <= now_us:
            self._sender.on_timer(now_us)
            self._send(now_us)

    def acknowledge(self, now_us: int) -> None:
        """Acknowledge what has arrived and is not yet acknowledged."""
        self._send_acks(now_us, self._receiver.take_pending())

    def write(self, now_us: int, data: bytes, deliver: Callable[[bytes], None]) -> None:
        """Send payload; `deliver` gets it piece by piece as it arrives in order."""
        step = self._mss_bytes
        parts = [data[start : start + step] for start in range(0, len(data), step)]
        self._push(now_us, [(len(part) + HEADER_BYTES, _handing(deliver, part)) for part in parts])

    def push(self, now_us: int, size_bytes: int, arrived: Deliver) -> None:
        """Send one packet without payload; `arrived` is called once it and all before it have arrived."""
        self._push(now_us, [(size_bytes, arrived)])

    def _push(self, now_us: int, packets: list[tuple[int, Deliver]]) -> None:
        if self._stopped:
            return
        for packet in packets:
            self._waiting[self._pushed] = packet
            self._pushed += 1
            self._backlog_bytes += packet[0]
        self._sender.write(now_us, [size_bytes for size_bytes, _ in packets])
        self._send(now_us)

    def stop(self) -> None:
        """Forget what has not arrived; packets on their way still take their turns on the link."""
        self._stopped = True
        self._waiting.clear()

    def _send(self, now_us: int) -> None:
        for transmission in self._sender.take_outbox():
            self._path.arrive(now_us, transmission.size_bytes, partial(self._receive, transmission))
        self._mind_backlog()

    def _receive(self, transmission: Transmission, now_us: int) -> None:
        """Take in a packet at the far end, deliver what is in order, acknowledge what is due."""
        if self._stopped:
            return
        acknowledged = self._receiver.receive(now_us, transmission)
        self._receiver.progress.clear()  # its record of a message's progress, which nobody reads here
        while self._delivered < self._receiver.expected and not self._stopped:
            size_bytes, deliver = self._waiting.pop(self._delivered)
            self._delivered += 1
            self._backlog_bytes -= size_bytes
            deliver(now_us)
        self._send_acks(now_us, acknowledged)

    def _send_acks(self, now_us: int, acknowledged: list[Transmission]) -> None:
        if acknowledged and not self._stopped:
            self._return_path.arrive(now_us, HEADER_BYTES, partial(self._take_acks, acknowledged))

    def _take_acks(self, acknowledged: list[Transmission], now_us: int) -> None:
        if not self._stopped:
            self._sender.on_acks(now_us, acknowledged)
            self._send(now_us)

    def _mind_backlog(self) -> None:
        """Let the source be read only while less than two windows wait, the room Linux gives a send buffer."""
        wanted_bytes = 2 * int(self._sender.window) * self._mss_bytes
        self._room_bytes = min(max(self._room_bytes, wanted_bytes), BUFFER_BYTES)  # it grows only
        held = self._backlog_bytes >= self._room_bytes
        if held != self._held:
            self._held = held
            self._hold(held)


def _handing(deliver: Callable[[bytes], None], part: bytes) -> Deliver:
    return lambda _: deliver(part)
