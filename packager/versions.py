"""What a build's bytes depend on beside its settings: the versions of libraries and the code itself."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("promptdash", "torch", "diffusers", "av", "numpy")
_CODE = ("packager", "player")


def version(distribution: str) -> str:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def library_versions() -> dict[str, str]:
    """Return the version of each library that bytes and measurements depend on."""
    return {name: version(name) for name in _LIBRARIES}


def machine_versions() -> dict[str, str]:
    """Return all that must be equal on two machines for them to make equal bytes, but for their processors."""
    return {**library_versions(), "python": platform.python_version(), "code": _code_digest()}


def _code_digest() -> str:
    """Return 12 hex digits over the source files that fit, write and decode, and over what a fit looks with."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    sources = [path for package in _CODE for path in (root / package).rglob("*.py")]
    for path in sorted([*sources, *(root / "packager" / "weights").glob("*.safetensors")]):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
