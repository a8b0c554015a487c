"""Tables of a rate-distortion study, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.rd_study import MEAN, Study
from experiments.series import CODEC_TITLES, METRICS


def summary_lines(study: Study) -> list[str]:
    """Return what a study prints: mean BD-rates with how many clips they stand on, then the mean curves' crossings."""
    anchor = CODEC_TITLES[study.anchor]
    lines = [f"BD-rate against {anchor} [%], mean over clips (clips with a number / clips; + all better, - all worse)"]
    titles = [METRICS[metric].title for metric in study.metrics]
    rows = [["", *titles]]
    for codec in _others(study):
        cells = [_mean_cell(study.deltas, codec, metric) for metric in study.metrics]
        rows.append([CODEC_TITLES[codec], *cells])
    lines += _aligned(rows)
    lines += ["", f"The same of the mean curves, and where they cross {anchor}'s"]
    for codec in _others(study):
        for metric in study.metrics:
            delta = _delta_text(_row(study.deltas, MEAN, codec, metric), "bd_rate")
            lines.append(
                f"  {CODEC_TITLES[codec]}, {METRICS[metric].title}: {delta}; {_crossings(study, codec, metric)}"
            )
    return lines


def report(study: Study, conditions: str) -> str:
    """Return the whole study as Markdown: mean ladders, mean and per-clip BD-rates, crossings, failures."""
    metrics = [METRICS[metric].title for metric in study.metrics]
    severe = [name for name in study.mean_points.columns if name.startswith("severe_")]
    lines = ["# Rate-distortion study", "", f"{len(study.clips)} clips. {conditions}", "", "## Mean ladders", ""]
    shares = [f"severe by {METRICS[name.removeprefix('severe_')].title} [%]" for name in severe]
    rows = [["codec", "kbit/s", *metrics, *shares]]
    for point in study.mean_points.to_dict("records"):
        values = [f"{point[metric]:.{METRICS[metric].digits}f}" for metric in study.metrics]
        percents = [f"{100 * point[name]:.1f}" for name in severe]
        rows.append([CODEC_TITLES[point["codec"]], f"{point['bitrate_bps'] / 1e3:.1f}", *values, *percents])
    lines += [*_markdown(rows), "", f"## BD-rate against {CODEC_TITLES[study.anchor]} [%]", ""]
    rows = [["clip", "codec", *metrics]]
    for clip in [*study.clips, MEAN]:
        for codec in _others(study):
            found = [_row(study.deltas, clip, codec, metric) for metric in study.metrics]
            if any(row is not None for row in found):
                rows.append([clip, CODEC_TITLES[codec], *(_delta_text(row, "bd_rate") for row in found)])
    lines += [
        *_markdown(rows),
        "",
        "The row `mean ladder` is no clip: it compares the mean ladders above. The means of the clips' numbers are:",
        "",
    ]
    lines += [f"    {line}".rstrip() for line in summary_lines(study)]
    lines += ["", "## Where the curves cross", ""]
    for clip in [*study.clips, MEAN]:
        for codec in _others(study):
            texts = [f"{METRICS[metric].title}: {_crossings(study, codec, metric, clip)}" for metric in study.metrics]
            lines.append(f"- {clip}, {CODEC_TITLES[codec]}. {'; '.join(texts)}")
    if study.failures:
        lines += ["", "## Not measured", ""]
        lines += [f"- {failure.clip} as {failure.codec}: {failure.reason}" for failure in study.failures]
    return "\n".join(lines) + "\n"


def _others(study: Study) -> list[str]:
    return [codec for codec in study.codecs if codec != study.anchor]


def _row(deltas: pd.DataFrame, clip: str, codec: str, metric: str) -> pd.Series | None:
    own = deltas[(deltas["clip"] == clip) & (deltas["codec"] == codec) & (deltas["metric"] == metric)]
    return None if own.empty else own.iloc[0]


def _delta_text(row: pd.Series | None, column: str) -> str:
    if row is None:
        return "not measured"
    return str(row[f"{column}_reason"]) if pd.isna(row[column]) else f"{100 * row[column]:+.1f}"


def _mean_cell(deltas: pd.DataFrame, codec: str, metric: str) -> str:
    """Return the mean BD-rate with its count, and how many clips had no overlap on either side."""
    own = deltas[(deltas["clip"] != MEAN) & (deltas["codec"] == codec) & (deltas["metric"] == metric)]
    known = own["bd_rate"].dropna()
    mean = f"{100 * known.astype(float).mean():+.1f}" if len(known) else "none"
    beyond = [int(own["bd_rate_reason"].str.endswith(word).sum()) for word in ("higher", "lower")]
    signs = "".join(f", {sign}{count}" for sign, count in zip("+-", beyond, strict=True) if count)
    return f"{mean} ({len(known)}/{len(own)}{signs})"


def _crossings(study: Study, codec: str, metric: str, clip: str = MEAN) -> str:
    """Return in words above and below which rates a codec is better than the anchor."""
    table = study.crossings
    own = table[(table["clip"] == clip) & (table["codec"] == codec) & (table["metric"] == metric)]
    words = [
        f"{'better' if row.better_above else 'worse'} above {row.rate_bps / 1e3:.1f} kbit/s" for row in own.itertuples()
    ]
    return ", ".join(words) or "no crossing"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
