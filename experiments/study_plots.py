"""Every figure of a study by its name, drawn from its data set; those of its packages where they are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import rd_figures, sweep_figures
from experiments.dataset import read_study
from experiments.errors import ExperimentError, UsageError
from experiments.ladders import find_packages, ladder_study, missing_text
from experiments.paper import ACM, Paper


@dataclass(frozen=True)
class StudyView:
    """The part of a study that is to be drawn, and how."""

    table: pd.DataFrame = field(repr=False)  # one row per session
    study: dict[str, Any] = field(repr=False)  # what study.json holds
    by: tuple[str, ...] = ()  # columns that tell schemes apart; (): as suits each figure
    column: str = ""  # of the heat map; "": as suits the study
    packages: tuple[Path, ...] = ()  # where to look for packages, besides where the study found them
    paper: Paper = ACM

    @property
    def rule(self) -> tuple[str | None, float]:
        """The metric and threshold of severe distortion."""
        metric, threshold = self.study["settings"].get("severe_rule") or (None, 0.0)
        return metric, float(threshold or 0.0)

    @cached_property
    def found_packages(self) -> dict[str, Path]:
        """The study's packages that are at hand, by name."""
        return find_packages(self.study, self.packages)


def open_view(path: Path, where: Sequence[str] = (), **options: Any) -> StudyView:
    """Read a study; keep the sessions that `where` chooses.

    Raises:
        ExperimentError: no study, or no session has ended yet.
        UsageError: `where` names no column, or no session is left.
    """
    from experiments import load

    table = load(path)
    if table.empty:
        raise ExperimentError(f"{path}: no session has ended yet")
    return StudyView(select(table, where), read_study(path), **options)


def select(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the sessions whose columns have one of the values given as COLUMN=VALUE,VALUE; UsageError if none."""
    for text in where:
        column, equals, values = text.partition("=")
        if not equals or column not in table:
            raise UsageError(f"--where {text}: expected COLUMN=VALUE,VALUE with a column among {', '.join(table)}")
        kept = table[table[column].astype(str).isin(values.split(","))]
        if kept.empty:
            found = ", ".join(sorted(set(table[column].astype(str)))[:20])
            raise UsageError(f"--where {text}: no session; {column} is one of {found}")
        table = kept
    return table


def ladders(view: StudyView) -> Figure:
    """Draw the rate-distortion curves of a study's packages; ExperimentError if none is at hand."""
    missing = missing_text(view.study, view.found_packages)
    if not view.found_packages:
        raise ExperimentError(f"{missing.removesuffix('.')}; name their folder by --packages")
    videos = dict(view.table.drop_duplicates("package")[["package", "video"]].itertuples(index=False))
    study = ladder_study({name: path for name, path in view.found_packages.items() if name in videos}, videos)
    if study.mean_points.empty:
        raise ExperimentError("no video was packaged in every codec, so there is no mean curve")
    clips = int(study.mean_points["clips"].max())
    text = f"Mean of {clips} video{'s' if clips > 1 else ''}, all frames measured; bitrates count every byte on disk."
    return rd_figures.curves(study, study.mean_points, f"{text} {missing}", view.paper)


FIGURES: dict[str, Callable[[StudyView], Figure]] = {
    "stall_quality": lambda view: sweep_figures.stall_quality(view.table, view.by, view.paper),
    "cdf": lambda view: sweep_figures.distributions(view.table, view.by, view.paper),
    "quality_cdf": lambda view: sweep_figures.distributions(
        view.table, view.by, view.paper, [sweep_figures.quality_column(view.table)]
    ),
    "rebuffering_cdf": lambda view: sweep_figures.distributions(
        view.table, view.by, view.paper, [sweep_figures.STALLED]
    ),
    "bitrate_cdf": lambda view: sweep_figures.distributions(view.table, view.by, view.paper, [sweep_figures.BITRATE]),
    "severe": lambda view: sweep_figures.severe(view.table, view.by, view.paper, view.rule),
    "heat_map": lambda view: sweep_figures.heat_map(view.table, view.by, view.paper, view.column),
    "bars": lambda view: sweep_figures.bars(view.table, view.by, view.paper),
    "rd": ladders,
}
"""Figures of a study; each raises ExperimentError where the data set, or what is at hand, does not hold it."""


def draw_all(view: StudyView, names: Sequence[str], *, wanted: bool) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw figures by name.

    Args:
        wanted: they were asked for by name; one that cannot be drawn then raises its ExperimentError.

    Returns:
        The figures, and of those that could not be drawn the reason.
    """
    drawn: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            drawn[name] = FIGURES[name](view)
        except ExperimentError as error:
            if wanted or isinstance(error, UsageError):
                raise
            missing[name] = str(error)
    return drawn, missing
