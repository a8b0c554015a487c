"""The real-time loop: packets from two devices through the two directions of a path, each out when it is due.

The path decides (`emulator.path`, the same code as in virtual time); the loop only brings the clock. It sleeps in
select(), whose timeouts are in microseconds, until the next packet is due or one arrives. What keeps it on time:
packets are read in batches, garbage collection is off, timer slack is 1 ns, and real-time priority is taken where it is
permitted. (Short time slices for an ordinary process, sched_setattr(2), were tried and did not help on a busy machine.)
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import time
from array import array
from collections.abc import Callable

from emulator.namespace import wake_on_time
from emulator.path import Path

TUN_HEADER_BYTES = 4  # counted with every packet, as Mahimahi does

LATE_US = 1000
"""A departure that is off by more is counted as late."""

_BATCH_PACKETS = 32  # read from one device before departures get their turn
_LARGEST_PACKET_BYTES = 65_536
_LONGEST_SLEEP_US = 10_000  # bounds the work that a log of unused opportunities piles up
_REALTIME_PRIORITY = 10


class Shaper:
    """Carries packets between an outside and an inside file descriptor, both non-blocking, one packet per read.

    Args:
        down: from outside to inside.
        up: from inside to outside.
        outside: where the outside's kernel sends and receives.
        inside: likewise for the command's.
        start_ns: time 0 of both paths, on `time.monotonic_ns`.
        extra_outside: one more descriptor whose packets go down.
        deliver: takes what has crossed the uplink; default: writes it to `outside`.
        housekeeping: called about every 10 ms.
    """

    def __init__(
        self,
        down: Path,
        up: Path,
        *,
        outside: int,
        inside: int,
        start_ns: int,
        extra_outside: int | None = None,
        deliver: Callable[[bytes], None] | None = None,
        housekeeping: Callable[[], None] | None = None,
    ) -> None:
        self._down = down
        self._up = up
        self._inside = inside
        self._sources = [(inside, up), (outside, down)]
        if extra_outside is not None:
            self._sources.append((extra_outside, down))
        self._deliver = deliver or (lambda packet: _write(outside, packet))
        self._start_ns = start_ns
        self._housekeeping = housekeeping
        self._stopping = False
        self.departures = 0
        """Packets written to the inside so far."""
        self.late_departures = 0
        """Those of them written more than LATE_US after they were due."""
        self.late_us: array[int] | None = None
        """If set to an array('i'): takes every downlink departure's error, written minus due."""
        self.due_us: array[int] | None = None
        """If set to an array('q'): takes every downlink departure's due time."""

    def stop(self) -> None:
        """Let `run` return soon; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Carry packets until `stop`."""
        down, up, sources = self._down, self._up, self._sources
        readers = [source for source, _ in sources]
        next_chore_us = 0
        while not self._stopping:
            now_us = self._now_us()
            if now_us >= next_chore_us:
                next_chore_us = now_us + _LONGEST_SLEEP_US
                if self._housekeeping is not None:
                    self._housekeeping()
            sleep_us = min(down.next_us, up.next_us, next_chore_us) - self._now_us()
            readable = select.select(readers, (), (), max(sleep_us, 0) / 1e6)[0]
            now_us = self._now_us()
            if readable:
                for source, path in sources:
                    if source in readable:
                        _read_batch(source, path, now_us)
            self._move(now_us)

    def _now_us(self) -> int:
        return (time.monotonic_ns() - self._start_ns) // 1000

    def _move(self, now_us: int) -> None:
        """Write everything that is due."""
        for due_us, packet in self._down.advance(now_us):
            _write(self._inside, packet)
            late_us = self._now_us() - due_us
            self.departures += 1
            self.late_departures += late_us > LATE_US
            if self.late_us is not None:
                self.late_us.append(late_us)
            if self.due_us is not None:
                self.due_us.append(due_us)
        for _, packet in self._up.advance(now_us):
            self._deliver(packet)


def prepare_process() -> str:
    """Put this process in the best state for keeping time; return how it is scheduled, in words."""
    gc.collect()
    gc.freeze()
    gc.disable()
    wake_on_time()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
        return f"SCHED_FIFO {_REALTIME_PRIORITY}"
    except OSError:
        pass
    with contextlib.suppress(OSError):
        os.nice(-20)
    return f"nice {os.nice(0)}"


def _read_batch(source: int, path: Path, now_us: int) -> None:
    for _ in range(_BATCH_PACKETS):
        try:
            packet = os.read(source, _LARGEST_PACKET_BYTES)
        except BlockingIOError:
            return
        if not packet:
            return
        path.arrive(now_us, len(packet) + TUN_HEADER_BYTES, packet)


def _write(target: int, packet: bytes) -> None:
    """Hand a packet to a kernel; one that it does not take (its device is down, its buffer full) is lost."""
    try:
        os.write(target, packet)
    except OSError:
        return
