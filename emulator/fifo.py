"""First-in first-out queues and their limits: what is kept, what is dropped. No clock: the caller says the time.

The rules are Mahimahi's (see docs/emulation.md). A packet that is already partly sent has left the queue: it counts
towards no limit and can no longer be dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from emulator.errors import LinkError


@dataclass(slots=True)
class Packet:
    """One packet on its way through a link; `tag` is the caller's and never looked at."""

    size_bytes: int  # as the queue counts it: IP packet plus the 4-byte TUN header
    arrival_ms: int = 0
    tag: Any = None
    departure_ms: int = -1  # -1 until it has left


class InfiniteQueue:
    """First in, first out, no limit."""

    def __init__(self) -> None:
        self.packets: deque[Packet] = deque()
        self.size_bytes = 0
        self.discarded: list[Packet] = []  # dropped by the last dequeue; whoever reads it empties it

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Append the packet; nothing is ever dropped."""
        self.packets.append(packet)
        self.size_bytes += packet.size_bytes
        return _NONE_DROPPED

    def dequeue(self, now_ms: int) -> Packet:
        """Remove and return the oldest packet."""
        packet = self.packets.popleft()
        self.size_bytes -= packet.size_bytes
        return packet

    def describe(self) -> str:
        """Return the queue's line in a Mahimahi log header."""
        return "infinite"


class LimitedQueue(InfiniteQueue):
    """First in, first out, at most `limit_packets` packets and `limit_bytes` bytes (0: that limit is not set)."""

    name = ""

    def __init__(self, *, limit_packets: int = 0, limit_bytes: int = 0) -> None:
        super().__init__()
        if limit_packets < 0 or limit_bytes < 0 or limit_packets == limit_bytes == 0:
            raise LinkError(
                f"queue {self.name}: limits {limit_packets} packets and {limit_bytes} bytes; "
                "expected at least one of them positive (0 = not set)"
            )
        self.limit_packets = limit_packets
        self.limit_bytes = limit_bytes

    def accepts(self, packet: Packet) -> bool:
        """Tell whether the limits leave room for one more packet."""
        return self._fits(len(self.packets) + 1, self.size_bytes + packet.size_bytes)

    def _fits(self, packets: int, size_bytes: int) -> bool:
        within_packets = self.limit_packets == 0 or packets <= self.limit_packets
        return within_packets and (self.limit_bytes == 0 or size_bytes <= self.limit_bytes)

    def describe(self) -> str:
        """Return the queue's line in a Mahimahi log header."""
        limits = [("bytes", self.limit_bytes), ("packets", self.limit_packets)]
        return f"{self.name} [{', '.join(f'{unit}={limit}' for unit, limit in limits if limit)}]"


class DropTailQueue(LimitedQueue):
    """Refuses an arriving packet that would break a limit."""

    name = "droptail"

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Append the packet if it fits, else drop it."""
        if self.accepts(packet):
            return super().enqueue(packet)
        return [packet]


class DropHeadQueue(LimitedQueue):
    """Takes every arriving packet, then drops the oldest ones until the limits hold again."""

    name = "drophead"

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Append the packet, then drop from the head."""
        super().enqueue(packet)
        dropped = []
        while not self._fits(len(self.packets), self.size_bytes):
            dropped.append(self.packets.popleft())
            self.size_bytes -= dropped[-1].size_bytes
        return dropped


class MahimahiDropHeadQueue(DropHeadQueue):
    """Mahimahi's own drop-head queue, which cannot survive a byte limit that one removal does not restore."""

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Append the packet, then drop from the head.

        Raises:
            LinkError: Mahimahi would have aborted here (an assertion in its dequeue).
        """
        dropped = super().enqueue(packet)
        if len(dropped) > 1:
            raise LinkError(
                f"queue drophead at {packet.arrival_ms} ms: {len(dropped)} packets must go to keep {self.limit_bytes} "
                "bytes; Mahimahi aborts where one removal is not enough (without compat the queue goes on)"
            )
        return dropped


_NONE_DROPPED: list[Packet] = []  # shared because the common case must not allocate; nobody may append to it
