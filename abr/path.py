"""How long TCP takes to deliver one small object, and what its timing says about the link. No I/O and no clock.

The model (RFC 5681 slow start, RFC 6928 initial window): an object of n packets is sent in rounds. Round i holds at
most w_i = w_1 2^(i-1) packets. The first packet of round i + 1 arrives one round trip R after the first packet of round
i, or when round i has passed the link, whichever is later; within a round packets arrive one packet time p / C apart.
With k rounds the last byte follows the first by

    d(C) = sum_{i<k} max(R, w_i p / C) + (n_k - 1) p / C,     n_k packets in the last round.

d falls strictly with C (while n_k > 1), so a measured d can be inverted; `split_spread` does that exactly. Below the
BDP the first j rounds end in silence, so d = j R + B / C with B the packets after round j, less one: only B / C of the
time did the link work on data that was measured, and only that part says anything about its rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from abr.errors import OptionError


@dataclass(frozen=True)
class PathModel:
    """What an estimator assumes about the sender and the clock; the defaults are Linux's."""

    initial_window_packets: int = 10
    """Packets in the first round of a new or idle connection (RFC 6928)."""
    mss_bytes: int = 1448
    """Payload of a full packet: 1500 less 20 IP, 20 TCP and 12 timestamp bytes."""
    header_bytes: int = 250
    """HTTP response header that precedes each object; the first byte a client sees is the header's."""
    idle_restart_s: float = 0.2
    """A connection on which the client was silent for longer starts again from the initial window (RFC 5681 4.1): the
    sender then has been idle for a round trip more, and Linux's timeout is a smoothed round trip plus 200 ms."""
    resolution_s: float = 0.001
    """Uncertainty of one measured interval: the grain of the link's schedule and of the player's clock."""
    whole_packets: bool = True
    """Whether a partly filled last packet takes a full packet's time, as a Mahimahi delivery opportunity does."""

    def __post_init__(self) -> None:
        if self.initial_window_packets < 1 or self.mss_bytes < 1 or self.header_bytes < 0:
            raise OptionError(f"initial_window_packets and mss_bytes must be at least 1, header_bytes 0, not {self}")
        if not (self.idle_restart_s >= 0 and self.resolution_s > 0):
            raise OptionError(f"idle_restart_s must be >= 0 and resolution_s > 0, not {self}")

    def packets(self, size_bytes: int) -> int:
        """Packets needed for an object of `size_bytes` and its header, at least one."""
        return -(-(int(size_bytes) + self.header_bytes) // self.mss_bytes) or 1

    def packet_bits(self) -> int:
        """Payload bits p of a full packet."""
        return 8 * self.mss_bytes

    def bits_after_first(self, size_bytes: int, *, skipped_packets: int = 0) -> float:
        """Bits behind the packet that follows `skipped_packets`, as the link counts them (see `whole_packets`)."""
        packets = self.packets(size_bytes) - skipped_packets
        if self.whole_packets or packets <= 1:
            return float((packets - 1) * self.packet_bits())
        return 8.0 * (size_bytes + self.header_bytes - (skipped_packets + 1) * self.mss_bytes)


class SpreadEvidence(NamedTuple):
    """What the time from first to last byte says: `bits` crossed the link in `busy_s`, give or take `noise_s`."""

    bits: float
    busy_s: float
    noise_s: float
    is_bound: bool = False
    """True if `busy_s` holds silences that cannot be told apart: the link did at least bits / busy_s."""


def spread_s(path: PathModel, size_bytes: int, *, window_packets: int, rtt_s: float, rate_bps: float) -> float:
    """Return d(C): seconds from the first to the last byte of an object sent from a window of `window_packets`."""
    packet_s = path.packet_bits() / rate_bps
    packets, window, silent, skipped = path.packets(size_bytes), window_packets, 0, 0
    while packets - skipped > window and window * packet_s < rtt_s:
        silent += 1
        skipped += window
        window *= 2
    return silent * rtt_s + path.bits_after_first(size_bytes, skipped_packets=skipped) / rate_bps


def split_spread(
    path: PathModel, size_bytes: int, measured_s: float, *, window_packets: int, rtt_s: float, rtt_error_s: float = 0.0
) -> SpreadEvidence:
    """Invert d(C): take the slow-start silences out of the measured spread.

    Evidence is only a bound, with fewer silences taken out than there may have been (the rate can only be too low), if
    - the last round holds one packet and the link outran the window: nothing then tells one fast link from another
      (and where a short packet takes less time, two rates may share one spread near that point);
    - the spread lies so near the point where the pipe fills that, within the noise, that may be the case;
    - the spread is too short even for the silences of an infinitely fast link, so they did not happen: the sender's
      window was larger, or part of the first-byte time was not the path's.

    Args: rtt_error_s: how far one round trip may be from `rtt_s`; adds to the noise with every silent round.
    """
    if path.packets(size_bytes) <= window_packets:
        return undivided(path, size_bytes, measured_s)
    found = _invert(path, size_bytes, measured_s, window_packets, rtt_s)
    noise_s = path.resolution_s + found.silent_rounds * (path.resolution_s + rtt_error_s)
    if found.bits == 0 or found.busy_s < -noise_s:
        return SpreadEvidence(path.bits_after_first(size_bytes), measured_s, path.resolution_s, is_bound=True)
    next_noise_s = noise_s + path.resolution_s + rtt_error_s
    shorter = _invert(path, size_bytes, measured_s - next_noise_s, window_packets, rtt_s)
    may_be_infinite = shorter.silent_rounds > found.silent_rounds and (shorter.bits == 0 or shorter.busy_s <= 0)
    ambiguous = not path.whole_packets and _rounds(path, size_bytes, window_packets)[0] == 1
    return SpreadEvidence(found.bits, found.busy_s, noise_s, may_be_infinite or ambiguous)


def undivided(path: PathModel, size_bytes: int, measured_s: float) -> SpreadEvidence:
    """Return `split_spread` of an object that goes out in one round: there is no silence to take out."""
    bits, noise_s = path.bits_after_first(size_bytes), path.resolution_s
    return SpreadEvidence(bits, measured_s, noise_s, bits == 0 or measured_s < -noise_s)


class _Split(NamedTuple):
    """A spread taken apart: `silent_rounds` round trips of silence, and `bits` crossing the link in `busy_s`."""

    silent_rounds: int
    bits: float
    busy_s: float


def _invert(path: PathModel, size_bytes: int, measured_s: float, window_packets: int, rtt_s: float) -> _Split:
    """Find the number j of silent rounds that agrees with itself: round j stays below the BDP, round j + 1 does not.

    d(C) is continuous and falls with C, so there is one; j = k - 1 remains if the link outran the window throughout.
    """
    packets, window, silent, skipped = path.packets(size_bytes), window_packets, 0, 0
    while True:
        bits, busy_s = path.bits_after_first(size_bytes, skipped_packets=skipped), measured_s - silent * rtt_s
        # Round j + 1 fills the pipe if w p / C >= R, with C = bits / busy.
        if packets - skipped <= window or window * path.packet_bits() * busy_s >= rtt_s * bits:
            return _Split(silent, bits, busy_s)
        skipped += window
        window *= 2
        silent += 1


def _rounds(path: PathModel, size_bytes: int, window_packets: int) -> tuple[int, int]:
    """Return the packets of the last round and its window, if the link outruns the window throughout."""
    left, window = path.packets(size_bytes), window_packets
    while left > window:
        left -= window
        window *= 2
    return left, window


def window_after(path: PathModel, *sizes_bytes: int, window_packets: int) -> int:
    """Return the congestion window after some objects: it doubles each full round, and only while it is in use."""
    window, header_bytes, mss_bytes = window_packets, path.header_bytes, path.mss_bytes
    for size_bytes in sizes_bytes:
        if 2 * (size_bytes + header_bytes) > window * mss_bytes:  # smaller ones use less than half of it
            left, window = _rounds(path, size_bytes, window)
            window = max(window, min(window + left, 2 * left))
    return window
