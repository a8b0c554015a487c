"""Fit one segment under several settings: `python -m experiments.bench_fit VIDEO --set rate_weight=0 --set u_step=0.5`.

Prints, for every setting and rank, the bytes as kbit/s, the mean quality of what decodes from them, and the seconds the
fit took; `--json FILE` writes the same rows. Metrics are those this machine can measure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packager.encoder import PromptEncoder, load_encoder
from packager.errors import BuildError, PackagerError
from packager.fit import FitConfig, fit_preset, fit_segment
from packager.ladder import frames_to_tensor
from packager.video import iter_segments, probe
from player.bitstream import StreamInfo, write_segment
from player.decoder import render_segment
from player.errors import PlayerError
from player.generator import Generator, load_generator
from player.quality import Metric, load_metrics


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
        whole = fit_segment(frames_to_tensor(frames), generator, encoder, config, ranks=ranks)
        taken_s = time.perf_counter() - began
        norm_rank = generator.norm_rank(max(ranks))
        for rank in sorted(ranks):
            sizes = (width, height, width, height)
            info = StreamInfo(
                generator.id, generator.tokens, generator.width, rank, norm_rank, *sizes, fps, rows, columns
            )
            segment = whole.truncate(rank)
            size_bytes = len(write_segment(info, segment, sequence=1, start_frame=0))
            shown = render_segment(segment, norm_rank, generator)
            quality = {metric.name: float(metric(frames, shown).mean()) for metric in metrics}
            bitrate = size_bytes * 8 * float(fps) / len(frames)
            yield {"set": text, "rank": rank, "bitrate_bps": bitrate, "fit_s": taken_s, **quality}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_fit", description=__doc__.split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--segment", type=int, default=0, help="which segment, from 0")
    parser.add_argument("--segment-s", type=float, default=2.0, help="its duration, s")
    parser.add_argument("--set", dest="settings", action="append", help="changes to the preset fast: name=value,...")
    parser.add_argument("--ranks", default="2,4,8,16")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        ranks = [int(rank) for rank in arguments.ranks.split(",")]
        generator = load_generator(arguments.generator, device=arguments.device)
        encoder = load_encoder(generator)
        metrics = load_metrics(device=arguments.device, frame_size=generator.native_size)
        frames = read_segment_frames(arguments.video, arguments.segment, arguments.segment_s, generator.native_size)
        fps = probe(arguments.video).fps
        settings = arguments.settings or [""]
        rows = []
        for row in bench(frames, fps, generator, encoder, metrics, settings=settings, ranks=ranks):
            cells = "  ".join(f"{metric.name} {row[metric.name]:8.3f}" for metric in metrics)
            name = row["set"] or "fast"
            print(
                f"{name:32s} r{row['rank']:02d} {row['bitrate_bps'] / 1e3:7.2f} kbit/s  {cells}  {row['fit_s']:.1f} s"
            )
            rows.append(row)
    except (PackagerError, PlayerError, ValueError) as error:
        sys.stderr.write(f"bench_fit: {error}\n")
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
