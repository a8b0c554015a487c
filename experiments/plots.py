"""Every figure of a run or of several, drawn from what their folders hold."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.overlays import distributions, rebuffering_against_quality, severe_distortion
from experiments.paper import ACM, Paper, save_figure
from experiments.results import RunResult
from experiments.series import headline_metric, series_of
from experiments.timeline import timeline

FIGURES: dict[str, Callable[[Sequence[RunResult], Paper], Figure]] = {
    "stall_quality": rebuffering_against_quality,
    "cdf": distributions,
    "severe": severe_distortion,
}
"""Figures that overlay any number of runs; the timeline is drawn for each run by itself."""

FIGURE_NAMES = ("timeline", *FIGURES)
"""Every figure of runs."""


def draw_figures(
    runs: Sequence[RunResult],
    folder: Path,
    *,
    names: Sequence[str] = FIGURE_NAMES,
    paper: Paper = ACM,
    formats: Sequence[str] = ("pdf", "png"),
) -> list[Path]:
    """Draw the named figures of ``runs`` into ``folder`` and return the files written.

    Figures of quality are left out where no metric was measured.
    """
    results = [one.result for one in series_of(runs)]
    left_out = set()
    if headline_metric(results) is None:
        left_out.add("stall_quality")
    if any(result.summary["severe_metric"] is None for result in results):
        left_out.add("severe")
    paths = []
    for name in names:
        if name == "timeline":
            for run in runs:
                suffix = f"-{run.path.resolve().name}" if len(runs) > 1 else ""
                paths += save_figure(timeline(run, paper), folder, f"timeline{suffix}", formats)
        elif name not in left_out:
            paths += save_figure(FIGURES[name](runs, paper), folder, name, formats)
    return paths
