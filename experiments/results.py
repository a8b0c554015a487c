"""What a run leaves behind: the layout of a run folder, written and read here only.

    config.yaml        the resolved configuration
    provenance.json    command, versions, commit, seeds, hashes of the inputs
    trace.parquet      the link's rate as the player had it, one row per second
    summary.json       the conditions, and for each codec the numbers of the printed table
    <codec>/           segments.parquet, frames.parquet, events.parquet, summary.json, render.json, session.mp4
    figures/           every figure as PDF and PNG

Tables and figures are made from these files alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from experiments.errors import RunFolderError
from player.files import write_json, write_table

SUMMARY_VERSION = 1
TABLES = ("segments", "frames", "events")


@dataclass(frozen=True)
class CodecResult:
    """The logs of one codec's session."""

    codec: str
    segments: pd.DataFrame  # one row per segment of the programme
    frames: pd.DataFrame  # one row per frame shown, with its quality
    events: pd.DataFrame  # one row per event
    summary: dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """A run folder in memory."""

    path: Path
    config: dict[str, Any]
    conditions: dict[str, Any]  # trace, share, mean rate, delay, buffer, controller ... of every session in the run
    trace: pd.DataFrame  # time_s, rate_bps
    codecs: dict[str, CodecResult]


def write_codec(folder: Path, result: CodecResult) -> None:
    """Write one codec's tables and summary below the run folder ``folder``."""
    for name in TABLES:
        write_table(folder / result.codec / f"{name}.parquet", getattr(result, name))
    write_json(folder / result.codec / "summary.json", result.summary)


def write_summary(folder: Path, conditions: Mapping[str, Any], results: Sequence[CodecResult]) -> None:
    """Write the run's ``summary.json``: the conditions and each codec's numbers."""
    codecs = {result.codec: result.summary for result in results}
    write_json(folder / "summary.json", {"version": SUMMARY_VERSION, "conditions": dict(conditions), "codecs": codecs})


def load_run(folder: Path | str) -> RunResult:
    """Read a run folder.

    Raises:
        RunFolderError: a file is missing, cannot be read, or was written by another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such run folder")
    summary = _read_json(folder / "summary.json")
    found = summary.get("version")
    if found != SUMMARY_VERSION:
        raise RunFolderError(
            f"{folder / 'summary.json'}: version {found}, but this build reads version {SUMMARY_VERSION}"
        )
    try:
        codecs = {codec: load_codec(folder / codec, codec, numbers) for codec, numbers in summary["codecs"].items()}
        conditions = dict(summary["conditions"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{folder / 'summary.json'}: not a run's summary ({error!r})") from error
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:  # OmegaConf lets the YAML parser's errors through, which share no public base class
        raise RunFolderError(f"{folder / 'config.yaml'}: cannot be read ({_first_line(error)})") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{folder / 'config.yaml'}: holds {type(config).__name__}, expected a mapping")
    settings = {str(key): value for key, value in config.items()}
    return RunResult(folder, settings, conditions, _read_table(folder / "trace.parquet"), codecs)


def load_codec(folder: Path, codec: str, summary: dict[str, Any]) -> CodecResult:
    """Read the tables of one codec's session; RunFolderError if one is missing or cannot be read."""
    tables = {name: _read_table(folder / f"{name}.parquet") for name in TABLES}
    return CodecResult(codec, tables["segments"], tables["frames"], tables["events"], dict(summary))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors on bad bytes are ValueErrors
        raise RunFolderError(f"{path}: cannot be read as a Parquet table ({_first_line(error)})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
