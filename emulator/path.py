"""One direction of an emulated path: loss, delay and link in series, on one clock in microseconds.

No clock and no sockets: the real-time drivers (`emulator.shaper`, `emulator.proxy`) bring both. What moves between the
elements carries the time at which it was due, not the time at which somebody looked, so a driver that wakes late
delivers late but never bends the schedule of what follows.
"""

from __future__ import annotations

from typing import Any, Protocol

from emulator.elements import BernoulliLoss, Delay
from emulator.link import Link

NEVER_US = 1 << 62

Moved = list[tuple[int, int, Any]]
"""(time due in us, size in bytes as the link counts it, item), oldest first."""


class _Element(Protocol):
    """What a path is made of. Times never run backwards."""

    def arrive(self, now_us: int, size_bytes: int, item: Any) -> None:
        """Take an item in."""

    def advance(self, now_us: int) -> Moved:
        """Return what has left by `now_us` and was not returned before."""

    @property
    def next_us(self) -> int:
        """When something may leave next; NEVER_US if nothing is inside."""


class _DelayElement:
    """A fixed delay."""

    def __init__(self, delay_us: int) -> None:
        self._delay = Delay(delay_us)

    def arrive(self, now_us: int, size_bytes: int, item: Any) -> None:
        self._delay.arrive(now_us, (size_bytes, item))

    def advance(self, now_us: int) -> Moved:
        return [(time_us, size_bytes, item) for time_us, (size_bytes, item) in self._delay.advance(now_us)]

    @property
    def next_us(self) -> int:
        items = self._delay.items
        return items[0][0] if items else NEVER_US


class _LinkElement:
    """A link, whose clock is whole milliseconds."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._departed: Moved = []

    def arrive(self, now_us: int, size_bytes: int, item: Any) -> None:
        for packet in self._link.arrive(now_us // 1000, size_bytes, item):
            self._departed.append((packet.departure_ms * 1000, packet.size_bytes, packet.tag))

    def advance(self, now_us: int) -> Moved:
        departed, self._departed = self._departed, []
        for packet in self._link.advance(now_us // 1000):
            departed.append((packet.departure_ms * 1000, packet.size_bytes, packet.tag))
        return departed

    @property
    def next_us(self) -> int:
        return self._departed[0][0] if self._departed else self._link.next_busy_ms * 1000


class Path:
    """Elements in series; what leaves the last one has crossed the path."""

    def __init__(self, elements: list[_Element], loss: BernoulliLoss | None = None) -> None:
        self._elements = elements
        self._loss = loss
        self.packets_lost = 0
        """Dropped by random loss, before any element; a queue's drops are not among them."""

    def arrive(self, now_us: int, size_bytes: int, item: Any) -> None:
        """Take an item in, or lose it."""
        if self._loss is not None and self._loss.drops():
            self.packets_lost += 1
            return
        self._elements[0].arrive(now_us, size_bytes, item)

    def advance(self, now_us: int) -> list[tuple[int, Any]]:
        """Return (time due in us, item) of everything that has crossed by `now_us`, oldest first."""
        moved: Moved = []
        for element in self._elements:
            for time_us, size_bytes, item in moved:
                element.arrive(time_us, size_bytes, item)
            moved = element.advance(now_us)
        return [(time_us, item) for time_us, _, item in moved]

    @property
    def next_us(self) -> int:
        """When something may move next; NEVER_US if the path is empty."""
        return min(element.next_us for element in self._elements)


def downlink_path(delay_us: int, link: Link | None, loss: BernoulliLoss | None = None) -> Path:
    """Server to client: loss, then delay, then the link (none: not a bottleneck), which is next to the client."""
    delay = _DelayElement(delay_us)
    return Path([delay] if link is None else [delay, _LinkElement(link)], loss)


def uplink_path(delay_us: int, link: Link | None, loss: BernoulliLoss | None = None) -> Path:
    """Client to server: loss, then the link (none: not a bottleneck), then delay."""
    delay = _DelayElement(delay_us)
    return Path([delay] if link is None else [_LinkElement(link), delay], loss)
