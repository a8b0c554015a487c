"""A study's figures: QoE by controller and trace family as a heat map, and stalls against quality with ellipses."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from experiments.paper import COLUMN_IN, PAGE_IN, SERIES_COLORS, add_caption, paper_style, save_figure
from experiments.series import HEADLINE_METRICS, METRICS
from experiments.statistics import draw_means

SPREAD = 2.4477
"""Mahalanobis distance that holds 95 % of a normal distribution in two dimensions."""
SHOWN = ("bola", "bba", "throughput", "mpc", "quality_mpc", "pensieve", "dynamic", "oracle:utility=quality")
"""Controllers with ellipses and names; all others are grey points."""


def draw_study(table: pd.DataFrame, folder: Path, *, qoe: str = "qoe_quality") -> list[Path]:
    """Draw both figures for every package of a study; return the files."""
    paths = []
    for package, rows in table.groupby("package"):
        codec = rows["codec"].iloc[0]
        suffix = codec if table.groupby("codec")["package"].nunique().max() == 1 else package
        paths += save_figure(heat_map(rows, qoe), folder, f"heat_map_{suffix}")
        paths += save_figure(stall_quality(rows), folder, f"stall_quality_{suffix}")
    return paths


def heat_map(table: pd.DataFrame, column: str) -> Figure:
    """Return the mean of a column by controller (rows, best first) and trace family (columns)."""
    means = table.pivot_table(index="abr", columns="family", values=column, aggfunc="mean")
    means = means.loc[means.mean(axis=1).sort_values(ascending=False).index]
    low, high = np.nanquantile(means.to_numpy(), [0.05, 1.0])  # one hopeless scheme must not take all the colours
    with paper_style():
        height_in = 0.9 + 0.15 * len(means)
        figure, axis = plt.subplots(figsize=(COLUMN_IN * 1.35, height_in), layout="constrained")
        image = axis.imshow(means, aspect="auto", cmap="viridis", vmin=low, vmax=high)
        axis.set_xticks(range(means.shape[1]), list(means.columns))
        axis.set_yticks(range(len(means)), list(means.index))
        axis.grid(visible=False)
        for (row, position), value in np.ndenumerate(means.to_numpy()):
            shade = "white" if value < (low + high) / 2 else "black"
            axis.text(position, row, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=shade)
        figure.colorbar(image, ax=axis, label=f"{column}, mean over sessions", fraction=0.05)
        add_caption(figure, _conditions(table), COLUMN_IN * 1.35)
    return figure


def stall_quality(table: pd.DataFrame) -> Figure:
    """Return rebuffering ratio against quality, a point for each controller, ellipses of the means' 95 % region."""
    metric = next(name for name in HEADLINE_METRICS if name in table and table[name].notna().any())
    with paper_style():
        figure, axis = plt.subplots(figsize=(PAGE_IN * 0.62, 3.0), layout="constrained")
        colors = dict(zip(SHOWN, [*SERIES_COLORS, "0.45"], strict=True))
        for name, rows in table.groupby("abr"):
            draws = draw_means(rows.assign(stalled=100 * rows["rebuffering_ratio"]), ("stalled", metric))
            x, y = 100 * rows["rebuffering_ratio"].mean(), rows[metric].mean()
            if name not in colors:
                axis.plot(x, y, ".", color="0.75", markersize=3)
                continue
            _add_ellipse(axis, draws, colors[name])
            axis.plot(x, y, "o", color=colors[name], markersize=3, label=name)
        axis.set(xlabel="Rebuffering ratio [%]", ylabel=METRICS[metric].title)
        axis.invert_xaxis()  # up and to the right is better, as in Puffer's figures
        if not METRICS[metric].higher_is_better:
            axis.invert_yaxis()
        figure.legend(loc="outside right upper")
        add_caption(figure, _conditions(table) + "; grey: all other controllers", PAGE_IN * 0.62)
    return figure


def _add_ellipse(axis: Axes, draws: np.ndarray, color: str) -> None:
    values, vectors = np.linalg.eigh(np.cov(draws.T))
    width, height = 2 * SPREAD * np.sqrt(np.maximum(values, 0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    centre = draws.mean(axis=0)
    axis.add_patch(Ellipse((centre[0], centre[1]), width, height, angle=angle, fill=False, color=color, linewidth=0.8))


def _conditions(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    return (
        f"{first['codec']}, {table['trace'].nunique()} traces of {table['family'].nunique()} families, {len(table)} "
        f"sessions of {first['session_s']:g} s, buffer {first['buffer_s']:g} s, delay {first['delay_ms']:g} ms one way"
    )
