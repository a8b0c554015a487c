"""Schemes of a study: which sessions belong together, what they are called, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from experiments.errors import UsageError
from experiments.paper import CODEC_COLORS, CODEC_LINES, CODEC_MARKERS, SERIES_COLORS
from experiments.series import CODEC_TITLES, HEADLINE_METRICS
from player.codecs import ordered
from player.quality import METRIC_PLUGINS

WELL_KNOWN = ("bola", "bba", "throughput", "mpc", "quality_mpc", "pensieve", "dynamic", "oracle:utility=quality")
"""Controllers that have their colour in every figure; where there are more than fit, all others are grey."""
MOST = 12
"""Schemes that a figure tells apart."""
OTHERS = "0.7"
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)), (0, (3, 1)))
_MARKERS = "os^DvPX*<>hp"


@dataclass(frozen=True)
class Scheme:
    """Sessions with the same codec, controller or whatever tells schemes apart, and how they are drawn."""

    label: str
    rows: pd.DataFrame = field(repr=False)
    color: str
    line: Any
    marker: str
    is_named: bool = True
    """Whether it has a colour of its own; others are drawn in grey without a name."""


def default_by(table: pd.DataFrame, *, pooled: bool = False) -> tuple[str, ...]:
    """Return the columns that tell schemes apart, unless the user says otherwise.

    Args:
        pooled: the figure has room for few schemes: with several codecs, all controllers of one are one scheme.
    """
    codecs, controllers = table["codec"].nunique(), table["abr"].nunique()
    if codecs > 1:
        return ("codec",) if pooled or controllers == 1 or codecs * controllers > MOST else ("codec", "abr")
    return ("abr",)


def schemes_of(table: pd.DataFrame, by: Sequence[str]) -> list[Scheme]:
    """Return the schemes that the columns `by` tell apart, in an order that is the same for every figure."""
    missing = [name for name in by if name not in table]
    if missing or not by:
        raise UsageError(f"--by {','.join(by)}: expected some of the columns {', '.join(table)}")
    for name in by:
        if table[name].isna().any():  # a missing value is equal to nothing, not even to itself
            table = table.assign(**{name: table[name].astype(object).where(table[name].notna(), "none")})
    ranks = {name: _ranks(name, table[name]) for name in by}
    groups = [(key, rows) for key, rows in table.groupby(list(by), sort=False, dropna=False)]
    groups.sort(key=lambda group: [ranks[name][value] for name, value in zip(by, group[0], strict=True)])
    named = _named([key for key, _ in groups], by)
    schemes = []
    for key, rows in groups:
        label = ", ".join(value_text(name, value) for name, value in zip(by, key, strict=True))
        schemes.append(Scheme(label, rows, **_style(key, by, ranks, named.index(key) if key in named else None)))
    return schemes


def value_text(name: str, value: Any) -> str:
    """Return a value of a column as it stands in a legend."""
    if name == "codec":
        return CODEC_TITLES[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if isinstance(value, str) else f"{name} {text}"


def headline(table: pd.DataFrame) -> str | None:
    """Return the metric that stands for quality: the first of the metrics that the data set holds."""
    return next(iter(metrics_of(table)), None)


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Return the metrics that the data set holds, in the order of every table; those of other packages last."""
    names = [*HEADLINE_METRICS, *METRIC_PLUGINS.names()]
    return [name for name in names if name in table and table[name].notna().any()]


def videos_of(table: pd.DataFrame) -> int:
    """Return how many videos were streamed."""
    return int(table["video"].nunique())


def conditions_text(table: pd.DataFrame, by: Sequence[str] = ()) -> str:
    """Return the line under every figure of a study: how the numbers arose."""
    parts = [
        _some(table, "codec", "codecs", by),
        _counted(videos_of(table), "video"),
        f"{_counted(table['trace'].nunique(), 'trace')} of {_counted(table['family'].nunique(), 'family')}",
        f"{len(table)} sessions of {_range(table['session_s'].round())} s",
        _some(table, "abr", "controllers", by),
        f"buffer {_range(table['buffer_s'])} s",
        f"delay {_range(table['delay_ms'])} ms one way",
        f"link share {_range(table['share'], '1/')}" if table["share"].max() > 1 else "",
    ]
    if by:
        counts = table.groupby(list(by), dropna=False).size()
        if counts.min() < counts.max():
            parts.append(f"schemes have unequal numbers of sessions, {counts.min()} to {counts.max()}")
    return ", ".join(part for part in parts if part) + "."


def _some(table: pd.DataFrame, column: str, plural: str, by: Sequence[str]) -> str:
    """Name the one value of a column, or say that several are pooled; nothing if the figure itself tells them apart."""
    values = sorted(set(table[column]))
    if column in by:
        return ""
    if len(values) == 1:
        return value_text(column, values[0])
    names = ", ".join(value_text(column, value) for value in values) if len(values) <= 5 else f"{len(values)} {plural}"
    return f"pooled over {names}"


def _counted(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _range(values: pd.Series, before: str = "") -> str:
    low, high = values.min(), values.max()
    return f"{before}{low:g}" if low == high else f"{before}{low:g} to {before}{high:g}"


def _ranks(name: str, values: pd.Series) -> dict[Any, int]:
    """Return the place of each value of a column: codecs and well-known controllers first, in their order."""
    found = set(values)
    if name == "codec":
        return {value: rank for rank, value in enumerate(ordered(found))}
    first = [one for one in WELL_KNOWN if one in found] if name == "abr" else []
    rest = sorted(found - set(first), key=lambda value: (isinstance(value, str), value))
    return {value: rank for rank, value in enumerate([*first, *rest])}


def _named(keys: Sequence[tuple[Any, ...]], by: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the schemes that get a colour: all, or those of well-known controllers where there are too many."""
    if len(keys) <= (len(WELL_KNOWN) if tuple(by) == ("abr",) else MOST):
        return list(keys)
    known = [key for key in keys if "abr" not in by or key[list(by).index("abr")] in WELL_KNOWN]
    return (known or list(keys))[:MOST]


def _style(
    key: tuple[Any, ...], by: Sequence[str], ranks: dict[str, dict[Any, int]], number: int | None
) -> dict[str, Any]:
    """Return color, line and marker: the codec has the colour; what else tells schemes apart has line and marker."""
    if number is None:
        return {"color": OTHERS, "line": "-", "marker": ".", "is_named": False}
    if "codec" in by:
        codec = key[list(by).index("codec")]
        color = CODEC_COLORS[codec]
        if len(by) == 1:
            return {"color": color, "line": CODEC_LINES[codec], "marker": CODEC_MARKERS[codec]}
        rest = [ranks[name][value] for name, value in zip(by, key, strict=True) if name != "codec"]
        turn = sum(rest)
        return {"color": color, "line": _LINES[turn % len(_LINES)], "marker": _MARKERS[turn % len(_MARKERS)]}
    colors = [*SERIES_COLORS, "0.45"]
    if tuple(by) == ("abr",):  # a controller looks the same whichever others are there
        present = [name for name in WELL_KNOWN if name in ranks["abr"]]
        free = [place for place, name in enumerate(WELL_KNOWN) if name not in present]
        number = WELL_KNOWN.index(key[0]) if key[0] in WELL_KNOWN else free[(number - len(present)) % len(free)]
    return {
        "color": colors[number % len(colors)], "line": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % len(_MARKERS)],
    }  # fmt: skip
