"""``python -m experiments.run -m ...`` and ``experiment=paper``: many sessions, one data set, no rendering."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from abr import AbrError
from emulator import EmulatorError
from experiments.errors import ExperimentError, UsageError
from experiments.expand import expand
from experiments.study import run_sweep, tell_failures
from packager.errors import PackagerError
from player.errors import PlayerError
from traces import TraceError

REPORTED_ERRORS = (ExperimentError, TraceError, EmulatorError, AbrError, PlayerError, PackagerError, OSError)
"""What ends a sweep with one line: bad input, and files that cannot be read or written."""
_NOT_IN_NAME = ("output=", "jobs=", "launcher.", "cache_dir=")
"""Overrides that do not change what is played, and so not where it goes."""


def default_output(overrides: Sequence[str]) -> Path:
    """Return the folder of a sweep that names none: equal commands, equal folders, so that they resume."""
    said = sorted(text for text in overrides if not text.startswith(_NOT_IN_NAME))
    name = next((text.partition("=")[2] for text in said if text.startswith("experiment=")), "sweep")
    stem = name if name.replace("_", "").isalnum() else "sweep"
    return Path("outputs") / f"{stem}-{hashlib.sha256(repr(said).encode()).hexdigest()[:8]}"


def main(overrides: Sequence[str], command: Sequence[str], program: str = "experiments.run") -> int:
    """Run a sweep given by overrides; return the exit code: 0, 1 if anything failed, 2 for a wrong command line.

    Args:
        overrides: in Hydra's syntax, flags and short forms resolved.
        command: what the user typed, for provenance.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("experiments", "packager"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        sweep = expand(overrides)
        folder = Path(sweep.base.output) if sweep.base.output else default_output(overrides)
        failures = run_sweep(sweep, folder, command)
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except REPORTED_ERRORS as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    if failures:
        tell_failures(program, folder)
        return 1
    print(folder)
    return 0
