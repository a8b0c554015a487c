"""The vendored traces: measured figures, bytes delivered per 100 ms, kept as one compact table.

`data/catalogue.json` says what each trace is, `data/tables.npz` holds its bins as differences of bytes / unit_bytes;
both, and `data/SOURCES.md`, are written by `traces.vendor`. Nothing is read before a trace is asked for.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from traces.errors import TraceError
from traces.schedule import spread_evenly
from traces.trace import IntArray, Trace

BIN_MS = 100
"""Width of a table's bins. Coarser than a packet's time, finer than any segment's download."""


@dataclass(frozen=True)
class Entry:
    """One vendored trace."""

    name: str
    """Canonical name, e.g. `lte-att-driving-down` or `5g-02`."""
    family: str
    """Family it belongs to, e.g. `lte`."""
    original: str
    """File it was measured from, as named at its origin."""
    origin: str
    """Repository or data set of that file."""
    licence: str
    """Licence as stated there."""
    exact: bool
    """True: made from a Mahimahi trace; each bin is a whole number of opportunities, the last one is at the period."""
    period_ms: int
    """Length of a lap."""
    unit_bytes: int
    """Bytes that one count in the table stands for: 1504 for exact tables, else 1."""
    mean_bps: float
    """Mean rate in bit/s of the trace as loaded."""
    p5_bps: float
    """5th percentile in bit/s of the rate over 1-s bins of the trace as loaded."""

    @property
    def duration_s(self) -> float:
        """Length of a lap in seconds."""
        return self.period_ms / 1000


@dataclass(frozen=True)
class Family:
    """Traces of one kind of network."""

    name: str
    """Name a user types."""
    title: str
    """What was measured, in a few words."""
    default: str
    """Entry that the family's name alone stands for."""
    entries: tuple[Entry, ...]
    """Its members, in the order of their numbers."""


@lru_cache(maxsize=1)
def _index() -> tuple[tuple[Family, ...], dict[str, str]]:
    """Return the families and the extra names that point to entries."""
    content: dict[str, Any] = json.loads(_data("catalogue.json").read_text(encoding="utf-8"))
    families = tuple(
        Family(
            name=family["name"],
            title=family["title"],
            default=family["default"],
            entries=tuple(Entry(family=family["name"], **entry) for entry in family["entries"]),
        )
        for family in content["families"]
    )
    return families, content["aliases"]


def families() -> tuple[Family, ...]:
    """Return all families, in listing order."""
    return _index()[0]


def aliases() -> dict[str, str]:
    """Return the extra names and the entries they stand for."""
    return dict(_index()[1])


def find(name: str) -> Entry | None:
    """Return the entry a name stands for, or None.

    Case does not matter and `/`, `_`, `.` and `-` are alike. In this order a name is: a family (its default member), an
    extra name, a canonical name or the name of the original file, `family/number`, the beginning of a canonical name up
    to a `-` (the first such member).
    """
    key = _normalise(name)
    everything = {entry.name: entry for family in families() for entry in family.entries}
    for family in families():
        if key == family.name:
            return everything[family.default]
    if key in _index()[1]:
        return everything[_index()[1][key]]
    for entry in everything.values():
        if key in (_normalise(entry.name), _normalise(entry.original)):
            return entry
    for family in families():
        stem, _, number = key.rpartition("-")
        if stem == family.name and number.isascii() and number.isdigit() and 1 <= int(number) <= len(family.entries):
            return family.entries[int(number) - 1]
    return next((entry for entry in everything.values() if _normalise(entry.name).startswith(f"{key}-")), None)


def load(name: str) -> Trace:
    """Return a vendored trace by any name that `find` knows; TraceError lists the families otherwise."""
    entry = find(name)
    if entry is None:
        raise TraceError(f"trace: found {name!r}, expected one of {', '.join(f.name for f in families())}")
    return regenerate(entry.name, read_table(entry), entry.period_ms, exact=entry.exact)


def read_table(entry: Entry) -> IntArray:
    """Return the bytes an entry's link delivered in each 100-ms bin: [period_ms // 100 + 1] int64."""
    with _data("tables.npz").open("rb") as file, np.load(file, allow_pickle=False) as tables:
        return np.cumsum(tables[entry.name], dtype=np.int64) * entry.unit_bytes


def regenerate(name: str, bin_bytes: IntArray, period_ms: int, *, exact: bool) -> Trace:
    """Return the trace of a table: each bin's opportunities spread evenly over its 100 ms, fractions carried over.

    Args:
        name: the trace's name.
        bin_bytes: [period_ms // 100 + 1] bytes per bin; the last bin ends with the millisecond of the period itself.
        period_ms: the original's period.
        exact: the table was counted from a Mahimahi trace, whose last opportunity is at the period by definition.
    """
    edges_ms = np.append(np.arange(bin_bytes.size, dtype=np.int64) * BIN_MS, period_ms + 1)
    opportunities = spread_evenly(edges_ms, bin_bytes, name=name)
    if exact:
        opportunities[-1] = period_ms
    return Trace(name=name, opportunities_ms=opportunities, period_ms=period_ms)


def _normalise(name: str) -> str:
    """Return a name in lower case with `-` between its parts and no leading zeros in numbers."""
    parts = name.strip().lower().translate(str.maketrans("/_. ", "----")).split("-")
    return "-".join(part.lstrip("0") or part[-1:] if part.isdigit() else part for part in parts)


def _data(file: str) -> Any:
    """Return a file of the package's data folder."""
    return resources.files("traces").joinpath("data").joinpath(file)
