"""A packaged programme on disk: manifest, segments and quality sidecar, checked against each other when loaded.

Layout of the folder: manifest.mpd, quality.json, and per representation ID/init.mp4, ID/seg-00001.m4s, ... Sizes are
measured on the files, so a bitrate is what a player really has to fetch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abr import Ladder
from player.errors import ManifestError
from player.manifest import Manifest, Representation, read_mpd, write_mpd

MANIFEST_NAME = "manifest.mpd"
SIDECAR_VERSION = 1
_DECIMALS = 6  # of a measured quality in the sidecar
_LARGEST = 1e30  # magnitude of a measured quality; keeps NaN, infinities and absurd whole numbers out


@dataclass(frozen=True)
class RepresentationQuality:
    """What the packager measured of one representation."""

    segment_bytes: tuple[int, ...]  # [S]
    frames: Mapping[str, tuple[np.ndarray, ...]]  # metric name -> S arrays, float64 [T of the segment]


@dataclass(frozen=True, eq=False)
class Presentation:
    """A loaded folder; representations in ascending bitrate, the order of every [R] below.

    In a layered one a representation's files hold its own layer only, and it is fetched with all layers below it:
    `segment_bytes` and `bitrate_bps` count them all, `layer_bytes` and `init_bytes` the layer's own.

    A programme may be longer than the folder by looping: segment numbers from S on wrap around.
    """

    directory: Path
    manifest: Manifest
    representations: tuple[Representation, ...]  # [R]
    segment_bytes: np.ndarray  # [S, R] int64, measured on disk, with the layers below
    init_bytes: np.ndarray  # [R] int64
    metrics: tuple[str, ...]
    quality: Mapping[str, RepresentationQuality]  # by representation id
    layer_bytes: np.ndarray | None = None  # [S, R] int64 of a layered ladder, measured on disk

    @classmethod
    def load(cls, directory: str | Path) -> Presentation:
        """Read a packaged folder.

        Raises:
            ManifestError: a file is missing, unreadable or of another size than the sidecar says, there are segments
                beyond the manifest's last, or the sidecar's measurements do not fit the manifest.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory / MANIFEST_NAME)
        metrics, quality = read_sidecar(directory / manifest.quality_sidecar, manifest)
        init_bytes = [_file_size(directory / rung.init) for rung in manifest.representations]
        columns = [_measure(directory, rung, quality[rung.id]) for rung in manifest.representations]
        return cls.from_sizes(directory, manifest, init_bytes, columns, metrics, quality)

    @classmethod
    def from_sizes(
        cls,
        directory: Path,
        manifest: Manifest,
        init_bytes: Sequence[int],
        segment_bytes: Sequence[Sequence[int]],
        metrics: tuple[str, ...],
        quality: Mapping[str, RepresentationQuality],
    ) -> Presentation:
        """Put a presentation together from sizes known otherwise, such as from a server.

        Args:
            directory: where the files are, or will be.
            init_bytes: [R] in the manifest's order.
            segment_bytes: `[R][S]` likewise.
        """
        init = np.array(init_bytes, np.int64)
        sizes = np.array(segment_bytes, np.int64).T  # [S, R]
        layers = None
        if manifest.layered:  # already in order, since each needs those before it
            layers, sizes = sizes, sizes.cumsum(axis=1)
        order = np.argsort(init + sizes.sum(axis=0), kind="stable") if layers is None else np.arange(len(init))
        return cls(
            directory=directory,
            manifest=manifest,
            representations=tuple(manifest.representations[i] for i in order),
            segment_bytes=sizes[:, order],
            init_bytes=init[order],
            metrics=metrics,
            quality=quality,
            layer_bytes=layers,
        )

    @property
    def segments(self) -> int:
        """S, the number of segments in the folder."""
        return len(self.segment_bytes)

    @property
    def bitrate_bps(self) -> np.ndarray:
        """Bits of init and all segments over the duration, float64 [R]."""
        inits = self.init_bytes if self.layer_bytes is None else self.init_bytes.cumsum()
        return (inits + self.segment_bytes.sum(axis=0)) * 8 / self.manifest.duration_s

    def init_path(self, representation: int) -> Path:
        """Return the path of a representation's init segment."""
        return self.directory / self.representations[representation].init

    def segment_path(self, segment: int, representation: int) -> Path:
        """Return the path of a media segment; segments from S on wrap around."""
        return self.directory / self.representations[representation].media(self._index(segment))

    def read_init(self, representation: int) -> bytes:
        """Return what a decoder of a representation starts from: its init segment, behind those of the layers below."""
        return b"".join(_read_bytes(self.init_path(layer)) for layer in self._layers(representation))

    def read_segment(self, segment: int, representation: int) -> bytes:
        """Return what a decoder takes: a media segment, behind those of the layers below; numbers from S on wrap."""
        return b"".join(_read_bytes(self.segment_path(segment, layer)) for layer in self._layers(representation))

    def _layers(self, representation: int) -> range:
        return range(representation if self.layer_bytes is None else 0, representation + 1)

    def frame_quality(self, segment: int, representation: int, metric: str) -> np.ndarray:
        """Return a metric of every frame of a segment, float64 [T]; segments from S on wrap around."""
        rung = self.quality[self.representations[representation].id]
        return rung.frames[self._metric(metric)][self._index(segment)]

    def mean_quality(self, metric: str) -> np.ndarray:
        """Return a metric's mean over the frames of each segment, float64 [S, R]."""
        rungs = range(len(self.representations))
        rows = [[self.frame_quality(s, r, metric).mean() for r in rungs] for s in range(self.segments)]
        return np.array(rows, np.float64)

    def ladder(self, metric: str | None = None, repeats: int = 1, segments: int | None = None) -> Ladder:
        """Return what a controller sees of the programme.

        Args:
            metric: fills the ladder's quality; None leaves it out.
            repeats: how often the programme plays, one after the other.
            segments: keep only this many segments of that; None keeps all.

        The bitrates are those of one whole pass, whatever `repeats` and `segments` are.
        """
        if repeats < 1:
            raise ManifestError(f"{repeats} repeats of the programme, expected 1 or more")
        total = repeats * self.segments
        count = total if segments is None else segments
        if not 1 <= count <= total:
            raise ManifestError(f"{count} segments of a programme of {total}, expected 1 to {total}")
        index = np.arange(count) % self.segments
        return Ladder(
            bitrate_bps=self.bitrate_bps,
            segment_bytes=self.segment_bytes[index],
            segment_duration_s=self.manifest.segment_duration_s[index],
            quality=None if metric is None else self.mean_quality(metric)[index],
            names=tuple(rung.id for rung in self.representations),
            init_bytes=self.init_bytes,
            layer_bytes=None if self.layer_bytes is None else self.layer_bytes[index],
        )

    def _index(self, segment: int) -> int:
        if segment < 0:
            raise ManifestError(f"segment {segment}, expected 0 or more")
        return segment % self.segments

    def _metric(self, metric: str) -> str:
        if metric not in self.metrics:
            raise ManifestError(f"metric {metric!r} was not measured; known are {', '.join(self.metrics) or '(none)'}")
        return metric


def write_manifest(directory: str | Path, manifest: Manifest) -> None:
    """Write the folder's MPD atomically."""
    _write_text(Path(directory) / MANIFEST_NAME, write_mpd(manifest))


def write_sidecar(directory: str | Path, manifest: Manifest, quality: Mapping[str, RepresentationQuality]) -> None:
    """Write the quality sidecar of a folder atomically; values are kept to 6 decimals.

    Raises:
        ManifestError: the measurements do not fit the manifest, or one is not finite.
    """
    metrics = tuple(next(iter(quality.values())).frames) if quality else ()
    rungs = {
        name: {
            "segment_bytes": [int(size) for size in rung.segment_bytes],
            "frames": {
                metric: [[round(float(value), _DECIMALS) for value in values] for values in segments]
                for metric, segments in rung.frames.items()
            },
        }
        for name, rung in quality.items()
    }
    content = {"version": SIDECAR_VERSION, "metrics": list(metrics), "representations": rungs}
    _check_sidecar(content, manifest, manifest.quality_sidecar)
    text = json.dumps(content, separators=(",", ":"))
    _write_text(Path(directory) / manifest.quality_sidecar, text + "\n")


def read_sidecar(path: Path, manifest: Manifest) -> tuple[tuple[str, ...], dict[str, RepresentationQuality]]:
    """Return the metrics and the measurements of each representation in a quality sidecar that fits the manifest."""
    return parse_sidecar(_read_text(path), manifest, path.name)


def parse_sidecar(text: str, manifest: Manifest, name: str) -> tuple[tuple[str, ...], dict[str, RepresentationQuality]]:
    """Return what the text of a quality sidecar called `name` holds, as read_sidecar does."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{name} is not JSON: {error}") from error
    return _check_sidecar(content, manifest, name)


def _check_sidecar(
    content: Any, manifest: Manifest, name: str
) -> tuple[tuple[str, ...], dict[str, RepresentationQuality]]:
    """Return a sidecar's content as typed values; raise ManifestError where it does not fit the manifest."""
    version = _member(content, "version", name, object)
    if version != SIDECAR_VERSION:
        raise ManifestError(f"{name}: version {str(version)[:40]}, but this build reads version {SIDECAR_VERSION}")
    metrics = tuple(_member(content, "metrics", name, list))
    if not all(isinstance(metric, str) for metric in metrics) or len(set(metrics)) != len(metrics):
        raise ManifestError(f"{name}: metrics {str(metrics)[:80]}, expected different names")
    rungs = _member(content, "representations", name, dict)
    ids = {rung.id for rung in manifest.representations}
    if set(rungs) != ids:
        raise ManifestError(f"{name}: representations {sorted(rungs)}, but the manifest has {sorted(ids)}")
    return metrics, {rung: _check_rung(entry, metrics, manifest, f"{name}: {rung}") for rung, entry in rungs.items()}


def _check_rung(entry: Any, metrics: Sequence[str], manifest: Manifest, where: str) -> RepresentationQuality:
    sizes = _member(entry, "segment_bytes", where, list)
    count = len(manifest.segments)
    if len(sizes) != count or not all(type(size) is int and size > 0 for size in sizes):
        raise ManifestError(f"{where}: segment_bytes lists {len(sizes)} sizes, expected {count} numbers of bytes")
    frames = _member(entry, "frames", where, dict)
    if set(frames) != set(metrics):
        raise ManifestError(f"{where}: metrics {sorted(frames)}, expected {sorted(metrics)}")
    measured = {}
    for metric in metrics:
        rows = frames[metric]
        if not isinstance(rows, list) or len(rows) != count:
            raise ManifestError(f"{where}: {metric} does not list {count} segments")
        pairs = enumerate(zip(rows, manifest.frames, strict=True))
        measured[metric] = tuple(_check_values(row, T, f"{where}: {metric}, segment {s}") for s, (row, T) in pairs)
    return RepresentationQuality(tuple(sizes), measured)


def _check_values(row: Any, frames: int, where: str) -> np.ndarray:
    if not isinstance(row, list) or len(row) != frames:
        found = len(row) if isinstance(row, list) else "no"
        raise ManifestError(f"{where}: {found} values, expected one for each of {frames} frames")
    if not all(type(value) in (int, float) and -_LARGEST <= value <= _LARGEST for value in row):
        raise ManifestError(f"{where}: a value is no finite number")
    return np.array(row, np.float64)


def _member(content: Any, key: str, where: str, kind: type) -> Any:
    if not isinstance(content, dict) or key not in content or not isinstance(content[key], kind):
        raise ManifestError(f"{where}: no {key!r} of the expected kind")
    return content[key]


def _read_manifest(path: Path) -> Manifest:
    text = _read_text(path)
    try:
        return read_mpd(text)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error


def _measure(directory: Path, rung: Representation, quality: RepresentationQuality) -> list[int]:
    """Return the sizes of a representation's segments on disk, which must be the sidecar's, with none beyond."""
    sizes = []
    for index, expected in enumerate(quality.segment_bytes):
        path = directory / rung.media(index)
        size = _file_size(path)
        if size != expected:
            raise ManifestError(f"{path}: {size} bytes, but the quality sidecar says {expected}")
        sizes.append(size)
    known = {Path(rung.media(index)).name for index in range(len(sizes))}
    extra = sorted(path.name for path in (directory / rung.id).glob("*.m4s") if path.name not in known)
    if extra:
        raise ManifestError(f"{directory / rung.id}: {extra[0]} is no segment of the manifest, which has {len(sizes)}")
    return sizes


def _file_size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    if not path.is_file() or not size:
        raise ManifestError(f"{path}: no file with bytes in it")
    return size


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text: {error}") from error


def _write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
