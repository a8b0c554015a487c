"""The table a run prints: codecs side by side, one number per row, made from summaries alone."""

import textwrap
from collections.abc import Sequence
from typing import Any

from experiments.results import CodecResult
from experiments.series import (
    CODEC_TITLES,
    METRICS,
    agreed_best,
    agreement_metric,
    header_line,
    ordered_metrics,
    severity_rule,
)

_WIDTH = 100


def summary_table(conditions: dict[str, Any], results: Sequence[CodecResult]) -> str:
    """Return the printed table: the conditions, then a row per number and a column per codec."""
    summaries = [result.summary for result in results]
    rows = [("", *(CODEC_TITLES[result.codec] for result in results))]
    for label, cells in _rows(summaries):
        rows.append((label, *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    header = textwrap.wrap(header_line(conditions), max(len(rule), _WIDTH))
    return "\n".join([*header, rule, lines[0], rule, *lines[1:], rule])


def _rows(summaries: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = []
    for metric in ordered_metrics([one["quality"] for one in summaries]):
        style = METRICS[metric]
        arrow = "higher" if style.higher_is_better else "lower"
        cells = [_number(one["quality"].get(metric), style.digits) for one in summaries]
        rows.append((f"{style.title}, mean ({arrow} is better)", cells))
    rows += _agreement_row([one["quality"] for one in summaries])
    for rule in dict.fromkeys(_rule(one) for one in summaries):
        if rule:
            cells = [_number(one["severe_share"], 1, 100) if _rule(one) == rule else "-" for one in summaries]
            rows.append((f"Severely distorted frames, {rule} [%]", cells))
    rows += [
        ("Bitrate of what was played [kbit/s]", [_number(one["media_bitrate_bps"], 2, 1e-3) for one in summaries]),
        ("Bitrate with init segments [kbit/s]", [_number(one["mean_bitrate_bps"], 2, 1e-3) for one in summaries]),
        ("Received, failed attempts included [kB]", [_number(one["received_bytes"], 1, 1e-3) for one in summaries]),
        ("Startup delay [s]", [_number(one["startup_delay_s"], 2) for one in summaries]),
        ("Rebuffering ratio [%]", [_number(one["rebuffering_ratio"], 2, 100) for one in summaries]),
        ("Rebuffering periods", [str(one["rebuffering_count"]) for one in summaries]),
        ("Segments skipped", [str(one["skipped_segments"]) for one in summaries]),
        ("Switches", [str(one["switches"]) for one in summaries]),
        ("Ladder [kbit/s]", [_ladder(one["ladder_bps"]) for one in summaries]),
    ]
    return rows


def _agreement_row(scores: Sequence[dict[str, float]]) -> list[tuple[str, list[str]]]:
    """Return the row that says which codec both perceptual metrics find better, if there are two to compare."""
    judge = agreement_metric(scores)
    if judge is None or len(scores) < 2:
        return []
    best = agreed_best(scores)
    label = f"Better by both {METRICS[judge].title} and SSIMULACRA2"
    return [(label, ["yes" if index == best else "no" for index in range(len(scores))])]


def _rule(summary: dict[str, Any]) -> str:
    if summary["severe_metric"] is None:
        return ""
    return severity_rule(summary["severe_metric"], summary["severe_threshold"])


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _ladder(rates_bps: Sequence[float]) -> str:
    return " ".join(f"{rate / 1e3:.3g}" for rate in rates_bps)
