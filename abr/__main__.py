"""`python -m abr list` and `python -m abr explain NAME OBSERVATION.json`: what a controller would do, and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
import operator
import sys
from pathlib import Path
from typing import Any

from abr.base import Buffered, Ladder, Observation, ThroughputSample
from abr.errors import AbrError, ObservationError
from abr.registry import create_abr, known_names, known_options
from abr.render_aware import RenderAware
from abr.render_mpc import RenderMpc
from abr.rendering import Rendering


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m abr", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the controllers and their options")
    explain = commands.add_parser("explain", help="print the decision and its reason as JSON")
    explain.add_argument("name", help="controller, as in `list`")
    explain.add_argument("observation", type=Path, help="JSON: ladder, observation, options (see docs/controllers.md)")
    parsed = parser.parse_args(arguments)
    try:
        text = _list() if parsed.command == "list" else _explain(parsed.name, parsed.observation)
    except (AbrError, OSError) as error:
        print(f"abr: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def _list() -> str:
    """Return one line per controller: name and options; a broken plug-in's line says what is wrong with it."""
    lines = []
    for name in known_names():
        try:
            options = known_options(name)
        except AbrError as error:
            lines.append(f"{name:12} broken: {error}")
            continue
        lines.append(f"{name:12} {'any option' if options is None else ', '.join(options)}")
    return "\n".join(lines)


def _explain(name: str, path: Path) -> str:
    """Return the decision for the ladder and observation in the file `path` as JSON."""
    try:
        content = _object("the file", json.loads(path.read_text(encoding="utf-8")))
        ladder = _ladder(_object("ladder", content["ladder"]))
        observation = _observation(_object("observation", content["observation"]))
        options = _object("options", content.get("options", {}))
        if not 0 <= operator.index(observation.segment_index) < ladder.segments:
            found, last = observation.segment_index, ladder.segments - 1
            raise ObservationError(f"{path}: segment_index {found}, but 0..{last} exist")
        controller = create_abr(name, ladder, buffer_capacity_s=observation.buffer_capacity_s, **options)
        if ladder.rendering is not None and not isinstance(controller, RenderMpc):
            controller = RenderAware(controller, ladder)  # as runs do
        decision = dataclasses.asdict(controller.choose(observation))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ObservationError(f"{path}: not JSON: {error}") from error
    except KeyError as error:
        raise ObservationError(f"{path}: no {error.args[0]!r}; ladder and observation are needed") from error
    except TypeError as error:  # a value of another type than the number or list that belongs there
        raise ObservationError(f"{path}: {error}") from error
    segment = observation.segment_index if decision["segment"] is None else decision["segment"]
    return json.dumps({"controller": name, **decision, "segment": segment}, indent=2)


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ObservationError(f"{what} is a {type(value).__name__}, expected a JSON object")
    return value


def _ladder(values: dict[str, Any]) -> Ladder:
    """Build a ladder from its JSON form, where what rendering costs is an object."""
    rendering = values.get("rendering")
    if rendering is None:
        return Ladder(**values)
    return Ladder(**{**values, "rendering": Rendering(**_object("rendering", rendering))})


def _observation(values: dict[str, Any]) -> Observation:
    """Build an observation from its JSON form, where samples and buffered segments are lists of objects."""
    samples = tuple(ThroughputSample(**_object("a sample", sample)) for sample in values.get("samples", []))
    buffered = tuple(Buffered(**_object("a buffered segment", held)) for held in values.get("buffered", []))
    return Observation(**{**values, "samples": samples, "buffered": buffered})


if __name__ == "__main__":
    sys.exit(main())
