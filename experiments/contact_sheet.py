"""The contact sheet: the same moments of the clip as filmed and as each codec's session showed them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.paper import PAGE_IN, add_caption, paper_style


@dataclass(frozen=True)
class Picture:
    """One frame with what is written under it."""

    pixels: np.ndarray  # [H, W, 3] uint8
    caption: str = ""


@dataclass(frozen=True)
class SheetRow:
    """One source of frames: the original or a codec."""

    title: str
    pictures: Sequence[Picture]  # one per moment


def sheet_frames(total: int, count: int) -> list[int]:
    """Return ``count`` frame numbers spread evenly over ``total`` frames, away from both ends."""
    return [int(total * (2 * index + 1) / (2 * count)) for index in range(min(count, total))]


def contact_sheet(rows: Sequence[SheetRow], times_s: Sequence[float], conditions: str) -> Figure:
    """Draw rows of frames, one column per moment, at the pixels' own proportions."""
    import matplotlib.pyplot as plt

    height, width = rows[0].pictures[0].pixels.shape[:2]
    cell_in = (PAGE_IN - 0.35) / len(times_s)
    with paper_style():
        figure, axes = plt.subplots(
            len(rows), len(times_s), squeeze=False, layout="constrained",
            figsize=(PAGE_IN, len(rows) * (cell_in * height / width + 0.16) + 0.4),
        )  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.025, wspace=0, hspace=0)
        for row, line in zip(rows, axes, strict=True):
            for picture, axis in zip(row.pictures, line, strict=True):
                _show(axis, picture)
            line[0].set_ylabel(row.title, fontsize=7)
        for time_s, axis in zip(times_s, axes[0], strict=True):
            axis.set_title(f"{time_s:.1f} s", fontsize=7)
        add_caption(figure, conditions, PAGE_IN)
    return figure


def _show(axis: Any, picture: Picture) -> None:
    axis.imshow(picture.pixels, interpolation="lanczos")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel(picture.caption, fontsize=6, labelpad=2)
