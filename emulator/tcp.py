"""The sending half of a TCP connection as a state machine: told of time and acknowledgements, it says what to send.

No I/O and no clock; times in whole microseconds. What it follows, and where it departs from it:

- Slow start and congestion avoidance: RFC 5681, counting packets; initial window of RFC 6928. The window grows only
  while it is used (at least half of it in slow start, all of it afterwards), as Linux does (compare RFC 7661).
- Loss detection with selective acknowledgements: a transmission is lost once three later ones were acknowledged
  (RFC 6675's DupThresh, applied in order of transmission as in RFC 8985 and RFC 9002, section 6.1.1; a path that
  never reorders makes this exact, for retransmissions too).
- Recovery: the window is halved once per round trip with losses, and lost packets go before new ones (RFC 6675).
- Timeout: RFC 6298 with one round-trip sample per window; RTO = SRTT + max(4 RTTVAR, minimum), Linux's floor, doubled
  at each expiry up to 60 s. An acknowledgement of a packet sent before the timeout proves it spurious, and undoes it
  (Eifel, RFC 3522 and RFC 4015).
- Not modelled: delayed acknowledgements, tail loss probes, HyStart, pacing, a receive window, CUBIC's growth.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

_LOSS_THRESHOLD = 3  # later acknowledgements that declare a transmission lost
_LEAST_WINDOW = 2.0  # packets; RFC 5681, equation 4


class RttEstimator:
    """Smoothed round-trip time and retransmission timeout (RFC 6298), in microseconds."""

    def __init__(self, *, initial_rto_us: int, min_rto_us: int, max_rto_us: int) -> None:
        self.rto_us: float = initial_rto_us
        self._min_us = min_rto_us
        self._max_us = max_rto_us
        self._srtt_us: float | None = None
        self._rttvar_us = 0.0

    def sample(self, rtt_us: float) -> None:
        """Take in one measured round trip."""
        if self._srtt_us is None:
            self._srtt_us, self._rttvar_us = rtt_us, rtt_us / 2
        else:
            self._rttvar_us += (abs(self._srtt_us - rtt_us) - self._rttvar_us) / 4
            self._srtt_us += (rtt_us - self._srtt_us) / 8
        self.rto_us = min(self._srtt_us + max(4 * self._rttvar_us, self._min_us), self._max_us)

    def back_off(self) -> None:
        """Double the timeout after it expired; the next sample computes it afresh."""
        self.rto_us = min(2 * self.rto_us, self._max_us)


@dataclass(slots=True)
class Transmission:
    """One sending of one packet's worth of data; a retransmission is a new Transmission of the same segment number."""

    order: int  # counts every transmission of the connection
    segment: int  # which packet of the byte stream
    size_bytes: int  # on the link
    sent_us: int
    acked_before: int = 0  # acknowledgements seen when the first later one came in


@dataclass
class _BeforeTimeout:
    """State to go back to if a timeout proves spurious."""

    window: float
    threshold: float
    flight: deque[Transmission]
    skipped: deque[Transmission]
    lost: deque[Transmission]
    next_order: int


class TcpSender:
    """Congestion control and loss recovery for one connection.

    Call `write`, `on_ack` and `on_timer` as things happen; after each, send what `take_outbox` returns and wake up at
    `timer_us` (None: no timer runs).
    """

    def __init__(self, *, initial_window_packets: int, idle_restart: bool, rtt: RttEstimator) -> None:
        self.window = float(initial_window_packets)
        self.threshold = math.inf  # RFC 5681's ssthresh, in packets
        self.timer_us: float | None = None
        self._initial_window = float(initial_window_packets)
        self._idle_restart = idle_restart
        self._rtt = rtt
        self._unsent: deque[int] = deque()  # sizes, in order
        self._next_segment = 0
        self._next_order = 0
        self._flight: deque[Transmission] = deque()  # in order of transmission, fate unknown
        self._skipped: deque[Transmission] = deque()  # a later one was acknowledged, the threshold not yet reached
        self._lost: deque[Transmission] = deque()  # to be sent again
        self._acked = 0
        self._recovery_order = 0  # losses of transmissions before this one have been answered
        self._sample_order = 0  # the next round-trip sample is taken from this transmission on
        self._last_sent_us: int | None = None
        self._before_timeout: _BeforeTimeout | None = None
        self._outbox: list[Transmission] = []

    @property
    def in_flight(self) -> int:
        """Packets believed to be in the network (RFC 6675's pipe)."""
        return len(self._flight) + len(self._skipped)

    def write(self, now_us: int, packet_sizes: Iterable[int]) -> None:
        """Hand over data to send, as packet sizes on the link."""
        idle = not (self._flight or self._skipped or self._lost or self._unsent)
        if (
            self._idle_restart
            and idle
            and self._last_sent_us is not None
            and (now_us - self._last_sent_us > self._rtt.rto_us)
        ):
            self.window = min(self.window, self._initial_window)
        self._unsent.extend(packet_sizes)
        self._send(now_us)

    def on_ack(self, now_us: int, acked: Transmission) -> None:
        """Take in the acknowledgement of one transmission; they arrive in order of transmission."""
        if self._before_timeout is not None:
            self._judge_timeout(acked)
        in_flight = self.in_flight
        flight = self._flight
        while flight and flight[0].order < acked.order:
            skipped = flight.popleft()
            skipped.acked_before = self._acked
            self._skipped.append(skipped)
        if flight and flight[0].order == acked.order:
            flight.popleft()
        self._acked += 1
        if acked.order >= self._sample_order:
            self._rtt.sample(now_us - acked.sent_us)
            self._sample_order = self._next_order
        if self._skipped:
            self._declare_losses()
        if acked.order >= self._recovery_order:
            self._grow(in_flight)
        self.timer_us = now_us + self._rtt.rto_us if self._flight or self._skipped else None
        self._send(now_us)

    def on_timer(self, now_us: int) -> None:
        """Answer an expired retransmission timer: take all in flight for lost, start again from one packet."""
        if self._before_timeout is None:
            self._before_timeout = _BeforeTimeout(
                self.window, self.threshold, self._flight, self._skipped, self._lost, self._next_order
            )
            self.threshold = max(self.window / 2, _LEAST_WINDOW)
        self._lost = deque([*self._skipped, *self._flight, *self._lost])
        self._flight, self._skipped = deque(), deque()
        self.window = 1.0
        self._recovery_order = self._next_order
        self._sample_order = 0
        self._rtt.back_off()
        self.timer_us = None
        self._send(now_us)

    def take_outbox(self) -> list[Transmission]:
        """Return what is to be sent now, and forget it."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def _judge_timeout(self, acked: Transmission) -> None:
        """Undo the last timeout if this acknowledges something sent before it; else it was right."""
        before = self._before_timeout
        self._before_timeout = None
        if before is None or acked.order >= before.next_order:
            return
        self.window, self.threshold = before.window, before.threshold
        before.flight.extend(self._flight)  # the retransmissions made meanwhile are on their way too
        self._flight, self._skipped, self._lost = before.flight, before.skipped, before.lost

    def _declare_losses(self) -> None:
        """Move transmissions that three later ones overtook to the list of losses; halve the window once per flight."""
        while self._skipped and self._acked - self._skipped[0].acked_before >= _LOSS_THRESHOLD:
            lost = self._skipped.popleft()
            self._lost.append(lost)
            if lost.order >= self._recovery_order:
                self.threshold = max(self.window / 2, _LEAST_WINDOW)
                self.window = self.threshold
                self._recovery_order = self._next_order

    def _grow(self, in_flight: int) -> None:
        """Open the window for one acknowledgement, if the flow was using it."""
        if self.window < self.threshold:
            if 2 * in_flight > self.window:
                self.window += 1
        elif in_flight >= int(self.window):
            self.window += 1 / self.window

    def _send(self, now_us: int) -> None:
        """Fill the window: losses first, then new data."""
        room = int(self.window) - len(self._flight) - len(self._skipped)
        while room > 0:
            if self._lost:
                again = self._lost.popleft()
                segment, size_bytes = again.segment, again.size_bytes
            elif self._unsent:
                segment, size_bytes = self._next_segment, self._unsent.popleft()
                self._next_segment += 1
            else:
                return
            transmission = Transmission(self._next_order, segment, size_bytes, now_us)
            self._next_order += 1
            self._flight.append(transmission)
            self._outbox.append(transmission)
            self._last_sent_us = now_us
            if self.timer_us is None:
                self.timer_us = now_us + self._rtt.rto_us
            room -= 1
