"""How far the fluid transport is from the packet transport: both run the same requests, and are compared."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from emulator.config import LinkConfig
from emulator.errors import EmulatorError
from emulator.transport import create_transport
from traces import Trace

TRACES = ("lte", "lte@10", "umts", "evdo", "hsdpa", "fcc", "5g", "starlink")  # NAME@N: every N-th opportunity of NAME
RTTS_MS = (10, 40, 100, 200)
SMALLEST_BYTES, LARGEST_BYTES = 1_000, 5_000_000
PAUSES_S = (0.0, 0.05, 0.3, 1.0, 2.5)  # between requests: back to back, within and beyond the timeout


@dataclass(frozen=True)
class Pair:
    """One object fetched by both models at the same moment."""

    trace: str
    queue: str
    rtt_ms: float
    size_bytes: int
    packet_s: float  # transfer time, request to last byte
    fluid_s: float

    @property
    def difference(self) -> float:
        """Relative difference of the fluid model's transfer time from the packet model's."""
        return self.fluid_s / self.packet_s - 1


@dataclass(frozen=True)
class Spread:
    """Summary of |difference| over some pairs, as fractions; `mean_signed` shows a bias."""

    pairs: int
    median: float
    p95: float
    largest: float
    mean_signed: float


def compare(trace: Trace, config: LinkConfig, *, requests: int, seed: int, name: str | None = None) -> list[Pair]:
    """Fetch the same objects in sequence over one connection of either model.

    Sizes are log-uniform in SMALLEST_BYTES..LARGEST_BYTES, pauses drawn from PAUSES_S; a request goes out once both
    models have finished the last one, so they start each transfer at the same moment but carry their own state over.
    """
    draw = random.Random(seed)
    packet = create_transport(trace, replace(config, model="packet"))
    fluid = create_transport(trace, replace(config, model="fluid"))
    now_s = draw.uniform(0, trace.duration_s)
    pairs = []
    for _ in range(requests):
        size_bytes = round(math.exp(draw.uniform(math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES))))
        exact = packet.request(size_bytes, now_s)
        closed = fluid.request(size_bytes, now_s)
        times_s = (exact.finish_s - now_s, closed.finish_s - now_s)
        pairs.append(Pair(name or trace.name, queue_label(config), 2 * config.delay_ms, size_bytes, *times_s))
        now_s = max(exact.finish_s, closed.finish_s) + draw.choice(PAUSES_S)
    return pairs


def compare_all(
    traces: Iterable[tuple[str, Trace]],
    configs: Sequence[LinkConfig],
    *,
    rtts_ms: Sequence[float] = RTTS_MS,
    requests: int = 60,
    seed: int = 0,
) -> list[Pair]:
    """Compare over every setting, trace and round-trip time, `requests` objects each."""
    return [
        pair
        for place, (name, trace) in enumerate(traces)
        for rtt_ms in rtts_ms
        for config in configs
        for pair in compare(
            trace, replace(config, delay_ms=rtt_ms / 2), requests=requests, seed=seed * 1000 + place, name=name
        )
    ]


def queue_label(config: LinkConfig) -> str:
    """Name the queue as the table does."""
    limits = [f"{config.queue_packets} packets" * bool(config.queue_packets)]
    limits.append(f"{config.queue_bytes} bytes" * bool(config.queue_bytes))
    return config.queue if config.queue == "infinite" else " ".join([config.queue, *filter(None, limits)])


def with_queues(config: LinkConfig, limits: Sequence[str]) -> list[LinkConfig]:
    """Return the setting with each of some queues: a drop-tail limit in packets, or `infinite`."""
    configs = []
    for limit in limits:
        if limit == "infinite":
            configs.append(replace(config, queue="infinite"))
        elif limit.isdecimal() and int(limit) > 0:
            configs.append(replace(config, queue="droptail", queue_packets=int(limit)))
        else:
            raise EmulatorError(f"queue {limit!r}; expected a number of packets or 'infinite'")
    return configs


def spread(pairs: Sequence[Pair]) -> Spread:
    """Summarise the differences of some pairs (at least one)."""
    signed = np.array([pair.difference for pair in pairs])
    size = np.abs(signed)
    return Spread(
        len(pairs), float(np.median(size)), float(np.percentile(size, 95)), float(size.max()), float(signed.mean())
    )


def size_class(size_bytes: int) -> str:
    """Return the decade of sizes an object belongs to."""
    for low, high, label in (
        (1_000, 10_000, "1-10 kB"),
        (10_000, 100_000, "10-100 kB"),
        (100_000, 1_000_000, "100 kB-1 MB"),
        (1_000_000, LARGEST_BYTES + 1, "1-5 MB"),
    ):
        if low <= size_bytes < high:
            return label
    return "other"


def format_table(pairs: Sequence[Pair]) -> str:
    """Lay the comparison out as a Markdown table: by trace, round-trip time, size, queue, and over all."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.trace, []).append(pair)
    for pair in sorted(pairs, key=lambda pair: pair.rtt_ms):
        groups.setdefault(f"RTT {pair.rtt_ms:g} ms", []).append(pair)
    for pair in sorted(pairs, key=lambda pair: pair.size_bytes):
        groups.setdefault(size_class(pair.size_bytes), []).append(pair)
    if len({pair.queue for pair in pairs}) > 1:
        for pair in pairs:
            groups.setdefault(pair.queue, []).append(pair)
    groups["all"] = list(pairs)
    lines = [
        "| transfers | number | median | 95th percentile | largest | mean, signed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, members in groups.items():
        found = spread(members)
        lines.append(
            f"| {name} | {found.pairs} | {found.median:.2%} | {found.p95:.2%} | {found.largest:.1%} "
            f"| {found.mean_signed:+.2%} |"
        )
    return "\n".join(lines)
