"""What a session leaves behind, simulated or played: three tables and a summary, made from its log and written whole.

segments.parquet   one row per segment that was asked for
frames.parquet     one row per frame shown, with its quality as the packager measured it; made-up ones are marked
events.parquet     one row per event
summary.json       the numbers of the printed table
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from player.bitstream import read_init, read_segment
from player.files import write_json, write_table
from player.log import SegmentRow, SessionLog
from player.programme import Programme
from player.quality import SEVERE_DISTORTION, known_metrics, severely_distorted_share
from player.render_modes import shown_frames
from player.viewer import rejoined_share

TABLES = ("segments", "frames", "events")


@dataclass(frozen=True)
class SevereRule:
    """From which score on a frame counts as severely distorted."""

    metric: str | None
    """None: no measured metric has a threshold."""
    threshold: float = math.nan


@dataclass(frozen=True)
class SessionRecord:
    """The tables of one session."""

    segments: pd.DataFrame
    frames: pd.DataFrame
    events: pd.DataFrame
    summary: dict[str, Any]


def default_rule(metrics: Sequence[str]) -> SevereRule:
    """Return the published rule of the first metric that has one and was measured."""
    metric = next((name for name in SEVERE_DISTORTION if name in metrics), None)
    return SevereRule(None) if metric is None else SevereRule(metric, SEVERE_DISTORTION[metric].threshold)


def make_record(log: SessionLog, programme: Programme, rule: SevereRule) -> SessionRecord:
    """Return the tables and the summary of a session."""
    frames = frame_table(log, programme)
    events = pd.DataFrame(log.events, columns=["time_s", "event", "segment", "value"]).astype({"segment": "Int64"})
    return SessionRecord(segment_table(log, programme), frames, events, summarise(log, frames, programme, rule))


def segment_table(log: SessionLog, programme: Programme) -> pd.DataFrame:
    """Return the session's segment rows, with the clip's segment and the representation's name added."""
    columns = dict.fromkeys([*SegmentRow.__dataclass_fields__, "bitrate_bps", "throughput_bps"])  # if there are no rows
    table = pd.DataFrame(log.segments, columns=list(columns))
    table.insert(1, "clip_segment", programme.clip_segment[table["segment"]])
    table.insert(3, "name", np.array(programme.ladder.names)[table["representation"]])
    optional = [name for name in table if str(name).endswith(("_s", "_bps"))]  # None until known; then all are numbers
    return table.astype(dict.fromkeys(optional, float) | {"link_rate_is_bound": "boolean"})


def frame_table(log: SessionLog, programme: Programme) -> pd.DataFrame:
    """Return one row per frame shown: where it lies, when it was on the screen, and each metric as the packager
    measured it on the frames that the decoder makes.

    `concealed` is the share of the picture that was made up: 1 in a concealed stop, where `frame` counts on beyond its
    segment's last, and falling to 0 within `REJOIN_S` after a stop. `repeated` says that the frame before stayed on the
    screen, since the segment was rendered in a mode of fewer frames. Neither kind has a measured quality.
    """
    table = pd.DataFrame(log.frames(programme.segment_frames.tolist()))
    table["concealed"] = 0.0
    presentation = programme.presentation
    for metric in presentation.metrics:
        values = np.empty(len(table))
        for rows in table.groupby(["segment", "representation"], sort=False).indices.values():
            segment, representation = (int(table[name].iloc[rows[0]]) for name in ("segment", "representation"))
            measured = presentation.frame_quality(int(programme.clip_segment[segment]), representation, metric)
            values[rows] = measured[table["frame"].to_numpy()[rows]]
        table[metric] = values
    table["repeated"] = _repeated(table, log, programme)
    table.loc[table["repeated"], list(presentation.metrics)] = math.nan
    return _with_concealed(table, log, programme)


def _repeated(table: pd.DataFrame, log: SessionLog, programme: Programme) -> np.ndarray:
    """Return which frames the segment's render mode did not make, bool [frames]."""
    modes = {row["segment"]: row["render_mode"] for row in log.segments if row["render_mode"] is not None}
    repeated, presentation = np.zeros(len(table), dtype=bool), programme.presentation
    for (segment, representation), rows in table.groupby(["segment", "representation"], sort=False).indices.items():
        if segment not in modes:
            continue
        info, clip_segment = read_init(presentation.read_init(representation)), int(programme.clip_segment[segment])
        shown = shown_frames(
            read_segment(info, presentation.read_segment(clip_segment, representation)), modes[segment]
        )
        frames = table["frame"].to_numpy()[rows]
        repeated[rows] = shown[frames] != frames
    return repeated


def _with_concealed(table: pd.DataFrame, log: SessionLog, programme: Programme) -> pd.DataFrame:
    """Add the frames that filled stops, and mark those that lead back from them."""
    metrics = list(programme.presentation.metrics)
    fps = float(programme.presentation.manifest.fps)
    wall_s = table["wall_time_s"].to_numpy()
    parts = [table]
    for event in log.events:
        if event["event"] != "concealment_end":
            continue
        begin_s = event["time_s"] - event["value"]
        last = int(np.searchsorted(wall_s, begin_s - 1e-6)) - 1  # the frame before
        if last + 1 < len(table):
            since_s = wall_s - wall_s[last + 1]
            share = 1 - rejoined_share(since_s, fps)
            rejoining = (since_s >= 0) & (share > 0)
            table.loc[rejoining, "concealed"] = share[rejoining]
            table.loc[rejoining, metrics] = math.nan
        count = math.ceil((event["value"] - 1e-6) * fps)
        if count <= 0:
            continue
        row = table.iloc[last]
        made_up = pd.DataFrame([row] * count).reset_index(drop=True)
        made_up["frame"] = int(row["frame"]) + 1 + np.arange(count)
        made_up["wall_time_s"] = begin_s + np.arange(count) / fps
        made_up["concealed"], made_up["repeated"] = 1.0, False
        made_up[["media_time_s", *metrics]] = math.nan
        parts.append(made_up.astype(table.dtypes))
    return pd.concat(parts).sort_values("wall_time_s", kind="stable", ignore_index=True) if parts[1:] else table


def summarise(log: SessionLog, frames: pd.DataFrame, programme: Programme, rule: SevereRule) -> dict[str, Any]:
    """Return the numbers of the printed table, and those behind them, as JSON takes them."""
    metrics = [name for name in known_metrics() if name in frames]
    shown = frames.drop_duplicates("segment", keep="last")  # the highest that was shown of it
    sizes = programme.ladder.segment_bytes[shown["segment"], shown["representation"]]
    shown_s = float(programme.ladder.segment_duration_s[shown["segment"]].sum())
    numbers = {
        **{key: float(value) if isinstance(value, float) else int(value) for key, value in log.summary.items()},
        "received_bytes": int(log.summary["downloaded_bytes"] + log.summary["wasted_bytes"]),
        "media_bitrate_bps": float(sizes.sum()) * 8 / shown_s if shown_s else math.nan,
        "frames": int((frames["concealed"] < 1).sum()),
        "concealed_frames": int((frames["concealed"] == 1).sum()),
        "repeated_frames": int(frames["repeated"].sum()),
        "quality": {name: _finite(float(frames[name].mean())) for name in metrics},
        **severe_numbers(frames, rule),
        "ladder_bps": programme.ladder.bitrate_bps.tolist(),
        "ladder_names": list(programme.ladder.names),
    }
    return {key: _finite(value) if isinstance(value, float) else value for key, value in numbers.items()}


def severe_numbers(frames: pd.DataFrame, rule: SevereRule) -> dict[str, Any]:
    """Return the part of a summary that says how many frames were severely distorted, and by which rule."""
    share = math.nan
    measured = frames[rule.metric].dropna() if rule.metric else []
    if rule.metric and len(measured):
        share = severely_distorted_share(measured, rule.metric, threshold=rule.threshold)
    return {
        "severe_metric": rule.metric,
        "severe_threshold": _finite(rule.threshold),
        "severe_share": _finite(share),
    }


def write_record(folder: Path, record: SessionRecord) -> None:
    """Write a session's tables and summary into `folder`."""
    for name in TABLES:
        write_table(folder / f"{name}.parquet", getattr(record, name))
    write_json(folder / "summary.json", record.summary)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
