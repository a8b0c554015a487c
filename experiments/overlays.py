"""Figures that lay any number of sessions over each other: points, distributions, bars."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.errors import RunFolderError
from experiments.paper import ACM, CODEC_COLORS, SERIES_COLORS, Paper, paper_style, shared_legend
from experiments.results import CodecResult, RunResult
from experiments.series import (
    METRICS,
    Series,
    common_header,
    common_severity,
    headline_metric,
    series_of,
    severity_rule,
)

_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X<>"


def _series_style(series: Sequence[Series], index: int) -> dict[str, Any]:
    """Colour tells codecs apart in one run, runs in an overlay of several; then the line tells codecs apart."""
    one = series[index]
    runs = list(dict.fromkeys(id(item.run) for item in series))
    if len(runs) == 1:
        return {"color": CODEC_COLORS[one.result.codec], "linestyle": "-"}
    order = runs.index(id(one.run))
    turn = _second_codec(series, index) + 2 * (order // len(SERIES_COLORS))
    return {"color": SERIES_COLORS[order % len(SERIES_COLORS)], "linestyle": _LINES[turn % len(_LINES)]}


def _second_codec(series: Sequence[Series], index: int) -> bool:
    """Whether this series is to be told from another codec by line, filling or hatch."""
    several_runs = len({id(item.run) for item in series}) > 1
    return several_runs and series[index].result.codec != series[0].result.codec


def _required_metric(series: Sequence[Series]) -> str:
    metric = headline_metric([one.result for one in series])
    if metric is None:
        raise RunFolderError("these runs have no quality metric in common")
    return metric


def rebuffering_against_quality(runs: Sequence[RunResult], paper: Paper = ACM) -> Figure:
    """Draw each session as one point: share of time spent rebuffering against mean quality."""
    series = series_of(runs)
    metric = _required_metric(series)
    with paper_style():
        legend_rows = (len(series) + 1) // 2 if len(series) <= 4 else len(series)
        figure, axis = plt.subplots(figsize=(paper.width_in(1), 2.3 + 0.16 * legend_rows), layout="constrained")
        for index, one in enumerate(series):
            style = _series_style(series, index)
            ratio = 100 * float(one.result.summary["rebuffering_ratio"])
            filled = not _second_codec(series, index)
            axis.plot(
                ratio, float(one.result.frames[metric].mean()), color=style["color"], linestyle="",
                marker=_MARKERS[index % len(_MARKERS)], markersize=5,
                markerfacecolor=style["color"] if filled else "none",
                label=one.label, clip_on=False, zorder=3,
            )  # fmt: skip
        axis.margins(0.15, 0.15)
        axis.set_xlim(left=0, right=max(axis.get_xlim()[1], 1.0))
        axis.set_xlabel("Rebuffering ratio [% of playing time]")
        axis.set_ylabel(f"Mean {METRICS[metric].title}")
        better = "up" if METRICS[metric].higher_is_better else "down"
        axis.set_title(f"better: {better} and to the left", loc="left", fontsize=6.5, color="0.3")
        figure.legend(loc="outside upper center", ncols=2 if len(series) <= 4 else 1)
        paper.caption(figure, common_header(runs))
    return figure


def distributions(runs: Sequence[RunResult], paper: Paper = ACM) -> Figure:
    """Draw cumulative distributions: quality per frame, bitrate per segment, buffer at each request."""
    series = series_of(runs)
    metric = headline_metric([one.result for one in series])
    panels: list[tuple[str, Callable[[CodecResult], np.ndarray]]] = [
        ("Segment bitrate [kbit/s]", lambda result: result.segments["bitrate_bps"].dropna().to_numpy() / 1e3),
        ("Buffer at request [s]", lambda result: result.segments["buffer_s"].dropna().to_numpy()),
    ]
    shares = ["Share of segments", "Share of segments"]
    if metric:
        panels.insert(0, (METRICS[metric].title, lambda result: result.frames[str(metric)].dropna().to_numpy()))
        shares.insert(0, "Share of frames")
    with paper_style():
        height_in = 2.3 + 0.05 * len(series)  # room for the legend
        width_in = paper.width_in(2)
        across = len(panels) if width_in > 5 else 1
        figure, grid = plt.subplots(
            len(panels) // across, across, squeeze=False, layout="constrained",
            figsize=(width_in, height_in * (1 if across > 1 else 0.75 * len(panels))),
        )  # fmt: skip
        axes = grid.ravel()
        for axis, share, (label, values_of) in zip(axes, shares, panels, strict=True):
            for index, one in enumerate(series):
                values = np.sort(values_of(one.result))
                axis.ecdf(values, label=one.label, **_series_style(series, index))
            axis.set_xlabel(label)
            axis.set_ylabel(share)
            axis.set_ylim(0, 1)
        axes[-1].set_xlim(left=0)
        axes[-2].set_xlim(left=0)
        if metric:
            _cut_tail(axes[0], [one.result.frames[metric].dropna().to_numpy() for one in series], metric)
        shared_legend(figure, grid)
        paper.caption(figure, common_header(runs))
    return figure


def _cut_tail(axis: Any, samples: Sequence[np.ndarray], metric: str) -> None:
    """Leave out the worst half percent, where a curve would only run along the border."""
    better = METRICS[metric].higher_is_better
    tails = [np.percentile(values, 0.5 if better else 99.5) for values in samples if len(values)]
    if tails and better:
        axis.set_xlim(left=min(tails))
    elif tails:
        axis.set_xlim(right=max(tails))


def severe_distortion(runs: Sequence[RunResult], paper: Paper = ACM) -> Figure:
    """Draw the share of severely distorted frames of each session as bars; the axis states the threshold."""
    series = series_of(runs)
    metric, threshold = common_severity(series)
    shares = [100 * float(one.result.summary["severe_share"]) for one in series]
    with paper_style():
        figure, axis = plt.subplots(figsize=(paper.width_in(1), 1.0 + 0.28 * len(series)), layout="constrained")
        for index, share in enumerate(shares):
            hatched = _second_codec(series, index)
            axis.barh(
                index, share, height=0.65, color=_series_style(series, index)["color"],
                alpha=0.55 if hatched else 1.0, hatch="///" if hatched else "", edgecolor="white", linewidth=0,
            )  # fmt: skip
            axis.annotate(
                f"{share:.1f} %", (share, index), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
            )
        axis.set_yticks(range(len(series)), [one.label for one in series])
        axis.invert_yaxis()
        axis.set_xlim(0, max(1.0, 1.18 * max(shares)))
        axis.grid(visible=False, axis="y")
        axis.set_xlabel(f"Severely distorted frames [%]\n({severity_rule(metric, threshold)})")
        paper.caption(figure, common_header(runs))
    return figure
