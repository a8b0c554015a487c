"""What the fluid transport keeps: a trace on plain integers, and one response under way. No I/O and no clock."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from traces import Trace


class Schedule:
    """`Trace.count_until` and `Trace.opportunity_ms` on plain integers, many times faster than numpy on scalars."""

    def __init__(self, trace: Trace) -> None:
        self._lines = trace.opportunities_ms.data  # plain ints, and no copy
        self._count = len(self._lines)
        self._period_ms = trace.period_ms

    def count_until_us(self, time_us: float) -> int:
        """Return how many opportunities there were up to and including the millisecond of `time_us` (c of the text)."""
        lap, rest_ms = divmod(int(time_us) // 1000, self._period_ms)
        return lap * self._count + bisect_right(self._lines, rest_ms)

    def opportunity_us(self, k: int) -> int:
        """Return the time of opportunity `k` (S of the text)."""
        lap, line = divmod(k, self._count)
        return (lap * self._period_ms + self._lines[line]) * 1000


@dataclass
class Hole:
    """A gap in what the client has: packets from `start` on wait for those lost there, which come before `end`."""

    start: int
    end: float = math.inf


@dataclass
class Flow:
    """One response under way: how many of its packets are where."""

    deadline_us: int  # the client closes the connection then
    unsent: int  # not yet released, or known to be lost
    in_flight: int = 0  # believed to be in the network (RFC 6675's pipe)
    admitted: int = 0  # taken in by the link; the link delivers them in this order
    acked: int = 0  # of those, acknowledged
    starts: list[int] = field(default_factory=list)  # busy periods of the link: first packet ...
    places: list[float] = field(default_factory=list)  # ... and where its sending begins, in opportunities
    busy: int = 0  # the busy period that holds the packet acknowledged next
    fresh_losses: int = 0  # lost since the last halving, unknown to the sender
    detected_at: int = 0  # their loss is known with the acknowledgement of this packet
    known_losses: float = 0.0  # answered by a halving, being declared one after another ...
    declare_per_ack: float = 0.0  # ... at this pace ...
    recovery_end: int = 0  # ... until this packet is acknowledged
    holes: list[Hole] = field(default_factory=list)
    sample_at: int = 0  # the next round-trip sample: this packet ...
    sampled_from_us: float = 0.0  # ... which reached the link at this time
    arrival_us: float = 0.0  # the latest arrival at the link
    probed: bool = False  # a tail loss probe is out
