"""Both ends of one emulated TCP connection, between the elements of a path: the client's half, and the server's sender.

No clock: `PacketTransport` carries what they send, and tells them what arrives when. Times in whole microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emulator.config import CONTROL_BYTES, HEADER_BYTES, NEVER_US, LinkConfig
from emulator.tcp import TcpSender, Transmission, create_sender


@dataclass(frozen=True)
class Exchange:
    """A message of the client's and the packets (sizes on the link) that answer it."""

    uplink_bytes: int
    response: list[int]


class Client:
    """Receives in any order, reads in order, and acknowledges (RFC 5681, section 4.2).

    An acknowledgement goes out with every `ack_every`-th packet or after `ack_delay_ms`; at once for a packet out of
    order, one that fills a gap, one of the connection's first `quick_acks`, and with a request.
    """

    def __init__(self, config: LinkConfig) -> None:
        self.expected = 0  # the segment waited for next
        self.message_end = 0  # first segment after the message waited for
        self.message_us: int | None = None  # when its last packet arrived
        self.first_byte_us: int | None = None  # when its first packet did
        self.progress: list[tuple[int, int]] = []  # (time in us, segment expected from then on) of the message
        self.ack_due_us = NEVER_US
        self.lost_message: Exchange | None = None  # went out, did not get there ...
        self.resend_us = NEVER_US  # ... and goes out again at this time ...
        self._first_retry_us = self._retry_us = round(config.initial_rto_ms * 1000)  # ... so long after the first try
        self._every = config.ack_every
        self._delay_us = config.ack_delay_us
        self._quick = config.quick_acks
        self._early: set[int] = set()  # segments that came ahead of the expected one
        self._pending: list[Transmission] = []  # arrived, not yet acknowledged

    def expect(self, packets: int) -> None:
        """Wait for a message of so many packets."""
        self.message_end += packets
        self.message_us = self.first_byte_us = None
        self.progress = []
        self._retry_us = self._first_retry_us

    def receive(self, now_us: int, transmission: Transmission) -> list[Transmission]:
        """Take a packet in; return what is to be acknowledged now."""
        segment = transmission.segment
        in_order = segment == self.expected and not self._early
        if segment == self.expected:
            self._advance(now_us)
        elif segment > self.expected:
            self._early.add(segment)
        self._pending.append(transmission)
        if in_order and len(self._pending) < self._every and self._quick <= 0:
            self.ack_due_us = min(self.ack_due_us, now_us + self._delay_us)
            return []
        self._quick -= 1
        return self.take_pending()

    def lose(self, now_us: int, item: Exchange | list[Transmission]) -> None:
        """Learn that what went up is lost: a message goes out again, an acknowledgement is part of the next one."""
        if isinstance(item, Exchange):
            self.lost_message, self.resend_us = item, now_us + self._retry_us
            self._retry_us *= 2
        else:
            self._pending = item + self._pending

    def take_lost_message(self) -> Exchange | None:
        """Return the message to be sent again now."""
        message, self.lost_message, self.resend_us = self.lost_message, None, NEVER_US
        return message

    def take_pending(self) -> list[Transmission]:
        """Return what has not been acknowledged, and take it as done."""
        pending, self._pending = self._pending, []
        self.ack_due_us = NEVER_US
        return pending

    def _advance(self, now_us: int) -> None:
        """Read on from the expected segment, as far as there is no gap."""
        if self.first_byte_us is None:
            self.first_byte_us = now_us
        self.expected += 1
        while self._early and self.expected in self._early:
            self._early.remove(self.expected)
            self.expected += 1
        self.progress.append((now_us, self.expected))
        if self.expected == self.message_end:
            self.message_us = now_us


class Connection:
    """One connection: what each end knows of it, and the exchanges still to be made."""

    def __init__(self, config: LinkConfig) -> None:
        self.client = Client(config)
        self.sender: TcpSender | None = None  # the server's end; None until it hears of the connection
        self.abandoned = False  # by the client
        self.exchanges: deque[Exchange] = deque()
        self.body_bytes = 0  # of the response under way
        self._config = config
        self._response_start = 0  # its first segment
        handshake = Exchange(CONTROL_BYTES, [CONTROL_BYTES])
        self.exchanges.extend([handshake] * config.opening_rtts)

    @property
    def timer_us(self) -> int:
        """When the server's or the client's timer runs out."""
        due_us = self.client.ack_due_us
        if self.client.resend_us < due_us:
            due_us = self.client.resend_us
        if self.sender is not None:
            sender_us = self.sender.timer_us
            if sender_us is not None and sender_us < due_us:
                due_us = math.ceil(sender_us)
        return due_us

    def ask(self, body_bytes: int) -> None:
        """Plan a request for a body of this size."""
        config = self._config
        self.body_bytes = body_bytes
        self._response_start = self.client.message_end + len(self.exchanges)
        full, rest = divmod(config.response_header_bytes + body_bytes, config.mss_bytes)
        response = [config.packet_bytes] * full + ([rest + HEADER_BYTES] if rest else [])
        self.exchanges.append(Exchange(config.request_bytes + HEADER_BYTES, response))

    def serve(self, now_us: int, item: Exchange | list[Transmission] | None) -> None:
        """Let the server take in a message, an acknowledgement or a reset (None)."""
        if self.sender is None:
            self.sender = create_sender(self._config)
        if item is None:
            self.sender = None
        elif isinstance(item, Exchange):
            self.sender.write(now_us, item.response)
        else:
            self.sender.on_acks(now_us, item)

    def timeline(self) -> Callable[[int], int]:
        """Return a function of time (us): how much of the response's body had arrived in order by then."""
        config, body_bytes = self._config, self.body_bytes
        progress = [] if self.exchanges else self.client.progress  # the last exchange to start is the request
        start_bytes = self._response_start * config.mss_bytes + config.response_header_bytes

        def body_bytes_by(time_us: int) -> int:
            count = bisect_right(progress, time_us, key=lambda entry: entry[0])
            received = progress[count - 1][1] * config.mss_bytes - start_bytes if count else 0
            return min(max(received, 0), body_bytes)

        return body_bytes_by
