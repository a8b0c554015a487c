"""``python -m experiments.sweep_report DATASET``: a study's tables and figures, with intervals.

Prints, for each codec, a table of all controllers, one of their QoE by trace family, and each controller compared with
`--against` on equal links. Figures go to DATASET/figures as PDF and PNG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import ExperimentError, UsageError

if TYPE_CHECKING:
    import pandas as pd

QOE = "qoe_quality"
ORACLES = {"qoe_lin": "oracle", "qoe_quality": "oracle:utility=quality"}
"""QoE column -> the controller that plans it knowing the future."""
OTHERS = (
    ("rebuffering_ratio", "stalled %", 100.0, 2),
    ("switches", "switches", 1.0, 1),
    ("media_bps", "kbit/s", 1e-3, 1),
    ("severe_share", "severe %", 100.0, 1),
)


def controller_table(table: pd.DataFrame, qoe: str = QOE) -> str:
    """Return a Markdown table of one codec's controllers, best QoE first: means over sessions, QoE's interval."""
    from experiments.series import METRICS
    from experiments.statistics import compare, interval

    metrics = [name for name in METRICS if name in table and table[name].notna().any()]
    oracle = table[table["abr"] == ORACLES[qoe]]
    titles = [f"`{qoe}`", "95 % interval", "to oracle", *(METRICS[name].title for name in metrics)]
    lines = _head(["controller", *titles, *(title for _, title, _, _ in OTHERS), "sessions"])
    found = {name: interval(rows, qoe) for name, rows in table.groupby("abr")}
    for name in sorted(found, key=lambda one: -found[one].mean):
        rows, one = table[table["abr"] == name], found[name]
        gap = f"{compare(oracle, rows, qoe).difference.mean:.3f}" if len(oracle) else "-"
        cells = [f"`{name}`", f"{one.mean:.3f}", f"{one.low:.3f} to {one.high:.3f}", gap]
        cells += [f"{rows[metric].mean():.{METRICS[metric].digits}f}" for metric in metrics]
        cells += [f"{scale * rows[column].mean():.{digits}f}" for column, _, scale, digits in OTHERS]
        lines.append(_row([*cells, str(one.sessions)]))
    return "\n".join(lines)


def family_table(table: pd.DataFrame, column: str = QOE) -> str:
    """Return a Markdown table of a column's mean for each controller and trace family, and the number of traces."""
    means = table.pivot_table(index="abr", columns="family", values=column, aggfunc="mean")
    traces = table.groupby("family")["trace"].nunique()
    lines = _head(["controller", *(f"{family} ({traces[family]})" for family in means.columns)])
    for name in means.mean(axis=1).sort_values(ascending=False).index:
        lines.append(_row([f"`{name}`", *(f"{value:.3f}" for value in means.loc[name])]))
    return "\n".join(lines)


def comparison_table(table: pd.DataFrame, against: str, column: str = QOE) -> str:
    """Return a Markdown table of every controller against `against` on equal links; UsageError if that is absent."""
    from experiments.statistics import compare

    base = table[table["abr"] == against]
    if base.empty:
        raise UsageError(f"--against {against}: not in the study, which has {', '.join(sorted(set(table['abr'])))}")
    lines = _head(["controller", f"minus `{against}`", "95 % interval", "effect d", "ahead %", "pairs", ""])
    for name in sorted(set(table["abr"]) - {against}):
        found = compare(table[table["abr"] == name], base, column)
        gain = found.difference
        note = "" if found.is_clear else "not told apart"
        if found.is_clear and found.overlap:
            note = "intervals overlap; by pairs only"
        span = f"{gain.low:+.3f} to {gain.high:+.3f}"
        share = f"{100 * found.higher_share:.0f}"
        cells = [f"`{name}`", f"{gain.mean:+.3f}", span, f"{found.effect_size:+.2f}", share, str(gain.sessions), note]
        lines.append(_row(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    from experiments import load

    try:
        table = load(options.dataset)
        if table.empty:
            raise ExperimentError(f"{options.dataset}: no session has ended yet")
        for (codec, package), rows in table.groupby(["codec", "package"]):
            count = f"{len(rows)} sessions, {rows['trace'].nunique()} traces of {rows['family'].nunique()} families"
            print(f"## {codec}, {package}: {count}\n\n{controller_table(rows, options.qoe)}\n")
            print(f"{family_table(rows, options.qoe)}\n")
            if options.against:
                print(f"{comparison_table(rows, options.against, options.qoe)}\n")
        if options.figures:
            from experiments.sweep_figures import draw_study

            for path in draw_study(table, options.output or options.dataset / "figures", qoe=options.qoe):
                print(path)
    except (ExperimentError, OSError) as error:
        print(f"experiments.sweep_report: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---|" + "---:|" * (len(cells) - 1)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep_report", description=__doc__)
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="the output folder of experiments.sweep")
    parser.add_argument("--qoe", choices=tuple(ORACLES), default=QOE, help="which QoE (default: %(default)s)")
    parser.add_argument("--against", metavar="ABR", help="compare every controller with this one")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="print the tables only")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where figures go (default: DATASET/figures)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
