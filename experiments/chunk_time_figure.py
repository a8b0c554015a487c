"""The figure of `experiments.chunk_time`: sessions, overhead and bitrate at equal quality against segment duration."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from experiments.chunk_time import by_trace, interval, measured
from experiments.paper import CODEC_COLORS, PAGE_IN, add_caption, paper_style, shared_legend
from experiments.series import CODEC_TITLES, METRICS

_LINES = ("-", "--", ":", "-.")
_MARKERS = "os^D"


def chunk_time_figure(sessions: pd.DataFrame, ladder: pd.DataFrame, equal: pd.DataFrame, label: str) -> Figure:
    """Draw one panel per quantity; colours tell codecs apart, lines and markers the delays."""
    metrics = measured(sessions)
    viewer = [("rebuffering_percent", "Rebuffering ratio [%]", 1.0), ("media_bitrate_bps", "Bitrate [kbit/s]", 1e-3)]
    viewer += [(name, METRICS[name].title, 1.0) for name in metrics]
    cost = [_overhead(ladder), *(_equal(equal, name) for name in metrics)]
    count = len(viewer) + len(cost)
    columns = 4 if count > 6 else 3
    rows = -(-count // columns)
    with paper_style():
        figure, axes = plt.subplots(rows, columns, figsize=(PAGE_IN, 1.65 * rows + 0.5), layout="constrained")
        panels = list(axes.ravel())
        for axis, (column, title, scale) in zip(panels, viewer, strict=False):
            _sessions(axis, sessions, column, scale)
            axis.set_ylabel(title)
        for axis, draw in zip(panels[len(viewer) :], cost, strict=False):
            draw(axis)
        for axis in panels[count:]:
            axis.remove()
        durations_s = sorted(sessions["segment_s"].unique())
        for axis in panels[:count]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(durations_s, [f"{value:g}" for value in durations_s])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("Segment duration [s]")
        shared_legend(figure, axes)
        add_caption(figure, label, PAGE_IN)
    return figure


def _sessions(axis: Axes, sessions: pd.DataFrame, column: str, scale: float) -> None:
    delays_ms = list(sessions["delay_ms"].unique())
    for (codec, delay_ms), group in sessions.groupby(["codec", "delay_ms"], sort=False):
        found = [
            (segment_s, *interval((scale * by_trace(own)[column]).tolist()))
            for segment_s, own in group.groupby("segment_s")
        ]
        segment_s, means, halves = (list(part) for part in zip(*found, strict=True))
        turn = delays_ms.index(delay_ms)
        shift = 2 ** (0.06 * (turn - (len(delays_ms) - 1) / 2))  # so that intervals do not cover each other
        axis.errorbar(
            [value * shift for value in segment_s], means, yerr=halves, color=CODEC_COLORS[str(codec)],
            linestyle=_LINES[turn % len(_LINES)], marker=_MARKERS[turn % len(_MARKERS)], markersize=2.5, capsize=1.5,
            elinewidth=0.6, label=f"{CODEC_TITLES[str(codec)]}, {delay_ms:g} ms",
        )  # fmt: skip


def _overhead(ladder: pd.DataFrame) -> Callable[[Axes], None]:
    def draw(axis: Axes) -> None:
        for codec, group in ladder.groupby("codec", sort=False):
            share = group.groupby("segment_s")["overhead_percent"].agg(["min", "max", "mean"])
            colour = CODEC_COLORS[str(codec)]
            axis.fill_between(share.index, share["min"], share["max"], color=colour, alpha=0.15, linewidth=0)
            axis.plot(share.index, share["mean"], color=colour, marker="o", markersize=2.5)
        axis.set_ylabel("Bytes beyond payload [%]")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())

    return draw


def _equal(equal: pd.DataFrame, metric: str) -> Callable[[Axes], None]:
    def draw(axis: Axes) -> None:
        notes = []
        for codec, group in equal[equal["metric"] == metric].groupby("codec", sort=False):
            axis.plot(
                group["segment_s"], group["wire_bps"] / 1000, color=CODEC_COLORS[str(codec)], marker="o", markersize=2.5
            )
            notes.append(f"{CODEC_TITLES[str(codec)]} {group['quality'].iloc[0]:.{METRICS[metric].digits}f}")
        axis.set_ylabel("On the wire [kbit/s]")
        axis.set_title(f"at equal {METRICS[metric].title}:\n{', '.join(notes)}", fontsize=5.5)
        axis.set_ylim(bottom=0)

    return draw
