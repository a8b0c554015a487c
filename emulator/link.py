"""The bottleneck link, packet by packet, by Mahimahi's rules.

No clock and no sockets: the caller brings the time. Times are whole milliseconds, as in a trace file.

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
from typing import Any

from emulator.errors import LinkError
from emulator.fifo import InfiniteQueue, Packet
from emulator.queues import PacketQueue
from traces import MTU_BYTES, Trace

_NEVER_MS = 1 << 62


class Link:
    """One direction of a Mahimahi link: a trace of opportunities serving a queue.

    Args:
        trace: when the link may send.
        queue: what waits; unlimited if not given.
        keep_log: record `log`, the lines of a Mahimahi link log: `ms # 1504` (opportunity), `ms + bytes` (arrival),
            `ms - bytes delay_ms` (departure), `ms d packets bytes` (drop, right after the arrival or opportunity that
            caused it).
        repeat: whether the trace starts again after its last opportunity, or the link is finished then.
    """

    def __init__(
        self, trace: Trace, queue: PacketQueue | None = None, *, keep_log: bool = False, repeat: bool = True
    ) -> None:
        self.trace = trace
        self.queue = InfiniteQueue() if queue is None else queue
        self.log: list[str] = []
        self._keep_log = keep_log
        self._repeat = repeat
        self._may_skip = repeat and not keep_log  # pass over unused opportunities at once
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
    def finished(self) -> bool:
        """Whether the last opportunity of a link that does not repeat has passed."""
        return self._next_ms == _NEVER_MS

    @property
    def backlog_bytes(self) -> int:
        """Bytes waiting in the link: the queue and the rest of the packet in transit."""
        return self.queue.size_bytes + self._unsent_bytes

    @property
    def next_busy_ms(self) -> int:
        """The next opportunity's time if anything waits for it and it comes, else a time that never comes."""
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
            self._log_drop(now_ms, dropped)
        return departed

    def advance(self, now_ms: int) -> list[Packet]:
        """Serve every opportunity up to and including `now_ms`; return the departed packets, oldest first."""
        if now_ms < self._now_ms:
            raise LinkError(f"link told of {now_ms} ms after {self._now_ms} ms; time cannot run backwards")
        self._now_ms = now_ms
        departed: list[Packet] = []
        while self._next_ms <= now_ms:
            if self._may_skip and self._in_transit is None and not self.queue.packets:
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
                if queue.discarded:
                    self._log_drop(now_ms, queue.discarded)
                    queue.discarded.clear()
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

    def _log_drop(self, now_ms: int, dropped: list[Packet]) -> None:
        """Note what a queue has dropped."""
        if self._keep_log:
            self.log.append(f"{now_ms} d {len(dropped)} {sum(packet.size_bytes for packet in dropped)}")

    def _step(self) -> None:
        """Go to the trace's next line, or to the first line of the next lap."""
        self._line += 1
        if self._line == len(self._opportunities):
            if not self._repeat:
                self._next_ms = _NEVER_MS
                return
            self._line = 0
            self._lap_ms += self.trace.period_ms
        self._next_ms = self._lap_ms + self._opportunities[self._line]

    def _skip_unused(self, now_ms: int) -> None:
        """Pass over the opportunities up to `now_ms` at once: nothing waits for them."""
        laps, self._line = divmod(int(self.trace.count_until(now_ms)), len(self._opportunities))
        self._lap_ms = laps * self.trace.period_ms
        self._next_ms = self._lap_ms + self._opportunities[self._line]
