"""``python -m experiments.chunk_time``: what the duration of segments does to sessions over TCP.

Every codec is packaged once for each duration; every package is streamed, in virtual time, over the same traces, delays
and starting points. What a viewer gets is set beside what short segments cost: boxes, HTTP and TCP/IP headers, and the
bitrate that the same quality takes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, UsageError
from experiments.overrides import rewrite_overrides

if TYPE_CHECKING:
    import pandas as pd

    from emulator import LinkConfig
    from experiments.schema import RunConfig
    from player.presentation import Presentation

log = logging.getLogger("experiments.chunk_time")  # also where this module is __main__

OWN = {
    "segments": "0.5,1,2,4,8", "codecs": "prompt,h265", "trace": "lte", "link.delay_ms": "20,100", "starts": "4",
    "output": "outputs/chunk_time",
}  # fmt: skip
"""Keys of this command's own, with their defaults; all others are those of a run."""
_HELP = """Stream packages of different segment durations over the same links, and compare sessions and overhead.

usage: python -m experiments.chunk_time [KEY=VALUE ...]

  segments=0.5,1,2,4,8      segment durations, s
  codecs=prompt,h265        what to package
  trace=lte,umts            links
  link.delay_ms=20,100      one-way delays, ms
  starts=4                  sessions on each link, from points spread evenly over the trace
  output=outputs/chunk_time folder of the tables and the figure

All other keys are those of python -m experiments.run, with one value each."""


@dataclass(frozen=True)
class Study:
    """What is compared."""

    segments_s: tuple[float, ...]
    codecs: tuple[str, ...]
    traces: tuple[str, ...]
    delays_ms: tuple[float, ...]
    starts: int
    output: Path
    overrides: tuple[str, ...]  # of a run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 for a study that failed, 2 for a command line that is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(flag in given for flag in ("-h", "--help")):
        print(_HELP)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("experiments").setLevel(logging.INFO)
    from experiments.job import REPORTED_ERRORS

    try:
        run_study(parse_study(given))
    except UsageError as error:
        print(f"experiments.chunk_time: {error}", file=sys.stderr)
        return 2
    except REPORTED_ERRORS as error:
        print(f"experiments.chunk_time: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments.chunk_time: interrupted; packages that are finished stay in the cache", file=sys.stderr)
        return 130
    return 0


def parse_study(given: Sequence[str]) -> Study:
    """Return what the command line asks for.

    Raises:
        UsageError: an unknown key, or a value that is none.
    """
    own, others = dict(OWN), []
    for argument in given:
        key, equals, value = argument.partition("=")
        if key in own and equals and value.strip():
            own[key] = value
        else:
            others.append(argument)
    names = {key: tuple(part.strip() for part in value.split(",") if part.strip()) for key, value in own.items()}
    starts = _numbers("starts", names["starts"])
    if len(starts) != 1 or not 1 <= starts[0] <= 1000 or starts[0] % 1:
        raise UsageError(f"starts={own['starts']}: expected a whole number from 1 to 1000")
    study = Study(
        segments_s=tuple(sorted(set(_numbers("segments", names["segments"])))),
        codecs=names["codecs"],
        traces=names["trace"],
        delays_ms=_numbers("link.delay_ms", names["link.delay_ms"]),
        starts=int(starts[0]),
        output=Path(own["output"]),
        overrides=tuple(rewrite_overrides(others)),
    )
    from experiments.command_line import check_arguments

    for segment_s in study.segments_s:
        for trace in study.traces:
            for delay_ms in study.delays_ms:
                check_arguments(_overrides(study, segment_s, trace, delay_ms))
    return study


def _numbers(key: str, parts: Sequence[str]) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        raise UsageError(f"{key}={','.join(parts)}: expected numbers, separated by commas") from None
    if not values:
        raise UsageError(f"{key}: expected at least one number")
    return values


def _overrides(study: Study, segment_s: float, trace: str, delay_ms: float) -> list[str]:
    short = [f"codec={'+'.join(study.codecs)}", f"trace={trace}"]
    exact = [f"build.segment_s={segment_s}", f"link.delay_ms={delay_ms}"]
    return [*study.overrides, *rewrite_overrides(short), *exact]


def run_study(study: Study) -> None:
    """Package, stream, write the tables and the figure, print the means."""
    import pandas as pd

    from experiments.chunk_time_figure import chunk_time_figure
    from experiments.paper import save_figure
    from player.files import write_json, write_table

    sessions: list[dict[str, Any]] = []
    ladders: list[dict[str, Any]] = []
    label = ""
    for segment_s in study.segments_s:
        for config, packages in _links(study, segment_s):
            label = label or _label(study, config)
            if not any(rung["segment_s"] == segment_s for rung in ladders):
                ladders += [
                    {"segment_s": segment_s, "codec": codec, **rung}
                    for codec, package in packages.items()
                    for rung in ladder_rows(package, config.link)
                ]
            sessions += [
                {"segment_s": segment_s, "trace": config.trace.name, "delay_ms": config.link.delay_ms, **session}
                for session in _sessions(config, packages, study.starts)
            ]
        log.info("segments of %g s: %d sessions", segment_s, sum(one["segment_s"] == segment_s for one in sessions))
    ladder, table = pd.DataFrame(ladders), pd.DataFrame(sessions)
    equal = equal_quality(ladder)
    study.output.mkdir(parents=True, exist_ok=True)
    write_table(study.output / "sessions.parquet", table)
    write_table(study.output / "ladders.parquet", ladder)
    write_table(study.output / "equal_quality.parquet", equal)
    write_json(study.output / "conditions.json", {"version": 1, "conditions": label})
    save_figure(chunk_time_figure(table, ladder, equal, label), study.output, "chunk_time")
    print(label)
    print(report(table, ladder, equal))
    log.info("%s", study.output)


def _links(study: Study, segment_s: float) -> Iterator[tuple[RunConfig, Mapping[str, Presentation]]]:
    """Yield a run's configuration for each link, with the packages of one segment duration."""
    from omegaconf import OmegaConf

    from experiments.command_line import compose_config
    from experiments.job import prepare_packages
    from experiments.prepare import obtain_video

    packages: dict[str, Presentation] = {}
    for trace in study.traces:
        for delay_ms in study.delays_ms:
            resolved = compose_config(_overrides(study, segment_s, trace, delay_ms))
            config: RunConfig = OmegaConf.to_object(resolved)  # type: ignore[assignment]
            if not packages:
                cache = Path(config.cache_dir)
                made = prepare_packages(config, obtain_video(config.video, cache), cache)
                packages = {package.codec: package.presentation for package in made}
            yield config, packages


def _sessions(config: RunConfig, packages: Mapping[str, Presentation], starts: int) -> Iterator[dict[str, Any]]:
    """Play every codec over one link, from each starting point."""
    from experiments.stream import stream
    from player.programme import build_programme
    from traces import load_trace

    whole = load_trace(config.trace)
    programmes = {codec: build_programme(package, config.session_s) for codec, package in packages.items()}
    for start in range(starts):
        offset_s = whole.duration_s * start / starts
        trace = whole.starting_at(offset_s)
        for codec, programme in programmes.items():
            summary = stream(codec, programme, trace, config).summary
            yield {
                "codec": codec,
                "offset_s": offset_s,
                "rebuffering_percent": 100 * summary["rebuffering_ratio"],
                "media_bitrate_bps": summary["media_bitrate_bps"],
                **summary["quality"],
            }


def ladder_rows(presentation: Presentation, link: LinkConfig) -> Iterator[dict[str, Any]]:
    """Yield what each representation takes: payload, everything beyond it, and its mean quality.

    Payload is what `mdat` boxes hold. Beyond it come the other boxes, an HTTP response header for each segment, and the
    headers of its packets; the init segment is fetched once and left out.
    """
    import numpy as np

    from emulator.config import HEADER_BYTES
    from player.mp4 import list_boxes

    duration_s = presentation.manifest.duration_s
    for index, representation in enumerate(presentation.representations):
        sizes = presentation.segment_bytes[:, index]
        payload_bytes = 0
        for segment in range(presentation.segments):
            boxes = list_boxes((presentation.directory / representation.media(segment)).read_bytes())
            payload_bytes += sum(box.end - box.body for box in boxes if box.kind == b"mdat")
        answers = sizes + link.response_header_bytes
        packets = int(np.ceil(answers / link.mss_bytes).sum())
        wire_bytes = int(answers.sum()) + packets * HEADER_BYTES
        yield {
            "representation": representation.id,
            "payload_bps": 8 * payload_bytes / duration_s,
            "media_bps": 8 * int(sizes.sum()) / duration_s,
            "wire_bps": 8 * wire_bytes / duration_s,
            "overhead_percent": 100 * (wire_bytes / payload_bytes - 1),
            **{metric: _mean(presentation, index, metric) for metric in presentation.metrics},
        }


def _mean(presentation: Presentation, representation: int, metric: str) -> float:
    import numpy as np

    frames = [presentation.frame_quality(s, representation, metric) for s in range(presentation.segments)]
    return float(np.concatenate(frames).mean())


def equal_quality(ladder: pd.DataFrame) -> pd.DataFrame:
    """Return the bitrate on the wire that each duration takes for a quality that all durations of its codec reach.

    One row per (codec, segment_s, metric). The quality is the middle of what all ladders of the codec span; between
    two representations the logarithm of the bitrate is taken as linear in it. Where the ladders have nothing in common
    the codec has no row.
    """
    import numpy as np
    import pandas as pd

    from experiments.series import METRICS

    rows = []
    for codec, one in ladder.groupby("codec", sort=False):
        for metric in (name for name in METRICS if name in one):
            spans = one.groupby("segment_s")[metric].agg(["min", "max"])
            low, high = float(spans["min"].max()), float(spans["max"].min())
            if not low < high:
                continue
            quality = (low + high) / 2
            for segment_s, rungs in one.groupby("segment_s"):
                ordered = rungs.sort_values(metric)
                rate_bps = np.exp(np.interp(quality, ordered[metric], np.log(ordered["wire_bps"])))
                rows.append((codec, segment_s, metric, quality, float(rate_bps)))
    return pd.DataFrame(rows, columns=["codec", "segment_s", "metric", "quality", "wire_bps"])


def by_trace(sessions: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each trace's sessions, which are no independent samples: intervals go by trace."""
    return sessions.groupby("trace", sort=False).mean(numeric_only=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval (Student's t); nan for a single value."""
    import numpy as np
    from scipy.stats import t

    count = len(values)
    if not count:
        raise ExperimentError("no session to take a mean of")
    if count == 1:
        return float(values[0]), float("nan")
    return float(np.mean(values)), float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))


def report(sessions: pd.DataFrame, ladder: pd.DataFrame, equal: pd.DataFrame) -> str:
    """Return the means as a Markdown table, a row for each codec, delay and segment duration."""
    metrics = measured(sessions)
    titles = ["rebuffering [%]", "kbit/s", *metrics, "overhead [%]", *(f"kbit/s at equal {name}" for name in metrics)]
    lines = [
        f"| codec | delay [ms] | segment [s] | {' | '.join(titles)} |",
        f"|---|---:|---:|{'---:|' * len(titles)}",
    ]
    for (codec, delay_ms, segment_s), group in sessions.groupby(["codec", "delay_ms", "segment_s"], sort=False):
        traces = by_trace(group)
        cells = [_cell(traces["rebuffering_percent"], 1), _cell(traces["media_bitrate_bps"] / 1000, 1)]
        cells += [_cell(traces[name], 3 if name.startswith("lpips") else 1) for name in metrics]
        own = ladder[(ladder["codec"] == codec) & (ladder["segment_s"] == segment_s)]
        cells.append(f"{own['overhead_percent'].mean():.1f}")
        for name in metrics:
            found = equal[(equal["codec"] == codec) & (equal["segment_s"] == segment_s) & (equal["metric"] == name)]
            cells.append(f"{found['wire_bps'].iloc[0] / 1000:.1f}" if len(found) else "-")
        lines.append(f"| {codec} | {delay_ms:g} | {segment_s:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(sessions: pd.DataFrame) -> list[str]:
    """Return the metrics that stand for quality here: LPIPS or its estimate, and SSIMULACRA2, as far as measured."""
    from experiments.series import HEADLINE_METRICS

    known = [name for name in HEADLINE_METRICS if name in sessions and sessions[name].notna().all()]
    perceptual = [name for name in known if name.startswith("lpips")][:1]
    return [*perceptual, *(name for name in known if name == "ssimulacra2")] or known[:1]


def _cell(values: pd.Series, digits: int) -> str:
    mean, half = interval(values.tolist())
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if half == half else f"{mean:.{digits}f}"


def _label(study: Study, config: RunConfig) -> str:
    traces = ", ".join(study.traces) if len(study.traces) <= 6 else f"{len(study.traces)} traces"
    return (
        f"{traces} (default shares unless given), {study.starts} sessions of {config.session_s:g} s on each, "
        f"{config.abr.name}, {config.player.buffer_s:g} s of buffer, {config.link.model} model; "
        "mean and 95 % interval over traces"
    )


if __name__ == "__main__":
    sys.exit(main())
