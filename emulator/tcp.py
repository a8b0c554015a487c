"""The sending half of a TCP connection as a state machine: told of time and acknowledgements, it says what to send.

No I/O and no clock; times in whole microseconds. What it follows, and where it departs from it:

- Slow start and congestion avoidance: CUBIC or NewReno (`emulator.congestion`), counting packets; initial window of RFC
  6928. The window grows only while it is used (at least half of it in slow start, all of it afterwards), as Linux does
  (compare RFC 7661).
- Receive window: no packet goes out that lies further ahead of the first missing one (RFC 9293, section 3.8.6).
- Loss detection with selective acknowledgements: a transmission is lost once three later ones were acknowledged
  (RFC 6675's DupThresh, applied in order of transmission as in RFC 8985 and RFC 9002, section 6.1.1; a path that
  never reorders makes this exact, for retransmissions too).
- Recovery: the window is reduced once per round trip with losses, and lost packets go before new ones (RFC 6675).
- Tail losses, by the algorithms that deployed stacks use (RFC 8985, RACK-TLP): a transmission that one or two later
  ones overtook is lost a quarter of the least round trip after the first of them was acknowledged; and after 2 SRTT
  of silence the last packet (or a new one) is sent as a probe before the timer below is given its chance; a single
  packet in flight is given the receiver's delay of acknowledgements besides. A probe is outstanding until it, or what
  was sent after it, is acknowledged, or the timer expires; meanwhile there is no other (section 7.3).
- Timeout: RFC 6298 with one round-trip sample per window; RTO = SRTT + max(4 RTTVAR, minimum), Linux's floor, doubled
  at each expiry up to 60 s. An acknowledgement of a packet sent before the timeout proves it spurious, and undoes it
  (Eifel, RFC 3522 and RFC 4015).
- Not modelled: HyStart, pacing, ECN. Delayed acknowledgements are the receiver's part (`emulator.packet`).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emulator.config import MAX_RTO_MS, LinkConfig
from emulator.congestion import CongestionControl, create_congestion_control

_LOSS_THRESHOLD = 3  # later acknowledgements that declare a transmission lost


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

    def __deepcopy__(self, memo: dict[int, object]) -> Transmission:
        return copy.copy(self)  # nothing in it is shared; the general way is many times slower


@dataclass
class _BeforeTimeout:
    """State to go back to if a timeout proves spurious."""

    control: CongestionControl
    flight: deque[Transmission]
    skipped: deque[Transmission]
    lost: deque[Transmission]
    next_order: int
    recovery_order: int


class TcpSender:
    """Loss recovery for one connection, around a congestion control.

    Call `write`, `on_acks` and `on_timer` as things happen; after each, send what `take_outbox` returns and wake up at
    `timer_us` (None: no timer runs).

    Args:
        initial_window_packets: before any acknowledgement, and at most after idle times.
        idle_restart: whether the window falls back after idle times.
        rtt: the connection's estimator.
        congestion_control: one of `emulator.congestion.CONTROL_NAMES`.
        receive_window_packets: how far the sender may go ahead of the first packet not acknowledged; 0 = unlimited.
        ack_delay_us: how long the receiver may delay an acknowledgement.
    """

    def __init__(
        self,
        *,
        initial_window_packets: int,
        idle_restart: bool,
        rtt: RttEstimator,
        congestion_control: str = "reno",
        receive_window_packets: int = 0,
        ack_delay_us: int = 0,
    ) -> None:
        self.control = create_congestion_control(congestion_control, float(initial_window_packets))
        self.timer_us: float | None = None
        self._initial_window = float(initial_window_packets)
        self._idle_restart = idle_restart
        self._rtt = rtt
        self._receive_window = receive_window_packets
        self._ack_delay_us = ack_delay_us
        self._unsent: deque[int] = deque()  # sizes, in order
        self._next_segment = 0
        self._next_order = 0
        self._first_missing = 0  # segments before it are acknowledged
        self._ahead: set[int] = set()  # acknowledged segments behind it
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
    def window(self) -> float:
        """The congestion window, in packets."""
        return self.control.window

    @window.setter
    def window(self, packets: float) -> None:
        self.control.window = packets

    @property
    def threshold(self) -> float:
        """RFC 5681's ssthresh, in packets."""
        return self.control.threshold

    @threshold.setter
    def threshold(self, packets: float) -> None:
        self.control.threshold = packets

    @property
    def in_flight(self) -> int:
        """Packets believed to be in the network (RFC 6675's pipe)."""
        return len(self._flight) + len(self._skipped)

    def write(self, now_us: int, packet_sizes: Iterable[int]) -> None:
        """Hand over data to send, as packet sizes on the link."""
        if self._last_sent_us is not None and not (self._flight or self._skipped or self._lost or self._unsent):
            idle_us = now_us - self._last_sent_us
            self.control.on_idle(idle_us)
            if self._idle_restart and idle_us > self._rtt.rto_us:
                self.window = min(self.window, self._initial_window)
        self._unsent.extend(packet_sizes)
        self._send(now_us)
        if self.timer_us is None:
            self._set_timer(now_us)

    def on_ack(self, now_us: int, acked: Transmission) -> None:
        """Take in an acknowledgement of a single transmission; see `on_acks`."""
        self.on_acks(now_us, (acked,))

    def on_acks(self, now_us: int, acked: Sequence[Transmission]) -> None:
        """Take in one acknowledgement, of at least one transmission; they arrive in order of transmission."""
        if self._before_timeout is not None:
            self._judge_timeout(acked[0])
        in_flight = self.in_flight
        answered = 0  # packets that open the window
        for transmission in acked:
            self._take_out(now_us, transmission)
            if transmission.order >= self._sample_order:
                self._rtt.sample(now_us - transmission.sent_us)
                self._sample_order = self._next_order
            if transmission is self._probe and self._skipped:
                self._credit_probe(now_us, transmission)
            answered += transmission.order >= self._recovery_order
        if self._skipped:
            self._declare_losses(now_us)
        if self._probe is not None and acked[-1].order >= self._probe.order:
            self._probe = None
        if answered and acked[-1].order >= self._recovery_order:
            self._grow(now_us, in_flight, answered)
        self.timer_us = None
        self._send(now_us)
        self._set_timer(now_us)

    def _take_out(self, now_us: int, acked: Transmission) -> None:
        """Note that one transmission has arrived, and which ones it overtook."""
        flight = self._flight
        while flight and flight[0].order < acked.order:
            skipped = flight.popleft()
            skipped.acked_before, skipped.overtaken_us = self._acked, now_us
            self._skipped.append(skipped)
        if flight and flight[0].order == acked.order:
            flight.popleft()
        self._acked += 1
        if self._receive_window and acked.segment >= self._first_missing:
            self._ahead.add(acked.segment)
            while self._first_missing in self._ahead:
                self._ahead.remove(self._first_missing)
                self._first_missing += 1

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
            if probe_us is None or not self._may_probe():
                self.timer_us = now_us + self._rtt.rto_us
            else:
                lonely_us = self._ack_delay_us if len(self._flight) == 1 else 0
                self.timer_us = now_us + min(probe_us + lonely_us, self._rtt.rto_us)

    def _may_probe(self) -> bool:
        return self._probe is None and self._before_timeout is None and self._rtt.srtt_us is not None

    def _send_probe(self, now_us: int) -> None:
        """Send one packet beyond the window, so that its acknowledgement reveals what was lost before it."""
        if self._unsent and not self._receiver_is_full():
            segment, size_bytes = self._next_segment, self._unsent.popleft()
            self._next_segment += 1
        else:
            last = self._flight[-1]
            segment, size_bytes = last.segment, last.size_bytes
        self._probe = self._transmit(now_us, segment, size_bytes)

    def _credit_probe(self, now_us: int, probe: Transmission) -> None:
        """Forget the original that a probe has replaced; that it was lost still reduces the window."""
        original = next((one for one in self._skipped if one.segment == probe.segment), None)
        if original is not None:
            self._skipped.remove(original)
            self._reduce(now_us, original)

    def _time_out(self, now_us: int) -> None:
        """Take all in flight for lost and start again from one packet."""
        if self._before_timeout is None:
            self._before_timeout = _BeforeTimeout(
                copy.copy(self.control),
                self._flight,
                self._skipped,
                self._lost,
                self._next_order,
                self._recovery_order,
            )
            self.control.on_timeout(now_us)
        self._lost = deque([*self._skipped, *self._flight, *self._lost])
        self._flight, self._skipped = deque(), deque()
        self._probe = None
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
        self.control, self._recovery_order = before.control, before.recovery_order
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
            self._reduce(now_us, lost)

    def _reduce(self, now_us: int, lost: Transmission) -> None:
        """Reduce the window for a loss, unless it is of a flight that was already answered so."""
        if lost.order >= self._recovery_order:
            self.control.on_loss(now_us)
            self._recovery_order = self._next_order

    def _grow(self, now_us: int, in_flight: int, count: int) -> None:
        """Open the window for some packets acknowledged, if the flow was using it."""
        control = self.control
        used = (
            2 * in_flight > control.window if control.window < control.threshold else in_flight >= int(control.window)
        )
        if used:
            control.on_acks(now_us, count, self._rtt.srtt_us or 0.0)

    def _send(self, now_us: int) -> None:
        """Fill the window: losses first, then new data."""
        room = int(self.window) - len(self._flight) - len(self._skipped)
        while room > 0:
            if self._lost:
                again = self._lost.popleft()
                segment, size_bytes = again.segment, again.size_bytes
            elif self._unsent and not self._receiver_is_full():
                segment, size_bytes = self._next_segment, self._unsent.popleft()
                self._next_segment += 1
            else:
                return
            self._transmit(now_us, segment, size_bytes)
            room -= 1

    def _receiver_is_full(self) -> bool:
        return 0 < self._receive_window <= self._next_segment - self._first_missing

    def _transmit(self, now_us: int, segment: int, size_bytes: int) -> Transmission:
        transmission = Transmission(self._next_order, segment, size_bytes, now_us)
        self._next_order += 1
        self._flight.append(transmission)
        self._outbox.append(transmission)
        self._last_sent_us = now_us
        return transmission


def create_estimator(config: LinkConfig) -> RttEstimator:
    """Build the round-trip estimator of a new connection."""
    return RttEstimator(
        initial_rto_us=round(config.initial_rto_ms * 1000),
        min_rto_us=round(config.min_rto_ms * 1000),
        max_rto_us=MAX_RTO_MS * 1000,
    )


def create_sender(config: LinkConfig) -> TcpSender:
    """Build the sender of a new connection."""
    return TcpSender(
        initial_window_packets=config.initial_window_packets,
        idle_restart=config.idle_restart,
        rtt=create_estimator(config),
        congestion_control=config.congestion_control,
        receive_window_packets=config.receive_window_bytes // config.mss_bytes,
        ack_delay_us=config.ack_delay_us if config.ack_every > 1 else 0,
    )
