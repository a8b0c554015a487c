"""The evaluation of Promptus on a study of several codecs; ``python -m experiments.sweep_report`` prints it.

Prompts against every other codec, session by session under equal conditions: same video, trace, share, start offset and
controller. Positive gains are in favour of prompts. Intervals are 95 %, bootstrap by trace (docs/sweeps.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.errors import ExperimentError
from experiments.schemes import conditions_text, headline, metrics_of
from experiments.series import CODEC_TITLES, METRICS
from experiments.statistics import Interval, compare, conditions, pair, reduction
from experiments.text_tables import NONE, Table, number, percent, span
from player.codecs import PROMPT, ordered


@dataclass(frozen=True)
class Published:
    """What Wu et al. report for Promptus against another codec."""

    lpips_gain: float
    """arXiv 2405.20032v1, abstract: "enhance the perceptual quality by 0.111 and 0.092 (in LPIPS) compared to VAE and
    H.265"."""
    severe_reduction: float
    """Same place: "decreases the ratio of severely distorted frames by 89.3% and 91.7%"."""
    revised_gain: float
    """arXiv 2405.20032v2, abstract: 0.139 and 0.118 "at extremely low bitrates"; the reductions are unchanged."""


PUBLISHED = {"vae": Published(0.111, 0.893, 0.139), "h265": Published(0.092, 0.917, 0.118)}
PUBLISHED_NOTE = (
    "Published: Promptus with SD-Turbo at 512x512, LPIPS of the VGG network, severely distorted above 0.32 (Wu et al., "
    "arXiv 2405.20032v1; v2: as version 2 has it). Here the generator, the videos, the traces and the frame size are "
    "others, and LPIPS may be that of another network: the published numbers are a scale to read these by."
)


@dataclass(frozen=True)
class Duel:
    """Prompts against one codec over some of the sessions."""

    codec: str
    where: str
    """Trace family, video, or `all`."""
    gain: Interval
    """In the metric, positive where prompts are better."""
    effect_size: float
    ahead_share: float
    """Share of pairs in which prompts are better; ties count half."""
    is_clear: bool
    overlap: bool
    """Whether the codecs' own intervals overlap, so that only the pairing tells them apart."""
    severe: tuple[float, float]
    """Severely distorted share of the frames shown: prompts, the codec; NaN without a rule."""
    reduction: Interval
    """1 - ratio of the two; NaN where the codec has none."""
    stalled: tuple[float, float]
    """Rebuffering ratio: prompts, the codec."""
    stalled_less: Interval
    """Codec - prompts, positive where prompts stall less."""
    bad: tuple[float, float]
    """Share of the viewing time that was stalled or severely distorted: prompts, the codec."""

    @property
    def verdict(self) -> str:
        """Say which is ahead in the metric, if that can be told."""
        if not self.is_clear:
            return "not told apart"
        side = "prompts ahead" if self.gain.mean > 0 else "prompts behind"
        return f"{side} (by pairs only)" if self.overlap else side


def rivals(table: pd.DataFrame) -> list[str]:
    """Return the codecs that prompts can be compared with; none without prompts."""
    codecs = set(table["codec"])
    return ordered(codecs - {PROMPT}) if PROMPT in codecs else []


def duel(table: pd.DataFrame, codec: str, metric: str, where: str = "all") -> Duel:
    """Compare prompts with a codec over the sessions of a table; ExperimentError if they have none in common."""

    keys = [*conditions(table), "abr"]
    rows = table.assign(bad=_bad_share(table))
    sides = [rows[rows["codec"] == name] for name in (PROMPT, codec)]
    sign = 1 if METRICS[metric].higher_is_better else -1
    signed = [side.assign(**{metric: sign * side[metric]}) for side in sides]
    found = compare(signed[0], signed[1], metric, on=keys)
    columns = ["rebuffering_ratio", *(name for name in ("severe_share", "bad") if rows[name].notna().any())]
    pairs = pair(sides[0], sides[1], columns, on=keys)
    stalled = compare(sides[1], sides[0], "rebuffering_ratio", on=keys)

    def both(name: str) -> tuple[float, float]:
        return (pairs[f"{name}_a"].mean(), pairs[f"{name}_b"].mean()) if name in columns else (np.nan, np.nan)

    empty = pairs.assign(severe_share_a=np.nan, severe_share_b=np.nan)
    return Duel(
        codec=codec,
        where=where,
        gain=found.difference,
        effect_size=found.effect_size,
        ahead_share=found.higher_share,
        is_clear=found.is_clear,
        overlap=found.overlap,
        severe=both("severe_share"),
        reduction=reduction(pairs if "severe_share" in columns else empty, "severe_share"),
        stalled=both("rebuffering_ratio"),
        stalled_less=stalled.difference,
        bad=both("bad"),
    )


def _bad_share(table: pd.DataFrame) -> pd.Series:
    """Return the share of the viewing time that was stalled or showed severely distorted frames."""
    stalled = table["rebuffering_ratio"]
    return stalled + (1 - stalled) * table["severe_share"]


def duels(table: pd.DataFrame, metric: str, by: str = "") -> list[Duel]:
    """Return prompts against every other codec: over all sessions, or for each value of a column apart."""
    found = []
    for codec in rivals(table):
        for value in sorted(set(table[by])) if by else [""]:
            rows = table[table[by] == value] if by else table
            try:
                found.append(duel(rows, codec, metric, str(value) or "all"))
            except ExperimentError:
                if not by:  # a family or video of its own may lack a codec; the study as a whole may not
                    raise
    return found


# ---- tables ---------------------------------------------------------------------------------------------------------


def quality_table(table: pd.DataFrame, metric: str) -> Table:
    """Return prompts against every codec over all sessions, in the metric, beside what is published."""
    digits = _digits(metric)
    result = Table(
        ["prompts against", "gain, mean", "95 % interval", "published", "better in pairs", "effect d",
         "better in videos", "worst to best video", "pairs", "traces", "verdict"]
    )  # fmt: skip
    for one in duels(table, metric):
        own = [each.gain.mean for each in duels(table[table["codec"].isin((PROMPT, one.codec))], metric, "video")]
        known = PUBLISHED.get(one.codec) if metric.startswith("lpips") else None
        worst_to_best = " to ".join(number(value, digits, sign=True) for value in (min(own), max(own)))
        result.rows.append([
            CODEC_TITLES[one.codec], number(one.gain.mean, digits, sign=True), span(one.gain, digits, sign=True),
            f"+{known.lpips_gain} (v2: +{known.revised_gain})" if known else NONE, f"{100 * one.ahead_share:.0f} %",
            number(one.effect_size, 2, sign=True), f"{sum(value > 0 for value in own)} of {len(own)}", worst_to_best,
            str(one.gain.sessions), str(one.gain.traces), one.verdict,
        ])  # fmt: skip
    return result


def severe_table(table: pd.DataFrame, metric: str) -> Table:
    """Return severely distorted frames and stalls of prompts and every codec over all sessions."""
    result = Table(
        ["prompts against", "severe: prompts", "codec", "reduction", "95 % interval", "published", "stalled: prompts",
         "codec", "less stalled, 95 % interval", "stalled or severe: prompts", "codec"]
    )  # fmt: skip
    for one in duels(table, metric):
        known = PUBLISHED.get(one.codec)
        result.rows.append([
            CODEC_TITLES[one.codec], *(percent(value) for value in one.severe), percent(one.reduction.mean),
            span(one.reduction, 1, scale=100, sign=True, unit=" %"),
            percent(known.severe_reduction) if known else NONE, *(percent(value) for value in one.stalled),
            span(one.stalled_less, 1, scale=100, sign=True, unit=" %"), *(percent(value) for value in one.bad),
        ])  # fmt: skip
    return result


def part_table(table: pd.DataFrame, metric: str, by: str) -> Table:
    """Return prompts against every codec for each trace family, or for each video."""
    digits = _digits(metric)
    result = Table(
        [by, "against", "gain, mean", "95 % interval", "effect d", "severe: prompts", "codec", "reduction",
         "stalled: prompts", "codec", "less stalled, 95 % interval", "traces", "pairs", "verdict"]
    )  # fmt: skip
    for one in sorted(duels(table, metric, by), key=lambda each: each.where):
        result.rows.append([
            one.where, CODEC_TITLES[one.codec], number(one.gain.mean, digits, sign=True),
            span(one.gain, digits, sign=True), number(one.effect_size, 2, sign=True),
            *(percent(value) for value in one.severe), percent(one.reduction.mean),
            *(percent(value) for value in one.stalled), span(one.stalled_less, 1, scale=100, sign=True, unit=" %"),
            str(one.gain.traces), str(one.gain.sessions), one.verdict,
        ])  # fmt: skip
    return result


def metric_table(table: pd.DataFrame) -> Table:
    """Return the gain in every metric, in its own unit: one metric alone decides nothing (docs/metrics.md)."""
    from experiments.text_tables import Table

    result = Table(["metric", "prompts against", "gain, mean", "95 % interval", "verdict"])
    for metric in metrics_of(table):
        for one in duels(table, metric):
            gain = number(one.gain.mean, _digits(metric), sign=True), span(one.gain, _digits(metric), sign=True)
            result.rows.append([METRICS[metric].title, CODEC_TITLES[one.codec], *gain, one.verdict])
    return result


def findings(table: pd.DataFrame, metric: str) -> list[str]:
    """Return what the tables say, a sentence for each codec, in plain words."""
    name, digits = METRICS[metric].title, _digits(metric)
    lines = []
    for one in duels(table, metric):
        codec, mean, low, high = CODEC_TITLES[one.codec], one.gain.mean, one.gain.low, one.gain.high
        if one.is_clear:
            ends = (number(abs(value), digits) for value in ((low, high) if mean > 0 else (high, low)))
            word = "better" if mean > 0 else "worse"
            size = f"{number(abs(mean), digits)} in {name} (95 % interval {' to '.join(ends)})"
            quality = f"Prompts are {word} than {codec} by {size}"
        else:
            size = (
                f"gain {number(mean, digits, sign=True)} in {name} (95 % interval {span(one.gain, digits, sign=True)})"
            )
            quality = f"Prompts and {codec} are not told apart: {size}"
        stalls = f"stalled {percent(one.stalled[0])} of the time against {percent(one.stalled[1])}"
        severe = f"{percent(one.severe[0])} of the frames shown severely distorted against {percent(one.severe[1])}; "
        lines.append(f"{quality}; {'' if np.isnan(one.severe[0]) else severe}{stalls}.")
    return lines


def coverage(table: pd.DataFrame) -> list[str]:
    """Return what the comparison leaves out: videos that were not packaged in every codec."""
    codecs = set(table["codec"])
    lacking = []
    for video, rows in table.groupby("video"):
        missing = sorted(CODEC_TITLES[codec] for codec in codecs - set(rows["codec"]))
        if missing:
            lacking.append(f"{video} (no {', '.join(missing)})")
    return [f"Not in every codec, so not in every row: {'; '.join(lacking)}."] if lacking else []


def evaluated_metric(table: pd.DataFrame) -> str:
    """Return the metric that the evaluation is made in; ExperimentError where there is nothing to evaluate."""
    metric = headline(table)
    if not rivals(table) or metric is None:
        raise ExperimentError("the evaluation needs sessions of prompts and of another codec, and a quality metric")
    return metric


def evaluation_text(table: pd.DataFrame) -> str:
    """Return the evaluation as Markdown; ExperimentError where there is nothing to evaluate."""
    metric = evaluated_metric(table)
    parts = [
        f"## Prompts against other codecs, {METRICS[metric].title}",
        conditions_text(table, ("codec",)),
        "\n".join(f"- {line}" for line in findings(table, metric)),
        quality_table(table, metric).markdown(), severe_table(table, metric).markdown(), PUBLISHED_NOTE,
        *coverage(table),
        "### By trace family", part_table(table, metric, "family").markdown(),
        "### By video", part_table(table, metric, "video").markdown(),
        "### In every metric", metric_table(table).markdown(),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _digits(metric: str) -> int:
    return METRICS[metric].digits
