"""``python -m experiments.sweep_report DATASET``: a study's tables, with intervals, and its figures.

Prints, for each codec, a table of all controllers, one of their QoE by trace family, and each controller compared with
`--against` under equal conditions; with several codecs, prompts against the others beside the published numbers.
Figures go to DATASET/figures as PDF and PNG. A page of all this: experiments.report.
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

    from experiments.text_tables import Table

QOE = "qoe_quality"
FALLBACK = "qoe_lin"
"""Where no metric that controllers plan with was measured, such as PSNR alone."""
ORACLES = {"qoe_lin": "oracle", "qoe_quality": "oracle:utility=quality"}
"""QoE column -> the controller that plans it knowing the future."""
OTHERS = (
    ("rebuffering_ratio", "stalled %", 100.0, 2),
    ("startup_delay_s", "startup s", 1.0, 2),
    ("switches", "switches", 1.0, 1),
    ("media_bps", "kbit/s", 1e-3, 1),
    ("severe_share", "severe %", 100.0, 1),
)


def controller_table(table: pd.DataFrame, qoe: str = QOE) -> Table:
    """Return a table of one codec's controllers, best QoE first: means over sessions, QoE's interval."""
    from experiments.schemes import metrics_of
    from experiments.series import METRICS
    from experiments.statistics import compare, conditions, interval
    from experiments.text_tables import Table, number, span

    same = [*conditions(table), "package"]
    metrics = metrics_of(table)
    oracle = table[table["abr"] == ORACLES[qoe]]
    titles = [qoe, "95 % interval", "to oracle", *(METRICS[name].title for name in metrics)]
    result = Table(["controller", *titles, *(title for _, title, _, _ in OTHERS), "sessions"])
    found = {name: interval(rows, qoe) for name, rows in table.groupby("abr")}
    for name in sorted(found, key=lambda one: -found[one].mean):
        rows, one = table[table["abr"] == name], found[name]
        gap = f"{compare(oracle, rows, qoe, on=same).difference.mean:.3f}" if len(oracle) else "-"
        cells = [f"`{name}`", number(one.mean), span(one), gap]
        cells += [number(rows[metric].mean(), METRICS[metric].digits) for metric in metrics]
        cells += [number(rows[column].mean(), digits, scale=scale) for column, _, scale, digits in OTHERS]
        result.rows.append([*cells, str(one.sessions)])
    return result


def scheme_table(table: pd.DataFrame) -> Table:
    """Return a table of every codec with every controller: means over sessions, two of them with intervals."""
    from experiments.schemes import metrics_of, schemes_of, videos_of
    from experiments.series import METRICS
    from experiments.statistics import interval
    from experiments.text_tables import Table, number, percent, span

    metrics = metrics_of(table)
    titles = [title for metric in metrics[:1] for title in (METRICS[metric].title, "95 % interval")]
    titles += [METRICS[metric].title for metric in metrics[1:]]
    result = Table(
        ["scheme", *titles, "stalled", "95 % interval", "severely distorted", "startup s", "switches", "kbit/s",
         "sessions", "traces", "videos"]
    )  # fmt: skip
    for one in schemes_of(table, ("codec", "abr")):
        rows = one.rows
        quality = []
        for metric in metrics:
            found = interval(rows, metric)
            quality.append(number(found.mean, METRICS[metric].digits))
            if metric == metrics[0]:
                quality.append(span(found, METRICS[metric].digits))
        stalled = interval(rows, "rebuffering_ratio")
        result.rows.append([
            one.label, *quality, percent(stalled.mean), span(stalled, 1, scale=100, unit=" %"),
            percent(rows["severe_share"].mean()), number(rows["startup_delay_s"].mean(), 2),
            number(rows["switches"].mean(), 1), number(rows["media_bps"].mean(), 1, scale=1e-3), str(len(rows)),
            str(rows["trace"].nunique()), str(videos_of(rows)),
        ])  # fmt: skip
    return result


def family_table(table: pd.DataFrame, column: str = QOE) -> Table:
    """Return a table of a column's mean for each controller and trace family, and the number of traces."""
    from experiments.text_tables import Table, number

    means = table.pivot_table(index="abr", columns="family", values=column, aggfunc="mean")
    traces = table.groupby("family")["trace"].nunique()
    result = Table(["controller", *(f"{family} ({traces[family]})" for family in means.columns)])
    for name in means.mean(axis=1).sort_values(ascending=False).index:
        result.rows.append([f"`{name}`", *(number(value) for value in means.loc[name])])
    return result


def comparison_table(table: pd.DataFrame, against: str, column: str = QOE) -> Table:
    """Return a table of every controller against `against` under equal conditions; UsageError if that is absent."""
    from experiments.statistics import compare, conditions
    from experiments.text_tables import Table, number, span

    base = table[table["abr"] == against]
    if base.empty:
        raise UsageError(f"--against {against}: not in the study, which has {', '.join(sorted(set(table['abr'])))}")
    result = Table(["controller", f"minus `{against}`", "95 % interval", "effect d", "higher in %", "pairs", "note"])
    for name in sorted(set(table["abr"]) - {against}):
        found = compare(table[table["abr"] == name], base, column, on=[*conditions(table), "package"])
        gain = found.difference
        note = "" if found.is_clear else "not told apart"
        if found.is_clear and found.overlap:
            note = "intervals overlap; by pairs only"
        cells = [f"`{name}`", number(gain.mean, sign=True), span(gain, sign=True)]
        cells += [number(found.effect_size, 2, sign=True), f"{100 * found.higher_share:.0f}", str(gain.sessions), note]
        result.rows.append(cells)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _report(options)
    except (ExperimentError, OSError) as error:
        print(f"experiments.sweep_report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _report(options: argparse.Namespace) -> None:
    from experiments.paper_evaluation import evaluation_text, rivals
    from experiments.schemes import conditions_text
    from experiments.study_plots import FIGURES, draw_all, open_view

    view = open_view(options.dataset)
    qoe = _qoe_of(view.table, options.qoe)
    for codec, rows in view.table.groupby("codec"):
        print(f"## {codec}: {conditions_text(rows, ('codec', 'abr'))}\n")
        print(f"{controller_table(rows, qoe).markdown()}\n")
        print(f"{family_table(rows, qoe).markdown()}\n")
        if options.against:
            print(f"{comparison_table(rows, options.against, qoe).markdown()}\n")
    if rivals(view.table):
        try:
            print(f"{evaluation_text(view.table)}\n")
        except ExperimentError as error:  # such as two packages of one video in one codec; the rest is good
            print(f"experiments.sweep_report: prompts and other codecs are not compared: {error}", file=sys.stderr)
    if options.figures:
        from experiments.paper import save_figure

        drawn, missing = draw_all(view, list(FIGURES), wanted=False)
        for name, reason in missing.items():
            print(f"experiments.sweep_report: {name} is left out: {reason}", file=sys.stderr)
        for name, figure in drawn.items():
            for path in save_figure(figure, options.output or options.dataset / "figures", name):
                print(path)


def _qoe_of(table: pd.DataFrame, wanted: str | None) -> str:
    """Return the column of QoE to report: the one asked for, else by quality, else by bitrate, which it then says.

    Raises:
        UsageError: a codec has no value of the QoE asked for.
        ExperimentError: a codec has no QoE at all, since none of its sessions showed a frame.
    """
    from player.programme import PLANNED_METRICS

    def lacking(column: str) -> str:
        return ", ".join(codec for codec, rows in table.groupby("codec") if rows[column].isna().all())

    without = lacking(FALLBACK)
    if without:
        raise ExperimentError(f"no session of {without} showed a frame: there is no QoE to report")
    without = lacking(wanted or QOE)
    if not without:
        return wanted or QOE
    reason = f"none for {without}, whose packages have none of {', '.join(PLANNED_METRICS)}"
    if wanted:
        raise UsageError(f"--qoe {wanted}: {reason}; take --qoe {FALLBACK}, or package with such a metric")
    print(f"experiments.sweep_report: {QOE}: {reason}; reporting {FALLBACK}", file=sys.stderr)
    return FALLBACK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep_report", description=__doc__)
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="the output folder of experiments.sweep")
    parser.add_argument("--qoe", choices=tuple(ORACLES), help=f"which QoE (default: {QOE}, or {FALLBACK} without it)")
    parser.add_argument("--against", metavar="ABR", help="compare every controller with this one")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="print the tables only")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where figures go (default: DATASET/figures)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
