"""A rate-distortion study of finished packages: quality as measured, on every frame, when they were built."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.errors import UsageError
from experiments.rd_measure import Measured, points_of
from experiments.sources import find_packages
from player.files import write_table
from player.presentation import Presentation


def measured_packages(text: str, codecs: list[str], folder: Path) -> dict[tuple[str, str], Measured]:
    """Return what packages hold, by (clip, codec), as tables written below `folder`.

    Args:
        text: folders or patterns of packages, separated by commas.
        codecs: which of them to take.
        folder: where the tables go.

    Raises:
        UsageError: no package there, two of one clip and codec, or no metric that all of them were measured by.
    """
    sources = find_packages(text, codecs)
    common = set.intersection(*(set(source.presentation.metrics) for source in sources))
    if not common:
        raise UsageError(f"packages={text}: no metric that all of them were measured by")
    found: dict[tuple[str, str], Measured] = {}
    for source in sources:
        presentation = source.presentation
        key = source.video, presentation.manifest.codec
        if key in found:
            raise UsageError(f"packages={text}: {key[0]} is there twice as {key[1]}, and cannot be told apart")
        metrics = [name for name in presentation.metrics if name in common]
        frames = _frames(presentation, metrics)
        frames.insert(0, "clip", source.video)
        frames.insert(1, "codec", presentation.manifest.codec)
        found[key] = Measured(folder / presentation.directory.resolve().name)
        write_table(found[key].folder / "frames.parquet", frames)
        write_table(found[key].folder / "points.parquet", points_of(frames, presentation, metrics))
    clips = dict.fromkeys(clip for clip, _ in found)
    return {(clip, codec): found[clip, codec] for clip in clips for codec in codecs if (clip, codec) in found}


def _frames(presentation: Presentation, metrics: list[str]) -> pd.DataFrame:
    """Return one row per representation and frame."""
    parts = []
    for position, rung in enumerate(presentation.representations):
        scores = {
            name: [
                value
                for segment in range(presentation.segments)
                for value in presentation.frame_quality(segment, position, name)
            ]
            for name in metrics
        }
        part = pd.DataFrame(scores)
        part.insert(0, "representation", rung.id)
        part.insert(1, "frame", range(len(part)))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
