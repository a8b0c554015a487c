"""The project's paper style: widths, colours, legends and captions of figures, and how they become files."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files; a display is neither needed nor touched

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STYLE = Path(__file__).with_name("paper.mplstyle")
COLUMN_IN = 3.33
"""Width of one column of a two-column paper, inches; ACM's and USENIX's."""
PAGE_IN = 7.0
"""Width of the page of a two-column paper, inches; ACM's and USENIX's."""
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""


class _Look(dict[str, Any]):
    """How each codec is drawn; codecs of other packages all look alike."""

    def __init__(self, others: Any, known: dict[str, Any]) -> None:
        super().__init__(known)
        self._others = others

    def __missing__(self, codec: str) -> Any:
        return self._others


CODEC_COLORS = _Look(
    "#000000",
    {
        "prompt": "#0072B2", "h265": "#D55E00", "av1": "#009E73",
        "h264": "#E69F00", "vp9": "#CC79A7", "vae": "#56B4E9",
    },
)  # fmt: skip
CODEC_LINES = _Look(
    (0, (6, 2)),
    {"prompt": "-", "h265": "--", "av1": "-.", "h264": ":", "vp9": (0, (5, 1, 1, 1, 1, 1)), "vae": (0, (1, 1))},
)
CODEC_MARKERS = _Look("X", {"prompt": "o", "h265": "s", "av1": "^", "h264": "D", "vp9": "v", "vae": "P"})
"""Lines and markers tell codecs apart where a figure is printed in grey."""

_LEGEND_CHARACTERS_PER_IN = 20
_CAPTION_CHARACTERS_PER_IN = 21.5
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None, "Creator": None}
}  # fmt: skip
FORMATS = tuple(_METADATA)


@dataclass(frozen=True)
class Paper:
    """What a paper's template leaves a figure: how wide it may be, and whether the conditions stand under it."""

    column_in: float = COLUMN_IN
    page_in: float = PAGE_IN
    columns: int | None = None
    """Columns that every figure takes, 1 or 2; None: as many as suit it."""
    conditions: bool = True
    """Whether a line under every figure says under which conditions the numbers arose."""

    def width_in(self, columns: int) -> float:
        """Return the width of a figure, inches, that suits 1 or 2 columns."""
        return self.column_in if (self.columns or columns) == 1 else self.page_in

    def caption(self, figure: Figure, text: str) -> None:
        """Write the conditions under a figure, if they are wanted there."""
        if self.conditions:
            add_caption(figure, text, figure.get_figwidth())


PAPERS = {"acm": Paper(), "ieee": Paper(3.5, 7.16), "usenix": Paper()}
"""Template -> widths: acmart `sigconf`, IEEEtran for conferences and transactions, USENIX's two-column template."""
ACM = PAPERS["acm"]


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw in the project's paper style inside the block."""
    with plt.style.context(STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write ``figure`` in each of the formats, without the time of day, so that equal figures are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with paper_style():  # font embedding is decided while writing
        for suffix in formats:
            paths.append(folder / f"{name}.{suffix}")
            figure.savefig(paths[-1], metadata=_METADATA[suffix])
    plt.close(figure)
    return paths


def shared_legend(figure: Figure, axes: np.ndarray) -> None:
    """Put one legend above all panels, each label once, in as many columns as the figure's width takes."""
    entries: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(1, min(_fitting_columns(figure, entries), len(entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns)


def grouped_legend(figure: Figure, groups: Sequence[dict[str, Any]]) -> None:
    """Put one legend of several groups, each label -> handle, above a figure; every group has columns of its own."""
    fitting = _fitting_columns(figure, [label for group in groups for label in group])
    rows = 1  # as few as keep the groups within the width; columns are filled from above
    while rows < max(map(len, groups)) and sum(-(-len(group) // rows) for group in groups) > fitting:
        rows += 1
    handles: list[Any] = []
    labels: list[str] = []
    for group in groups:
        blank = -len(group) % rows
        handles += [*group.values(), *(Line2D([], [], linestyle="") for _ in range(blank))]
        labels += [*group, *[""] * blank]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels) // rows)


def _fitting_columns(figure: Figure, labels: Iterable[str]) -> int:
    longest = max((len(label) for label in labels), default=0) + 7  # the line and the gap count too
    return int(figure.get_figwidth() * _LEGEND_CHARACTERS_PER_IN / longest)


def add_caption(figure: Figure, text: str, width_in: float) -> None:
    """Write the conditions under the axes of a figure, wrapped to its width."""
    characters = int(width_in * _CAPTION_CHARACTERS_PER_IN)
    figure.supxlabel("\n".join(textwrap.wrap(text, characters)), fontsize=6, color="0.3")
