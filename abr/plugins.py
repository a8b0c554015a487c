"""What other installed packages offer by entry points: found by name, loaded when asked for, named when broken.

`abr/plugins.py` and `traces/plugins.py` are one file twice, because neither package may import the other; a test
compares them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@functools.cache
def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return a group's entry points, looked up once per process: the search reads every installed distribution."""
    return tuple(metadata.entry_points(group=group))


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once per process and message."""
    log.warning("%s", message)


@dataclass(frozen=True)
class Plugins:
    """The plug-ins of one kind. A built-in name wins over a plug-in's; of two plug-ins of one name neither is taken."""

    group: str  # of the entry points, such as promptdash.abr
    kind: str  # what one of them is called in messages
    built_in: frozenset[str]  # names that no plug-in can have
    error: type[Exception]  # what is raised for a broken plug-in, with one line that names its distribution

    def names(self) -> list[str]:
        """Return the names of the installed ones, broken ones among them, in alphabetical order."""
        for point in entry_points(self.group):
            if point.name in self.built_in:
                warn_once(f"plug-in {_origin(point)} is ignored: the {self.kind} name {point.name!r} is built in")
        return sorted({point.name for point in entry_points(self.group)} - self.built_in)

    def point(self, name: str) -> metadata.EntryPoint:
        """Return the entry point called `name`.

        Raises:
            LookupError: there is none.
            `error`: different packages offer the name.
        """
        found = {p.value: p for p in entry_points(self.group) if p.name == name and name not in self.built_in}
        if not found:
            raise LookupError(name)
        if len(found) > 1:
            offers = ", ".join(_origin(found[value]) for value in sorted(found))
            raise self.error(f"{self.kind} {name!r} is offered more than once: {offers}")
        return next(iter(found.values()))

    def load(self, name: str) -> Any:
        """Import what the entry point called `name` stands for; errors as in `point`, and `error` if it fails."""
        return self.resolve(self.point(name))

    def resolve(self, point: metadata.EntryPoint) -> Any:
        """Import what an entry point stands for; raise `error` if that fails, whatever it is that failed."""
        try:
            return point.load()
        except Exception as error:  # importing foreign code may raise anything
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise self.error(f"{self.describe(point)} cannot be loaded: {reason}") from error

    def describe(self, point: metadata.EntryPoint) -> str:
        """Return how messages name a plug-in: what it is, where it is, and which distribution it belongs to."""
        return f"{self.kind} {point.name!r} (plug-in {_origin(point)})"

    @contextmanager
    def blamed(
        self, point: metadata.EntryPoint, doing: str, *, passing: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Turn what a plug-in raises inside the block into one line of `error`; `error` and `passing` stay as is."""
        try:
            yield
        except (self.error, *passing):
            raise
        except Exception as error:  # whatever a foreign package raises is its fault, said in our words
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise self.error(f"{self.describe(point)} {doing}: {reason}") from error


def source_of(point: metadata.EntryPoint) -> tuple[str, Path | None]:
    """Return what a plug-in is, as in messages, and the file or folder that its top-level package's code is in."""
    found = importlib.util.find_spec(point.module.split(".")[0])
    places = [*(found.submodule_search_locations or []), found.origin] if found else [None]
    return _origin(point), None if places[0] is None else Path(places[0])


def _origin(point: metadata.EntryPoint) -> str:
    """Return module:attribute of NAME VERSION; the latter only where the distribution is known."""
    distribution = getattr(point, "dist", None)
    return f"{point.value} of {distribution.name} {distribution.version}" if distribution else point.value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
