"""The segments of a build: fit, write, read back, decode with the player's decoder, measure, record; in order.

With workers the fitting and measuring of several segments run in processes of their own, here or on a cluster.
Everything that is written is written here, segment after segment, so that a build can be killed and continued whoever
does the work.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from packager.errors import PackagerError
from packager.folder import BuildFolder, SegmentRecord
from packager.ladder import DividedCodec, IndependentCodec, JointCodec, LadderCodec, StepProgress
from packager.workers import FIT_SHARE, Coded, Job, Workers
from player.decoder import Decoder
from player.quality import Metric

if TYPE_CHECKING:
    from packager.ray_workers import RayWorkers

Quality = dict[str, dict[str, list[float]]]
"""Representation id -> metric -> one value per frame."""
SegmentsDone = Callable[[float], None]
"""Called with how many segments are done."""


@dataclass(frozen=True)
class Tools:
    """What the work on a segment needs that can be done by itself, in any process."""

    codec: LadderCodec
    decoders: Mapping[str, Decoder]
    metrics: Sequence[Metric]

    @classmethod
    def of(cls, codec: LadderCodec, folder: BuildFolder, metrics: Sequence[Metric]) -> Tools:
        """Make the decoders from the init segments that the codec has written."""
        decoders = {}
        for name in codec.ranks:
            inits = [folder.init_path(part).read_bytes() for part in (*codec.dependencies(name), name)]
            decoders[name] = codec.decoder(name, b"".join(inits))
        return cls(codec, decoders, metrics)

    def fit(self, frames: np.ndarray, progress: StepProgress) -> Any:
        """Return what `encode` of the codec needs of frames uint8 [T, H, W, 3]."""
        return self.codec.fit(frames, progress)

    def fit_and_code(self, index: int, frames: np.ndarray, progress: StepProgress) -> Any:
        """Return what `fit` does, or all that `encode` would make of it, if that needs no segment before this one."""
        fitted = self.fit(frames, progress)
        files = self.codec.code_segment(index, fitted) if isinstance(self.codec, IndependentCodec) else None
        return fitted if files is None else Coded(files)

    def together(self) -> int:
        """Return how many segments to fit at once in this process."""
        return self.codec.together() if isinstance(self.codec, JointCodec) else 1

    def processes(self, segments: int | None) -> tuple[int, int] | None:
        """Return how many processes of how many threads are best for so many segments; None: this one alone."""
        return self.codec.processes(segments) if isinstance(self.codec, DividedCodec) else None

    def fit_together(self, segments: Sequence[np.ndarray], progress: StepProgress) -> list[Any]:
        """Return what `fit` does for each of the segments, of which there are as many as `together` says at most."""
        if isinstance(self.codec, JointCodec):
            return self.codec.fit_together(segments, progress)
        return [self.fit(frames, progress) for frames in segments]

    def measure(self, index: int, frames: np.ndarray, coded: Mapping[str, bytes], progress: StepProgress) -> Quality:
        """Return the quality of what the bytes of every representation decode to."""
        quality = {}
        for position, name in enumerate(coded, start=1):
            quality[name] = self.measure_one(index, frames, coded, name)
            progress(position / len(coded))
        return quality

    def measure_one(
        self, index: int, frames: np.ndarray, coded: Mapping[str, bytes], name: str
    ) -> dict[str, list[float]]:
        """Return metric -> one value per frame of what the bytes of one representation decode to."""
        below = b"".join(coded[layer] for layer in self.codec.dependencies(name))
        decoded = self.decoders[name].decode(below + coded[name])
        return _measure(frames, decoded, self.metrics, f"{name}, segment {index + 1}")


def build_segments(
    segments: Iterable[np.ndarray],
    folder: BuildFolder,
    tools: Tools,
    *,
    workers: Workers | RayWorkers | None,
    progress: SegmentsDone,
) -> list[SegmentRecord]:
    """Encode and measure every segment that is not yet recorded; return the records of all.

    Args:
        segments: uint8 [T, H, W, 3] each; those are in memory that are fitted together, or that the workers have.
        workers: who fits and measures; None does it in this process.
    """
    if workers is None:
        return _in_this_process(segments, folder, tools, progress)
    return _beside_each_other(segments, folder, tools.codec, workers, progress)


def _in_this_process(
    segments: Iterable[np.ndarray], folder: BuildFolder, tools: Tools, progress: SegmentsDone
) -> list[SegmentRecord]:
    """Fit segments in groups as large as the codec wants them; write, measure and record one after the other."""
    records: dict[int, SegmentRecord] = {}
    waiting: dict[int, np.ndarray] = {}

    def finish() -> None:
        done, count = len(records), len(waiting)
        fitted = tools.fit_together(list(waiting.values()), _part(progress, done, count * FIT_SHARE))
        for position, ((index, frames), found) in enumerate(zip(waiting.items(), fitted, strict=True)):
            coded = _write(index, found, folder, tools.codec)
            measured = _part(progress, done + count * FIT_SHARE + position * (1 - FIT_SHARE), 1 - FIT_SHARE)
            quality = tools.measure(index, frames, coded, measured)
            records[index] = _record(index, len(frames), coded, quality, folder)
        waiting.clear()

    for index, frames in enumerate(segments):
        entry = _recorded(folder, index, len(frames))
        if entry is not None:
            records[index] = entry
        else:
            waiting[index] = frames
        progress(len(records))
        if waiting and len(waiting) >= tools.together():
            finish()
    if waiting:
        finish()
    return [records[index] for index in sorted(records)]


def _part(progress: SegmentsDone, done: float, size: float) -> StepProgress:
    """Return what reports the share of a step as segments, `done` before it and `size` in it."""
    return lambda share: progress(done + size * share)


def _beside_each_other(
    segments: Iterable[np.ndarray],
    folder: BuildFolder,
    codec: LadderCodec,
    workers: Workers | RayWorkers,
    progress: SegmentsDone,
) -> list[SegmentRecord]:
    records: dict[int, SegmentRecord] = {}
    fitting: deque[Job] = deque()
    measuring: deque[tuple[Job, dict[str, bytes]]] = deque()

    def advance() -> None:
        """Take what workers have, and do what has become possible, never a segment before those before it."""
        workers.wait()
        while fitting and (fitted := fitting[0].fitted):
            job = fitting.popleft()
            coded = _write(job.index, fitted.value, folder, codec)
            if not isinstance(fitted.value, Coded):  # else the worker is measuring already
                workers.measure(job, coded)
            measuring.append((job, coded))
        while measuring and (quality := measuring[0][0].quality):
            job, coded = measuring.popleft()
            records[job.index] = _record(job.index, job.frames, coded, quality, folder)
        under_way = sum(job.share for job in (*fitting, *(job for job, _ in measuring)))
        progress(len(records) + under_way)

    progress(0)
    for index, frames in enumerate(segments):
        entry = _recorded(folder, index, len(frames))
        if entry is not None:
            records[index] = entry
            continue
        while workers.full:
            advance()
        fitting.append(workers.fit(index, frames))
    while fitting or measuring:
        advance()
    return [records[index] for index in sorted(records)]


def _recorded(folder: BuildFolder, index: int, frames: int) -> SegmentRecord | None:
    entry = folder.recorded(index)
    if entry is not None and entry.frames != frames:
        raise PackagerError(f"segment {index + 1}: {entry.frames} frames on record, but the video has {frames}")
    return entry


def _write(index: int, fitted: Any, folder: BuildFolder, codec: LadderCodec) -> dict[str, bytes]:
    """Put a segment's files in place; return what is in them now."""
    coded = dict(fitted.files) if isinstance(fitted, Coded) else codec.encode(index, fitted, folder)
    for name, data in coded.items():
        path = folder.segment_path(name, index)
        if not path.exists() or path.read_bytes() != data:
            folder.write(path, data)
        coded[name] = path.read_bytes()
        if isinstance(fitted, Coded) and coded[name] != data:
            raise PackagerError(f"{path}: holds other bytes than were written and measured")
    return coded


def _record(
    index: int, frames: int, coded: Mapping[str, bytes], quality: Quality, folder: BuildFolder
) -> SegmentRecord:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in coded.items()}
    entry = SegmentRecord(frames, digests, {name: len(data) for name, data in coded.items()}, quality)
    folder.record(index, entry)
    return entry


def _measure(
    reference: np.ndarray, decoded: np.ndarray, metrics: Sequence[Metric], where: str
) -> dict[str, list[float]]:
    """Return metric -> one value per frame."""
    if decoded.shape != reference.shape:
        raise PackagerError(f"{where}: decodes to {list(decoded.shape)}, expected {list(reference.shape)}")
    result = {}
    for metric in metrics:
        values = metric(reference, decoded)
        if not np.isfinite(values).all():
            raise PackagerError(f"{where}: {metric.name} of frame {int(np.argmin(np.isfinite(values)))} is no number")
        result[metric.name] = [float(value) for value in values]
    return result
