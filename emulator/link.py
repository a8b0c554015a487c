"""The bottleneck link, packet by packet, by Mahimahi's rules; and the delay and loss elements around it.

No clock and no sockets: the caller brings the time and carries packets from one element to the next. Times of `Link`
are whole milliseconds, as in a trace file.

The rules of the link, each with its test in tests/test_emulator_link.py:

1. Every line of the trace is one *opportunity* to send MTU_BYTES bytes. It serves packets in order until its bytes
   are used up or the queue is empty; what is left of it is lost.
2. A packet may be sent in pieces over several opportunities. It departs with the opportunity that sends its last
   byte. Once its first byte is sent it is no longer in the queue: no limit counts it and nothing drops it.
3. An arrival in millisecond t comes after every opportunity of millisecond t, so it can use t + 1 at the earliest.
4. The trace repeats with the period of its last line.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from typing import Any

from emulator.errors import LinkError
from emulator.queues import InfiniteQueue, Packet, PacketQueue
from traces import MTU_BYTES, Trace

_NEVER_MS = 1 << 62


class Link:
    """One direction of a Mahimahi link: a trace of opportunities serving a queue.

    Args:
        trace: when the link may send.
        queue: what waits; unlimited if not given.
        keep_log: record `log`, the lines of a Mahimahi link log: `ms # 1504` (opportunity), `ms + bytes` (arrival),
            `ms - bytes delay_ms` (departure), `ms d packets bytes` (drop, right after the arrival that caused it).
    """

    def __init__(self, trace: Trace, queue: PacketQueue | None = None, *, keep_log: bool = False) -> None:
        self.trace = trace
        self.queue = InfiniteQueue() if queue is None else queue
        self.log: list[str] = []
        self._keep_log = keep_log
        self._opportunities = trace.opportunities_ms.data  # plain ints, and no copy
        self._lap_ms = 0  # when the current lap over the trace began
        self._line = 0  # the next opportunity's place in the trace
        self._next_ms = self._opportunities[0]
        self._now_ms = 0
        self._in_transit: Packet | None = None
        self._unsent_bytes = 0  # of the packet in transit

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        """Copy everything but the trace, which never changes."""
        twin = copy.copy(self)
        twin.queue = copy.deepcopy(self.queue, memo)
        twin._in_transit = copy.deepcopy(self._in_transit, memo)
        twin.log = self.log.copy()
        return twin

    @property
    def backlog_bytes(self) -> int:
        """Bytes waiting in the link: the queue and the rest of the packet in transit."""
        return self.queue.size_bytes + self._unsent_bytes

    @property
    def next_busy_ms(self) -> int:
        """The next opportunity's time if anything waits for it, else a time that never comes."""
        return self._next_ms if self.queue.packets or self._in_transit is not None else _NEVER_MS

    def arrive(self, now_ms: int, size_bytes: int, tag: Any = None) -> list[Packet]:
        """Serve everything due by `now_ms`, then let a packet arrive; return what departed meanwhile.

        Raises:
            LinkError: the packet is empty or exceeds the MTU, or time runs backwards.
        """
        if not 0 < size_bytes <= MTU_BYTES:
            raise LinkError(f"packet of {size_bytes} bytes at {now_ms} ms; expected 1 to {MTU_BYTES}")
        departed = self.advance(now_ms)
        packet = Packet(size_bytes, now_ms, tag)
        dropped = self.queue.enqueue(packet)
        if self._keep_log:
            self.log.append(f"{now_ms} + {size_bytes}")
            if dropped:
                self.log.append(f"{now_ms} d {len(dropped)} {sum(lost.size_bytes for lost in dropped)}")
        return departed

    def advance(self, now_ms: int) -> list[Packet]:
        """Serve every opportunity up to and including `now_ms`; return the departed packets, oldest first."""
        if now_ms < self._now_ms:
            raise LinkError(f"link told of {now_ms} ms after {self._now_ms} ms; time cannot run backwards")
        self._now_ms = now_ms
        departed: list[Packet] = []
        while self._next_ms <= now_ms:
            if not self._keep_log and self._in_transit is None and not self.queue.packets:
                self._skip_unused(now_ms)
                break
            self._serve_opportunity(departed)
            self._step()
        return departed

    def _serve_opportunity(self, departed: list[Packet]) -> None:
        """Send up to one MTU of what waits, in order."""
        now_ms = self._next_ms
        queue = self.queue
        if self._keep_log:
            self.log.append(f"{now_ms} # {MTU_BYTES}")
        room_bytes = MTU_BYTES
        while room_bytes > 0:
            if self._in_transit is None:
                if not queue.packets:
                    return  # the rest of the opportunity is lost
                self._in_transit = queue.dequeue(now_ms)
                self._unsent_bytes = self._in_transit.size_bytes
            sent_bytes = min(room_bytes, self._unsent_bytes)
            room_bytes -= sent_bytes
            self._unsent_bytes -= sent_bytes
            if self._unsent_bytes == 0:
                packet = self._in_transit
                packet.departure_ms = now_ms
                departed.append(packet)
                self._in_transit = None
                if self._keep_log:
                    self.log.append(f"{now_ms} - {packet.size_bytes} {now_ms - packet.arrival_ms}")

    def _step(self) -> None:
        """Go to the trace's next line, or to the first line of the next lap."""
        self._line += 1
        if self._line == len(self._opportunities):
            self._line = 0
            self._lap_ms += self.trace.period_ms
        self._next_ms = self._lap_ms + self._opportunities[self._line]

    def _skip_unused(self, now_ms: int) -> None:
        """Pass over the opportunities up to `now_ms` at once: nothing waits for them."""
        laps, self._line = divmod(int(self.trace.count_until(now_ms)), len(self._opportunities))
        self._lap_ms = laps * self.trace.period_ms
        self._next_ms = self._lap_ms + self._opportunities[self._line]


class Delay:
    """A fixed one-way delay, first in, first out. Any unit of time, the same for every call."""

    def __init__(self, delay: int) -> None:
        if delay < 0:
            raise LinkError(f"delay of {delay}; expected 0 or more")
        self.delay = delay
        self.items: deque[tuple[int, Any]] = deque()  # (release time, item)

    def arrive(self, now: int, item: Any) -> None:
        """Take an item in at `now`; it leaves at `now` + delay."""
        self.items.append((now + self.delay, item))

    def advance(self, now: int) -> list[tuple[int, Any]]:
        """Return (release time, item) of everything due by `now`, oldest first."""
        released = []
        while self.items and self.items[0][0] <= now:
            released.append(self.items.popleft())
        return released


class BernoulliLoss:
    """Drops each packet with the same probability, independently; seeded, so every run loses the same packets."""

    def __init__(self, probability: float, *, seed: int = 0) -> None:
        if not 0 <= probability < 1:
            raise LinkError(f"loss probability {probability}; expected 0 <= p < 1")
        self.probability = probability
        self._random = random.Random(seed)

    def drops(self) -> bool:
        """Draw the next packet's fate."""
        return self.probability > 0 and self._random.random() < self.probability
