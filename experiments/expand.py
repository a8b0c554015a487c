"""What a sweep's command line stands for: one point for each combination of values, suites written out.

No video is packaged and no session played here; mistakes are one UsageError each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from abr import AbrConfig, AbrError, check_name, known_names
from experiments.command_line import choices, compose_config, parse_override, to_run_config
from experiments.errors import UsageError
from experiments.schema import RunConfig, SuiteConfig
from experiments.seeds import apply_seed, canonical_name, period_s
from experiments.shares import default_share
from traces import TraceError, catalogue, check_trace_name, registry

ALL = "all"
LEFT_OUT = ("fixed",)
"""Controllers that `all` leaves out: `lowest` and `highest` say the same."""
BOUNDS = ("oracle", "oracle:utility=quality")
STANDARD = ("trace.name", "abr.name", "codec", "video.name", "seed", "session_s")
"""Swept keys that every data set has a column for, under its short name; any other gets a column of its own."""
OF_THE_SWEEP = ("output", "jobs", "launcher", "cache_dir", "suite", "figures", "render_check", "overwrite", "name")
"""Keys, or groups of them, that have one value for a whole sweep."""
_CHEAP = ("trace.name", "abr.name", "codec", "seed")
"""Keys whose values need no configuration of their own: nothing but the share depends on them."""


@dataclass(frozen=True)
class Point:
    """The sessions of one combination, one for each codec and video."""

    config: RunConfig
    """Resolved: the seed's offset applied, one controller."""
    label: str
    """The controller with its options."""
    codecs: tuple[str, ...]
    any_codec: bool
    """Whether nobody asked for these codecs: finished packages of others are welcome too."""
    columns: Mapping[str, Any]
    """Swept key -> value, of those that have no standard column."""


@dataclass(frozen=True)
class Sweep:
    """All points of a command line, and what they have in common."""

    points: tuple[Point, ...]
    base: RunConfig
    """The configuration with the first value of every swept key."""
    swept: tuple[str, ...]


def expand(overrides: Sequence[str]) -> Sweep:
    """Return the points of a sweep given by overrides in Hydra's syntax, short forms already written out.

    Raises:
        UsageError: an unknown trace or controller, a value out of range, a key that has one value only.
    """
    parsed = [parse_override(text) for text in overrides]
    given = frozenset(one.key_or_group for one in parsed)
    for one in parsed:
        if one.is_sweep_override():
            _check_axis(one)
    swept = tuple(one.key_or_group for one in parsed if one.is_sweep_override())
    cheap = [one for one in parsed if one.key_or_group in _CHEAP and one.is_sweep_override()]
    points: list[Point] = []
    base: RunConfig | None = None
    for texts in itertools.product(*(choices(one)[:1] if one in cheap else choices(one) for one in parsed)):
        composed = compose_config(list(texts))
        shared_columns = {key: _column(composed, key, texts) for key in swept if key not in STANDARD}
        config = to_run_config(composed)
        base = base or config
        own_share = not OmegaConf.is_interpolation(composed.trace, "share")
        for values in itertools.product(*(choices(one) for one in cheap)):
            changed = _with_values(config, [parse_override(text) for text in values])
            points += _points(changed, shared_columns, given=given, own_share=own_share)
    if base is None:
        raise UsageError("a sweep without a value")
    return Sweep(tuple(points), base, swept)


def _check_axis(override: Override) -> None:
    key = override.key_or_group
    if not choices(override):
        raise UsageError(f"{override.input_line}: a sweep takes lists, choice() and range(), with a value at least")
    if key.split(".")[0] in OF_THE_SWEEP:
        raise UsageError(f"{override.input_line}: {key} has one value for the whole sweep")


def _column(config: DictConfig, key: str, texts: Sequence[str]) -> Any:
    """Return the value of a swept key as a column holds it; groups such as `experiment` by their name."""
    value = OmegaConf.select(config, key)
    if value is None and any(text.startswith(f"{key}=") for text in texts):
        value = next(text.partition("=")[2] for text in texts if text.startswith(f"{key}="))
        return None if value == "null" else value
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else value


def _with_values(config: RunConfig, values: Sequence[Override]) -> RunConfig:
    """Return the configuration with the cheap keys' values; the share is left to `_points`."""
    found = {one.key_or_group: one.value() for one in values}
    changes: dict[str, Any] = {key: found[key] for key in ("codec", "seed") if key in found}
    if "trace.name" in found:
        changes["trace"] = dataclasses.replace(config.trace, name=str(found["trace.name"]))
    if "abr.name" in found:
        changes["abr"] = dataclasses.replace(config.abr, name=str(found["abr.name"]))
    return dataclasses.replace(config, **changes)


def _points(
    config: RunConfig, columns: Mapping[str, Any], *, given: frozenset[str], own_share: bool
) -> Iterator[Point]:
    """Yield the points of one configuration: a single one, or those of its suite."""
    suite = config.suite if config.suite.traces else SuiteConfig()
    one_trace = "trace.name" in given or not suite.traces
    names = [_checked_trace(config.trace.name)] if one_trace else expand_traces(suite.traces, suite.limit)
    one_abr = "abr.name" in given or not suite.abr
    labels = expand_controllers([config.abr.name] if one_abr else suite.abr)
    codecs = config.codec if "codec" in given or not suite.codec else suite.codec
    any_codec = "codec" not in given and not suite.codec
    for name in names:
        share = config.trace.share if own_share else default_share(name)
        trace = dataclasses.replace(config.trace, name=name, share=share)
        for number in range(suite.offsets):
            later_s = period_s(trace) * number / suite.offsets if number else 0.0
            placed = dataclasses.replace(trace, offset_s=round(trace.offset_s + later_s, 3))
            seeded = apply_seed(dataclasses.replace(config, trace=placed))
            for label in labels:
                controller = parse_controller(label, config.abr)
                point = dataclasses.replace(seeded, abr=controller)
                yield Point(point, label, tuple(codecs), any_codec, columns)


def _checked_trace(name: str) -> str:
    try:
        check_trace_name(name)
    except TraceError as error:
        raise UsageError(str(error)) from error
    return canonical_name(name)


def expand_traces(parts: Sequence[str], limit: int = 0) -> list[str]:
    """Return the traces that a suite's list stands for: canonical names, or paths. A family stands for all of it."""
    families = {family.name: family for family in catalogue.families()}
    names: dict[str, None] = {}
    for part in families if list(parts) == [ALL] else parts:
        if part in families:
            members = [entry.name for entry in families[part].entries]
            names |= dict.fromkeys(members[:: max(len(members) // limit, 1)][:limit] if limit else members)
        elif (entry := catalogue.find(part)) is not None:
            names[entry.name] = None
        elif offered := registry.members(part):
            names |= dict.fromkeys(offered[:: max(len(offered) // limit, 1)][:limit] if limit else offered)
        elif registry.find_member(part) is not None or Path(part).is_file():
            names[part] = None
        else:
            raise UsageError(f"trace={part}: no family, trace or file; known families: {', '.join(families)}")
    return list(names)


def expand_controllers(parts: Sequence[str]) -> list[str]:
    """Return the controllers that a suite's list stands for; UsageError for one that nobody knows."""
    if list(parts) == [ALL]:
        return [*(name for name in known_names() if name not in (*LEFT_OUT, *BOUNDS)), *BOUNDS]
    controllers = list(dict.fromkeys(parts))
    for controller in controllers:
        try:
            check_name(parse_controller(controller, AbrConfig()).name)
        except AbrError as error:
            raise UsageError(f"abr={controller}: {error}") from error
    return controllers


def parse_controller(text: str, config: AbrConfig) -> AbrConfig:
    """Return `config` with the controller written as ``name`` or ``name:key=value+key=value``."""
    name, _, options = text.partition(":")
    pairs = [pair for pair in options.split("+") if pair]
    if any("=" not in pair for pair in pairs):
        raise UsageError(f"abr={text}: expected name:key=value+key=value")
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
    if not isinstance(parsed, dict):
        raise UsageError(f"abr={text}: expected name:key=value+key=value")
    return dataclasses.replace(
        config, name=name, options={**config.options, **{str(key): value for key, value in parsed.items()}}
    )
