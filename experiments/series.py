"""What the tables and figures call things: metrics with their units and directions, codecs, and the lines of a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.errors import RunFolderError
from experiments.results import CodecResult, RunResult
from player.codecs import ordered, title
from player.quality import METRIC_PLUGINS


class _Titles(dict[str, str]):
    """A codec of another package has the title it gives itself, or its name if the package is gone."""

    def __missing__(self, codec: str) -> str:
        return title(codec) or codec


CODEC_TITLES = _Titles(
    {"prompt": "Prompts", "h265": "H.265", "h264": "H.264", "av1": "AV1", "vp9": "VP9", "vae": "VAE"}
)


@dataclass(frozen=True)
class MetricStyle:
    """How a quality metric is written and which way is better."""

    title: str  # as on an axis
    higher_is_better: bool
    digits: int  # after the point, in tables


class _Styles(dict[str, MetricStyle]):
    """A metric of another package is written as the package says, which must be here: it knows which way is better."""

    def __missing__(self, metric: str) -> MetricStyle:
        try:
            offered = METRIC_PLUGINS.offered(metric)
        except LookupError as error:
            raise RunFolderError(f"metric {metric!r} is of a package that is not installed here") from error
        return MetricStyle(
            getattr(offered, "title", metric), bool(offered.higher_is_better), getattr(offered, "digits", 3)
        )


METRICS = _Styles(
    {
        "lpips_squeeze": MetricStyle("LPIPS (SqueezeNet)", False, 3),
        "lpips_alex": MetricStyle("LPIPS (AlexNet)", False, 3),
        "lpips_vgg": MetricStyle("LPIPS (VGG)", False, 3),
        "lpips_embedded": MetricStyle("lpips-embedded", False, 3),
        "ssimulacra2": MetricStyle("SSIMULACRA2", True, 1),
        "flip": MetricStyle("FLIP", False, 3),
        "ms_ssim": MetricStyle("MS-SSIM", True, 3),
        "psnr_db": MetricStyle("PSNR [dB]", True, 2),
    }
)
HEADLINE_METRICS = tuple(METRICS)
"""The first of these that was measured stands for quality where a figure has room for one."""


@dataclass(frozen=True)
class Series:
    """One codec's session in one run, with the name it has in legends."""

    label: str
    run: RunResult
    result: CodecResult


def ordered_metrics(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that any of the scores holds: the built-in ones in the order of METRICS, then the others."""
    found = {name for one in scores for name in one}
    return [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]


def headline_metric(results: Sequence[CodecResult]) -> str | None:
    """Return the metric that stands for quality: the first of HEADLINE_METRICS that every result has measured.

    Where there is none, one of another package may stand for it.
    """
    for metric in (*HEADLINE_METRICS, *METRIC_PLUGINS.names()):
        if results and all(metric in result.frames for result in results):
            return metric
    return None


def agreed_best(scores: Sequence[Mapping[str, float]]) -> int | None:
    """Return which of several codecs is better than all others by LPIPS and by SSIMULACRA2 alike.

    None where the two disagree or tie, or where one was not measured for all. Without LPIPS, lpips-embedded stands in
    for it. One metric alone decides nothing (docs/metrics.md).
    """
    judge = agreement_metric(scores)
    if judge is None:
        return None
    for index, one in enumerate(scores):
        others = [*scores[:index], *scores[index + 1 :]]
        if others and all(one[judge] < o[judge] and one["ssimulacra2"] > o["ssimulacra2"] for o in others):
            return index
    return None


def agreement_metric(scores: Sequence[Mapping[str, float]]) -> str | None:
    """Return the LPIPS, or its estimate, that judges beside SSIMULACRA2; None unless all scores have both."""
    shared = set.intersection(*({name for name in one if one[name] is not None} for one in scores)) if scores else set()
    if "ssimulacra2" not in shared:
        return None
    return next((name for name in HEADLINE_METRICS if name.startswith("lpips") and name in shared), None)


def severity_rule(metric: str, threshold: float) -> str:
    """Return the rule in words, such as ``LPIPS (SqueezeNet) > 0.3``."""
    return f"{METRICS[metric].title} {'<' if METRICS[metric].higher_is_better else '>'} {threshold:g}"


def condition_texts(conditions: dict[str, Any]) -> dict[str, str]:
    """Return each condition of a run as a short text with its unit, in the order of a header line."""
    offset = f", from {conditions['offset_s']:g} s" if conditions["offset_s"] else ""
    share = f"every {_ordinal(conditions['share'])} opportunity" if conditions["share"] > 1 else "whole link"
    mode = conditions.get("mode", "simulate")
    return {
        "mode": "" if mode == "simulate" else mode,
        "video": str(conditions["video"]),
        "trace": f"trace {conditions['trace']}{offset}",
        "share": f"share 1/{conditions['share']} ({share})",
        "mean_rate": _rates(conditions),
        "delay": f"delay {conditions['delay_ms']:g} ms one way",
        "loss": f"loss {100 * conditions['loss']:g} %" if conditions["loss"] else "",
        "buffer": f"buffer {conditions['buffer_s']:g} s",
        "abr": f"abr {conditions['abr']}",
        "session": f"{conditions['session_s']:.4g} s programme, {_loops(conditions)}",
        "render": f"prompts rendered at {conditions['render_fps']:g} frames/s" if conditions["render_fps"] else "",
        "device": f"device of {conditions['passes_per_s']:g} passes/s" if conditions.get("passes_per_s") else "",
    }


def header_line(conditions: dict[str, Any]) -> str:
    """Return the line that stands over every table and figure: under which conditions the numbers arose."""
    return ", ".join(text for text in condition_texts(conditions).values() if text)


def label_texts(conditions: dict[str, Any]) -> dict[str, str]:
    """Return each condition as it stands in a legend, next to others that differ. Rates follow from trace and share."""
    texts = condition_texts(conditions)
    offset = f" from {conditions['offset_s']:g} s" if conditions["offset_s"] else ""
    return {
        **{key: text for key, text in texts.items() if key not in ("mean_rate", "session")},
        "trace": f"{conditions['trace'].split(' (')[0]}{offset}",
        "share": f"1/{conditions['share']}",
        "delay": f"{conditions['delay_ms']:g} ms",
        "abr": str(conditions["abr"]),
        "length": f"{conditions['session_s']:.4g} s",
    }


def series_of(runs: Sequence[RunResult]) -> list[Series]:
    """Return one series per run and codec, labelled by what tells them apart."""
    texts = [label_texts(run.conditions) for run in runs]
    differing = [key for key in texts[0] if len({text[key] for text in texts}) > 1] if texts else []
    several_codecs = len({codec for run in runs for codec in run.codecs}) > 1
    names = [", ".join(text[key] for key in differing if text[key]) for text in texts]
    if len(set(names)) < len(runs):  # equal conditions: only the folders tell the runs apart
        names = [run.path.name for run in runs]
    series = []
    for run, name in zip(runs, names, strict=True):
        for codec in ordered(run.codecs):
            parts = [CODEC_TITLES[codec]] if several_codecs or not name else []
            label = ", ".join([*parts, name] if len(runs) > 1 else parts or [CODEC_TITLES[codec]])
            series.append(Series(label, run, run.codecs[codec]))
    return series


def common_header(runs: Sequence[RunResult]) -> str:
    """Return the header line of what all runs have in common."""
    texts = [condition_texts(run.conditions) for run in runs]
    return ", ".join(text for key, text in texts[0].items() if text and all(other[key] == text for other in texts))


def common_severity(series: Sequence[Series]) -> tuple[str, float]:
    """Return the metric and threshold of severe distortion, which must be the same in all series.

    Raises:
        RunFolderError: the runs were summarised with different rules.
    """
    rules = {(one.result.summary["severe_metric"], one.result.summary["severe_threshold"]) for one in series}
    if len(rules) > 1:
        found = " and ".join(severity_rule(*rule) for rule in sorted(rules))
        raise RunFolderError(f"these runs count severely distorted frames by different rules: {found}")
    return rules.pop()


def _rates(conditions: dict[str, Any]) -> str:
    whole, session = (f"{conditions[key] / 1e3:.4g} kbit/s" for key in ("mean_rate_bps", "session_rate_bps"))
    return f"mean {whole} ({session} in the session)"


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _loops(conditions: dict[str, Any]) -> str:
    loops = conditions["loops"]
    return f"clip of {conditions['clip_s']:.4g} s looped {loops:.4g} times" if loops > 1 else "clip played once"
