"""The project's paper style: widths, colours, legends and captions of figures, and how they become files."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files; a display is neither needed nor touched

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("paper.mplstyle")
COLUMN_IN = 3.33
"""Width of one column of a two-column paper, inches."""
PAGE_IN = 7.0
"""Width of the page of a two-column paper, inches."""
CODEC_COLORS = {
    "prompt": "#0072B2", "h265": "#D55E00", "av1": "#009E73", "h264": "#E69F00", "vp9": "#CC79A7", "vae": "#56B4E9",
}  # fmt: skip
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""

_LEGEND_CHARACTERS_PER_IN = 20
_CAPTION_CHARACTERS_PER_IN = 23.5


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


def shared_legend(figure: Figure, axes: np.ndarray) -> None:
    """Put one legend above all panels, each label once, in as many columns as the figure's width takes."""
    entries: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    longest = max((len(label) for label in entries), default=0) + 7  # the line and the gap count too
    fitting = int(figure.get_figwidth() * _LEGEND_CHARACTERS_PER_IN / longest)
    columns = max(1, min(fitting, len(entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns)


def add_caption(figure: Figure, text: str, width_in: float) -> None:
    """Write the conditions under the axes of a figure, wrapped to its width."""
    characters = int(width_in * _CAPTION_CHARACTERS_PER_IN)
    figure.supxlabel("\n".join(textwrap.wrap(text, characters)), fontsize=5.5, color="0.3")
