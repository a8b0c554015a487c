"""``python -m experiments.report DATASET -o report.html``: a study as one page that opens without a network.

Tables with intervals, every figure, example frames of the packages at hand, failures, and how it was run. The page
holds all it shows: no scripts, nothing fetched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from experiments.study_plots import StudyView
    from experiments.text_tables import Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")
CAPTIONS = {
    "stall_quality": (
        "Rebuffering and quality",
        "Each mark is a scheme's mean over its sessions; the ellipse holds 95 % of the bootstrap means by trace.",
    ),
    "cdf": (
        "Distributions",
        "Share of sessions at or below a value: mean quality, rebuffering ratio, bitrate of each.",
    ),
    "severe": (
        "Severely distorted frames",
        "Share of the frames shown, by trace family; lines are 95 % intervals, bootstrap by trace.",
    ),
    "heat_map": ("Schemes and trace families", "Means over sessions; brighter is better."),
    "bars": ("Means with intervals", "Lines are 95 % intervals, bootstrap by trace."),
    "rd": ("Rate and distortion", "The ladders that were streamed: mean over the videos that every codec has."),
}
"""Figure -> title and text. The single distributions are panels of `cdf`."""
DEFAULT_AGAINST = "bola"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        page = make_page(options)
        from player.files import write_bytes

        write_bytes(options.output, page.encode("utf-8"))
    except (ExperimentError, OSError) as error:
        print(f"experiments.report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def make_page(options: argparse.Namespace) -> str:
    """Return the page for a parsed command line."""
    from experiments.paper import Paper
    from experiments.study_plots import open_view

    # One column wide: the letters of a wider figure could not be read on a phone.
    paper = Paper(columns=1, conditions=False)
    view = open_view(options.dataset, options.where, packages=tuple(options.packages), paper=paper)
    return render(
        {
            "title": options.title or f"Study “{options.dataset.resolve().name}”",
            "where": options.where,
            **_results(view, options.against),
            **_pictures(view),
            **_frames(view, options.videos, options.frames),
            **_origin(view, options.dataset),
        }
    )


def render(context: dict[str, Any]) -> str:
    """Fill the template; every text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["plain"] = lambda cell: cell.replace("`", "")
    environment.tests["number"] = _is_number
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context)


def _is_number(cell: str) -> bool:
    """Say whether a cell is a number, with its unit or interval, and belongs to the right."""
    return cell == "-" or cell.lstrip("+-")[:1].isdigit()


# ---- parts of the page ----------------------------------------------------------------------------------------------


def _results(view: StudyView, against: str) -> dict[str, Any]:
    """Return the tables."""
    from experiments.schemes import conditions_text
    from experiments.series import severity_rule
    from experiments.sweep_report import scheme_table

    table = view.table
    metric, threshold = view.rule
    reasons = []
    try:
        evaluation = _evaluation(table)
    except ExperimentError as error:  # such as two packages of one video in one codec; the rest is good
        evaluation = None
        reasons.append(f"Prompts and other codecs are not compared: {error}.")
    anchor = _anchor(table, against)
    comparisons = _comparisons(table, anchor) if anchor else []
    rule = f"Severely distorted: frames with {severity_rule(metric, threshold)}." if metric else ""
    contents = [
        ("summary", "In short"), ("schemes", "Schemes"),
        *([("evaluation", "Prompts against other codecs")] if evaluation else []),
        *([("controllers", "Controllers")] if comparisons else []), ("families", "Trace families"),
        ("figures", "Figures"), ("frames", "Example frames"), ("failures", "Failures"),
        ("provenance", "How it was run"),
    ]  # fmt: skip
    return {
        "contents": contents,
        "subtitle": conditions_text(table, ("codec", "abr")),
        "summary": [*_summary(table, evaluation), *reasons],
        "severe_rule": rule,
        "schemes": scheme_table(table),
        "evaluation": evaluation,
        "against": anchor,
        "comparisons": comparisons,
        "families": _families(table),
    }


def _summary(table: pd.DataFrame, evaluation: dict[str, Any] | None) -> list[str]:
    """Return what a reader should know first: the size of the study, and who is ahead of whom."""
    from experiments.schemes import schemes_of

    size = (
        f"{len(table)} sessions: {table['codec'].nunique()} codecs, {table['abr'].nunique()} controllers, "
        f"{table['video'].nunique()} videos, {table['trace'].nunique()} traces of {table['family'].nunique()} families."
    )
    stalls = {one.label: one.rows["rebuffering_ratio"].mean() for one in schemes_of(table, ("codec", "abr"))}
    least, most = min(stalls, key=lambda name: stalls[name]), max(stalls, key=lambda name: stalls[name])
    ends = f"Least stalled: {least}, {100 * stalls[least]:.1f} % of the time; most: {most}, {100 * stalls[most]:.1f} %."
    return [size, *(evaluation["findings"] if evaluation else []), *([ends] if len(stalls) > 1 else [])]


def _evaluation(table: pd.DataFrame) -> dict[str, Any] | None:
    """Return prompts against the other codecs, or None where the study does not hold both, or no metric."""
    from experiments import paper_evaluation as paper
    from experiments.schemes import headline
    from experiments.series import METRICS

    metric = headline(table)
    if not paper.rivals(table) or metric is None:
        return None
    return {
        "metric": METRICS[metric].title,
        "findings": paper.findings(table, metric),
        "quality": paper.quality_table(table, metric),
        "severe": paper.severe_table(table, metric),
        "published": paper.PUBLISHED_NOTE,
        "coverage": paper.coverage(table),
        "families": paper.part_table(table, metric, "family"),
        "videos": paper.part_table(table, metric, "video"),
        "metrics": paper.metric_table(table),
    }


def _anchor(table: pd.DataFrame, against: str) -> str:
    """Return the controller that the others are compared with; "" where there is only one."""
    names = sorted(set(table["abr"]))
    if against and against not in names:
        raise UsageError(f"--against {against}: not in the study, which has {', '.join(names)}")
    if len(names) < 2:
        return ""
    return against or (DEFAULT_AGAINST if DEFAULT_AGAINST in names else names[0])


def _comparisons(table: pd.DataFrame, anchor: str) -> list[dict[str, Any]]:
    """Return, for each codec, every controller against the anchor: by QoE, quality and stalls."""
    from experiments.schemes import headline
    from experiments.series import CODEC_TITLES, METRICS
    from experiments.sweep_report import QOE, comparison_table
    from player.codecs import ordered

    metric = headline(table)
    columns = {QOE: "QoE by quality, per segment", "rebuffering_ratio": "rebuffering ratio (lower is better)"}
    if metric:
        side = "higher" if METRICS[metric].higher_is_better else "lower"
        columns[metric] = f"{METRICS[metric].title} ({side} is better)"
    found = []
    for codec in ordered(set(table["codec"])):
        rows = table[table["codec"] == codec]
        for column, title in columns.items():
            if rows[column].notna().any() and anchor in set(rows["abr"]):
                found.append(
                    {"title": f"{CODEC_TITLES[codec]}, {title}", "table": comparison_table(rows, anchor, column)}
                )
    return found


def _families(table: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of the heat map."""
    from experiments.schemes import schemes_of
    from experiments.sweep_figures import default_column
    from experiments.text_tables import Table, number

    column = default_column(table)
    families = sorted(set(table["family"]))
    result = Table(["scheme", *(f"{name} ({table[table['family'] == name]['trace'].nunique()})" for name in families)])
    for one in schemes_of(table, ("codec", "abr")):
        means = column.of(one.rows).groupby(one.rows["family"]).mean()
        result.rows.append([one.label, *(number(means.get(name, float("nan")), column.digits) for name in families)])
    return {"title": column.title.removeprefix("Mean "), "table": result}


def _pictures(view: StudyView) -> dict[str, Any]:
    """Return every figure as a data URL, and why those that are missing are."""
    from experiments.ladders import missing_text
    from experiments.study_plots import draw_all

    drawn, missing = draw_all(view, list(CAPTIONS), wanted=False)
    texts = {name: text for name, (_, text) in CAPTIONS.items()}
    texts["rd"] = f"{texts['rd']} {missing_text(view.study, view.found_packages)}".rstrip()
    figures = [
        {"name": name, "title": CAPTIONS[name][0], "text": texts[name], "source": _svg(figure)}
        for name, figure in drawn.items()
    ]
    return {"figures": figures, "left_out": missing}


def _svg(figure: Figure) -> str:
    from io import BytesIO

    import matplotlib.pyplot as plt

    from experiments.paper import paper_style
    from experiments.report_frames import data_url

    buffer = BytesIO()
    with paper_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return data_url(buffer.getvalue(), "image/svg+xml")


def _frames(view: StudyView, videos: Sequence[Path], count: int) -> dict[str, Any]:
    """Return example frames of the packages at hand, or why there are none."""
    if count == 0:
        return {"frames": [], "frame_notes": ["None were asked for."]}
    from experiments.ladders import missing_text
    from experiments.report_frames import example_frames

    packages = view.found_packages
    if not packages:
        return {"frames": [], "frame_notes": ["The packages are not at hand; --packages names their folder."]}
    config = view.study["provenance"]["config"]
    missing = missing_text(view.study, packages)
    frames = example_frames(view.table, packages, config, videos, count)
    return {"frames": frames, "frame_notes": [missing] if missing else []}


def _origin(view: StudyView, dataset: Path) -> dict[str, Any]:
    """Return how the study was run, and what failed."""
    import shlex

    from experiments.dataset import FAILURES
    from experiments.provenance import commit
    from experiments.text_tables import Table

    study = view.study
    start = study["provenance"]
    origin = [["commit", f"{start['commit'] or 'not known'}{_dirty(start)}"]]
    origin += [[name, str(start[name])] for name in ("platform", "machine")]
    origin += [[f"seed {name}", str(value)] for name, value in start["seeds"].items()]
    path = dataset / FAILURES
    failed = json.loads(path.read_text(encoding="utf-8"))["failures"] if path.is_file() else []
    own = commit()
    return {
        "dirty": bool(start["dirty"]),
        "command": shlex.join(start["command"]),
        "later": [shlex.join(one["command"]) for one in study["resumed"]],
        "origin": Table(["what", "value"], origin),
        "packages": _packages(view),
        "settings": Table(["key", "value"], [[key, str(value)] for key, value in _flat(study["settings"])]),
        "versions": Table(["library", "version"], [[k, str(v)] for k, v in start["versions"].items() if v is not None]),
        "failures": Table(["session", "reason"], [_failure(row) for row in failed]),
        "made_by": f"Made by experiments.report of commit {own['commit'] or 'not known'}{_dirty(own)} from {dataset}.",
    }


def _dirty(start: dict[str, Any]) -> str:
    return ", with changes that are in no commit" if start["dirty"] else ""


def _packages(view: StudyView) -> Table:
    from experiments.series import CODEC_TITLES
    from experiments.text_tables import Table

    rows = view.table.drop_duplicates("package").set_index("package")
    result = Table(["package", "video", "codec", "SHA-256"])
    for name, digest in view.study["packages"].items():
        if name in rows.index:
            result.rows.append([name, rows.at[name, "video"], CODEC_TITLES[rows.at[name, "codec"]], digest])
    return result


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as (dotted key, value)."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inside in value.items() for pair in _flat(inside, f"{prefix}.{key}" if prefix else key)]


def _failure(row: dict[str, Any]) -> list[str]:
    place = ", ".join(f"{key} {value}" for key, value in row.items() if key != "reason")
    return [place, str(row["reason"])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="the output folder of experiments.sweep")
    add("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    add("--title", default="", help="default: the folder's name")
    add("--against", default="", metavar="ABR", help=f"controller to compare with (default: {DEFAULT_AGAINST})")
    add("--where", action="append", default=[], metavar="COLUMN=VALUES", help="these sessions only, such as abr=bola")
    add("--packages", action="append", type=Path, default=[], metavar="DIR", help="where the study's packages are now")
    add("--videos", action="append", type=Path, default=[], metavar="DIR", help="where the original videos are now")
    add("--frames", type=int, default=3, metavar="N", help="videos with example frames, 0: none (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
