"""The output folder while it is being built: who it belongs to, what is whole in it, and how it is continued.

The rules: every file appears under its name only when it is whole (written beside, then renamed); `package.json` comes
first and says what is being built; a segment counts as done once its entry in `.build/` is there; the manifest comes
last, so a folder with a manifest is finished. No process may build into a folder that another is building into.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import FolderError
from player.manifest import INIT_TEMPLATE, MEDIA_TEMPLATE, START_NUMBER
from player.presentation import MANIFEST_NAME

SETTINGS_NAME = "package.json"
SETTINGS_VERSION = 1
SIDECAR_NAME = "quality.json"
WORK_NAME = ".build"
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class SegmentRecord:
    """One finished segment: what was written and what was measured of it."""

    frames: int
    digests: Mapping[str, str]  # representation id -> SHA-256 of its bytes
    sizes_bytes: Mapping[str, int]
    quality: Mapping[str, Mapping[str, Sequence[float]]]  # representation id -> metric -> one value per frame


class BuildFolder:
    """A folder that a build owns; made by `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def work(self) -> Path:
        """Where unfinished things lie; gone when the build is finished."""
        return self.path / WORK_NAME

    @property
    def finished(self) -> bool:
        return (self.path / MANIFEST_NAME).exists()

    def init_path(self, representation: str) -> Path:
        return self.path / INIT_TEMPLATE.replace("$RepresentationID$", representation)

    def segment_path(self, representation: str, index: int) -> Path:
        media = MEDIA_TEMPLATE.replace("$RepresentationID$", representation)
        return self.path / media.replace("$Number%05d$", f"{index + START_NUMBER:05d}")

    def write(self, path: Path, data: bytes) -> None:
        """Put a file in place whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}{_TEMPORARY}")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def record(self, index: int, entry: SegmentRecord) -> None:
        """Mark a segment as done; call after all its files are written."""
        content = {
            "frames": entry.frames,
            "digests": dict(entry.digests),
            "sizes_bytes": dict(entry.sizes_bytes),
            "quality": {name: {m: list(v) for m, v in rows.items()} for name, rows in entry.quality.items()},
        }
        self.write(self._record_path(index), json.dumps(content, separators=(",", ":")).encode())

    def recorded(self, index: int) -> SegmentRecord | None:
        """Return the record of a segment whose files are all there as recorded, else None."""
        try:
            content = json.loads(self._record_path(index).read_text())
            entry = SegmentRecord(**content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise FolderError(f"{self._record_path(index)}: cannot be read ({error}); --force starts over") from error
        for representation, digest in entry.digests.items():
            path = self.segment_path(representation, index)
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                return None
        return entry

    def done(self) -> int:
        """Number of segments recorded as done."""
        return sum(1 for _ in self.work.glob("seg-*.json"))

    def finish(self) -> None:
        """Drop what only an unfinished build needs."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _record_path(self, index: int) -> Path:
        return self.work / f"seg-{index + START_NUMBER:05d}.json"


@contextmanager
def claim(
    path: Path, identity: Mapping[str, Any], environment: Mapping[str, Any], *, resume: bool, force: bool
) -> Iterator[BuildFolder]:
    """Take a folder for a build, or raise FolderError saying why it cannot be had.

    Args:
        path: the folder; made if it is not there.
        identity: what is built: settings and input. A folder of another identity is refused unless `force`.
        environment: what the bytes also depend on (versions, device); an unfinished build of another is refused.
        resume: continue an unfinished build of the same identity.
        force: throw away what an earlier build left here, and nothing else.
    """
    folder = BuildFolder(path)
    if path.exists() and not path.is_dir():
        raise FolderError(f"{path}: is a file, expected a folder")
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        found = _read_settings(path)
        if found is None and any(entry.suffix != _TEMPORARY for entry in path.iterdir()):
            raise FolderError(f"{path}: holds files that are not this program's; choose another folder")
        if found is not None and force:
            _remove_build(folder, found)
            found = None
        if found is not None:
            _check_same(folder, found, identity, environment, resume=resume)
        else:
            content = {"version": SETTINGS_VERSION, "identity": identity, "environment": environment}
            folder.write(path / SETTINGS_NAME, (json.dumps(content, indent=2) + "\n").encode())
        if folder.finished:
            folder.finish()
        else:
            for stray in path.rglob(f".*{_TEMPORARY}"):
                stray.unlink()
        yield folder


def _check_same(
    folder: BuildFolder,
    found: Mapping[str, Any],
    identity: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    resume: bool,
) -> None:
    path = folder.path
    difference = _first_difference(found["identity"], identity)
    if difference:
        raise FolderError(f"{path}: holds another build ({difference}); --force replaces it")
    if folder.finished:
        return
    if not resume:
        raise FolderError(f"{path}: holds an unfinished build ({folder.done()} segments); --resume continues it")
    difference = _first_difference(found["environment"], environment)
    if difference:
        raise FolderError(f"{path}: was begun elsewhere ({difference}), mixing would spoil it; --force starts over")


def _first_difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Name the first key that differs, with both values; empty where nothing does."""
    plain = json.loads(json.dumps(asked))  # tuples become lists, as in the file
    for key in [*plain, *(key for key in there if key not in plain)]:
        if there.get(key) != plain.get(key):
            return f"{key} {_short(there.get(key))} there, {_short(plain.get(key))} asked for"
    return ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 48 else text[:45] + "..."


def _read_settings(path: Path) -> dict[str, Any] | None:
    """Return the folder's package.json, or None where there is none."""
    file = path / SETTINGS_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise FolderError(f"{file}: cannot be read ({error})") from error
    valid = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("identity", "environment"))
    if not valid or content.get("version") != SETTINGS_VERSION:
        raise FolderError(f"{file}: not of version {SETTINGS_VERSION}, which this build writes; choose another folder")
    return content


def _remove_build(folder: BuildFolder, found: Mapping[str, Any]) -> None:
    """Remove an earlier build: the manifest first, so that what is half gone never looks finished."""
    for name in (MANIFEST_NAME, SIDECAR_NAME):
        (folder.path / name).unlink(missing_ok=True)
    for name in found["identity"].get("representations", []):
        if isinstance(name, str) and name == Path(name).name and not name.startswith("."):
            shutil.rmtree(folder.path / name, ignore_errors=True)
    folder.finish()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it when this process ends, however it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(f"{path}: another process is building here") from error
        yield
    finally:
        os.close(descriptor)
