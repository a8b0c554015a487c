"""Where a run's numbers come from: command, versions, commit, seeds and hashes of every input."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = (
    "promptdash", "torch", "diffusers", "numpy", "av", "ssimulacra2", "torchmetrics", "constriction", "hydra-core",
    "pandas", "pyarrow", "matplotlib", "scikit-image",
)  # fmt: skip


def library_versions() -> dict[str, str | None]:
    """Return the version of Python and of each library that numbers depend on; None where one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree that was never installed
            versions[name] = None
    return versions


def commit() -> dict[str, Any]:
    """Return the commit of this source tree and whether files differ from it; None for an installed copy."""
    revision = _git("rev-parse", "HEAD")
    if revision is None or _git("rev-parse", "--show-toplevel") != str(_ROOT):
        return {"commit": None, "dirty": None}
    return {"commit": revision, "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return done.stdout.strip()


def provenance(*, overrides: list[str], seeds: dict[str, int], inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what ``provenance.json`` holds.

    Args:
        overrides: the command line, as Hydra got it.
        seeds: every seed of the run, by configuration key.
        inputs: hashes and names of the video, trace, packages and generator.
    """
    return {
        "command": ["python", "-m", "experiments.run", *overrides],
        **commit(),
        "versions": library_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "executable": sys.executable,
        "seeds": seeds,
        "inputs": inputs,
    }
