"""Congestion control: how a TCP sender's window answers acknowledgements and losses. No I/O and no clock.

Both transports use these: the packet model with every acknowledgement, the fluid model with many at once.
Windows are in packets, times in microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from emulator.errors import TransportError

LEAST_WINDOW = 2.0  # packets, after a loss; RFC 5681, equation 4


class CongestionControl(Protocol):
    """A window, and what changes it."""

    window: float
    threshold: float  # RFC 5681's ssthresh: slow start below it

    def on_acks(self, now_us: float, count: int, rtt_us: float) -> None:
        """Open the window for `count` packets acknowledged while the flow was using it."""

    def on_loss(self, now_us: float) -> None:
        """Answer the losses of one flight."""

    def on_timeout(self, now_us: float) -> None:
        """Answer the first expiry of the retransmission timer since the last acknowledgement."""

    def on_idle(self, idle_us: float) -> None:
        """Take note that nothing was sent for this long."""


class Reno:
    """NewReno (RFC 5681, RFC 6582): a packet more per round trip, half the window after a loss."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.threshold = math.inf

    def on_acks(self, now_us: float, count: int, rtt_us: float) -> None:
        """Open the window: by the packets acknowledged in slow start (RFC 3465, as Linux does), later by 1/window."""
        rest = _slow_start(self, count)
        if rest:
            self.window = math.sqrt(self.window**2 + 2 * rest)  # the integral of 1/window

    def on_loss(self, now_us: float) -> None:
        """Halve the window."""
        self.threshold = max(self.window / 2, LEAST_WINDOW)
        self.window = self.threshold

    def on_timeout(self, now_us: float) -> None:
        """Start again from one packet."""
        if self.window > 1:
            self.threshold = max(self.window / 2, LEAST_WINDOW)
        self.window = 1.0

    def on_idle(self, idle_us: float) -> None:
        """Nothing to do: growth depends on acknowledgements alone."""


class Cubic:
    """CUBIC (RFC 9438): the window is a cubic function of the time since the last loss, and never below Reno's."""

    _C = 0.4  # packets / s^3; section 5
    _BETA = 0.7  # section 4.6
    _ALPHA = 3 * (1 - _BETA) / (1 + _BETA)  # section 4.3: Reno's growth at this beta

    def __init__(self, window: float) -> None:
        self.window = window
        self.threshold = math.inf
        self._w_max = 0.0  # the window before the last reduction
        self._prior = 0.0  # likewise, without fast convergence
        self._epoch_us: float | None = None  # when the current stage of congestion avoidance began
        self._k_s = 0.0  # from then until the window is back at w_max
        self._w_est = 0.0  # what Reno would have
        self._timed_out = False

    def on_acks(self, now_us: float, count: int, rtt_us: float) -> None:
        """Open the window: slow start, then towards the cubic function one round trip ahead (section 4.2 to 4.5)."""
        rest = _slow_start(self, count)
        if not rest:
            return
        if self._epoch_us is None:
            self._start_epoch(now_us)
        elapsed_s = (now_us - (self._epoch_us or 0.0) + rtt_us) / 1e6
        cubic = self._C * (elapsed_s - self._k_s) ** 3 + self._w_max
        target = min(max(cubic, self.window), 1.5 * self.window)
        grown = self.window + (target - self.window) * min(rest / self.window, 1.0)
        alpha = self._ALPHA if self._w_est < self._prior else 1.0
        self._w_est += alpha * rest / self.window
        self.window = max(grown, self._w_est)

    def on_loss(self, now_us: float) -> None:
        """Reduce the window, and further its memory if it did not get back to where it was (section 4.7)."""
        self._reduce()
        self.window = self.threshold

    def on_timeout(self, now_us: float) -> None:
        """Start again from one packet; after slow start the window begins at the plateau (section 4.8)."""
        if self.window > 1:
            self._reduce()
        self._timed_out = True
        self.window = 1.0

    def on_idle(self, idle_us: float) -> None:
        """Do not count the time in which nothing was sent (section 5.8; Linux shifts the epoch likewise)."""
        if self._epoch_us is not None:
            self._epoch_us += idle_us

    def _reduce(self) -> None:
        self._prior = self.window
        self._w_max = self.window * (1 + self._BETA) / 2 if self.window < self._w_max else self.window
        self.threshold = max(self.window * self._BETA, LEAST_WINDOW)
        self._epoch_us = None
        self._timed_out = False

    def _start_epoch(self, now_us: float) -> None:
        self._epoch_us = now_us
        self._w_est = self.window
        if self._timed_out or self._w_max < self.window:
            self._w_max, self._k_s = self.window, 0.0
        else:
            self._k_s = ((self._w_max - self.window) / self._C) ** (1 / 3)


def _slow_start(control: CongestionControl, count: int) -> int:
    """Open the window up to the threshold; return how many acknowledged packets are left for congestion avoidance."""
    room = control.threshold - control.window
    if room <= 0:
        return count
    used = count if count <= room else math.ceil(room)
    control.window += used
    return count - used


_CONTROLS: dict[str, Callable[[float], CongestionControl]] = {"cubic": Cubic, "reno": Reno}
CONTROL_NAMES = tuple(_CONTROLS)


def create_congestion_control(name: str, window: float) -> CongestionControl:
    """Build the congestion control called `name` (one of CONTROL_NAMES) with its first window in packets."""
    if name not in _CONTROLS:
        raise TransportError(f"unknown congestion_control {name!r}; known: {', '.join(CONTROL_NAMES)}")
    return _CONTROLS[name](window)
