"""Which code of other packages a run uses, and a hash of it: for the cache of packages, and for the provenance.

The hash covers all source files of the package that a plug-in is in, so that its author may change them without
raising a version number.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path

from abr.plugins import source_of
from abr.registry import find_plugin
from experiments.schema import RunConfig
from packager.settings import BuildConfig
from player import codecs, generators
from player.digests import file_sha256, folder_sha256
from player.quality import METRIC_PLUGINS as METRICS
from traces import registry as traces_registry

Sources = dict[str, dict[str, str | None]]
"""Group and name, such as `promptdash.codecs: jpeg`, to what offers it and the hash of its code."""


def of_package(codec: str, config: BuildConfig) -> Sources:
    """Return the plug-ins that decide what a package holds; the generator's folder is hashed by itself."""
    points = [_find(codecs.PLUGINS, codec), *(_find(METRICS.plugins, name) for name in config.metrics)]
    return _sources(point for point in points if point)


def of_run(config: RunConfig) -> Sources:
    """Return all plug-ins that a run uses."""
    points = [
        find_plugin(config.abr.name),
        traces_registry.find_plugin(config.trace.name),
        _find(generators.PLUGINS, config.build.generator),
        *(_find(codecs.PLUGINS, codec) for codec in config.codec),
        *(_find(METRICS.plugins, name) for name in config.build.metrics),
    ]
    return _sources(point for point in points if point)


def _find(plugins: codecs.Plugins, name: str) -> EntryPoint | None:
    return plugins.point(name) if name in plugins.names() else None


def _sources(points: Iterable[EntryPoint]) -> Sources:
    return {f"{point.group}: {point.name}": _source(point) for point in points}


def _source(point: EntryPoint) -> dict[str, str | None]:
    what, place = source_of(point)
    return {"plugin": what, "sha256": None if place is None else _digest(place)}


def _digest(place: Path) -> str:
    return folder_sha256(place, suffixes=(".py",)) if place.is_dir() else file_sha256(place)
