"""From bytes per interval to delivery opportunities, in whole numbers only: the same on every machine."""

import numpy as np

from traces.errors import TraceError
from traces.trace import MAX_OPPORTUNITIES, MAX_PERIOD_MS, MTU_BYTES, IntArray

MAX_INTERVAL_MS = 86_400_000
"""Longest interval of constant rate, one day: bytes x ms of an interval must fit into 63 bits."""

_WINDOW_MS = 1 << 17  # expand this much time at once: keeps the scratch memory small, whatever the period


def spread_evenly(edges_ms: IntArray, interval_bytes: IntArray, *, name: str) -> IntArray:
    """Spread the bytes of each interval evenly over its milliseconds and return the opportunities: [n] int64 ms.

    With C(t) the bytes delivered by time t, growing linearly inside an interval, opportunity j (0-based) fires in the
    millisecond in which C passes (j + 1/2) MTU. So what does not fill an MTU is carried to the next interval, the total
    is within half an MTU of the sum of the intervals, and any span of whole ms is within one MTU of its integral. An
    interval that starts and ends on whole MTUs (bins of a Mahimahi trace) keeps exactly its own count.

    Args:
        edges_ms: [b+1] int64, non-decreasing, edges_ms[0] = 0.
        interval_bytes: [b] int64, >= 0.
        name: used in error messages.
    """
    total = sum(interval_bytes.tolist())
    if total // MTU_BYTES > MAX_OPPORTUNITIES:
        raise TraceError(f"{name}: found {total} bytes in a period, expected at most {MAX_OPPORTUNITIES * MTU_BYTES}")
    if int(edges_ms[-1]) > MAX_PERIOD_MS + 1 or int(np.diff(edges_ms).max()) > MAX_INTERVAL_MS:
        raise TraceError(f"{name}: found an interval or period of many days, expected at most 1 and 7 days")
    start_bytes = np.concatenate([[0], np.cumsum(interval_bytes)])
    opportunities = np.empty((total + MTU_BYTES // 2) // MTU_BYTES, dtype=np.int64)
    for first_ms in range(0, int(edges_ms[-1]), _WINDOW_MS):
        last_ms = min(first_ms + _WINDOW_MS, int(edges_ms[-1]))
        moments = np.arange(first_ms, last_ms + 1, dtype=np.int64)
        passed = _count_passed(edges_ms, interval_bytes, start_bytes, moments)
        opportunities[passed[0] : passed[-1]] = np.repeat(moments[:-1], np.diff(passed))
    return opportunities


def _count_passed(
    edges_ms: IntArray, interval_bytes: IntArray, start_bytes: IntArray, moments_ms: IntArray
) -> IntArray:
    """Return floor(C(t) / MTU + 1/2) at each moment t: the opportunities that fired before it."""
    interval = np.searchsorted(edges_ms, moments_ms, side="right") - 1
    interval = np.minimum(interval, interval_bytes.size - 1)
    width = np.maximum((edges_ms[1:] - edges_ms[:-1])[interval], 1)  # an interval of 0 ms at the very end gives a jump
    elapsed = np.minimum(moments_ms - edges_ms[interval], width)
    elapsed = np.where(moments_ms >= edges_ms[-1], width, elapsed)
    whole, rest = np.divmod(start_bytes[interval], MTU_BYTES)
    within = (rest + MTU_BYTES // 2) * width + interval_bytes[interval] * elapsed
    return whole + within // (MTU_BYTES * width)
