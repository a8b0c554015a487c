"""Figures of a rate-distortion study: curves, severely distorted frames, delta rates clip by clip, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from experiments.contact_sheet import Picture, SheetRow, contact_sheet
from experiments.paper import (
    ACM,
    CODEC_COLORS,
    CODEC_LINES,
    CODEC_MARKERS,
    PAGE_IN,
    Paper,
    add_caption,
    paper_style,
    shared_legend,
)
from experiments.rd_measure import ORIGINAL
from experiments.rd_study import MEAN, Study, nearest_point
from experiments.series import CODEC_TITLES, HEADLINE_METRICS, METRICS, severity_rule
from player.quality import SEVERE_DISTORTION

_MOST_PERCENT = 1000
_LOWEST = {"ssimulacra2": -100}
"""Lowest value drawn of a metric that has no lower bound, so that one hopeless codec does not flatten all others."""
_TICKS_KBPS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def curves(study: Study, points: pd.DataFrame, conditions: str, paper: Paper = ACM) -> Figure:
    """Draw bitrate against every metric, a panel each, all codecs in each."""
    width_in = paper.width_in(2)
    rows = -(-len(study.metrics) // (4 if width_in > 5 else 2))
    columns = -(-len(study.metrics) // rows)  # five are three above two, not four above one
    with paper_style():
        figure, axes = plt.subplots(
            rows, columns, squeeze=False, layout="constrained", figsize=(width_in, 1.85 * rows + 0.55)
        )
        for metric, axis in zip(study.metrics, axes.ravel(), strict=False):
            _draw_codecs(axis, study, points, metric)
            lowest = f" > {_LOWEST[metric]}" if _cut_off(axis, metric) else ""
            axis.set_title(f"{METRICS[metric].title}{lowest}{_better(metric)}", loc="left", fontsize=7.5)
        for axis in axes.ravel()[len(study.metrics) :]:
            axis.set_visible(False)
        shared_legend(figure, axes)
        paper.caption(figure, conditions)
    return figure


def severe_distortion(study: Study, points: pd.DataFrame, conditions: str, paper: Paper = ACM) -> Figure | None:
    """Draw the share of severely distorted frames against the bitrate; None where no metric has a threshold."""
    metrics = [metric for metric in study.metrics if f"severe_{metric}" in points]
    if not metrics:
        return None
    width_in = paper.width_in(1 if len(metrics) == 1 else 2)
    with paper_style():
        figure, axes = plt.subplots(1, len(metrics), squeeze=False, layout="constrained", figsize=(width_in, 2.4))
        for metric, axis in zip(metrics, axes[0], strict=True):
            _draw_codecs(axis, study, points.assign(share=100 * points[f"severe_{metric}"]), "share")
            axis.set_title(severity_rule(metric, SEVERE_DISTORTION[metric].threshold), loc="left")
            axis.set_ylim(-3, 103)
        axes[0][0].set_ylabel("Severely distorted frames [%]")
        shared_legend(figure, axes)
        paper.caption(figure, conditions)
    return figure


def delta_rates(study: Study, conditions: str) -> Figure | None:
    """Draw the delta rate of every clip, a panel for each metric; clips without overlap stand at the panel's edges."""
    rows = study.deltas[study.deltas["clip"] != MEAN]
    if rows.empty:
        return None
    clips = study.clips
    with paper_style():
        figure, axes = plt.subplots(
            1, len(study.metrics), squeeze=False, sharey=True, layout="constrained",
            figsize=(PAGE_IN, 2.2 + 0.15 * len(clips)),
        )  # fmt: skip
        for metric, axis in zip(study.metrics, axes[0], strict=True):
            own = rows[rows["metric"] == metric]
            for codec in (codec for codec in study.codecs if codec != study.anchor):
                _draw_deltas(axis, own[own["codec"] == codec], clips, codec)
            axis.axvline(0, color="0.3", linewidth=0.8)
            axis.set_xscale("symlog", linthresh=50, linscale=1)
            axis.set_xlim(-100, _MOST_PERCENT)
            axis.set_xticks([-100, -50, 0, 50, 200, 1000], ["-100", "-50", "0", "50", "200", "1000"], rotation=90)
            axis.minorticks_off()
            axis.set_title(METRICS[metric].title, loc="left", fontsize=7)
        axes[0][0].set_yticks(range(len(clips)), clips)
        axes[0][0].invert_yaxis()
        shared_legend(figure, axes)
        text = (
            f"BD-rate against {CODEC_TITLES[study.anchor]} [%], negative is better. Hollow marks at an edge: no "
            "overlap in quality, all higher (left) or all lower (right)."
        )
        add_caption(figure, f"{text} {conditions}", PAGE_IN)
    return figure


def sheet(study: Study, clip: str, rate_bps: float, conditions: str) -> Figure:
    """Draw what was filmed, and each codec in the representation whose bitrate is nearest to a rate."""
    stores = {codec: study.measured[clip, codec] for codec in study.codecs if (clip, codec) in study.measured}
    first = next(iter(stores.values()))
    rows = [SheetRow("Original", [Picture(pixels) for pixels in first.pictures(ORIGINAL)])]
    metric = next(metric for metric in HEADLINE_METRICS if metric in study.metrics)
    for codec, measured in stores.items():
        point = nearest_point(measured.points, rate_bps)
        pictures = [Picture(pixels) for pixels in measured.pictures(str(point["representation"]))]
        value = (
            f"{METRICS[metric].title.split(' (')[0].removesuffix(' [dB]')} {point[metric]:.{METRICS[metric].digits}f}"
        )
        rows.append(SheetRow(f"{CODEC_TITLES[codec]}\n{point['bitrate_bps'] / 1e3:.1f} kbit/s\n{value}", pictures))
    text = f"{clip}: of each codec what is nearest to {rate_bps / 1e3:g} kbit/s, with its mean {METRICS[metric].title}."
    return contact_sheet(rows, first.times_s.tolist(), f"{text} {conditions}")


def _draw_codecs(axis: Any, study: Study, points: pd.DataFrame, column: str) -> None:
    """Draw one column against the bitrate, a line for each codec."""
    for codec in study.codecs:
        own = points[points["codec"] == codec].sort_values("bitrate_bps")
        axis.plot(
            own["bitrate_bps"] / 1e3, own[column], color=CODEC_COLORS[codec], linestyle=CODEC_LINES[codec],
            marker=CODEC_MARKERS[codec], markersize=3.5, label=CODEC_TITLES[codec],
        )  # fmt: skip
    axis.set_xscale("log")
    low, high = points["bitrate_bps"].min() / 1e3, points["bitrate_bps"].max() / 1e3
    axis.set_xticks([tick for tick in _TICKS_KBPS if 0.9 * low <= tick <= 1.1 * high])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("Bitrate [kbit/s]")


def _cut_off(axis: Any, metric: str) -> bool:
    """Leave out of a panel what is beyond all use; say whether that is anything."""
    if metric not in _LOWEST or axis.get_ylim()[0] >= _LOWEST[metric]:
        return False
    axis.set_ylim(bottom=_LOWEST[metric])
    return True


def _better(metric: str) -> str:
    """Return an arrow that says which way is better."""
    return " \N{UPWARDS ARROW}" if METRICS[metric].higher_is_better else " \N{DOWNWARDS ARROW}"


def _draw_deltas(axis: Any, rows: pd.DataFrame, clips: Sequence[str], codec: str) -> None:
    """Draw one codec's delta rates, a mark for each clip; hollow at an edge where curves do not overlap."""
    heights = {clip: index for index, clip in enumerate(clips)}
    style = {"color": CODEC_COLORS[codec], "marker": CODEC_MARKERS[codec], "linestyle": "", "clip_on": False}
    known = rows.dropna(subset=["bd_rate"])
    percent = np.clip(100 * known["bd_rate"].astype(float), -100, _MOST_PERCENT)
    lines = axis.plot(percent, known["clip"].map(heights), markersize=4, label=CODEC_TITLES[codec], **style)
    for side, reason in ((-100, "higher"), (_MOST_PERCENT, "lower")):
        beyond = rows[rows["bd_rate_reason"].str.endswith(reason)]
        places = [side] * len(beyond), beyond["clip"].map(heights)
        lines += axis.plot(*places, markersize=5, markerfacecolor="none", **style)
    for line in lines:
        line.set_in_layout(False)  # an unclipped line without points would claim the figure's corner
