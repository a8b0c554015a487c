"""A study's data set: one row per session as Parquet parts in one folder, and the study's provenance beside them.

study.json                 settings, hashes of the packages, provenance of the first and of later commands
sessions/part-*.parquet    rows as in SCHEMA; every part appears whole
failures.json              sessions that failed, with the reason; they are tried again when the study is resumed
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import ExperimentError
from player.files import write_json, write_table

STUDY, SESSIONS, FAILURES = "study.json", "sessions", "failures.json"
VERSION = 2

SCHEMA: dict[str, str] = {
    "session": "hash of everything that decides the session: link, package, controller, player",
    "trace": "canonical name of the trace, or its path",
    "family": "family of a vendored trace; `own` for others",
    "share": "the player had every share-th delivery opportunity",
    "offset_s": "where in the trace the session began, s",
    "seed": "what the offset and the loss were drawn from; empty: offset as configured",
    "video": "name of the clip, without folder and suffix",
    "codec": "codec of the package",
    "package": "folder name of the package",
    "abr": "controller, with its options as given",
    "session_s": "length of the programme, s",
    "buffer_s": "buffer cap, s",
    "delay_ms": "one-way delay of the link, ms",
    "loss": "random loss of the link, share of packets",
    "link_model": "fluid or packet",
    "render_fps": "speed of the simulated renderer, frames/s; NaN: rendering costs no time",
    "passes_per_s": "speed of the device, passes of the generator per second; NaN: not given",
    "trace_bps": "mean rate of the whole trace after the share, bit/s",
    "session_bps": "mean rate of the link over the programme's length from the offset on, bit/s",
    "segments": "segments of the programme",
    "frames": "frames shown",
    "startup_delay_s": "from the start to the first frame, s",
    "elapsed_s": "length of the session, s",
    "rebuffered_s": "standstill after the start, s",
    "rebuffering_ratio": "rebuffered / (played + rebuffered + concealed), startup left out",
    "waiting_ratio": "(startup delay + rebuffered) / elapsed: rebuffering_ratio with startup counted as waiting",
    "rebuffering_count": "standstills after the start",
    "switches": "changes of representation between segments played one after the other",
    "skipped_segments": "segments given up",
    "abandonments": "requests that the controller gave up",
    "upgrades": "better versions that came in time",
    "reduced_segments": "segments shown with fewer frames rendered than they have; if any, quality is empty",
    "media_bps": "bytes of what was shown * 8 / its playing time, bit/s",
    "received_bytes": "all bytes that arrived, failed attempts and init segments included",
    "wasted_bytes": "bytes of failed attempts and replaced versions",
    "qoe_lin": "per segment: bitrate / top bitrate - 1/s * rebuffering - 1 * |change|",
    "qoe_lin_startup": "as qoe_lin, less 1/s * startup delay",
    "qoe_quality": "as qoe_lin with quality scaled from 0, the worst of the lowest, to 1, the best of the ladder",
    "qoe_quality_startup": "as qoe_quality, less 1/s * startup delay",
    "severe_share": "share of frames shown that are severely distorted, by the rule in study.json",
}
"""Column -> meaning and unit. Besides: one column for each metric that every package holds, its mean over frames shown;
and one for each swept key that is not among these, under the key's name, such as `link.queue_packets`."""

LATER: dict[str, float] = {"passes_per_s": math.nan, "reduced_segments": 0}
"""Columns that data sets of this version may lack, and what they then hold."""

ORDER = ("trace", "offset_s", "seed", "video", "codec", "package", "abr", "session")
"""Columns that a loaded table is sorted by."""


def open_study(
    folder: Path, settings: Mapping[str, Any], packages: Mapping[str, str], provenance: Mapping[str, Any]
) -> None:
    """Begin a study in `folder`, or go on with the one that is there if its settings are the same.

    Args:
        settings: what all sessions share; a study with other ones is another study.
        packages: folder name -> hash; more may be added later, none may change.
        provenance: of this start. The first is kept as `provenance`, later ones that differ in `resumed`.
    Raises:
        ExperimentError: it holds a study made with other settings, or another package of the same name.
    """
    path = folder / STUDY
    if not path.exists():
        content = {"settings": dict(settings), "packages": dict(packages), "provenance": dict(provenance)}
        write_json(path, {"version": VERSION, **content, "resumed": []})
        return
    study = read_study(folder)
    held = study["settings"]
    differing = [
        _difference(name, held.get(name), settings.get(name))
        for name in sorted({*held, *settings})
        if held.get(name) != settings.get(name)
    ]
    changed = sorted(name for name, sha256 in packages.items() if study["packages"].get(name, sha256) != sha256)
    if changed:
        differing.append(f"package {changed[0]}")
    if differing:
        raise ExperimentError(f"{folder} holds a study with other {', '.join(differing)}; choose another output")
    study["packages"] |= packages
    if provenance not in (study["provenance"], *study["resumed"]):
        study["resumed"].append(dict(provenance))
    write_json(path, study)


def _difference(name: str, held: Any, wanted: Any) -> str:
    """Return what differs, the setting as the study holds it and as it is wanted now."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        key = next(key for key in sorted({*held, *wanted}) if held.get(key) != wanted.get(key))
        return f"{name} ({key} {held.get(key)}, not {wanted.get(key)})"
    title = "swept keys" if name == "swept" else name
    there, here = (", ".join(value) or "none" if name == "swept" else str(value) for value in (held, wanted))
    return f"{title} ({there}; not {here})"


def read_study(folder: Path | str) -> dict[str, Any]:
    """Return what `study.json` holds: version, settings, provenance."""
    path = Path(folder) / STUDY
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"{path}: cannot be read as a study's description ({reason})") from error
    if not isinstance(study, dict) or study.get("version") != VERSION or not isinstance(study.get("settings"), dict):
        raise ExperimentError(f"{path}: expected a study of version {VERSION}; run it again with another output")
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
    parts = _read_parts(folder)
    if not parts:
        return pd.DataFrame(columns=list(SCHEMA))
    table = pd.concat(parts, ignore_index=True)
    for name, value in LATER.items():
        table[name] = table[name].fillna(value) if name in table else value
    missing = [name for name in SCHEMA if name not in table]
    if missing:
        raise ExperimentError(f"{folder / SESSIONS}: column {missing[0]} is missing, which every part must have")
    table["seed"] = table["seed"].astype("Int64")
    return table.drop_duplicates("session", keep="last").sort_values(list(ORDER), ignore_index=True)


def finished_sessions(folder: Path) -> set[str]:
    """Return the `session` of every row that a study holds."""
    return {key for part in _read_parts(folder, columns=["session"]) for key in part["session"]}


def _read_parts(folder: Path, columns: list[str] | None = None) -> list[pd.DataFrame]:
    read_study(folder)
    parts = []
    for part in sorted((folder / SESSIONS).glob("part-*.parquet")):
        try:
            parts.append(pd.read_parquet(part, columns=columns))
        except (OSError, ValueError) as error:  # pyarrow's errors on bad bytes are ValueErrors
            raise ExperimentError(f"{part}: cannot be read ({str(error).splitlines()[0]})") from error
    return parts
