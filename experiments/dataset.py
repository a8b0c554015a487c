"""A study's data set: one row per session as Parquet parts in one folder, and the study's provenance beside them.

study.json                 settings, provenance, hashes of the packages
sessions/part-*.parquet    rows as in SCHEMA; every part appears whole
failures.json              sessions that failed, with the reason; they are tried again when the study is resumed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import ExperimentError
from player.files import write_json, write_table

STUDY, SESSIONS, FAILURES = "study.json", "sessions", "failures.json"
VERSION = 1

SCHEMA: dict[str, str] = {
    "trace": "canonical name of the trace, or its path",
    "family": "family of a vendored trace; `own` for others",
    "share": "the player had every share-th delivery opportunity",
    "offset_s": "where in the trace the session began, s",
    "codec": "codec of the package",
    "package": "folder name of the package",
    "abr": "controller, with its options as given",
    "session_s": "length of the programme, s",
    "buffer_s": "buffer cap, s",
    "delay_ms": "one-way delay of the link, ms",
    "loss": "random loss of the link, share of packets",
    "link_model": "fluid or packet",
    "render_fps": "speed of the simulated renderer, frames/s; NaN: rendering costs no time",
    "trace_bps": "mean rate of the whole trace after the share, bit/s",
    "session_bps": "mean rate of the link over the programme's length from the offset on, bit/s",
    "segments": "segments of the programme",
    "frames": "frames shown",
    "startup_delay_s": "from the start to the first frame, s",
    "elapsed_s": "length of the session, s",
    "rebuffered_s": "standstill after the start, s",
    "rebuffering_ratio": "rebuffered / (played + rebuffered + concealed), startup left out",
    "rebuffering_count": "standstills after the start",
    "switches": "changes of representation between segments played one after the other",
    "skipped_segments": "segments given up",
    "abandonments": "requests that the controller gave up",
    "upgrades": "better versions that came in time",
    "media_bps": "bytes of what was shown * 8 / its playing time, bit/s",
    "received_bytes": "all bytes that arrived, failed attempts and init segments included",
    "wasted_bytes": "bytes of failed attempts and replaced versions",
    "qoe_lin": "per segment: bitrate / top bitrate - 1/s * rebuffering - 1 * |change|",
    "qoe_quality": "as qoe_lin with quality scaled from 0, the worst of the lowest, to 1, the best of the ladder",
    "severe_share": "share of frames shown that are severely distorted, by the rule in study.json",
}
"""Column -> meaning and unit. Besides, one column for each metric that every package holds: mean over frames shown."""

KEYS = ("trace", "offset_s", "codec", "package", "abr")
"""What tells the sessions of a study apart."""


def open_study(folder: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Begin a study in `folder`, or go on with the one that is there if its settings are the same.

    Raises:
        ExperimentError: it holds a study made with other settings.
    """
    path = folder / STUDY
    if path.exists():
        held = read_study(folder)["settings"]
        differing = sorted(name for name in {*held, *settings} if held.get(name) != settings.get(name))
        if differing:
            raise ExperimentError(f"{folder} holds a study with other {', '.join(differing)}; choose another output")
        return
    write_json(path, {"version": VERSION, "settings": dict(settings), "provenance": dict(provenance)})


def read_study(folder: Path | str) -> dict[str, Any]:
    """Return what `study.json` holds: version, settings, provenance."""
    path = Path(folder) / STUDY
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"{path}: cannot be read as a study's description ({reason})") from error
    if not isinstance(study, dict) or study.get("version") != VERSION or not isinstance(study.get("settings"), dict):
        raise ExperimentError(f"{path}: expected a study of version {VERSION}")
    return study


def write_part(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a study."""
    write_table(folder / SESSIONS / f"part-{name}.parquet", rows)


def load(path: Path | str) -> pd.DataFrame:
    """Return a study's sessions, one row each; columns and units as in `SCHEMA`, sorted by its keys.

    Raises:
        ExperimentError: no study, or a part that cannot be read.
    """
    folder = Path(path)
    read_study(folder)
    parts = []
    for part in sorted((folder / SESSIONS).glob("part-*.parquet")):
        try:
            parts.append(pd.read_parquet(part))
        except (OSError, ValueError) as error:  # pyarrow's errors on bad bytes are ValueErrors
            raise ExperimentError(f"{part}: cannot be read ({str(error).splitlines()[0]})") from error
    if not parts:
        return pd.DataFrame(columns=list(SCHEMA))
    table = pd.concat(parts, ignore_index=True)
    missing = [name for name in SCHEMA if name not in table]
    if missing:
        raise ExperimentError(f"{folder / SESSIONS}: column {missing[0]} is missing, which every part must have")
    return table.drop_duplicates(list(KEYS), keep="last").sort_values(list(KEYS), ignore_index=True)
