"""A picture of a link log: what came in, what went out and what could have, and how long packets waited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from emulator.graph import LinkLog, binned_mbps, summarise


def plot_log(log: LinkLog, path: str | Path, *, bin_ms: int) -> None:
    """Draw rates over time above per-packet delays and drops; the file's suffix decides its format."""
    rates = binned_mbps(log, bin_ms)
    edges_s = np.arange(rates["capacity"].size + 1) * bin_ms / 1000
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.stairs(rates["capacity"], edges_s, fill=True, color="#ffcf9f", label="capacity")
    above.stairs(rates["ingress"], edges_s, color="#1f5fbf", lw=1.2, label="arrivals")
    above.stairs(rates["egress"], edges_s, color="#b3261e", lw=1.2, label="departures")
    if log.drops:
        above.stairs(rates["drops"], edges_s, color="black", lw=1.0, ls=":", label="drops")
    above.set_ylabel(f"rate (Mbit/s, {bin_ms} ms bins)")
    above.legend(loc="upper right", ncols=4, frameon=False)
    above.set_ylim(0, 1.18 * max(float(series.max()) for series in rates.values()))
    summary = summarise(log)
    above.set_title(
        f"{log.direction}: {summary.throughput_mbps:.2f} of {summary.capacity_mbps:.2f} Mbit/s "
        f"({summary.utilization:.1%}), {summary.dropped_packets} packets dropped",
        loc="left",
    )
    times_s = np.array([time_ms for time_ms, _, _ in log.departures]) / 1000
    delays_ms = np.array([delay_ms for _, _, delay_ms in log.departures])
    below.plot(times_s, delays_ms, ".", ms=1.5, color="#b3261e", rasterized=True)
    below.set_ylim(bottom=0)
    below.set_xlim(log.first_ms / 1000, log.last_ms / 1000)
    below.set_ylabel("delay of a packet (ms)")
    below.set_xlabel("time (s)")
    figure.savefig(path, dpi=150)
