"""Sabre's movies and networks: what they hold, and how they are read from JSON."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abr import Ladder
from experiments.errors import UsageError

UNITS_PER_BIT = 1024
"""The session counts whole bytes, Sabre fractions of bits: here a "byte" is 1/1024 bit, and rates are scaled alike."""


@dataclass(frozen=True)
class Movie:
    """A movie of equal segments."""

    segment_ms: float
    bitrates_kbps: tuple[float, ...]
    segment_bits: tuple[tuple[int, ...], ...]
    """`[S][R]`"""

    @property
    def utilities(self) -> list[float]:
        """ln(bitrate / lowest) of each quality."""
        return [math.log(rate / self.bitrates_kbps[0]) for rate in self.bitrates_kbps]

    def ladder(self) -> Ladder:
        """Return the movie as controllers and session see it, in units of 1/1024 bit instead of bytes."""
        rates_bps = np.array(self.bitrates_kbps) * 1000 * 8 * UNITS_PER_BIT
        sizes = np.array(self.segment_bits, dtype=np.int64) * UNITS_PER_BIT
        return Ladder(rates_bps, sizes, np.full(len(sizes), self.segment_ms / 1000))


@dataclass(frozen=True)
class Period:
    """A stretch of the link's trace."""

    duration_ms: float
    bandwidth_kbps: float
    """Equal to bits per ms."""
    latency_ms: float


def read_movie(path: Path, *, length_s: float | None = None) -> Movie:
    """Read a movie, cut or repeated to `length_s` if that is given."""
    content = _read_json(path, dict)
    segment_ms = _number(path, "segment_duration_ms", content.get("segment_duration_ms"), above=0)
    rates = content.get("bitrates_kbps")
    if not isinstance(rates, list) or not rates:
        raise UsageError(f"{path}: bitrates_kbps: expected a list of numbers")
    rates = [_number(path, "bitrates_kbps", rate, above=0) for rate in rates]
    if any(after <= before for before, after in itertools.pairwise(rates)):
        raise UsageError(f"{path}: bitrates_kbps: found {rates}, expected ascending numbers")
    rows = content.get("segment_sizes_bits")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path}: segment_sizes_bits: expected a list of rows, one for each segment")
    sizes = []
    for number, row in enumerate(rows):
        where = f"segment_sizes_bits[{number}]"
        if not isinstance(row, list) or len(row) != len(rates):
            raise UsageError(f"{path}: {where}: expected {len(rates)} sizes, one for each bitrate")
        sizes.append(tuple(round(_number(path, where, size, above=0)) for size in row))
    if length_s is not None:
        if not (math.isfinite(length_s) and length_s > 0):
            raise UsageError(f"--movie-length {length_s:g}: expected seconds above 0")
        count = math.ceil(length_s * 1000 / segment_ms)
        sizes = list(itertools.islice(itertools.cycle(sizes), count))
    return Movie(segment_ms, tuple(rates), tuple(sizes))


def read_network(path: Path, *, multiplier: float = 1.0) -> list[Period]:
    """Read a network trace, its bandwidths times `multiplier`."""
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise UsageError(f"--network-multiplier {multiplier:g}: expected a number above 0")
    rows = _read_json(path, list)
    periods = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {number}: expected an object with duration_ms, bandwidth_kbps, latency_ms")
        duration, bandwidth, latency = (
            _number(path, f"row {number}: {name}", row.get(name), least=0)
            for name in ("duration_ms", "bandwidth_kbps", "latency_ms")
        )
        periods.append(Period(duration, bandwidth * multiplier, latency))
    if not any(period.duration_ms * period.bandwidth_kbps > 0 for period in periods):
        raise UsageError(f"{path}: found no period with bandwidth, expected one that lets a download end")
    return periods


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, kind):
        raise UsageError(f"{path}: found {type(content).__name__}, expected a JSON {kind.__name__}")
    return content


def _number(path: Path, where: str, value: Any, *, above: float | None = None, least: float = -math.inf) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < least or (above is not None and value <= above):
        expected = f"above {above:g}" if above is not None else f"of {least:g} or more"
        raise UsageError(f"{path}: {where}: found {value!r}, expected a number {expected}")
    return float(value)
