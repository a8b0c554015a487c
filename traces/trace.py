"""The network trace: when a link may send one MTU, repeated without end. Pure arithmetic, no I/O, no clock.

The rules are Mahimahi's (Netravali et al., USENIX ATC 2015): time is whole milliseconds, every opportunity carries up
to one MTU, and lap k of a trace with period T fires line S[i] at k*T + S[i]. A trace whose first time is 0 and whose
last time is T therefore has two opportunities at the millisecond where laps meet.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError

MTU_BYTES = 1504
"""Bytes one opportunity carries: a 1500-byte IP packet plus the 4-byte TUN header that Mahimahi counts."""

MAX_PERIOD_MS = 7 * 86_400_000
"""Longest period accepted, 7 days; beyond it a file is more likely broken (or hostile) than a measurement."""

MAX_OPPORTUNITIES = 50_000_000
"""Most opportunities in one period (400 MB of int64); about 800 Mbit/s for ten minutes."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A link's delivery opportunities over one period; the link repeats them for ever.

    Attributes:
        name: catalogue name, file name or synthetic description.
        opportunities_ms: [n] int64, n >= 1, non-decreasing, in [0, period_ms]; one MTU may leave at each. Read-only.
        period_ms: length of a lap, > 0.
    """

    name: str
    opportunities_ms: IntArray
    period_ms: int

    def __post_init__(self) -> None:
        """Check the invariants once and make the times read-only."""
        times = np.ascontiguousarray(self.opportunities_ms)
        period = int(self.period_ms)
        if times.ndim != 1 or times.size == 0 or times.dtype.kind not in "iu":
            raise TraceError(
                f"{self.name}: found {times.dtype} {list(times.shape)}, expected at least one opportunity in whole ms"
            )
        times = times.astype(np.int64, copy=False)
        if not 0 < period <= MAX_PERIOD_MS:
            raise TraceError(f"{self.name}: found a period of {period} ms, expected 1..{MAX_PERIOD_MS}")
        if times[0] < 0 or times[-1] > period or bool((times[1:] < times[:-1]).any()):
            raise TraceError(f"{self.name}: found unsorted or foreign times, expected 0..{period} ms in order")
        if times.flags.writeable:
            times = times.view()
            times.flags.writeable = False
        object.__setattr__(self, "opportunities_ms", times)
        object.__setattr__(self, "period_ms", period)

    @property
    def duration_s(self) -> float:
        """Length of one lap in seconds."""
        return self.period_ms / 1000

    @property
    def mean_bps(self) -> float:
        """Long-run rate of the endless trace in bit/s, MTU_BYTES counted for each opportunity."""
        return self.opportunities_ms.size * MTU_BYTES * 8 / self.duration_s

    def rate_bps(self, bin_s: float = 1.0, duration_s: float | None = None) -> FloatArray:
        """Return the link's rate in bit/s in consecutive bins from time 0: float64 [bins].

        Bin b counts the opportunities with b*bin <= time < (b+1)*bin, as Mahimahi's graphs do. By default the bins
        cover one lap; every bin has full width, so the last one runs into the next lap if the period is no multiple.

        Args:
            bin_s: bin width, a whole number of milliseconds.
            duration_s: cover this much time of the endless trace instead of one lap.
        """
        bin_ms = _whole_ms(bin_s, "bin")
        span_ms = self.period_ms if duration_s is None else duration_s * 1000
        if not 0 < span_ms <= MAX_PERIOD_MS:
            raise TraceError(f"duration: found {span_ms / 1000:g} s, expected above 0, at most {MAX_PERIOD_MS // 1000}")
        edges = np.arange(int(np.ceil(span_ms / bin_ms)) + 1, dtype=np.int64) * bin_ms
        counts = np.diff(np.asarray(self.count_until(edges - 1)))  # times are whole ms: "< edge" is "<= edge - 1"
        return counts * (MTU_BYTES * 8 * 1000 / bin_ms)

    def percentile_bps(self, q: float, bin_s: float = 1.0) -> float:
        """Return the q-th percentile (0..100, linear interpolation) of the rate over bins of one lap, in bit/s."""
        if not 0 <= q <= 100:
            raise TraceError(f"percentile: found {q}, expected 0..100")
        return float(np.percentile(self.rate_bps(bin_s), q))

    def share(self, n: int) -> "Trace":
        """Return the link of one of n users served in turn: opportunities 0, n, 2n, ... of each lap; same period."""
        if isinstance(n, bool) or int(n) != n or n < 1:
            raise TraceError(f"share: found {n}, expected a whole number of users >= 1")
        if n == 1:
            return self
        return replace(self, opportunities_ms=self.opportunities_ms[:: int(n)].copy())

    def starting_at(self, offset_s: float) -> "Trace":
        """Return the endless trace as seen by a clock that starts offset_s into it (modulo the period, whole ms)."""
        if not np.isfinite(offset_s) or offset_s < 0:
            raise TraceError(f"offset: found {offset_s} s, expected a time >= 0")
        offset = round(offset_s * 1000) % self.period_ms
        if offset == 0:
            return self
        times = self.opportunities_ms
        first = int(np.searchsorted(times, offset, side="left"))
        rotated = np.concatenate([times[first:] - offset, times[:first] + (self.period_ms - offset)])
        # Two opportunities may share the seam (ms T of one lap, ms 0 of the next); both land at T - offset, in order.
        return replace(self, opportunities_ms=rotated)

    def count_until(self, time_ms: int | float | IntArray | FloatArray) -> int | IntArray:
        """Return how many opportunities the endless trace has had at times <= time_ms (0 before time 0). O(log n)."""
        time = np.asarray(time_ms)
        if time.dtype.kind == "f":
            time = np.floor(time)
        whole = time.astype(np.int64)
        lap, rest = np.divmod(whole, self.period_ms)
        count = lap * self.opportunities_ms.size + np.searchsorted(self.opportunities_ms, rest, side="right")
        # The last line of a lap may fire at rest 0 of the next: it counts as part of the laps done. True for lap >= 0.
        count = np.where(whole < 0, 0, count)
        return int(count) if count.ndim == 0 else count.astype(np.int64)

    def opportunity_ms(self, k: int | IntArray) -> int | IntArray:
        """Return the time of the k-th opportunity (k >= 0, 0-based) of the endless trace, in ms. O(1)."""
        index = np.asarray(k, dtype=np.int64)
        if (index < 0).any():
            raise TraceError(f"opportunity: found index {int(index.min())}, expected >= 0")
        lap, line = np.divmod(index, self.opportunities_ms.size)
        time = lap * self.period_ms + self.opportunities_ms[line]
        return int(time) if time.ndim == 0 else time

    def capacity_bytes(self, t0_ms: float, t1_ms: float) -> int:
        """Return the most bytes the link can deliver at times in (t0_ms, t1_ms], every opportunity full."""
        if t1_ms < t0_ms:
            raise TraceError(f"capacity: found the span {t0_ms}..{t1_ms} ms, expected an end after its start")
        return (int(self.count_until(t1_ms)) - int(self.count_until(t0_ms))) * MTU_BYTES


def _whole_ms(span_s: float, what: str) -> int:
    """Return a span in ms; TraceError unless it is a positive whole number of them."""
    span_ms = round(span_s * 1000) if np.isfinite(span_s) else 0
    if span_ms < 1 or abs(span_ms - span_s * 1000) > 1e-6:
        raise TraceError(f"{what}: found {span_s} s, expected a whole number of milliseconds >= 1")
    return span_ms
