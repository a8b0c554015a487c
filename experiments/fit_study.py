"""Fit one segment under several settings and measure what comes out: rows for `experiments.bench_fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from packager.encoder import PromptEncoder
from packager.errors import BuildError
from packager.fit import FitConfig, fit_preset, fit_segment
from packager.video import iter_segments
from player.bitstream import StreamInfo, write_segment
from player.decoder import from_pixels, render_segment
from player.generator import Generator
from player.quality import Metric


def parse_changes(text: str) -> dict[str, Any]:
    """Return the changes to a FitConfig that `a=1,b=true` means; raise BuildError for unknown names or wrong types."""
    known = {field.name: field for field in fields(FitConfig)}
    kinds: dict[str, Callable[[str], Any]]
    kinds = {"int": int, "float": float, "str": str, "bool": lambda word: {"true": True, "false": False}[word.lower()]}
    changes = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise BuildError(f"--set {part}: expected one of {', '.join(known)}")
        try:
            changes[name] = kinds[str(known[name].type)](value)
        except (ValueError, KeyError) as error:
            raise BuildError(f"--set {part}: expected a value of type {known[name].type}") from error
    return changes


def read_segment_frames(video: Path, index: int, segment_s: float, size: tuple[int, int]) -> np.ndarray:
    """Return segment `index` (from 0) of a video, centre-cropped: uint8 [T, H, W, 3]."""
    height, width = size
    segments = iter_segments(video, width=width, height=height, fit="crop", segment_s=segment_s)
    found = next(islice(segments, index, None), None)
    if found is None:
        raise BuildError(f"{video}: has no segment {index}")
    return found


def bench(
    frames: np.ndarray,
    fps: Fraction,
    generator: Generator,
    encoder: PromptEncoder | None,
    metrics: Sequence[Metric],
    *,
    settings: Sequence[str],
    ranks: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yield one row per setting and rank."""
    rows, columns = generator.settings.grid
    height, width = generator.native_size
    for text in settings:
        began = time.perf_counter()
        config = fit_preset("fast", **parse_changes(text))
        fitted = fit_segment(from_pixels(frames), generator, encoder, config, ranks=ranks)
        taken_s = time.perf_counter() - began
        norm_rank = generator.norm_rank(max(ranks))
        for rank in sorted(ranks):
            sizes = (width, height, width, height)
            info = StreamInfo(
                generator.id, generator.tokens, generator.width, rank, norm_rank, *sizes, fps, rows, columns
            )
            segment = fitted[rank]
            size_bytes = len(write_segment(info, segment, sequence=1, start_frame=0))
            shown = render_segment(segment, norm_rank, generator)
            quality = {metric.name: float(metric(frames, shown).mean()) for metric in metrics}
            bitrate = size_bytes * 8 * float(fps) / len(frames)
            yield {"set": text, "rank": rank, "bitrate_bps": bitrate, "fit_s": taken_s, **quality}
