"""The fluid transport: the timeline of a TCP transfer in closed form on the trace's cumulative capacity.

Packets are not simulated one by one. Write S(k) for the time of opportunity k and c(t) for the number of opportunities
up to t (both over endless laps), R for the base round trip. Packet j that reaches the link at time a_j leaves with
opportunity

    k_j = max(c(a_j), k_{j-1} + 1)          (it waits for an opportunity after its arrival, and for its predecessor)

and its acknowledgement lets new packets reach the link at S(k_j) + R. The recursion is evaluated at about eight points
per window instead of at every packet, which is exact while the link stays busy between two points. Windows grow
geometrically, so a transfer of n packets takes O(log n) steps. docs/emulation.md derives the rest.
"""

from __future__ import annotations

import copy
import math
import random
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from emulator.config import NEVER_US, LinkConfig
from emulator.congestion import CongestionControl, create_congestion_control
from emulator.errors import TransportError
from emulator.fluid_flow import Flow, Hole, Schedule
from emulator.tcp import create_estimator
from emulator.transfer import Rewindable, Transfer, check_request
from traces import MTU_BYTES, Trace

_POINTS_PER_WINDOW = 8
_POINTS_PER_E_FOLD = 64  # of a transfer's length, once the window no longer grows geometrically
_LOSS_THRESHOLD = 3
_ROUNDING = 1e-9  # opportunities; absorbs the rounding of sums of packet sizes


class FluidTransport(Rewindable):
    """A persistent HTTP/1.1 connection in closed form; see `emulator.transport.Transport`."""

    def __init__(self, trace: Trace, config: LinkConfig) -> None:
        _check_supported(config)
        self._config = config
        self._schedule = Schedule(trace)
        self._delay_us = config.delay_us
        self._share = config.packet_bytes / MTU_BYTES  # of an opportunity that one full packet takes
        self._queue_limit = _queue_limit(config)
        self._random = random.Random(config.seed)
        self._until_loss = self._draw_gap()
        self._free = 0.0  # where the link's first free opportunity begins
        self._connected = False
        self._control = self._new_control()
        self._receive_window = config.receive_window_bytes // config.mss_bytes or math.inf
        self._ack_every = config.ack_every
        self._lonely_us = config.ack_delay_us if config.ack_every > 1 else 0
        self._last_sent_us = 0.0
        self._rtt = create_estimator(config)
        self._flow = Flow(0, unsent=0)

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Fetch an object; see `Transport.request`."""
        request = check_request(size_bytes, request_s, deadline_s, previous_finish_us=self._finish_us)
        self._requests += 1
        deadline_us = request.deadline_us
        asked_us = self._connect(request.request_us, deadline_us)
        payload_bytes = self._config.response_header_bytes + size_bytes
        flow = self._flow = Flow(deadline_us, unsent=-(-payload_bytes // self._config.mss_bytes))
        count = flow.unsent
        if asked_us <= deadline_us:
            self._transmit(flow, asked_us + self._delay_us)
        first_us = self._departure_us(flow, 0) if flow.admitted else NEVER_US
        finish_us = self._departure_us(flow, count - 1) if flow.admitted == count else NEVER_US
        if finish_us <= deadline_us:
            self._finish_us = finish_us
            self._end_window(flow)
            return request.completed(first_us, finish_us)
        self._finish_us = deadline_us
        self._connected = False
        return request.cut(first_us, self._in_order_by()(deadline_us))

    def _save(self) -> dict[str, Any]:
        saved = {**self.__dict__, "_rtt": copy.copy(self._rtt), "_control": copy.copy(self._control)}
        if self._config.loss:
            saved["_random"] = copy.deepcopy(self._random)
        return saved

    def _in_order_by(self) -> Callable[[int], int]:
        flow, mss_bytes, header_bytes = self._flow, self._config.mss_bytes, self._config.response_header_bytes
        return lambda time_us: self._packets_in_order_by(flow, time_us) * mss_bytes - header_bytes

    # Connection

    def _new_control(self) -> CongestionControl:
        return create_congestion_control(self._config.congestion_control, float(self._config.initial_window_packets))

    @property
    def _window(self) -> float:
        """How many packets may be in flight."""
        return min(self._control.window, self._receive_window)

    def _connect(self, now_us: float, deadline_us: float) -> float:
        """Open a connection if there is none; return when the client can ask (past the deadline: it could not)."""
        if self._connected:
            return now_us
        self._connected = True
        self._rtt = create_estimator(self._config)
        self._control = self._new_control()
        self._last_sent_us = math.inf  # nothing sent yet, so nothing to be idle since
        for _ in range(self._config.opening_rtts):
            sent_us = now_us + self._delay_us
            while self._loses_one() or self._queue_is_full(sent_us + self._delay_us):
                sent_us += self._rtt.rto_us
                self._rtt.back_off()
                self._control.on_timeout(sent_us)
            if sent_us > deadline_us:
                return math.inf
            place = max(float(self._schedule.count_until_us(sent_us + self._delay_us)), self._free)
            self._free = place  # a handshake packet is small: data behind it shares its opportunity
            now_us = self._schedule.opportunity_us(math.floor(place))
            self._free = math.floor(place) + 1.0
            self._rtt.sample(now_us + self._delay_us - sent_us)
            self._last_sent_us = sent_us
        return now_us

    def _queue_is_full(self, now_us: float) -> bool:
        return self._free - self._schedule.count_until_us(now_us) >= self._queue_limit * self._share

    # One response

    def _transmit(self, flow: Flow, server_us: float) -> None:
        """Run the response until the link took in its last packet, or until no acknowledgement beats the deadline."""
        idle_us = server_us - self._last_sent_us
        if idle_us > 0:
            self._control.on_idle(idle_us)
        if self._config.idle_restart and idle_us > self._rtt.rto_us:
            self._control.window = min(self._control.window, float(self._config.initial_window_packets))
        flow.sampled_from_us = server_us + self._delay_us
        total = flow.unsent
        self._release(flow, flow.sampled_from_us, flow.sampled_from_us)
        while flow.admitted < total:
            if flow.acked == flow.admitted:
                if not self._rescue(flow):
                    break
                continue
            first_us = self._departure_us(flow, flow.acked)
            if first_us > flow.deadline_us:
                break
            self._acknowledge(flow, first_us)
        self._last_sent_us = flow.arrival_us - self._delay_us

    def _acknowledge(self, flow: Flow, first_us: float) -> None:
        """Process the next few acknowledgements at once, the first delivered at `first_us`, and what they release."""
        if flow.fresh_losses and flow.acked >= flow.detected_at:
            self._reduce(flow, first_us)
        flow.probed = False
        count = self._step(flow)
        last_us = self._departure_us(flow, flow.acked + count - 1) if count > 1 else first_us
        if count > 1 and last_us > flow.deadline_us:  # nobody answers later ones
            count = max(self._delivered_by(flow, flow.deadline_us) - flow.acked, 1)
            last_us = self._departure_us(flow, flow.acked + count - 1)
        if self._ack_every > 1 and not flow.fresh_losses and flow.acked > flow.recovery_end:
            # The first of several waits for the others; next to a gap nothing waits.
            together = min(flow.acked + self._ack_every, flow.admitted) - 1
            first_us = self._departure_us(flow, together)
            last_us = max(first_us, last_us)
        round_trip_us = 2 * self._delay_us
        if flow.acked >= flow.sample_at:
            self._rtt.sample(first_us + round_trip_us - flow.sampled_from_us)
            flow.sample_at, flow.sampled_from_us = flow.admitted, first_us + round_trip_us
        control = self._control
        slow_start = control.window < control.threshold
        used = 2 * flow.in_flight > control.window if slow_start else flow.in_flight >= int(control.window)
        flow.acked += count
        flow.in_flight -= count
        if flow.known_losses:
            self._declare(flow, count)
        if flow.acked > flow.recovery_end and used:
            control.on_acks(last_us + round_trip_us, count, self._rtt.srtt_us or 0.0)
        self._release(flow, first_us + round_trip_us, last_us + round_trip_us)

    def _step(self, flow: Flow) -> int:
        """Return how many acknowledgements to process at once: up to the next moment at which something changes."""
        acked = flow.acked
        count = max(1, int(self._window) // _POINTS_PER_WINDOW, acked // _POINTS_PER_E_FOLD)
        count = min(count, flow.admitted - acked)
        if acked < flow.sample_at < acked + count:
            count = flow.sample_at - acked
        if acked < flow.recovery_end < acked + count:
            count = flow.recovery_end - acked
        if flow.fresh_losses and acked < flow.detected_at < acked + count:
            count = flow.detected_at - acked
        return count

    def _release(self, flow: Flow, first_us: float, last_us: float) -> None:
        """Fill the window with packets that reach the link between two times."""
        count = min(flow.unsent, int(self._window) - flow.in_flight)
        if count > 0:
            self._send(flow, count, first_us, last_us)

    def _send(self, flow: Flow, count: int, first_us: float, last_us: float) -> None:
        """Send packets that reach the link between two times; drop what its queue cannot take."""
        flow.unsent -= count
        flow.in_flight += count
        flow.arrival_us = last_us
        intact = arriving = count
        if self._until_loss < count:
            intact = int(self._until_loss)  # packets before the first random loss
        if self._until_loss < math.inf:
            arriving -= self._lose(count)
        share = self._share
        elapsed = float(self._schedule.count_until_us(first_us))
        place = max(self._free, elapsed)
        admitted = arriving
        if self._queue_limit < math.inf:
            if last_us > first_us:
                elapsed = self._schedule.count_until_us(last_us)
            room = (elapsed - place) / share + self._queue_limit
            if room < arriving:
                admitted = max(0, math.floor(room + _ROUNDING))
        lost = count - admitted
        if lost:
            if not flow.fresh_losses:
                # A full queue drops every other packet of a doubling flow: so many got in before the first drop.
                before_drop = intact if admitted == arriving else max(admitted - lost, 0)
                first_lost = flow.admitted + min(intact, before_drop)
                flow.detected_at = first_lost + _LOSS_THRESHOLD - 1
                flow.holes.append(Hole(first_lost))
            flow.fresh_losses += lost
        if admitted:
            if not flow.starts or place > self._free:
                flow.starts.append(flow.admitted)
                flow.places.append(place)
            flow.admitted += admitted
            self._free = place + admitted * share

    # Losses

    def _reduce(self, flow: Flow, now_us: float) -> None:
        """Answer the losses that have just become known."""
        self._control.on_loss(now_us)
        flow.known_losses += flow.fresh_losses
        flow.fresh_losses = 0
        flow.recovery_end = flow.admitted
        flow.declare_per_ack = flow.known_losses / max(flow.admitted - flow.acked, 1)

    def _declare(self, flow: Flow, acknowledgements: int) -> None:
        """Hand losses back for retransmission as the acknowledgements of recovery reveal them."""
        if not flow.known_losses:
            return
        declared = flow.known_losses
        if flow.acked < flow.recovery_end:
            declared = min(declared, max(1.0, flow.declare_per_ack * acknowledgements))
            declared = math.ceil(declared - _ROUNDING)
        flow.known_losses = max(flow.known_losses - declared, 0.0)
        flow.unsent += int(declared)
        flow.in_flight -= int(declared)
        if not flow.known_losses:
            self._close_holes(flow, int(declared))

    def _close_holes(self, flow: Flow, losses: int) -> None:
        """Note that the last losses known go out next: the packets after them were not held up by these holes."""
        for hole in flow.holes:
            hole.end = min(hole.end, flow.admitted + losses)

    def _rescue(self, flow: Flow) -> bool:
        """Go on when only lost packets are in flight: no further acknowledgement will come. False: past the deadline.

        As in `emulator.tcp`: if something got through after the first loss, the losses are known a little later; if
        nothing did, a probe goes out; if that is lost too, the retransmission timer expires.
        """
        last_us = self._departure_us(flow, flow.acked - 1) + self._delay_us if flow.acked else 0.0
        last_us = max(last_us, flow.arrival_us - self._delay_us)
        overtaken = flow.admitted > flow.detected_at - (_LOSS_THRESHOLD - 1)
        probe_us = self._rtt.probe_us
        if overtaken:
            now_us = last_us + self._rtt.reordering_us
        elif probe_us is not None and not flow.probed:
            now_us = last_us + min(probe_us + (self._lonely_us if flow.in_flight == 1 else 0), self._rtt.rto_us)
        else:
            now_us = last_us + self._rtt.rto_us
        if now_us > flow.deadline_us:
            return False
        arrival_us = now_us + self._delay_us
        if overtaken:
            self._reduce(flow, now_us)
            self._declare(flow, 0)
            self._release(flow, arrival_us, arrival_us)
        elif probe_us is not None and not flow.probed:
            self._probe(flow, arrival_us)
        else:
            self._time_out(flow, arrival_us)
        return True

    def _probe(self, flow: Flow, arrival_us: float) -> None:
        """Send one packet beyond the window: a new one, or the last of the lost ones again."""
        if not flow.unsent:
            flow.fresh_losses -= 1
            flow.in_flight -= 1
            flow.unsent += 1
            if not flow.fresh_losses:  # the probe repairs the only loss, which halves the window all the same
                self._reduce(flow, arrival_us)
        flow.probed = True
        self._send(flow, 1, arrival_us, arrival_us)

    def _time_out(self, flow: Flow, arrival_us: float) -> None:
        """Start again from one packet, with all that was lost to be sent again."""
        self._control.on_timeout(arrival_us)
        self._rtt.back_off()
        flow.unsent += flow.fresh_losses + int(flow.known_losses)
        self._close_holes(flow, flow.fresh_losses + int(flow.known_losses))
        flow.fresh_losses, flow.known_losses, flow.in_flight = 0, 0.0, 0
        flow.sample_at, flow.sampled_from_us = flow.admitted, arrival_us
        self._release(flow, arrival_us, arrival_us)

    def _draw_gap(self) -> float:
        """Draw how many packets get through before the next random loss."""
        loss = self._config.loss
        return math.floor(math.log(1 - self._random.random()) / math.log1p(-loss)) if loss else math.inf

    def _loses_one(self) -> bool:
        return self._lose(1) == 1

    def _lose(self, count: int) -> int:
        """Return how many of the next `count` packets are lost at random."""
        lost = 0
        while self._until_loss < count:
            count -= int(self._until_loss) + 1
            self._until_loss = self._draw_gap()
            lost += 1
        self._until_loss -= count
        return lost

    # Reading the timeline

    def _departure_us(self, flow: Flow, index: int) -> int:
        """Return when the link delivers the packet that it took in as number `index`; mostly asked in order."""
        starts = flow.starts
        busy = flow.busy
        if not (starts[busy] <= index and (busy + 1 == len(starts) or index < starts[busy + 1])):
            busy = flow.busy = bisect_right(starts, index) - 1
        end = flow.places[busy] + (index - starts[busy] + 1) * self._share
        return self._schedule.opportunity_us(math.ceil(end - _ROUNDING) - 1)

    def _delivered_by(self, flow: Flow, time_us: float) -> int:
        """Return how many packets the link has delivered up to and including `time_us`."""
        low, high = 0, flow.admitted
        while low < high:
            middle = (low + high) // 2
            if self._departure_us(flow, middle) <= time_us:
                low = middle + 1
            else:
                high = middle
        return low

    def _packets_in_order_by(self, flow: Flow, time_us: float) -> int:
        """Return how many packets the client has got in order by `time_us`."""
        delivered = self._delivered_by(flow, time_us)
        return min([delivered, *(hole.start for hole in flow.holes if hole.end > delivered)])

    def _end_window(self, flow: Flow) -> None:
        """Take in the acknowledgements still to come after a complete response: a round-trip sample, and growth.

        The window grows while at least half of it is in use: by the x-th of them while 2 (in_flight - x) > window + x.
        """
        if flow.sample_at < flow.admitted:
            acknowledged_us = self._departure_us(flow, flow.sample_at) + 2 * self._delay_us
            self._rtt.sample(acknowledged_us - flow.sampled_from_us)
        if flow.acked < flow.recovery_end:
            return
        control = self._control
        if control.window >= control.threshold:
            count = int(flow.in_flight >= int(control.window))
        else:
            count = min(max(math.ceil((2 * flow.in_flight - control.window) / 3), 0), flow.in_flight)
            count = min(count, math.ceil(min(control.threshold - control.window, count)))
        if count:
            last_us = self._departure_us(flow, flow.admitted - 1) + 2 * self._delay_us
            control.on_acks(last_us, count, self._rtt.srtt_us or 0.0)


def _check_supported(config: LinkConfig) -> None:
    """Refuse what has no closed form here."""
    if config.queue not in ("droptail", "infinite"):
        raise TransportError(f"model fluid has no queue {config.queue}; use droptail, infinite, or model packet")
    if config.connections > 1:
        raise TransportError(f"model fluid has one connection, found {config.connections}; use model packet")
    if config.uplink_loss or config.off_s:
        raise TransportError("model fluid has no uplink_loss and no off_s; use model packet")


def _queue_limit(config: LinkConfig) -> float:
    """Return how many full packets the queue holds."""
    if config.queue == "infinite":
        return math.inf
    limits = [config.queue_packets, config.queue_bytes // config.packet_bytes]
    return min((limit for limit in limits if limit), default=math.inf)
