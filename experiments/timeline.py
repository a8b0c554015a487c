"""The timeline: link rate, estimate, bitrate, buffer, rebuffering and quality of a run, one column per codec."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.paper import ACM, CODEC_COLORS, Paper, paper_style, shared_legend
from experiments.results import CodecResult, RunResult
from experiments.series import CODEC_TITLES, METRICS, header_line, headline_metric
from player.codecs import ordered

_TRACE_COLOR = "#999999"
_ESTIMATE_COLOR = "#000000"
_REBUFFERING_COLOR = "#CC79A7"


def timeline(run: RunResult, paper: Paper = ACM) -> Figure:
    """Draw rate, buffer and quality over time, one column per codec."""
    results = [run.codecs[codec] for codec in ordered(run.codecs)]
    metric = headline_metric(results)
    rows = 3 if metric else 2
    width_in = paper.width_in(min(len(results), 2))
    with paper_style():
        figure, axes = plt.subplots(
            rows, len(results), figsize=(width_in, 1.35 * rows + 0.8), sharex=True, sharey="row", squeeze=False,
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
        if metric:
            _quality_limits(axes[2, 0], results, metric)
        shared_legend(figure, axes)
        paper.caption(figure, header_line(run.conditions))
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
        segments["request_s"], segments["bitrate_bps"] / 1e3, where="post", color=CODEC_COLORS[result.codec],
        label=f"segment bitrate, {CODEC_TITLES[result.codec]}",
    )  # fmt: skip


def _rate_limits(axis: Any, run: RunResult, results: Sequence[CodecResult]) -> None:
    """Show all of the ladder and the link's usual rates; a rare peak may leave the panel."""
    shown = run.trace["rate_bps"][run.trace["time_s"] < max(one.summary["elapsed_s"] for one in results)]
    highest = max(float(result.segments["bitrate_bps"].max()) for result in results)
    axis.set_ylim(0, 1.1 * max(highest, float(np.percentile(shown, 99)) if len(shown) else 0.0) / 1e3)


def _quality_limits(axis: Any, results: Sequence[CodecResult], metric: str) -> None:
    """Show all but the worst percent of frames, and the threshold; one odd frame would flatten everything else."""
    values = np.concatenate([result.frames[metric].dropna().to_numpy(dtype=float) for result in results])
    if len(values):
        higher = METRICS[metric].higher_is_better
        low, high = np.percentile(values, (1, 100) if higher else (0, 99))
        thresholds = [one.summary["severe_threshold"] for one in results if one.summary["severe_metric"] == metric]
        low, high = min([low, *thresholds]), max([high, *thresholds])
        margin = 0.06 * max(high - low, 1e-6)
        axis.set_ylim(low - margin, high + margin)


def buffer_levels(segments: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return (times_s [n], buffer_s [n]), the corners of the piecewise linear buffer level of a session.

    A segment enters the buffer when it is rendered and leaves it while it plays.
    """
    played = segments.dropna(subset=["rendered_s", "play_start_s"])
    rendered = played["rendered_s"].to_numpy(dtype=float)
    start = played["play_start_s"].to_numpy(dtype=float)
    duration = played["duration_s"].to_numpy(dtype=float)
    corners = np.unique(np.concatenate([[0.0], rendered, start, start + duration]))
    total = np.concatenate([[0.0], np.cumsum(duration)])
    # Played media rises over each segment's time on the screen and rests between them.
    times = np.stack([start, start + duration], axis=1).ravel()
    played_s = np.interp(corners, times, np.stack([total[:-1], total[1:]], axis=1).ravel(), left=0.0)
    before = total[np.searchsorted(rendered, corners, side="left")] - played_s
    after = total[np.searchsorted(rendered, corners, side="right")] - played_s
    return np.repeat(corners, 2), np.stack([before, after], axis=1).ravel()


def _draw_buffer(axis: Any, run: RunResult, result: CodecResult) -> None:
    times_s, levels_s = buffer_levels(result.segments)
    axis.plot(times_s, levels_s, color=CODEC_COLORS[result.codec], linewidth=0.8)
    axis.axhline(float(run.conditions["buffer_s"]), color="0.4", linewidth=0.8, linestyle=":", label="buffer capacity")


def _draw_quality(axis: Any, result: CodecResult, metric: str) -> None:
    frames = result.frames
    color = CODEC_COLORS[result.codec]
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
