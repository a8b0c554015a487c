"""Figures of runs, drawn from what their folders hold. Only save_figure and draw_figures write."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files; a display is neither needed nor touched

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.errors import RunFolderError
from experiments.results import CodecResult, RunResult
from experiments.series import (
    CODEC_TITLES,
    METRICS,
    Series,
    common_header,
    common_severity,
    header_line,
    headline_metric,
    series_of,
    severity_rule,
)
from packager.settings import CODECS

STYLE = Path(__file__).with_name("paper.mplstyle")
COLUMN_IN = 3.33
"""Width of one column of a two-column paper, inches."""
PAGE_IN = 7.0
"""Width of the page of a two-column paper, inches."""

_CODEC_COLORS = {"prompt": "#0072B2", "h265": "#D55E00"}
_TRACE_COLOR = "#999999"
_ESTIMATE_COLOR = "#000000"
_REBUFFERING_COLOR = "#CC79A7"
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X<>"


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw in the project's paper style inside the block."""
    with plt.style.context(STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``figure`` as PDF and PNG, without the time of day, so that equal figures are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with paper_style():  # font embedding is decided while writing
        for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
            paths.append(folder / f"{name}{suffix}")
            figure.savefig(paths[-1], metadata=metadata)
    plt.close(figure)
    return paths


# ---- timeline -------------------------------------------------------------------------------------------------------


def timeline(run: RunResult) -> Figure:
    """Draw rate, buffer and quality over time, one column per codec."""
    results = [run.codecs[codec] for codec in CODECS if codec in run.codecs]
    metric = headline_metric(results)
    rows = 3 if metric else 2
    width = COLUMN_IN if len(results) == 1 else PAGE_IN
    with paper_style():
        figure, axes = plt.subplots(
            rows, len(results), figsize=(width, 1.35 * rows + 0.8), sharex=True, sharey="row", squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, result in zip(axes.T, results, strict=True):
            column[0].set_title(CODEC_TITLES[result.codec])
            _draw_rates(column[0], run, result)
            _draw_buffer(column[1], run, result)
            if metric:
                _draw_quality(column[2], result, metric)
            for axis in column:
                _shade_rebuffering(axis, result)
            column[-1].set_xlabel("Time since the session began [s]")
            column[-1].set_xlim(0, max(float(one.summary["elapsed_s"]) for one in results))
        axes[0, 0].set_ylabel("Rate [kbit/s]")
        axes[1, 0].set_ylabel("Buffer [s]")
        if metric:
            axes[2, 0].set_ylabel(METRICS[metric].title)
        _rate_limits(axes[0, 0], run, results)
        axes[1, 0].set_ylim(0, 1.08 * float(run.conditions["buffer_s"]))
        _shared_legend(figure, axes)
        add_caption(figure, header_line(run.conditions), width)
    return figure


def _draw_rates(axis: Any, run: RunResult, result: CodecResult) -> None:
    trace, segments = run.trace, result.segments
    axis.fill_between(
        trace["time_s"], trace["rate_bps"] / 1e3, step="post", color=_TRACE_COLOR, alpha=0.45, linewidth=0,
        label="link rate (1 s bins)",
    )  # fmt: skip
    # A controller that goes by the buffer believes in no rate; then the player's own estimate is shown.
    estimate = segments["estimate_bps"].fillna(segments["link_rate_bps"])
    axis.step(
        segments["request_s"], estimate / 1e3, where="post", color=_ESTIMATE_COLOR, linewidth=0.7,
        linestyle=(0, (3, 1.5)), label="throughput estimate",
    )  # fmt: skip
    axis.step(
        segments["request_s"], segments["bitrate_bps"] / 1e3, where="post", color=_CODEC_COLORS[result.codec],
        label=f"segment bitrate, {CODEC_TITLES[result.codec]}",
    )  # fmt: skip


def _rate_limits(axis: Any, run: RunResult, results: Sequence[CodecResult]) -> None:
    """Show all of the ladder and the link's usual rates; a rare peak may leave the panel."""
    shown = run.trace["rate_bps"][run.trace["time_s"] < max(one.summary["elapsed_s"] for one in results)]
    highest = max(float(result.segments["bitrate_bps"].max()) for result in results)
    axis.set_ylim(0, 1.1 * max(highest, float(np.percentile(shown, 99)) if len(shown) else 0.0) / 1e3)


def buffer_levels(segments: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (times_s [n], buffer_s [n]), the corners of the piecewise linear buffer level of a session.

    A segment enters the buffer when it is rendered and leaves it while it plays.
    """
    played = segments.dropna(subset=["rendered_s", "play_start_s"])
    rendered = played["rendered_s"].to_numpy(dtype=float)
    start = played["play_start_s"].to_numpy(dtype=float)
    duration = played["duration_s"].to_numpy(dtype=float)
    corners = np.unique(np.concatenate([[0.0], rendered, start, start + duration]))
    left = np.clip(corners[:, None] - start, 0.0, duration).sum(axis=1)  # media played by then
    before = np.where(rendered < corners[:, None], duration, 0.0).sum(axis=1) - left
    after = np.where(rendered <= corners[:, None], duration, 0.0).sum(axis=1) - left
    return np.repeat(corners, 2), np.stack([before, after], axis=1).ravel()


def _draw_buffer(axis: Any, run: RunResult, result: CodecResult) -> None:
    times_s, levels_s = buffer_levels(result.segments)
    axis.plot(times_s, levels_s, color=_CODEC_COLORS[result.codec], linewidth=0.8)
    axis.axhline(float(run.conditions["buffer_s"]), color="0.4", linewidth=0.8, linestyle=":", label="buffer capacity")


def _draw_quality(axis: Any, result: CodecResult, metric: str) -> None:
    frames = result.frames
    color = _CODEC_COLORS[result.codec]
    gaps = np.flatnonzero(np.diff(frames["wall_time_s"].to_numpy()) > 2.5 * np.median(np.diff(frames["wall_time_s"])))
    values = np.insert(frames[metric].to_numpy(dtype=float), gaps + 1, np.nan)  # no line across a stall
    times = np.insert(frames["wall_time_s"].to_numpy(dtype=float), gaps + 1, np.nan)
    axis.plot(times, values, color=color, linewidth=0.4, alpha=0.45)
    frame_s = float(np.median(np.diff(frames["wall_time_s"]))) if len(frames) > 1 else 0.0
    means = frames.groupby("segment", sort=True).agg(
        start=("wall_time_s", "min"), end=("wall_time_s", "max"), mean=(metric, "mean")
    )
    axis.hlines(means["mean"], means["start"], means["end"] + frame_s, color=color, linewidth=1.3)
    if result.summary["severe_metric"] == metric:
        threshold = float(result.summary["severe_threshold"])
        side = "below" if METRICS[metric].higher_is_better else "above"
        axis.axhline(
            threshold, color="0.2", linewidth=0.7, linestyle="-.", label=f"severely distorted {side} {threshold:g}"
        )


def rebuffering_spans(events: pd.DataFrame) -> list[tuple[float, float]]:
    """Return (start_s, end_s) of every rebuffering period; one still open at the end closes with the last event."""
    spans, start = [], None
    for time_s, event in zip(events["time_s"], events["event"], strict=True):
        if event == "rebuffering_start":
            start = float(time_s)
        elif event == "rebuffering_end" and start is not None:
            spans.append((start, float(time_s)))
            start = None
    if start is not None:
        spans.append((start, float(events["time_s"].iloc[-1])))
    return spans


def _shade_rebuffering(axis: Any, result: CodecResult) -> None:
    spans = rebuffering_spans(result.events)
    for index, (start_s, end_s) in enumerate(spans):
        axis.axvspan(
            start_s, end_s, color=_REBUFFERING_COLOR, alpha=0.35, linewidth=0, label="" if index else "rebuffering"
        )


def _shared_legend(figure: Figure, axes: np.ndarray) -> None:
    entries: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = 4 if axes.shape[1] > 1 else 2
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=min(columns, len(entries)))


def add_caption(figure: Figure, text: str, width_in: float) -> None:
    """Write the conditions under the axes of a figure, wrapped to its width."""
    characters = int(width_in * 23.5)  # of the 6 point caption
    figure.supxlabel("\n".join(textwrap.wrap(text, characters)), fontsize=5.5, color="0.3")


# ---- overlays of several sessions -----------------------------------------------------------------------------------


def _series_style(series: Sequence[Series], index: int) -> dict[str, Any]:
    """Colour tells codecs apart in one run, runs in an overlay of several; then the line tells codecs apart."""
    one = series[index]
    runs = list(dict.fromkeys(id(item.run) for item in series))
    if len(runs) == 1:
        return {"color": _CODEC_COLORS[one.result.codec], "linestyle": "-"}
    order = runs.index(id(one.run))
    codecs = list(dict.fromkeys(item.result.codec for item in series))
    turn = codecs.index(one.result.codec) + 2 * (order // len(_CYCLE))
    return {"color": _CYCLE[order % len(_CYCLE)], "linestyle": _LINES[turn % len(_LINES)]}


def _required_metric(series: Sequence[Series]) -> str:
    metric = headline_metric([one.result for one in series])
    if metric is None:
        raise RunFolderError("these runs have no quality metric in common")
    return metric


def rebuffering_against_quality(runs: Sequence[RunResult]) -> Figure:
    """Draw each session as one point: share of time spent rebuffering against mean quality."""
    series = series_of(runs)
    metric = _required_metric(series)
    with paper_style():
        legend_rows = (len(series) + 1) // 2 if len(series) <= 4 else len(series)
        figure, axis = plt.subplots(figsize=(COLUMN_IN, 2.3 + 0.16 * legend_rows), layout="constrained")
        for index, one in enumerate(series):
            style = _series_style(series, index)
            ratio = 100 * float(one.result.summary["rebuffering_ratio"])
            filled = style["linestyle"] == "-"
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
        add_caption(figure, common_header(runs), COLUMN_IN)
    return figure


def distributions(runs: Sequence[RunResult]) -> Figure:
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
        figure, axes = plt.subplots(1, len(panels), figsize=(PAGE_IN, 2.5), layout="constrained")
        for axis, share, (label, values_of) in zip(axes, shares, panels, strict=True):
            for index, one in enumerate(series):
                values = np.sort(values_of(one.result))
                axis.ecdf(values, label=one.label, **_series_style(series, index))
            axis.set_xlabel(label)
            axis.set_ylabel(share)
            axis.set_ylim(0, 1)
        axes[-1].set_xlim(left=0)
        axes[-2].set_xlim(left=0)
        _shared_legend(figure, axes[None, :])
        add_caption(figure, common_header(runs), PAGE_IN)
    return figure


def severe_distortion(runs: Sequence[RunResult]) -> Figure:
    """Draw the share of severely distorted frames of each session as bars; the axis states the threshold."""
    series = series_of(runs)
    metric, threshold = common_severity(series)
    shares = [100 * float(one.result.summary["severe_share"]) for one in series]
    with paper_style():
        figure, axis = plt.subplots(figsize=(COLUMN_IN, 1.0 + 0.28 * len(series)), layout="constrained")
        for index, share in enumerate(shares):
            dashed = _series_style(series, index)["linestyle"] != "-"
            axis.barh(
                index, share, height=0.65, color=_series_style(series, index)["color"],
                alpha=0.55 if dashed else 1.0, hatch="///" if dashed else "", edgecolor="white", linewidth=0,
            )  # fmt: skip
            axis.annotate(
                f"{share:.1f} %", (share, index), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
            )
        axis.set_yticks(range(len(series)), [one.label for one in series])
        axis.invert_yaxis()
        axis.set_xlim(0, max(1.0, 1.18 * max(shares)))
        axis.grid(visible=False, axis="y")
        axis.set_xlabel(f"Severely distorted frames [%]\n({severity_rule(metric, threshold)})")
        add_caption(figure, common_header(runs), COLUMN_IN)
    return figure


FIGURES: dict[str, Callable[[Sequence[RunResult]], Figure]] = {
    "rebuffering_vs_quality": rebuffering_against_quality,
    "cdf": distributions,
    "severe_distortion": severe_distortion,
}
"""Figures that overlay any number of runs; the timeline is drawn for each run by itself."""

FIGURE_NAMES = ("timeline", *FIGURES)
"""Every figure; the same names as the command line's."""


def draw_figures(runs: Sequence[RunResult], folder: Path, *, names: Sequence[str] = FIGURE_NAMES) -> list[Path]:
    """Draw the named figures of ``runs`` into ``folder`` and return the files written.

    Figures of quality are left out where no metric was measured.
    """
    measured = headline_metric([one.result for one in series_of(runs)]) is not None
    paths = []
    for name in names:
        if name == "timeline":
            for run in runs:
                suffix = f"-{run.path.resolve().name}" if len(runs) > 1 else ""
                paths += save_figure(timeline(run), folder, f"timeline{suffix}")
        elif measured or name == "cdf":
            paths += save_figure(FIGURES[name](runs), folder, name)
    return paths
