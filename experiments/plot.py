"""``python -m experiments.plot RUN...``: draw the figures of a run again, or overlay runs, from their files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import ExperimentError

_FIGURE_NAMES = ("timeline", "rebuffering_vs_quality", "cdf", "severe_distortion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    from experiments.plots import draw_figures  # slow to import: after --help and the parser's own errors
    from experiments.results import load_run

    try:
        runs = [load_run(path) for path in options.runs]
        folder = options.output or (runs[0].path / "figures" if len(runs) == 1 else Path("figures"))
        paths = draw_figures(runs, folder, names=options.figure or _FIGURE_NAMES)
    except (ExperimentError, OSError) as error:
        print(f"experiments.plot: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, such as outputs/2026-01-31_12-00-00-lte")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="where the figures go (default: RUN/figures for one run, ./figures for several)",
    )  # fmt: skip
    parser.add_argument(
        "--figure", action="append", choices=_FIGURE_NAMES, metavar="NAME",
        help=f"draw only this one (may be given several times): {', '.join(_FIGURE_NAMES)}",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
