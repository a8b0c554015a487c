"""Trace files, readers beside writers: Mahimahi lines, cooked `time_s Mbit/s` columns, Sabre JSON.

- mahimahi: one whole number of ms per line, sorted, repeated for several MTUs. These are the opportunities; the period
  is the last line.
- cooked: `time_s Mbit/s` per line, times increasing. Line k's rate holds over (t[k-1], t[k]], the rate of line 0 is
  not used: it marks the start (Pensieve's rule).
- sabre: a JSON list of {duration_ms, bandwidth_kbps, latency_ms}, the periods in order. Latency is the link's affair
  and is not read.

Every error is one line, `file:line: found X, expected Y`.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from traces.errors import TraceError
from traces.schedule import MAX_INTERVAL_MS, spread_evenly
from traces.trace import MAX_PERIOD_MS, MTU_BYTES, FloatArray, IntArray, Trace

FORMATS = ("mahimahi", "cooked", "sabre")

_HIGHEST_RATE_BPS = 1e12  # a typing error or a wrong unit beyond this

_MAX_DIGITS = 15  # of a Mahimahi time: longer ones are years beyond MAX_PERIOD_MS and could overflow int64


@dataclass(frozen=True, eq=False)
class RateSeries:
    """A piecewise-constant rate.

    Attributes:
        edges_s: [b+1] float64, non-decreasing, edges_s[0] = 0.
        rate_bps: [b] float64, >= 0; rate_bps[i] holds over (edges_s[i], edges_s[i+1]].
    """

    edges_s: FloatArray
    rate_bps: FloatArray

    def bytes_until(self, time_s: FloatArray) -> FloatArray:
        """Return the integral of the rate from 0 to each time, in bytes: [m] float64."""
        done = np.concatenate([[0.0], np.cumsum(self.rate_bps * np.diff(self.edges_s) / 8)])
        return np.interp(time_s, self.edges_s, done)

    def to_trace(self, name: str) -> Trace:
        """Return the Mahimahi schedule of this rate: spread evenly inside intervals, fractions carried."""
        edges_ms = np.rint(self.edges_s * 1000).astype(np.int64)
        done = np.rint(self.bytes_until(self.edges_s)).astype(np.int64)
        opportunities = spread_evenly(edges_ms, np.diff(done), name=name)
        if opportunities.size == 0:
            raise TraceError(
                f"{name}: found {int(done[-1])} bytes in all, expected half a packet ({MTU_BYTES}) or more"
            )
        return Trace(name=name, opportunities_ms=opportunities, period_ms=int(edges_ms[-1]))


def read_trace(path: str | Path, *, format: str | None = None, name: str | None = None) -> Trace:  # noqa: A002
    """Read a trace file of any known format.

    Args:
        path: the file.
        format: "mahimahi", "cooked" or "sabre"; None decides by the content.
        name: the trace's name; None takes the file's.

    Raises:
        TraceError: one line, `file:line: found X, expected Y`.
    """
    path = Path(path)
    text = _read_text(path)
    kind = detect_format(text, path) if format is None else format
    name = name or path.name
    if kind == "mahimahi":
        times = _parse_mahimahi(text, path)
        return Trace(name=name, opportunities_ms=times, period_ms=int(times[-1]))
    try:
        return _parse_rates(text, path, kind).to_trace(name)
    except TraceError as error:  # what only the whole series shows, e.g. not one packet: name the file, not the trace
        message = str(error)
        raise TraceError(f"{path}{message[len(name) :]}" if message.startswith(f"{name}: ") else message) from error


def read_rates(path: str | Path, *, format: str | None = None) -> RateSeries:  # noqa: A002
    """Read a rate-sampled file (cooked or sabre) without turning it into opportunities; TraceError as read_trace."""
    path = Path(path)
    text = _read_text(path)
    return _parse_rates(text, path, detect_format(text, path) if format is None else format)


def detect_format(text: str, path: Path) -> str:
    """Return the format a file's content shows, by its first character and its first line."""
    if text[:1] in ("[", "{") or text.lstrip()[:1] in ("[", "{"):
        return "sabre"
    for number, line in enumerate(text.splitlines(), start=1):
        columns = len(_columns(line))
        if columns == 1:
            return "mahimahi"
        if columns == 2:
            return "cooked"
        if columns:
            _fail(path, number, f"{columns} columns", "1 (Mahimahi ms) or 2 (time_s Mbit/s), or Sabre's JSON list")
    return _fail(path, 1, "an empty file" if not text else "only blank lines", "a trace")


def write_mahimahi(trace: Trace, path: str | Path) -> int:
    """Write a trace as Mahimahi reads it and return by how many ms its last opportunity had to be delayed (mostly 0).

    Mahimahi takes the last line as the period. A trace whose last opportunity comes before its period (after `share`,
    `starting_at`, or from rate samples) keeps its period and its count only if that one opportunity moves to the end.
    """
    times = trace.opportunities_ms.tolist()
    delay_ms = trace.period_ms - times[-1]
    times[-1] = trace.period_ms
    _write_text(Path(path), "\n".join(map(str, times)) + "\n")
    return delay_ms


def write_cooked(trace: Trace, path: str | Path, *, bin_s: float = 1.0) -> None:
    """Write `time_s Mbit/s` lines, one per bin plus the line 0 that marks the start; the last bin may be shorter."""
    edges_ms, rate_bps = _binned(trace, bin_s)
    lines = [f"0 {rate_bps[0] / 1e6:.9g}"]
    lines += [f"{end / 1000:.12g} {rate / 1e6:.9g}" for end, rate in zip(edges_ms[1:], rate_bps, strict=True)]
    _write_text(Path(path), "\n".join(lines) + "\n")


def write_sabre(trace: Trace, path: str | Path, *, bin_s: float = 1.0, latency_ms: float = 0.0) -> None:
    """Write Sabre's JSON, one entry per bin; latency_ms is Sabre's delay of every request."""
    edges_ms, rate_bps = _binned(trace, bin_s)
    entries = [
        {"duration_ms": int(width), "bandwidth_kbps": float(f"{rate / 1000:.9g}"), "latency_ms": latency_ms}
        for width, rate in zip(np.diff(edges_ms), rate_bps, strict=True)
    ]
    _write_text(Path(path), "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


def _binned(trace: Trace, bin_s: float) -> tuple[IntArray, FloatArray]:
    """Return the edges [b+1] in ms and rates [b] in bit/s of one lap; the last bin ends, inclusive, at the period."""
    width = round(bin_s * 1000)
    if width < 1:
        raise TraceError(f"bin: found {bin_s} s, expected at least 0.001")
    edges = np.append(np.arange(0, trace.period_ms, width, dtype=np.int64), trace.period_ms)
    counts = np.bincount(np.minimum(trace.opportunities_ms // width, edges.size - 2), minlength=edges.size - 1)
    return edges, counts * (MTU_BYTES * 8 * 1000) / np.diff(edges)


def _parse_mahimahi(text: str, path: Path) -> IntArray:
    """Return the times of a Mahimahi file: [n] int64."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        _fail(path, 1, "an empty file", "one whole number of milliseconds per line")
    if text.isascii() and not text.translate(_DELETE_DIGITS_AND_NEWLINES) and max(map(len, lines)) <= _MAX_DIGITS:
        if "" in lines:
            _fail(path, lines.index("") + 1, "an empty line", "a whole number of milliseconds")
        times = np.array(lines, dtype=f"S{_MAX_DIGITS}").astype(np.int64)
    else:
        times = np.array([_milliseconds(line, path, n) for n, line in enumerate(lines, start=1)], dtype=np.int64)
    back = np.flatnonzero(times[1:] < times[:-1])
    if back.size:
        line = int(back[0]) + 1
        _fail(path, line + 1, f"{times[line]} after {times[line - 1]}", "a time not before the line above")
    if times[-1] == 0:
        _fail(path, times.size, "0 as the last time", "a period above 0 ms")
    if times[-1] > MAX_PERIOD_MS:
        first = int(np.searchsorted(times, MAX_PERIOD_MS, side="right"))
        _fail(path, first + 1, f"{times[first]} ms", f"at most {MAX_PERIOD_MS} ms (7 days)")
    return times


_DELETE_DIGITS_AND_NEWLINES = dict.fromkeys(map(ord, "0123456789\n"))


def _milliseconds(line: str, path: Path, number: int) -> int:
    """Return one Mahimahi line as a number."""
    token = line.removesuffix("\r")
    if not token.strip():
        _fail(path, number, "an empty line", "a whole number of milliseconds")
    if not (token.isascii() and token.isdigit() and len(token) <= _MAX_DIGITS):
        _fail(path, number, _quote(token), "a whole number of milliseconds >= 0")
    return int(token)


def _parse_rates(text: str, path: Path, kind: str) -> RateSeries:
    """Return a cooked or Sabre file as a rate series."""
    if kind == "cooked":
        return _parse_cooked(text, path)
    if kind == "sabre":
        return _parse_sabre(text, path)
    raise TraceError(f"{path}: found format {kind!r}, expected " + (" or ".join(FORMATS)))


def _parse_cooked(text: str, path: Path) -> RateSeries:
    """Return a `time_s Mbit/s` file as a rate series that starts at the first line's time."""
    times: list[float] = []
    rates: list[float] = []
    number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        columns = _columns(line)
        if not columns:
            continue
        if len(columns) != 2:
            _fail(path, number, f"{len(columns)} columns", "2 (time_s Mbit/s)")
        time_s = _number(columns[0], path, number, "a time in seconds")
        rate_mbps = _number(columns[1], path, number, "a rate in Mbit/s")
        if rate_mbps * 1e6 > _HIGHEST_RATE_BPS:
            _fail(path, number, f"{rate_mbps:g} Mbit/s", f"at most {_HIGHEST_RATE_BPS / 1e6:g}")
        if times and time_s <= times[-1]:
            _fail(path, number, f"time {time_s:g} after {times[-1]:g}", "increasing times")
        _check_span(time_s - (times[-1] if times else time_s), time_s - (times[0] if times else time_s), path, number)
        times.append(time_s)
        rates.append(rate_mbps * 1e6)
    if len(times) < 2:
        _fail(path, max(number, 1), f"{len(times)} line(s)", "at least 2, the first one marks the start")
    if times[-1] - times[0] < 0.001:
        _fail(path, number, f"{times[-1] - times[0]:g} s in all", "a trace of 0.001 s or more")
    return RateSeries(np.array(times) - times[0], np.array(rates[1:]))


def _parse_sabre(text: str, path: Path) -> RateSeries:
    """Return Sabre's JSON list of periods as a rate series."""
    durations: list[float] = []
    rates: list[float] = []
    elapsed_s = 0.0
    for entry, number in _json_entries(text, path):
        if not isinstance(entry, dict):
            _fail(path, number, _quote(json.dumps(entry)), "an object with duration_ms and bandwidth_kbps")
        duration_s = _field(entry, "duration_ms", path, number) / 1000
        rate_kbps = _field(entry, "bandwidth_kbps", path, number)
        if rate_kbps * 1e3 > _HIGHEST_RATE_BPS:
            _fail(path, number, f"bandwidth_kbps {rate_kbps:g}", f"at most {_HIGHEST_RATE_BPS / 1e3:g}")
        rates.append(rate_kbps * 1e3)
        if duration_s <= 0:
            _fail(path, number, "duration_ms 0", "a duration above 0")
        elapsed_s += duration_s
        _check_span(duration_s, elapsed_s, path, number)
        durations.append(duration_s)
    if not durations:
        _fail(path, 1, "an empty list", "at least one object with duration_ms and bandwidth_kbps")
    if elapsed_s < 0.001:
        _fail(path, 1, f"{elapsed_s:g} s in all", "a trace of 0.001 s or more")
    return RateSeries(np.array([0.0, *itertools.accumulate(durations)]), np.array(rates))


def _json_entries(text: str, path: Path) -> Iterator[tuple[Any, int]]:
    """Yield each entry of a JSON list with the line it starts on, so that a bad entry can be pointed at."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    line, counted = 1, 0
    if text[position : position + 1] != "[":
        _fail(path, 1 + text.count("\n", 0, position), _quote(text[position : position + 20]), "a JSON list [...]")
    position = _skip_space(text, position + 1)
    first = True
    while text[position : position + 1] != "]" or not first:
        line, counted = line + text.count("\n", counted, position), position
        try:
            entry, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            number = getattr(error, "lineno", line)
            _fail(path, number, f"invalid JSON ({getattr(error, 'msg', 'cannot be read')})", "a JSON object")
        yield entry, line
        first = False
        position = _skip_space(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            number = 1 + text.count("\n", 0, position)
            _fail(path, number, _quote(text[position : position + 20]) if text[position:] else "the end", "',' or ']'")
        position = _skip_space(text, position + 1)
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        _fail(path, 1 + text.count("\n", 0, rest), _quote(text[rest : rest + 20]), "the end of the file")


def _skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is no JSON white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _field(entry: dict[str, Any], key: str, path: Path, number: int) -> float:
    """Return a number >= 0 from a Sabre entry."""
    if key not in entry:
        _fail(path, number, "keys " + (", ".join(sorted(map(str, entry))) or "none"), key)
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(path, number, f"{key} {_quote(json.dumps(value))}", "a number >= 0")
    return _number(str(value), path, number, key)


def _columns(line: str) -> list[str]:
    """Split a line at white space or a comma."""
    return line.replace(",", " ").split()


def _number(token: str, path: Path, number: int, what: str) -> float:
    """Return a finite number >= 0."""
    try:
        value = float(token) if "_" not in token else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        _fail(path, number, _quote(token), f"{what} >= 0")
    return value


def _check_span(interval_s: float, elapsed_s: float, path: Path, number: int) -> None:
    """Refuse intervals and periods that only a broken file has, before anything is allocated for them."""
    if interval_s * 1000 > MAX_INTERVAL_MS - 1:
        _fail(path, number, f"an interval of {interval_s:g} s", f"less than {MAX_INTERVAL_MS // 1000} s (1 day)")
    if elapsed_s * 1000 > MAX_PERIOD_MS - 1:
        _fail(path, number, f"{elapsed_s:g} s in all", f"less than {MAX_PERIOD_MS // 1000} s (7 days)")


def _read_text(path: Path) -> str:
    """Return a file's text; TraceError for what is no readable text file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: found {(error.strerror or 'an error').lower()}, expected a readable file") from error
    if data[:2] == b"\x1f\x8b":
        raise TraceError(f"{path}:1: found a gzip archive, expected text (unpack it first)")
    if b"\0" in data:
        _fail(path, 1 + data.count(b"\n", 0, data.index(b"\0")), "binary data", "a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise TraceError(f"{path}:{number}: found bytes that are not UTF-8, expected a text file") from error


def _write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="ascii")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TraceError(f"{path}: found {(error.strerror or 'an error').lower()}, expected a writable file") from error


def _quote(token: str) -> str:
    """Return a token as it may stand in a one-line message."""
    return repr(token if len(token) <= 40 else token[:37] + "...")


def _fail(path: Path, number: int, found: str, expected: str) -> NoReturn:
    """Raise the one-line error of a bad file."""
    raise TraceError(f"{path}:{number}: found {found}, expected {expected}")
