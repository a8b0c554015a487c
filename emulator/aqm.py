"""Queues that drop before they are full: CoDel (RFC 8289), Mahimahi's own reading of it, and PIE (RFC 8033).

No clock: the caller says what time it is, in whole milliseconds.
"""

from __future__ import annotations

import math
import random

from emulator.errors import LinkError
from emulator.fifo import DropTailQueue, Packet
from traces import MTU_BYTES

_FORGET_INTERVALS = 16  # a dropping state left longer ago than this says nothing any more (RFC 8289, section 5.5)


class CoDelQueue(DropTailQueue):
    """Drops from the head while every packet of the last interval has waited longer than the target (RFC 8289).

    Args:
        target_ms: acceptable standing queue delay.
        interval_ms: how long the delay must stay above the target before the first drop; about a worst-case round trip.
        limit_packets, limit_bytes: beyond them the queue drops from its tail.
    """

    name = "codel"

    def __init__(self, *, target_ms: int, interval_ms: int, limit_packets: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(limit_packets=limit_packets, limit_bytes=limit_bytes)
        _check_positive(self.name, "target", target_ms)
        _check_positive(self.name, "interval", interval_ms)
        self.target_ms = target_ms
        self.interval_ms = interval_ms
        self._first_above_ms: int | None = None  # from when on dropping is right, if the delay stays above the target
        self._dropping = False
        self._drop_next_ms = 0.0
        self._count = 0  # drops since dropping began
        self._last_count = 0

    def dequeue(self, now_ms: int) -> Packet:
        """Return the packet to send next (section 5.6 of the RFC); those dropped before it are in `discarded`."""
        packet, ok_to_drop = self._pop(now_ms)
        if self._dropping:
            self._dropping = ok_to_drop
            while self._dropping and now_ms >= self._drop_next_ms:
                self.discarded.append(packet)
                packet, ok_to_drop = self._pop(now_ms)
                self._count += 1
                self._dropping = ok_to_drop
                if ok_to_drop:
                    self._drop_next_ms = self._after(self._drop_next_ms)
        elif ok_to_drop:
            self.discarded.append(packet)
            packet, _ = self._pop(now_ms)
            self._start_dropping(now_ms)
        return packet

    def _pop(self, now_ms: int) -> tuple[Packet, bool]:
        """Take the oldest packet; tell whether it is right to drop it. If so another one is behind it."""
        packet = super().dequeue(now_ms)
        if now_ms - packet.arrival_ms < self.target_ms or self.size_bytes <= MTU_BYTES:
            self._first_above_ms = None
            return packet, False
        if self._first_above_ms is None:
            self._first_above_ms = now_ms + self.interval_ms
            return packet, False
        return packet, now_ms >= self._first_above_ms

    def _start_dropping(self, now_ms: int) -> None:
        """Enter the dropping state, at about the rate at which it was left if that was recent."""
        self._dropping = True
        delta = self._count - self._last_count
        recent = now_ms - self._drop_next_ms < _FORGET_INTERVALS * self.interval_ms
        self._count = self._last_count = delta if delta > 1 and recent else 1
        self._drop_next_ms = self._after(now_ms)

    def _after(self, time_ms: float) -> float:
        """Return when to drop next: the control law."""
        return time_ms + self.interval_ms / math.sqrt(self._count)


class MahimahiCoDelQueue(CoDelQueue):
    """Mahimahi's CoDel (its issue 165): it delivers the offending packet, and drops those behind it without a word.

    A variable declared anew inside the dropping branches hides the packet to be dropped. Its control law counts whole
    milliseconds.
    """

    def dequeue(self, now_ms: int) -> Packet:
        """Return the oldest packet, whatever is dropped."""
        packet, ok_to_drop = self._pop(now_ms)
        if self._dropping:
            self._dropping = ok_to_drop
            while self._dropping and now_ms >= self._drop_next_ms:
                _, self._dropping = self._pop(now_ms)
                self._count += 1
                if self._dropping:
                    self._drop_next_ms = self._after(self._drop_next_ms)
        elif ok_to_drop:
            self._pop(now_ms)
            self._start_dropping(now_ms)
        return packet

    def _after(self, time_ms: float) -> float:
        return time_ms + math.trunc(self.interval_ms / math.sqrt(self._count))


class PieQueue(DropTailQueue):
    """Drops arrivals at random, with a probability that a controller steers towards a queue delay (RFC 8033).

    Mahimahi's constants and integer arithmetic (bytes per ms, whole ms), after the first Linux implementation.

    Args:
        reference_ms: queue delay to hold.
        burst_ms: how long a burst passes undropped after idle times.
        limit_packets, limit_bytes: beyond them the queue drops from its tail.
        seed: of the drops.
    """

    name = "pie"
    _ALPHA = 0.125  # per ms of distance from the reference
    _BETA = 1.25  # per ms of change
    _PERIOD_MS = 30
    _MEASURE_BYTES = 16_384  # departures over which the rate is measured

    def __init__(
        self, *, reference_ms: int, burst_ms: int, limit_packets: int = 0, limit_bytes: int = 0, seed: int = 0
    ) -> None:
        super().__init__(limit_packets=limit_packets, limit_bytes=limit_bytes)
        _check_positive(self.name, "qdelay_ref", reference_ms)
        _check_positive(self.name, "max_burst", burst_ms)
        self.reference_ms = reference_ms
        self.burst_ms = burst_ms
        self.probability = 0.0
        self._random = random.Random(seed)
        self._burst_left_ms = burst_ms
        self._delay_ms = 0
        self._old_delay_ms = 0
        self._rate = 0  # bytes per ms, smoothed
        self._measured_bytes: int | None = None  # departures since _measured_from_ms; None: not measuring
        self._measured_from_ms = 0
        self._updated_ms = 0

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Append the packet, or drop it: by the limits, or early."""
        self._update(packet.arrival_ms)
        if self.accepts(packet) and self._drops_early():
            return [packet]
        return super().enqueue(packet)

    def dequeue(self, now_ms: int) -> Packet:
        """Remove and return the oldest packet, and measure how fast they leave."""
        packet = super().dequeue(now_ms)
        if self._measured_bytes is None and self.size_bytes >= self._MEASURE_BYTES:
            self._measured_bytes, self._measured_from_ms = 0, now_ms
        if self._measured_bytes is not None:
            self._measured_bytes += packet.size_bytes
            if self._measured_bytes > self._MEASURE_BYTES and now_ms > self._measured_from_ms:
                self._finish_measurement(self._measured_bytes, now_ms)
        self._update(now_ms)
        return packet

    def _drops_early(self) -> bool:
        if self._burst_left_ms > 0 or self.size_bytes < 2 * MTU_BYTES:
            return False
        if self._old_delay_ms < self.reference_ms // 2 and self.probability < 0.2:
            return False
        return self._random.random() < self.probability

    def _finish_measurement(self, sent_bytes: int, now_ms: int) -> None:
        """Take in a rate sample; measure on if the queue is still long."""
        took_ms = now_ms - self._measured_from_ms
        sample = sent_bytes // took_ms
        self._rate = sample if self._rate == 0 else self._rate - (self._rate >> 3) + (sample >> 3)
        self._measured_bytes = None if self.size_bytes < self._MEASURE_BYTES else 0
        self._measured_from_ms = now_ms
        self._burst_left_ms = max(self._burst_left_ms - took_ms, 0)

    def _update(self, now_ms: int) -> None:
        """Run the controller for every period that has passed."""
        while now_ms - self._updated_ms > self._PERIOD_MS:
            self._updated_ms += self._PERIOD_MS
            self._old_delay_ms = self._delay_ms
            self._delay_ms = self.size_bytes // self._rate if self._rate else 0
            self._steer()

    def _steer(self) -> None:
        """Move the drop probability, in smaller steps while it is small."""
        delay_ms, old_ms, reference_ms = self._delay_ms, self._old_delay_ms, self.reference_ms
        step = self._ALPHA * (delay_ms - reference_ms) + self._BETA * (delay_ms - old_ms)
        scale = 128 if self.probability < 0.01 else 32 if self.probability < 0.1 else 16
        self.probability = min(max(self.probability + step / scale, 0.0), 1.0)
        if delay_ms == old_ms == 0 and self.size_bytes == 0:
            self.probability *= 0.98
        idle = delay_ms < reference_ms // 2 and old_ms < reference_ms // 2 and self.probability == 0
        if idle and self._rate > 0:
            self._measured_bytes, self._rate, self._burst_left_ms = None, 0, self.burst_ms


def _check_positive(queue: str, name: str, value: int) -> None:
    if value <= 0:
        raise LinkError(f"queue {queue}: {name} is {value}; expected a positive number of milliseconds")
