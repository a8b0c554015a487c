"""A study's figures, each from the table of its sessions. What they show and how: docs/figures.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from experiments.errors import ExperimentError
from experiments.paper import ACM, Paper, grouped_legend, paper_style, shared_legend
from experiments.schemes import Scheme, conditions_text, default_by, headline, metrics_of, schemes_of
from experiments.series import METRICS, severity_rule
from experiments.statistics import draw_means, interval

SPREAD = 2.4477
"""Mahalanobis distance that holds 95 % of a normal distribution in two dimensions."""
INTERVAL_TEXT = "Intervals: 95 %, bootstrap by trace."


@dataclass(frozen=True)
class Column:
    """A column as it stands on an axis."""

    name: str
    title: str
    scale: float = 1.0
    digits: int = 2

    def of(self, rows: pd.DataFrame) -> pd.Series:
        """Return the column in the axis's unit."""
        return self.scale * rows[self.name]


STALLED = Column("rebuffering_ratio", "Rebuffering ratio [%]", 100.0, 1)
BITRATE = Column("media_bps", "Bitrate shown [kbit/s]", 1e-3, 1)
SEVERE = Column("severe_share", "Severely distorted frames [%]", 100.0, 1)


def quality_column(table: pd.DataFrame) -> Column:
    """Return the metric that stands for quality; ExperimentError where none was measured."""
    name = headline(table)
    if name is None:
        raise ExperimentError("no quality metric in this data set")
    return Column(name, f"Mean {METRICS[name].title}", digits=METRICS[name].digits)


def column_named(table: pd.DataFrame, name: str) -> Column:
    """Return any column of numbers, titled by its name where it has no title; ExperimentError if there is none."""
    if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
        numbers = ", ".join(table.select_dtypes("number").columns)
        raise ExperimentError(f"--column {name}: no column of numbers; there are {numbers}")
    known = {one.name: one for one in (STALLED, BITRATE, SEVERE)}
    if name in metrics_of(table):
        return Column(name, f"Mean {METRICS[name].title}", digits=METRICS[name].digits)
    return known.get(name, Column(name, name))


def stall_quality(table: pd.DataFrame, by: Sequence[str] = (), paper: Paper = ACM) -> Figure:
    """Draw rebuffering against quality: a point for each scheme, an ellipse that holds 95 % of the bootstrap means."""
    metric = quality_column(table)
    keys = tuple(by) or default_by(table)
    schemes = schemes_of(table, keys)
    named = [one for one in schemes if one.is_named]
    width_in = paper.width_in(1)
    with paper_style():
        figure, axis = plt.subplots(figsize=(width_in, 2.9), layout="constrained")
        for one in schemes:
            if one.rows[[STALLED.name, metric.name]].dropna().empty:
                continue  # no session of it showed a frame
            point = 100 * one.rows["rebuffering_ratio"].mean(), one.rows[metric.name].mean()
            if not one.is_named:
                axis.plot(*point, ".", color=one.color, markersize=3, zorder=1)
                continue
            _add_ellipse(axis, draw_means(one.rows.assign(stalled=STALLED.of(one.rows)), ("stalled", metric.name)), one)
            axis.plot(*point, one.marker, color=one.color, markersize=4, label=one.label, zorder=3)
        groups = _legend_parts(axis, named, keys)
        axis.set(xlabel=STALLED.title, ylabel=metric.title)
        axis.margins(0.06)
        axis.autoscale_view()
        axis.set_xlim(left=max(axis.get_xlim()[0], -0.02 * axis.get_xlim()[1]))
        axis.invert_xaxis()  # up and to the right is better, as in Puffer's figures
        if not METRICS[metric.name].higher_is_better:
            axis.invert_yaxis()
        axis.set_title("better: up and to the right", loc="right", fontsize=6.5, color="0.3")
        if groups:
            grouped_legend(figure, groups)
        else:
            shared_legend(figure, np.array([axis]))
        grey = " Grey: all others." if len(named) < len(schemes) else ""
        paper.caption(figure, f"{conditions_text(table, keys)} Ellipses: 95 % of bootstrap means, by trace.{grey}")
    return figure


def _legend_parts(axis: Axes, schemes: Sequence[Scheme], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return a legend of colours and one of markers, where schemes are codecs times something; else nothing."""
    if len(by) != 2 or by[0] != "codec":
        return []
    colors = {one.label.split(", ")[0]: one.color for one in schemes}
    markers = {one.label.split(", ")[1]: (one.marker, one.line) for one in schemes}
    handles = {label: axis.plot([], [], "-", color=color, linewidth=4)[0] for label, color in colors.items()}
    others = {
        label: axis.plot([], [], marker=marker, linestyle=line, color="0.3")[0]
        for label, (marker, line) in markers.items()
    }
    return [handles, others]


def _add_ellipse(axis: Axes, draws: np.ndarray, scheme: Scheme) -> None:
    """Draw the region that holds 95 % of the means [draws, 2], were they normally distributed."""
    values, vectors = np.linalg.eigh(np.cov(draws.T))
    width, height = 2 * SPREAD * np.sqrt(np.maximum(values, 0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    centre = draws.mean(axis=0)
    axis.add_patch(
        Ellipse(
            (centre[0], centre[1]), width, height, angle=angle, facecolor=(*_rgb(scheme.color), 0.08),
            edgecolor=scheme.color, linestyle=scheme.line, linewidth=0.8, zorder=2,
        )
    )  # fmt: skip


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def distributions(
    table: pd.DataFrame, by: Sequence[str] = (), paper: Paper = ACM, columns: Sequence[Column] = ()
) -> Figure:
    """Draw the cumulative share of sessions: mean quality, rebuffering ratio and bitrate of each, or one of these."""
    shown = tuple(columns) or (quality_column(table), STALLED, BITRATE)
    keys = tuple(by) or default_by(table, pooled=True)
    schemes = schemes_of(table, keys)
    width_in = paper.width_in(min(len(shown), 2))
    across = len(shown) if width_in > 5 else 1
    with paper_style():
        figure, axes = plt.subplots(
            len(shown) // across, across, squeeze=False, sharey=True, layout="constrained",
            figsize=(width_in, 1.75 * (len(shown) // across) + 0.75 + 0.04 * len(schemes)),
        )  # fmt: skip
        for column, axis in zip(shown, axes.ravel(), strict=True):
            for one in schemes:
                values = column.of(one.rows).dropna()
                if len(values):
                    label = one.label if one.is_named else ""
                    width = 1.0 if one.is_named else 0.5
                    axis.ecdf(values, label=label, color=one.color, linestyle=one.line, linewidth=width)
            axis.set_xlabel(f"{column.title}, per session")
            axis.set_ylim(0, 1.01)
            if column is not shown[0] or column in (STALLED, BITRATE):
                axis.set_xlim(left=0)
        for row in axes:
            row[0].set_ylabel("Share of sessions")
        shared_legend(figure, axes)
        paper.caption(figure, conditions_text(table, keys))
    return figure


def severe(
    table: pd.DataFrame, by: Sequence[str] = (), paper: Paper = ACM, rule: tuple[str | None, float] | None = None
) -> Figure:
    """Draw the share of severely distorted frames by scheme and trace family, with intervals by trace."""
    if not table["severe_share"].notna().any():
        raise ExperimentError("no metric of this data set says which frames are severely distorted")
    keys = tuple(by) or default_by(table, pooled=True)
    schemes = [one for one in schemes_of(table, keys) if one.is_named]
    families = [*sorted(set(table["family"])), "all"] if table["family"].nunique() > 1 else sorted(set(table["family"]))
    bar = 0.8 / len(schemes)
    with paper_style():
        width_in = paper.width_in(1 if len(families) * len(schemes) <= 16 else 2)
        figure, axis = plt.subplots(figsize=(width_in, 2.5), layout="constrained")
        for number, one in enumerate(schemes):
            parts = [one.rows if name == "all" else one.rows[one.rows["family"] == name] for name in families]
            found = [interval(rows, SEVERE.name) for rows in parts]
            places = np.arange(len(families)) + (number - (len(schemes) - 1) / 2) * bar
            means = [SEVERE.scale * value.mean for value in found]
            axis.bar(
                places, means, 0.9 * bar, color=one.color, label=one.label, edgecolor="white", linewidth=0,
                hatch=_HATCHES[number % len(_HATCHES)],
            )  # fmt: skip
            _whiskers(axis.vlines, places, found, SEVERE.scale)
        axis.set_xticks(range(len(families)), [_family_label(table, name) for name in families])
        axis.set_ylim(0, 100 if axis.get_ylim()[1] > 85 else None)
        axis.grid(visible=False, axis="x")
        unit = f"\n({severity_rule(rule[0], rule[1])})" if rule and rule[0] else ""
        axis.set_ylabel(f"{SEVERE.title}{unit}")
        shared_legend(figure, np.array([axis]))
        counts = "Below each family: its traces."
        paper.caption(figure, f"{conditions_text(table, keys)} {counts} {INTERVAL_TEXT}")
    return figure


_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oooo")
"""Bars of one colour each; the hatch tells them apart in grey."""


def _whiskers(draw: Callable[..., Any], places: Any, found: Sequence[Any], scale: float) -> None:
    low, high = ([scale * getattr(value, end) for value in found] for end in ("low", "high"))
    draw(places, low, high, color="black", linewidth=0.8, zorder=3)


def _family_label(table: pd.DataFrame, name: str) -> str:
    rows = table if name == "all" else table[table["family"] == name]
    return f"{name}\n({rows['trace'].nunique()})"


def heat_map(table: pd.DataFrame, by: Sequence[str] = (), paper: Paper = ACM, column: str = "") -> Figure:
    """Draw the mean of a column by scheme (rows) and trace family (columns); brighter is better."""
    shown = column_named(table, column) if column else default_column(table)
    keys = tuple(by) or default_by(table)
    schemes = schemes_of(table, keys)
    families = sorted(set(table["family"]))
    means = np.array([_family_means(one.rows, shown, families) for one in schemes])
    upward = METRICS[shown.name].higher_is_better if shown.name in metrics_of(table) else shown not in (STALLED, SEVERE)
    if len(keys) == 1:  # best first; with several keys their own order keeps what belongs together together
        order = np.argsort(np.nanmean(means, axis=1) * (-1 if upward else 1), kind="stable")
        schemes, means = [schemes[place] for place in order], means[order]
    worst, best = np.nanquantile(means, [0.05, 1.0] if upward else [0.95, 0.0])  # the hopeless take not all colours
    low, high = sorted((worst, best))
    with paper_style():
        width_in = paper.width_in(1 if len(families) <= 5 else 2)
        narrow = width_in < 5 and len(families) > 4
        above = narrow or len(schemes) < 8  # the colour bar: where width counts, or where its title is taller than rows
        height_in = (1.3 if above else 0.95) + 0.17 * len(schemes)
        figure, axis = plt.subplots(figsize=(width_in, height_in), layout="constrained")
        image = axis.imshow(means, aspect="auto", cmap="viridis" if upward else "viridis_r", vmin=low, vmax=high)
        labels = [_family_label(table, name) for name in families]
        axis.set_xticks(range(len(families)), labels, fontsize=6 if narrow else None)
        axis.set_yticks(range(len(schemes)), [one.label for one in schemes], fontsize=6 if narrow else None)
        axis.grid(visible=False)
        for (row, position), value in np.ndenumerate(means):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                shade = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                axis.text(position, row, f"{value:.{shown.digits}f}", ha="center", va="center", fontsize=6, color=shade)
        place = {"location": "top", "shrink": 0.8, "pad": 0.02} if above else {"fraction": 0.05}
        if above and not narrow:
            place |= {"aspect": 60, "shrink": 0.6, "pad": 0.05}
        figure.colorbar(image, ax=axis, label=shown.title, **place)
        paper.caption(figure, f"{conditions_text(table, keys)} Means over sessions; below each family: its traces.")
    return figure


def default_column(table: pd.DataFrame) -> Column:
    """Return the QoE of one ladder; metrics where ladders differ, since each ladder has its own scale of QoE."""
    if table["package"].nunique() == 1 and table["qoe_quality"].notna().any():
        return column_named(table, "qoe_quality")
    return quality_column(table)


def _family_means(rows: pd.DataFrame, column: Column, families: Sequence[str]) -> list[float]:
    means = column.of(rows).groupby(rows["family"]).mean()
    return [float(means.get(name, np.nan)) for name in families]


def bars(table: pd.DataFrame, by: Sequence[str] = (), paper: Paper = ACM) -> Figure:
    """Draw each scheme's means as bars with intervals: quality, rebuffering, bitrate, severely distorted frames."""
    keys = tuple(by) or default_by(table)
    schemes = schemes_of(table, keys)
    shown = [quality_column(table), STALLED, BITRATE, *([SEVERE] if table["severe_share"].notna().any() else [])]
    places = np.arange(len(schemes))
    with paper_style():
        width_in = paper.width_in(2)
        across = len(shown) if width_in > 5 else 2
        down = -(-len(shown) // across)
        figure, axes = plt.subplots(
            down, across, sharey=True, squeeze=False, layout="constrained",
            figsize=(width_in, down * (0.5 + 0.17 * len(schemes)) + 0.5),
        )  # fmt: skip
        for column, axis in zip(shown, axes.ravel(), strict=False):
            found = [interval(one.rows, column.name) for one in schemes]
            axis.barh(
                places, [column.scale * value.mean for value in found], 0.72,
                color=[one.color for one in schemes], alpha=0.85,
            )  # fmt: skip
            _whiskers(axis.hlines, places, found, column.scale)
            title = column.title.removeprefix("Mean ").replace(" frames [%]", " [%]")  # a panel is narrow
            axis.set_title(title, loc="left", fontsize=7)
            axis.grid(visible=False, axis="y")
            axis.locator_params(axis="x", nbins=4)
        for axis in axes.ravel()[len(shown) :]:
            axis.set_visible(False)
        axes[0][0].set_yticks(places, [one.label for one in schemes])
        axes[0][0].invert_yaxis()
        paper.caption(figure, f"{conditions_text(table, keys)} {INTERVAL_TEXT}")
    return figure
