"""One clip in one codec: package it, decode every representation, measure it, and keep what was found in the cache.

Measuring is apart from packaging, since a study may measure every N-th frame only. A measurement's folder is named by a
hash of the package and of how it was measured; the table of points is written last, so a folder that has it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.contact_sheet import sheet_frames
from experiments.prepare import obtain_package, obtain_video
from experiments.rd_config import StudyConfig
from experiments.schema import VideoConfig
from packager.package import BuildProgress
from packager.video import iter_segments
from player.decoder import Decoder, create_decoder, decode_in_order, load_model
from player.files import write_bytes, write_table
from player.presentation import Presentation
from player.quality import SEVERE_DISTORTION, Metric, load_metrics, severely_distorted_share

MOMENTS = 5
"""Pictures of each representation that are kept for the contact sheets."""
ORIGINAL = "original"
POINT_COLUMNS = ("clip", "codec", "representation", "bitrate_bps", "duration_s", "frames_measured")
_PACKAGE_METRICS = ["psnr_db"]  # a package needs one; the study measures by itself


@dataclass(frozen=True)
class Measured:
    """What was found about one clip in one codec."""

    folder: Path

    @property
    def points(self) -> pd.DataFrame:
        """One row per representation: POINT_COLUMNS, each metric's mean, severe_<metric> as a share of frames."""
        return pd.read_parquet(self.folder / "points.parquet")

    @property
    def frames(self) -> pd.DataFrame:
        """One row per representation and measured frame."""
        return pd.read_parquet(self.folder / "frames.parquet")

    def pictures(self, name: str) -> np.ndarray:
        """Return the frames uint8 [MOMENTS, H, W, 3] of a representation, or of ORIGINAL."""
        with np.load(self.folder / "pictures.npz") as archive:
            return archive[name]

    @property
    def times_s(self) -> np.ndarray:
        """When the pictures are shown, [MOMENTS]."""
        return self.pictures("times_s")


def measure_clip(video: Path, codec: str, config: StudyConfig) -> Measured:
    """Package a clip with a codec and measure its ladder; what the cache holds is used.

    Raises:
        PackagerError, PlayerError, ExperimentError: bad input, in one line.
    """
    cache = Path(config.cache_dir)
    path = obtain_video(VideoConfig(name=str(video)), cache)
    build = replace(config.build, metrics=_PACKAGE_METRICS)
    package = obtain_package(codec, path, build, cache, _no_progress)
    presentation = package.presentation
    metrics = _metrics(tuple(config.metrics), build.device, (presentation.manifest.height, presentation.manifest.width))
    content = [package.key, [metric.name for metric in metrics], config.every, MOMENTS]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    measured = Measured(cache / "measured" / f"{presentation.directory.name}-{digest[:12]}")
    if not (measured.folder / "points.parquet").exists():
        source = iter_segments(
            path, width=presentation.manifest.width, height=presentation.manifest.height, fit=build.fit,
            segment_s=build.segment_s, fps=presentation.manifest.fps,
        )  # fmt: skip
        _measure(measured.folder, video.stem, source, presentation, metrics, config)
    return measured


def _measure(
    folder: Path,
    clip: str,
    source: Iterator[np.ndarray],
    presentation: Presentation,
    metrics: Sequence[Metric],
    config: StudyConfig,
) -> None:
    """Decode and measure everything, one segment in memory at a time; write the tables and pictures."""
    manifest = presentation.manifest
    decoders = _decoders(presentation, config)
    streams = {
        name: decode_in_order(decoder, _segments(presentation, position))
        for position, (name, decoder) in enumerate(decoders.items())
    }
    moments = sheet_frames(sum(manifest.frames), MOMENTS)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, list[np.ndarray]] = {name: [] for name in (ORIGINAL, *decoders)}
    start = 0
    for count, whole in zip(manifest.frames, source, strict=False):
        original = whole[:count]
        chosen = np.arange(-start % config.every, count, config.every)
        shown = [moment - start for moment in moments if start <= moment < start + count]
        pictures[ORIGINAL] += [original[index] for index in shown]
        for name, stream in streams.items():
            decoded = next(stream)
            pictures[name] += [decoded[index] for index in shown]
            if len(chosen):
                scores = {metric.name: metric(original[chosen], decoded[chosen]) for metric in metrics}
                for index, frame in enumerate(chosen):
                    values = {metric: float(column[index]) for metric, column in scores.items()}
                    rows.append({"representation": name, "frame": int(start + frame), **values})
        start += count
    frames = pd.DataFrame(rows)
    frames.insert(0, "clip", clip)
    frames.insert(1, "codec", manifest.codec)
    _write_pictures(folder / "pictures.npz", pictures, np.array(moments) / float(manifest.fps))
    write_table(folder / "frames.parquet", frames)
    write_table(folder / "points.parquet", points_of(frames, presentation, [metric.name for metric in metrics]))


def _segments(presentation: Presentation, representation: int) -> Iterator[bytes]:
    return (presentation.read_segment(segment, representation) for segment in range(presentation.segments))


def points_of(frames: pd.DataFrame, presentation: Presentation, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per representation: its bitrate, the mean of each metric, the severely distorted share."""
    rows = []
    for position, rung in enumerate(presentation.representations):
        own = frames[frames["representation"] == rung.id]
        row = {
            "clip": own["clip"].iloc[0],
            "codec": presentation.manifest.codec,
            "representation": rung.id,
            "bitrate_bps": float(presentation.bitrate_bps[position]),
            "duration_s": presentation.manifest.duration_s,
            "frames_measured": len(own),
            **{metric: float(own[metric].mean()) for metric in metrics},
        }
        severe = [metric for metric in metrics if metric in SEVERE_DISTORTION]
        rows.append(row | {f"severe_{metric}": severely_distorted_share(own[metric], metric) for metric in severe})
    return rows


def _decoders(presentation: Presentation, config: StudyConfig) -> dict[str, Decoder]:
    codec = presentation.manifest.codec
    model = _model(codec, config.build.generator, config.build.device)
    return {
        rung.id: create_decoder(codec, presentation.read_init(position), generator=model)
        for position, rung in enumerate(presentation.representations)
    }


def _write_pictures(path: Path, pictures: dict[str, list[np.ndarray]], times_s: np.ndarray) -> None:
    from io import BytesIO

    buffer = BytesIO()
    arrays: dict[str, Any] = {name: np.stack(frames) for name, frames in pictures.items()}
    np.savez_compressed(buffer, times_s=times_s, **arrays)
    write_bytes(path, buffer.getvalue())


@lru_cache(maxsize=4)
def _metrics(names: tuple[str, ...], device: str, frame_size: tuple[int, int]) -> list[Metric]:
    return load_metrics(names, device=device, frame_size=frame_size)


@lru_cache(maxsize=2)
def _model(codec: str, spec: str, device: str) -> Any:
    return load_model(codec, spec, device=device)


def _no_progress(title: str) -> BuildProgress:
    """Report nothing: the study shows a bar of its own."""
    return lambda stage, done, total: None
