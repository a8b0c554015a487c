"""Every figure of a run or of several, drawn from what their folders hold and written as PDF and PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.overlays import distributions, rebuffering_against_quality, severe_distortion
from experiments.paper import save_figure
from experiments.results import RunResult
from experiments.series import headline_metric, series_of
from experiments.timeline import timeline

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
    ruled = all(one.result.summary["severe_metric"] is not None for one in series_of(runs))
    measured = headline_metric([one.result for one in series_of(runs)]) is not None
    paths = []
    for name in names:
        if name == "timeline":
            for run in runs:
                suffix = f"-{run.path.resolve().name}" if len(runs) > 1 else ""
                paths += save_figure(timeline(run), folder, f"timeline{suffix}")
        elif name == "cdf" or (measured and name != "severe_distortion") or (name == "severe_distortion" and ruled):
            paths += save_figure(FIGURES[name](runs), folder, name)
    return paths
