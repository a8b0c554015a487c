"""The sending half of a TCP connection as a state machine: told of time and acknowledgements, it says what to send.

No I/O and no clock; times in whole microseconds. What it follows, and where it departs from it:

- Slow start and congestion avoidance: RFC 5681, counting packets; initial window of RFC 6928. The window grows only
  while it is used (at least half of it in slow start, all of it afterwards), as Linux does (compare RFC 7661).
- Loss detection with selective acknowledgements: a transmission is lost once three later ones were acknowledged
  (RFC 6675's DupThresh, applied in order of transmission as in RFC 8985 and RFC 9002, section 6.1.1; a path that
  never reorders makes this exact, for retransmissions too).
- Recovery: the window is halved once per round trip with losses, and lost packets go before new ones (RFC 6675).
- Tail losses, by the algorithms that deployed stacks use (RFC 8985, RACK-TLP): a transmission that one or two later
  ones overtook is lost a quarter of the least round trip after the first of them was acknowledged; and after 2 SRTT
  of silence the last packet (or a new one) is sent as a probe, once, before the timer below is given its chance.
- Timeout: RFC 6298 with one round-trip sample per window; RTO = SRTT + max(4 RTTVAR, minimum), Linux's floor, doubled
  at each expiry up to 60 s. An acknowledgement of a packet sent before the timeout proves it spurious, and undoes it
  (Eifel, RFC 3522 and RFC 4015).
- Not modelled: delayed acknowledgements, HyStart, pacing, a receive window, CUBIC's growth.
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
        self.srtt_us: float | None = None  # None before the first sample
        self.least_us = 0.0
        self._rttvar_us = 0.0

    @property
    def reordering_us(self) -> float:
        """How long to wait for a packet that a later one overtook (RFC 8985, section 6.2, step 4)."""
        return self.least_us / 4

    @property
    def probe_us(self) -> float | None:
        """How much silence calls for a tail loss probe (RFC 8985, section 7.2); None before the first sample."""
        return None if self.srtt_us is None else min(2 * self.srtt_us, self.rto_us)

    def sample(self, rtt_us: float) -> None:
        """Take in one measured round trip."""
        if self.srtt_us is None:
            self.srtt_us, self._rttvar_us, self.least_us = rtt_us, rtt_us / 2, rtt_us
        else:
            self._rttvar_us += (abs(self.srtt_us - rtt_us) - self._rttvar_us) / 4
            self.srtt_us += (rtt_us - self.srtt_us) / 8
            self.least_us = min(self.least_us, rtt_us)
        self.rto_us = min(self.srtt_us + max(4 * self._rttvar_us, self._min_us), self._max_us)

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
    acked_before: int = 0  # acknowledgements seen before the first one of a later transmission
    overtaken_us: int = 0  # when that one came in


@dataclass
class _BeforeTimeout:
    """State to go back to if a timeout proves spurious."""

    window: float
    threshold: float
    flight: deque[Transmission]
    skipped: deque[Transmission]
    lost: deque[Transmission]
    next_order: int
    recovery_order: int


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
        self._probe: Transmission | None = None
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
        if self.timer_us is None:
            self._set_timer(now_us)

    def on_ack(self, now_us: int, acked: Transmission) -> None:
        """Take in the acknowledgement of one transmission; they arrive in order of transmission."""
        if self._before_timeout is not None:
            self._judge_timeout(acked)
        in_flight = self.in_flight
        flight = self._flight
        while flight and flight[0].order < acked.order:
            skipped = flight.popleft()
            skipped.acked_before, skipped.overtaken_us = self._acked, now_us
            self._skipped.append(skipped)
        if flight and flight[0].order == acked.order:
            flight.popleft()
        self._acked += 1
        if acked.order >= self._sample_order:
            self._rtt.sample(now_us - acked.sent_us)
            self._sample_order = self._next_order
        if self._skipped:
            if acked is self._probe:
                self._credit_probe(acked)
            self._declare_losses(now_us)
        self._probe = None
        if acked.order >= self._recovery_order:
            self._grow(in_flight)
        self.timer_us = None
        self._send(now_us)
        self._set_timer(now_us)

    def on_timer(self, now_us: int) -> None:
        """Answer the timer: overtaken packets are lost, or it is time for a probe, or else for a timeout."""
        self.timer_us = None
        if self._skipped:
            self._declare_losses(now_us)
            self._send(now_us)
        elif self._may_probe():
            self._send_probe(now_us)
        else:
            self._time_out(now_us)
        self._set_timer(now_us)

    def take_outbox(self) -> list[Transmission]:
        """Return what is to be sent now, and forget it."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def _set_timer(self, now_us: int) -> None:
        """Run the timer that the state calls for, from now; see `on_timer`."""
        if self._skipped:
            self.timer_us = self._skipped[0].overtaken_us + self._rtt.reordering_us
        elif self._flight:
            probe_us = self._rtt.probe_us
            self.timer_us = now_us + (probe_us if probe_us is not None and self._may_probe() else self._rtt.rto_us)

    def _may_probe(self) -> bool:
        return self._probe is None and self._before_timeout is None and self._rtt.srtt_us is not None

    def _send_probe(self, now_us: int) -> None:
        """Send one packet beyond the window, so that its acknowledgement reveals what was lost before it."""
        if self._unsent:
            segment, size_bytes = self._next_segment, self._unsent.popleft()
            self._next_segment += 1
        else:
            last = self._flight[-1]
            segment, size_bytes = last.segment, last.size_bytes
        self._probe = self._transmit(now_us, segment, size_bytes)

    def _credit_probe(self, probe: Transmission) -> None:
        """Forget the original that a probe has replaced; that it was lost still halves the window."""
        original = next((one for one in self._skipped if one.segment == probe.segment), None)
        if original is not None:
            self._skipped.remove(original)
            self._halve(original)

    def _time_out(self, now_us: int) -> None:
        """Take all in flight for lost and start again from one packet."""
        if self._before_timeout is None:
            self._before_timeout = _BeforeTimeout(
                self.window,
                self.threshold,
                self._flight,
                self._skipped,
                self._lost,
                self._next_order,
                self._recovery_order,
            )
            self.threshold = max(self.window / 2, _LEAST_WINDOW)
        self._lost = deque([*self._skipped, *self._flight, *self._lost])
        self._flight, self._skipped = deque(), deque()
        self.window = 1.0
        self._recovery_order = self._next_order
        self._sample_order = 0
        self._rtt.back_off()
        self._send(now_us)

    def _judge_timeout(self, acked: Transmission) -> None:
        """Undo the last timeout if this acknowledges something sent before it; else it was right."""
        before = self._before_timeout
        self._before_timeout = None
        if before is None or acked.order >= before.next_order:
            return
        self.window, self.threshold, self._recovery_order = before.window, before.threshold, before.recovery_order
        before.flight.extend(self._flight)  # the retransmissions made meanwhile are on their way too
        self._flight, self._skipped, self._lost = before.flight, before.skipped, before.lost

    def _declare_losses(self, now_us: int) -> None:
        """Move transmissions that three later ones overtook, or one some time ago, to the list of losses."""
        late_us = now_us - self._rtt.reordering_us
        while self._skipped and (
            self._acked - self._skipped[0].acked_before >= _LOSS_THRESHOLD or self._skipped[0].overtaken_us <= late_us
        ):
            lost = self._skipped.popleft()
            self._lost.append(lost)
            self._halve(lost)

    def _halve(self, lost: Transmission) -> None:
        """Halve the window for a loss, unless it is of a flight that was already answered so."""
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
            self._transmit(now_us, segment, size_bytes)
            room -= 1

    def _transmit(self, now_us: int, segment: int, size_bytes: int) -> Transmission:
        transmission = Transmission(self._next_order, segment, size_bytes, now_us)
        self._next_order += 1
        self._flight.append(transmission)
        self._outbox.append(transmission)
        self._last_sent_us = now_us
        return transmission
