"""One codec's session: programme, ladder, virtual-time simulation, and the tables and numbers it leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from abr import Ladder
from emulator import create_transport
from experiments.errors import ExperimentError
from experiments.results import CodecResult
from experiments.schema import QualityConfig, RunConfig
from experiments.series import HEADLINE_METRICS, METRICS
from experiments.simulate import simulate
from player.decoder import PROMPT
from player.log import SessionLog
from player.presentation import Presentation
from player.quality import METRIC_NAMES, SEVERE_DISTORTION, severely_distorted_share
from player.session import Session
from traces import Trace


@dataclass(frozen=True)
class Programme:
    """What is streamed: the clip, looped or cut to the wanted length in whole segments."""

    presentation: Presentation
    ladder: Ladder  # of all segments of the programme
    clip_segment: np.ndarray  # [S] which segment of the clip each one is
    segment_frames: np.ndarray  # [S] frames of each

    @property
    def duration_s(self) -> float:
        """Playing time of the programme."""
        return float(self.ladder.segment_duration_s.sum())


def build_programme(presentation: Presentation, session_s: float) -> Programme:
    """Return the shortest programme of whole segments that lasts ``session_s``, the clip looped if need be."""
    clip_s = presentation.manifest.duration_s
    repeats = max(1, math.ceil(session_s / clip_s - 1e-9))
    ends_s = np.cumsum(np.tile(presentation.manifest.segment_duration_s, repeats))
    segments = min(int(np.searchsorted(ends_s, session_s - 1e-6)) + 1, len(ends_s))
    clip_segment = np.arange(segments) % presentation.segments
    return Programme(
        presentation=presentation,
        ladder=presentation.ladder(repeats=repeats, segments=segments),
        clip_segment=clip_segment,
        segment_frames=np.array(presentation.manifest.frames)[clip_segment],
    )


def stream(codec: str, programme: Programme, trace: Trace, config: RunConfig) -> CodecResult:
    """Play ``programme`` over ``trace`` in virtual time and return its logs, every frame with its measured quality."""
    controller = config.abr.create(programme.ladder, buffer_capacity_s=config.player.buffer_s)
    session = Session(programme.ladder, controller, config.player)
    simulate(
        session,
        create_transport(trace, config.link),
        segment_frames=programme.segment_frames.tolist(),
        # The simulated renderer is the generator; pixel codecs decode in hardware on any viewer's device.
        render_fps=config.player.render_fps if codec == PROMPT else None,
    )
    log = session.log()
    frames = frame_table(log, programme)
    return CodecResult(
        codec=codec,
        segments=segment_table(log, programme),
        frames=frames,
        events=pd.DataFrame(log.events, columns=["time_s", "event", "segment", "value"]).astype({"segment": "Int64"}),
        summary=summarise(log, frames, programme, config.quality),
    )


def segment_table(log: SessionLog, programme: Programme) -> pd.DataFrame:
    """Return the session's segment rows, with the clip's segment and the representation's name added."""
    table = pd.DataFrame(log.segments)
    table.insert(1, "clip_segment", programme.clip_segment[table["segment"]])
    table.insert(3, "name", np.array(programme.ladder.names)[table["representation"]])
    optional = [name for name in table if str(name).endswith(("_s", "_bps"))]  # None until known; then all are numbers
    return table.astype(dict.fromkeys(optional, float) | {"link_rate_is_bound": "boolean"})


def frame_table(log: SessionLog, programme: Programme) -> pd.DataFrame:
    """Return one row per frame shown: where it lies, when it was on the screen, and each metric as the packager
    measured it on the frames that the decoder makes."""
    table = pd.DataFrame(log.frames(programme.segment_frames.tolist()))
    presentation = programme.presentation
    for metric in presentation.metrics:
        values = np.empty(len(table))
        for rows in table.groupby("segment", sort=False).indices.values():
            segment, representation = (int(table[name].iloc[rows[0]]) for name in ("segment", "representation"))
            measured = presentation.frame_quality(int(programme.clip_segment[segment]), representation, metric)
            values[rows] = measured[table["frame"].to_numpy()[rows]]
        table[metric] = values
    return table


def summarise(log: SessionLog, frames: pd.DataFrame, programme: Programme, quality: QualityConfig) -> dict[str, Any]:
    """Return the numbers of the printed table, and those behind them, as JSON takes them."""
    metrics = [name for name in METRICS if name in frames]
    metric, threshold = severity(metrics, quality)
    share = math.nan
    if metric and len(frames):
        share = severely_distorted_share(frames[metric], metric, threshold=threshold)
    shown = frames.drop_duplicates("segment")
    sizes = programme.ladder.segment_bytes[shown["segment"], shown["representation"]]
    shown_s = float(programme.ladder.segment_duration_s[shown["segment"]].sum())
    numbers = {
        **{key: float(value) if isinstance(value, float) else int(value) for key, value in log.summary.items()},
        "received_bytes": int(log.summary["downloaded_bytes"] + log.summary["wasted_bytes"]),
        "media_bitrate_bps": float(sizes.sum()) * 8 / shown_s if shown_s else math.nan,
        "frames": len(frames),
        "quality": {name: _finite(float(frames[name].mean())) for name in metrics},
        "severe_metric": metric,
        "severe_threshold": threshold,
        "severe_share": share,
        "ladder_bps": programme.ladder.bitrate_bps.tolist(),
        "ladder_names": list(programme.ladder.names),
    }
    return {key: _finite(value) if isinstance(value, float) else value for key, value in numbers.items()}


def check_severe_metric(quality: QualityConfig) -> None:
    """Raise ExperimentError for a metric that nobody measures, before anything is packaged."""
    known = ("auto", *METRIC_NAMES)
    if quality.severe_metric not in known:
        raise ExperimentError(f"quality.severe_metric={quality.severe_metric}: expected one of {', '.join(known)}")


def severity(metrics: Sequence[str], quality: QualityConfig) -> tuple[str | None, float]:
    """Return the metric and threshold by which frames count as severely distorted; (None, nan) if none has one.

    Raises:
        ExperimentError: the metric asked for was not measured, or has no published threshold and none was given.
    """
    metric: str | None = quality.severe_metric
    if metric == "auto":
        metric = next((name for name in HEADLINE_METRICS if name in metrics and name in SEVERE_DISTORTION), None)
    if metric is None:
        return None, math.nan
    if metric not in metrics:
        raise ExperimentError(f"quality.severe_metric={metric}: measured were {', '.join(metrics) or 'none'}")
    if quality.severe_threshold is not None:
        return metric, quality.severe_threshold
    if metric not in SEVERE_DISTORTION:
        raise ExperimentError(
            f"quality.severe_metric={metric} has no published threshold; give quality.severe_threshold"
        )
    return metric, SEVERE_DISTORTION[metric].threshold


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
