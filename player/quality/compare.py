"""Two videos or pictures compared frame by frame, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from player.quality.base import Metric, QualityError

_BATCH_BYTES = 64 << 20  # of decoded frames held of each file


@dataclass(frozen=True)
class Comparison:
    """Scores of every frame of one file against another's."""

    width: int
    height: int
    frames: int
    scores: dict[str, np.ndarray]  # float64 [frames] by metric name


def read_frames(path: Path) -> Generator[np.ndarray, None, None]:
    """Yield the frames of a video or picture as uint8 [H, W, 3] RGB, in order of display; raise QualityError."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise QualityError(f"{path}: no video stream")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError) as error:
        raise QualityError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def first_frame_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in px of a file's first frame; raise QualityError."""
    frames = read_frames(path)
    try:
        for frame in frames:
            return frame.shape[0], frame.shape[1]
    finally:
        frames.close()
    raise QualityError(f"{path}: no frames")


def compare_files(reference: Path, distorted: Path, metrics: Sequence[Metric]) -> Comparison:
    """Measure every frame of `distorted` against the frame at the same position of `reference`; raise QualityError."""
    pairs = itertools.zip_longest(read_frames(reference), read_frames(distorted))
    scores: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    shape: tuple[int, ...] | None = None
    count = 0
    while batch := list(itertools.islice(pairs, 1 if shape is None else max(1, _BATCH_BYTES // int(np.prod(shape))))):
        for index, (a, b) in enumerate(batch, start=count):
            if a is None or b is None:
                ended = reference if a is None else distorted
                raise QualityError(f"{ended} ends after {index} frames and the other file does not")
            shape = shape or a.shape
            if a.shape != shape or b.shape != shape:
                sizes = ", ".join(f"{frame.shape[1]}x{frame.shape[0]}" for frame in (a, b))
                raise QualityError(f"{reference} and {distorted}: frame {index} has sizes {sizes}, expected equal ones")
        a_frames, b_frames = (np.stack(frames) for frames in zip(*batch, strict=True))
        for metric in metrics:
            scores[metric.name].append(metric(a_frames, b_frames))
        count += len(batch)
    if shape is None:
        raise QualityError(f"{reference} and {distorted}: no frames")
    height, width = shape[:2]
    return Comparison(width, height, count, {name: np.concatenate(parts) for name, parts in scores.items()})
