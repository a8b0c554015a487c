"""Traces that other packages offer: families of traces by name, and file formats by the ending of a file's name.

A package offers either by an entry point in the group `promptdash.traces`, which names a `TraceFamily` or a
`TraceFormat`. Built-in names win; files of the built-in formats are still told by their content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from traces import catalogue
from traces.errors import TraceError
from traces.formats import FORMATS
from traces.plugins import Plugins, warn_once
from traces.trace import Trace

ENTRY_POINT_GROUP = "promptdash.traces"
SYNTHETIC = ("constant", "step", "markov")


@dataclass(frozen=True)
class TraceFamily:
    """Traces of one kind of network: `trace=NAME` is the first member, `trace=NAME/MEMBER` any of them."""

    title: str
    """What was measured or modelled, in a few words."""
    members: Sequence[str]
    """Names of the members, at least one."""
    load: Callable[[str], Trace]
    """Returns a member's trace; called with its name."""


@dataclass(frozen=True)
class TraceFormat:
    """A format of trace files."""

    title: str
    """What writes such files, in a few words."""
    suffix: str
    """How the names of such files end, with the dot: .pcap."""
    read: Callable[[Path], Trace]
    """Reads a file; raises TraceError, `file:line: found X, expected Y`."""


def plugins() -> Plugins:
    """Return the group's plug-ins; built-in are the names of families, formats and synthetic traces."""
    families = (family.name for family in catalogue.families())
    return Plugins(
        ENTRY_POINT_GROUP, "trace", frozenset((*families, *catalogue.aliases(), *SYNTHETIC, *FORMATS)), TraceError
    )


def offered(name: str) -> TraceFamily | TraceFormat:
    """Return what a package offers under a name; TraceError if it is broken, LookupError if nobody offers it."""
    group = plugins()
    point = group.point(name)
    found = group.resolve(point)
    if not isinstance(found, TraceFamily | TraceFormat):
        kinds = "a traces.registry.TraceFamily or TraceFormat"
        raise TraceError(f"{group.describe(point)} is a {type(found).__name__}, expected {kinds}")
    if isinstance(found, TraceFamily) and not found.members:
        raise TraceError(f"{group.describe(point)} has no members")
    if isinstance(found, TraceFormat) and not (found.suffix.startswith(".") and len(found.suffix) > 1):
        raise TraceError(f"{group.describe(point)} has suffix {found.suffix!r}, expected one such as .pcap")
    return found


def find_plugin(name: str) -> EntryPoint | None:
    """Return what reads or makes the trace called so, or None if nothing but this project does; TraceError as above."""
    group = plugins()
    if catalogue.find(name) is not None or name in SYNTHETIC:
        return None
    if (member := find_member(name)) is not None:
        return group.point(member[0])
    kind = format_of(Path(name)) if Path(name).is_file() else None
    return None if kind is None else group.point(kind)


def family_names() -> list[str]:
    """Return the names of the families that other packages offer; broken ones are said once and left out."""
    return [name for name, one in _whole() if isinstance(one, TraceFamily)]


def find_member(name: str) -> tuple[str, str] | None:
    """Return (family, member) of a name such as `subway` or `subway/night` that another package offers, or None.

    Raises:
        TraceError: the family has no such member, or is broken.
    """
    family, _, member = name.partition("/")
    if family not in plugins().names():
        return None
    found = offered(family)
    if not isinstance(found, TraceFamily):
        return None
    if member and member not in found.members:
        raise TraceError(f"trace: found {name!r}, expected {family}/ and one of {', '.join(found.members)}")
    return family, member or found.members[0]


def members(family: str) -> list[str]:
    """Return the names of all traces of a family that another package offers, such as subway/night."""
    found = offered(family) if family in plugins().names() else None
    return [f"{family}/{member}" for member in found.members] if isinstance(found, TraceFamily) else []


def load_member(family: str, member: str) -> Trace:
    """Return a member's trace; TraceError, in one line that names the package, for whatever its loading raises."""
    group, found = plugins(), offered(family)
    assert isinstance(found, TraceFamily), family
    return _loaded(group, group.point(family), lambda: found.load(member))


def format_of(path: Path) -> str | None:
    """Return the format of another package by which a file is read, for how its name ends, or None."""
    found = [name for name, one in _whole() if isinstance(one, TraceFormat) and path.name.endswith(one.suffix)]
    if len(found) > 1:
        raise TraceError(f"{path}: found formats {' and '.join(found)} for such a name, expected one of them installed")
    return found[0] if found else None


def read_file(path: Path, name: str) -> Trace:
    """Read a file of another package's format; errors as in `load_member`."""
    group, found = plugins(), offered(name)
    assert isinstance(found, TraceFormat), name
    return _loaded(group, group.point(name), lambda: found.read(path))


def _whole() -> list[tuple[str, TraceFamily | TraceFormat]]:
    """Return names and offers; broken ones are said once and left out."""
    found = []
    for name in plugins().names():
        try:
            found.append((name, offered(name)))
        except TraceError as error:
            warn_once(str(error))
    return found


def _loaded(group: Plugins, point: EntryPoint, load: Callable[[], Trace]) -> Trace:
    with group.blamed(point, "failed", passing=(TraceError,)):
        trace = load()
    if not isinstance(trace, Trace):
        raise TraceError(f"{group.describe(point)} gave a {type(trace).__name__}, expected a traces.Trace")
    return trace
