"""What `mm-throughput-graph` and `mm-delay-graph` read from a link log: rates, per-packet delay and signal delay.

Unlike Mahimahi's scripts it takes logs with drops (`d` lines), its issue 136.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emulator.errors import LinkError

_PERCENTILE = 0.95
_EVENTS = {"#": 3, "+": 3, "-": 4, "d": 4}  # event and how many words its line has


@dataclass
class LinkLog:
    """The events of a log, by kind; times in ms since the log's base timestamp."""

    direction: str = "link"
    opportunities: list[tuple[int, int]] = field(default_factory=list)  # (time, bytes)
    arrivals: list[tuple[int, int]] = field(default_factory=list)  # (time, bytes)
    departures: list[tuple[int, int, int]] = field(default_factory=list)  # (time, bytes, delay)
    drops: list[tuple[int, int, int]] = field(default_factory=list)  # (time, packets, bytes)
    first_ms: int = 0
    last_ms: int = 0


@dataclass(frozen=True)
class LinkSummary:
    """The figures under a graph. Rates in Mbit/s, delays in ms (None where nothing departed)."""

    duration_s: float
    capacity_mbps: float
    ingress_mbps: float
    throughput_mbps: float
    utilization: float
    delay_p95_ms: int | None
    signal_delay_p95_ms: int | None
    dropped_packets: int


def read_log(path: str | Path) -> LinkLog:
    """Read a link log, ours or Mahimahi's; LinkError names a line that is not of one."""
    try:
        with Path(path).open(encoding="utf-8") as lines:
            return parse_log(lines, str(path))
    except UnicodeDecodeError:
        raise LinkError(f"{path}: not a text file; expected a link log") from None


def parse_log(lines: Iterable[str], name: str = "log") -> LinkLog:
    """Take in the lines of a link log."""
    log = LinkLog()
    base_ms: int | None = None
    first_ms: int | None = None
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            if line.startswith("# base timestamp:"):
                base_ms = _whole(line.partition(":")[2].strip(), name, number, line)
            elif "(Uplink)" in line or "(Downlink)" in line:
                log.direction = "uplink" if "(Uplink)" in line else "downlink"
            continue
        words = line.split()
        if base_ms is None:
            raise LinkError(f"{name}:{number}: found {line[:60].rstrip()!r} before the line '# base timestamp: MS'")
        if len(words) < 2 or len(words) != _EVENTS.get(words[1]):
            raise LinkError(f"{name}:{number}: found {line[:60].rstrip()!r}, expected an event of a link log")
        numbers = [_whole(word, name, number, line) for word in (words[0], *words[2:])]
        now_ms = numbers[0] - base_ms
        if now_ms < log.last_ms:
            raise LinkError(f"{name}:{number}: found {now_ms} ms after {log.last_ms} ms; expected time to go forward")
        first_ms = now_ms if first_ms is None else first_ms
        log.last_ms = now_ms
        _add(log, words[1], now_ms, numbers[1:])
    if first_ms is None:
        raise LinkError(f"{name}: no events; expected a link log")
    log.first_ms = first_ms
    return log


def _add(log: LinkLog, event: str, now_ms: int, numbers: list[int]) -> None:
    if event == "#":
        log.opportunities.append((now_ms, numbers[0]))
    elif event == "+":
        log.arrivals.append((now_ms, numbers[0]))
    elif event == "-":
        log.departures.append((now_ms, numbers[0], numbers[1]))
    else:
        log.drops.append((now_ms, numbers[0], numbers[1]))


def _whole(word: str, name: str, number: int, line: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise LinkError(f"{name}:{number}: found {line[:60].rstrip()!r}, expected whole numbers")
    return int(word)


def summarise(log: LinkLog) -> LinkSummary:
    """Compute what Mahimahi's graphs print: means over the log's span, the 95th percentiles of both delays."""
    duration_s = (log.last_ms - log.first_ms) / 1000
    if duration_s <= 0:
        raise LinkError("log of a single millisecond; expected a span to average over")
    capacity, ingress, egress = (
        sum(event[1] for event in events) * 8 / duration_s / 1e6
        for events in (log.opportunities, log.arrivals, log.departures)
    )
    return LinkSummary(
        duration_s=duration_s,
        capacity_mbps=capacity,
        ingress_mbps=ingress,
        throughput_mbps=egress,
        utilization=egress / capacity if capacity else 0.0,
        delay_p95_ms=_p95(sorted(delay for _, _, delay in log.departures)),
        signal_delay_p95_ms=_p95(sorted(signal_delays(log).values())),
        dropped_packets=sum(packets for _, packets, _ in log.drops),
    )


def signal_delays(log: LinkLog) -> dict[int, int]:
    """Return by ms how long a signal sent then would take: the least delay of the packets that arrived in that ms.

    Where none did it is the next ms' value and 1: the signal waits for the next packet.
    """
    least: dict[int, int] = {}
    for now_ms, _, delay_ms in log.departures:
        arrival_ms = now_ms - delay_ms
        least[arrival_ms] = min(delay_ms, least.get(arrival_ms, delay_ms))
    if not least:
        return {}
    delay_ms = 0
    for now_ms in range(max(least), log.first_ms - 1, -1):
        delay_ms = least.setdefault(now_ms, delay_ms + 1)
    return least


def binned_mbps(log: LinkLog, bin_ms: int) -> dict[str, NDArray[np.float64]]:
    """Return the rates over time, Mbit/s by bin of `bin_ms` since the base: [bins] each."""
    if bin_ms < 1:
        raise LinkError(f"bins of {bin_ms} ms; expected 1 or more")
    bins = log.last_ms // bin_ms + 1
    events = {
        "capacity": log.opportunities,
        "ingress": log.arrivals,
        "egress": [(now_ms, size_bytes) for now_ms, size_bytes, _ in log.departures],
        "drops": [(now_ms, size_bytes) for now_ms, _, size_bytes in log.drops],
    }
    rates = {}
    for name, pairs in events.items():
        places = [now_ms // bin_ms for now_ms, _ in pairs]
        sizes = [size_bytes for _, size_bytes in pairs]
        rates[name] = np.bincount(places, sizes, minlength=bins) * 8 / (bin_ms / 1000) / 1e6
    return rates


def format_summary(summary: LinkSummary) -> str:
    """Write the summary in the words of `mm-throughput-graph`."""
    lines = [
        f"Average capacity: {summary.capacity_mbps:.2f} Mbits/s",
        f"Average throughput: {summary.throughput_mbps:.2f} Mbits/s ({summary.utilization:.1%} utilization)",
    ]
    if summary.delay_p95_ms is not None:
        lines.append(f"95th percentile per-packet queueing delay: {summary.delay_p95_ms} ms")
        lines.append(f"95th percentile signal delay: {summary.signal_delay_p95_ms} ms")
    if summary.dropped_packets:
        lines.append(f"Dropped packets: {summary.dropped_packets}")
    return "\n".join(lines)


def _p95(ordered: list[int]) -> int | None:
    return ordered[int(_PERCENTILE * len(ordered))] if ordered else None
