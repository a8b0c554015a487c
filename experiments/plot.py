"""``python -m experiments.plot PATH...``: draw figures of runs, of a study, or of a rate-distortion study from files.

PATH is a run folder or several, which are overlaid; or what experiments.sweep or experiments.rate_distortion wrote.
docs/figures.md shows every figure.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import ExperimentError, UsageError

if TYPE_CHECKING:
    from experiments.paper import Paper

ALL = "all"
RUN_FIGURES = ("timeline", "stall_quality", "cdf", "severe")
STUDY_FIGURES = (
    "stall_quality", "cdf", "quality_cdf", "rebuffering_cdf", "bitrate_cdf", "severe", "heat_map", "bars", "rd",
)  # fmt: skip
RD_FIGURES = ("rd", "severe")
STYLES = ("acm", "ieee", "usenix")
FORMATS = ("pdf", "png", "svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        paths = _draw(options)
    except (ExperimentError, OSError) as error:
        print(f"experiments.plot: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    for path in paths:
        print(path)
    return 0


def _draw(options: argparse.Namespace) -> list[Path]:
    """Draw what a parsed command line asks for; return the files written."""
    from dataclasses import replace

    from experiments.paper import PAPERS  # slow to import: after --help and the parser's own errors

    unknown = [part for part in options.format.split(",") if part not in FORMATS]
    if unknown:
        raise UsageError(f"--format {options.format}: expected some of {', '.join(FORMATS)}, comma-separated")
    paper = replace(PAPERS[options.style], columns=options.columns, conditions=options.conditions)
    kinds = [_kind(Path(text)) for text in options.paths]
    if set(kinds) == {"run"}:
        return _draw_runs(options, paper)
    if len(kinds) > 1:
        raise UsageError(f"{' '.join(options.paths)}: runs can be overlaid, but only one study is drawn at a time")
    return _draw_study(options, paper) if kinds == ["study"] else _draw_rate_distortion(options, paper)


def _kind(path: Path) -> str:
    if (path / "study.json").is_file():
        return "study"
    return "rate-distortion" if (path / "mean_points.parquet").is_file() else "run"


def _names(options: argparse.Namespace, known: Sequence[str], what: str) -> list[str]:
    """Return the figures to draw; UsageError for one that `what` does not have."""
    wanted = [name for name in options.figure if name != ALL]
    if "timeline" in wanted and "timeline" not in known:
        raise UsageError(f"--figure timeline: {what} does not keep the course of a session; experiments.run does")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"--figure {unknown[0]}: {what} has {', '.join(known)}")
    return wanted or list(known)


def _only_for_studies(options: argparse.Namespace) -> None:
    given = [f"--{name}" for name in ("by", "where", "column", "packages") if getattr(options, name)]
    if given:
        raise UsageError(f"{', '.join(given)}: only for the output of experiments.sweep")


def _draw_runs(options: argparse.Namespace, paper: "Paper") -> list[Path]:
    _only_for_studies(options)
    names = _names(options, RUN_FIGURES, "a run")
    from experiments.plots import draw_figures
    from experiments.results import load_run

    runs = [load_run(folder) for path in options.paths for folder in _run_folders(Path(path))]
    if not runs:
        raise ExperimentError(f"{' '.join(options.paths)}: no run folder")
    folder = options.output or (runs[0].path / "figures" if len(runs) == 1 else Path("figures"))
    return draw_figures(runs, folder, names=names, paper=paper, formats=options.format.split(","))


def _draw_study(options: argparse.Namespace, paper: "Paper") -> list[Path]:
    names = _names(options, STUDY_FIGURES, "a study")
    from experiments.paper import save_figure
    from experiments.study_plots import draw_all, open_view

    path = Path(options.paths[0])
    by = tuple(part for part in options.by.split(",") if part)
    view = open_view(
        path, options.where, by=by, column=options.column, packages=tuple(options.packages), paper=paper
    )  # fmt: skip
    drawn, missing = draw_all(view, names, wanted=names != list(STUDY_FIGURES))
    for name, reason in missing.items():
        print(f"experiments.plot: {name} is left out: {reason}", file=sys.stderr)
    folder = options.output or path / "figures"
    formats = options.format.split(",")
    return [written for name, figure in drawn.items() for written in save_figure(figure, folder, name, formats)]


def _draw_rate_distortion(options: argparse.Namespace, paper: "Paper") -> list[Path]:
    _only_for_studies(options)
    names = _names(options, RD_FIGURES, "a rate-distortion study")
    from experiments import rd_figures
    from experiments.paper import save_figure
    from experiments.rd_study import load_study

    path = Path(options.paths[0])
    study, text = load_study(path)
    draw = {"rd": rd_figures.curves, "severe": rd_figures.severe_distortion}
    drawn = {name: draw[name](study, study.mean_points, text, paper) for name in names}
    folder, formats = options.output or path / "figures", options.format.split(",")
    return [
        written for name, figure in drawn.items() if figure for written in save_figure(figure, folder, name, formats)
    ]


def _run_folders(path: Path) -> list[Path]:
    """Return the run folder itself, or the runs of a sweep's folder; nothing for the file that Hydra adds to those."""
    if path.name == "multirun.yaml":
        return []
    inside = sorted(path.glob("*/config.yaml"), key=lambda found: _natural(found.parent.name))
    return [found.parent for found in inside] if inside and not (path / "config.yaml").exists() else [path]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (ALL, *dict.fromkeys((*RUN_FIGURES, *STUDY_FIGURES)))
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="run folders, such as outputs/2026-01-31_12-00-00-lte, or one study")
    add("-o", "--output", type=Path, metavar="DIR", help="default: PATH/figures, for several runs ./figures")
    add(
        "--figure", action="append", default=[], choices=names, metavar="NAME",
        help=f"draw only this one (may be given several times); of runs: {', '.join(RUN_FIGURES)}; of a study: "
        f"{', '.join(STUDY_FIGURES)}; of a rate-distortion study: {', '.join(RD_FIGURES)}; default: all",
    )  # fmt: skip
    add("--style", choices=STYLES, default="acm", help="whose column widths (default: %(default)s)")
    add("--columns", type=int, choices=(1, 2), help="make every figure one or two columns wide")
    add("--format", default="pdf,png", metavar="LIST", help=f"some of {','.join(FORMATS)} (default: %(default)s)")
    add("--no-conditions", dest="conditions", action="store_false", help="leave out the small print under each figure")
    study = parser.add_argument_group("studies only")
    study.add_argument("--by", default="", metavar="COLUMNS", help="what tells schemes apart, such as codec,abr")
    study.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUES",
        help="draw these sessions only, such as abr=bola,bba (may be given several times)",
    )  # fmt: skip
    study.add_argument("--column", default="", help="column of the heat map (default: the quality metric, or QoE)")
    study.add_argument(
        "--packages", action="append", type=Path, default=[], metavar="DIR",
        help="where the study's packages are now, for rd",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
