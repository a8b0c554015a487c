"""``python -m experiments.plot RUN...``: draw the figures of a run again, or overlay runs, from their files."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import ExperimentError

FIGURE_NAMES = ("timeline", "rebuffering_vs_quality", "cdf", "severe_distortion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    from experiments.plots import draw_figures  # slow to import: after --help and the parser's own errors
    from experiments.results import load_run

    try:
        runs = [load_run(folder) for path in options.runs for folder in _run_folders(Path(path))]
        if not runs:
            raise ExperimentError(f"{' '.join(options.runs)}: no run folder")
        folder = options.output or (runs[0].path / "figures" if len(runs) == 1 else Path("figures"))
        paths = draw_figures(runs, folder, names=options.figure or FIGURE_NAMES)
    except (ExperimentError, OSError) as error:
        print(f"experiments.plot: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


def _run_folders(path: Path) -> list[Path]:
    """Return the run folder itself, or the runs of a sweep's folder; nothing for the file that Hydra adds to those."""
    if path.name == "multirun.yaml":
        return []
    inside = sorted(path.glob("*/config.yaml"), key=lambda found: _natural(found.parent.name))
    return [found.parent for found in inside] if inside and not (path / "config.yaml").exists() else [path]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.plot", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run or sweep folders, such as outputs/2026-01-31_12-00-00-lte"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="where the figures go (default: RUN/figures for one run, ./figures for several)",
    )  # fmt: skip
    parser.add_argument(
        "--figure", action="append", choices=FIGURE_NAMES, metavar="NAME",
        help=f"draw only this one (may be given several times): {', '.join(FIGURE_NAMES)}",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
