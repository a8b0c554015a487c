"""What renderers for weak devices cost and lose: `python -m experiments.bench_render VIDEO...`.

One segment of each video is fitted with motion and, as published, without; each is rendered in every way, and the
frames are set against the video's and against those of the generator itself. The last rows are prompts fitted at half
the frame size, whose frames are enlarged. CPU time is that of this process, one thread; only its ratios mean something.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np

    from packager.encoder import PromptEncoder
    from player.bitstream import Segment
    from player.engine import RenderOptions
    from player.generator import Generator
    from player.quality import Metric

_TIMES = 2  # each rendering is timed so often, and the least counts


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_render", description=__doc__.split("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--segment-s", type=float, default=2.0, help="duration of the segment, each video's first, s")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=30, help="of each fit")
    parser.add_argument("--thresholds", default="0.05,0.1,0.2,0.4", help="of caching, for each depth")
    parser.add_argument("--depths", default="0,1", help="of caching")
    parser.add_argument("--every", type=int, default=4, help="measure every Nth frame")
    parser.add_argument("--metrics", default="auto")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    import torch

    from packager.errors import PackagerError
    from player.errors import PlayerError

    torch.set_num_threads(1)
    try:
        rows = [row for video in arguments.videos for row in _bench(video, arguments)]
    except (PackagerError, PlayerError, ValueError, OSError) as error:
        sys.stderr.write(f"bench_render: {error}\n")
        return 1
    for row in _means(rows):
        print("  ".join([f"{row['fit']:10s} {row['renderer']:28s}", *_cells(row)]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")
    return 0


@dataclass(frozen=True)
class _Fitted:
    segment: Segment
    generator: Generator
    kbps: float


def _bench(video: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row per fit and renderer."""
    from experiments.fit_study import read_segment_frames
    from packager.encoder import load_encoder
    from packager.video import probe
    from player.engine import RenderOptions
    from player.generator import load_generator
    from player.quality import load_metrics

    generator = load_generator(arguments.generator, device="cpu")
    encoder = load_encoder(generator)
    names = "auto" if arguments.metrics == "auto" else arguments.metrics.split(",")
    metrics = load_metrics(names, device="cpu", frame_size=generator.native_size)
    frames = read_segment_frames(video, 0, arguments.segment_s, generator.native_size)
    small = read_segment_frames(video, 0, arguments.segment_s, _half(generator.native_size))
    fps = probe(video).fps
    for motion in (False, True):
        name = "motion" if motion else "prompts"
        fitted = _fit(frames, fps, generator, encoder, motion, arguments)
        full: np.ndarray | None = None
        for renderer, options in _renderers(arguments):
            shown, cost = _render(fitted, options)
            full = shown if full is None else full
            yield _row(video, name, renderer, fitted, cost, frames, shown, full, metrics, arguments.every)
        assert full is not None
        fitted = _fit(small, fps, generator.at_size(*_half(generator.native_size)), encoder, motion, arguments)
        shown, cost = _render(fitted, RenderOptions(), enlarge=True)
        yield _row(
            video, name, "fitted at half size, bicubic", fitted, cost, frames, shown, full, metrics, arguments.every
        )


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


def _renderers(arguments: argparse.Namespace) -> Iterator[tuple[str, RenderOptions]]:
    """Yield the name and options of every way to render; the first is the generator itself."""
    from player.engine import RenderOptions, Shortcut

    yield "full", RenderOptions()
    for depth in (int(text) for text in arguments.depths.split(",")):
        for threshold in (float(text) for text in arguments.thresholds.split(",")):
            yield f"cached, depth {depth}, {threshold:g}", RenderOptions(shortcut=Shortcut(depth, threshold))


def _fit(
    frames: np.ndarray,
    fps: Fraction,
    generator: Generator,
    encoder: PromptEncoder | None,
    motion: bool,
    arguments: argparse.Namespace,
) -> _Fitted:
    from packager.fit import fit_preset, fit_segment
    from player.bitstream import StreamInfo, write_segment
    from player.pixels import from_pixels

    config = fit_preset("fast", motion=motion, iterations=arguments.iterations)
    segment = fit_segment(from_pixels(frames), generator, encoder, config, ranks=[arguments.rank])[arguments.rank]
    height, width = generator.native_size
    sizes = (width, height, width, height)
    norm_rank = generator.norm_rank(arguments.rank)
    info = StreamInfo(
        generator.id,
        generator.tokens,
        generator.width,
        arguments.rank,
        norm_rank,
        *sizes,
        fps,
        *generator.settings.grid,
    )
    size_bytes = len(write_segment(info, segment, sequence=1, start_frame=0))
    return _Fitted(segment, generator, size_bytes * 8 * float(fps) / len(frames) / 1000)


def _render(fitted: _Fitted, options: RenderOptions, *, enlarge: bool = False) -> tuple[np.ndarray, dict[str, float]]:
    """Return the frames uint8 [T, H, W, 3] and what one costs."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from player.decoder import render_segment
    from player.engine import engine_of
    from player.pixels import from_pixels, to_pixels

    generator = fitted.generator
    generator.options, generator.engine = options, None
    norm_rank = generator.norm_rank(fitted.segment.keys[0].u.shape[1])

    def render() -> np.ndarray:
        shown = render_segment(fitted.segment, norm_rank, generator)
        if enlarge:
            maps = from_pixels(shown)
            parts = [
                to_pixels(torch.nn.functional.interpolate(part, scale_factor=2, mode="bicubic", align_corners=False))
                for part in maps.split(16)
            ]
            shown = torch.cat(parts).numpy()
        return shown

    shown = render()
    taken_s = []
    for _ in range(_TIMES):
        began_s = time.process_time()
        render()
        taken_s.append(time.process_time() - began_s)
    with FlopCounterMode(display=False) as counter:
        render()
    cache = getattr(engine_of(generator), "cache", None)
    cost = {
        "cpu_ms": 1000 * min(taken_s) / len(shown),
        "gflop": counter.get_total_flops() / len(shown) / 1e9,
        "references": cache.references / cache.frames if cache else 1.0,
    }
    return np.asarray(shown), cost


def _row(
    video: Path,
    fit: str,
    renderer: str,
    fitted: _Fitted,
    cost: dict[str, float],
    frames: np.ndarray,
    shown: np.ndarray,
    full: np.ndarray,
    metrics: list[Metric],
    every: int,
) -> dict[str, Any]:
    import numpy as np

    row: dict[str, Any] = {"video": video.stem, "fit": fit, "renderer": renderer, "kbps": fitted.kbps, **cost}
    for metric in metrics:
        row[metric.name] = float(np.mean(metric(frames[::every], shown[::every])))
    difference = np.square(shown.astype(np.float64) - full).mean()
    row["psnr_to_full_db"] = float(10 * np.log10(255**2 / difference)) if difference else None
    return row


def _means(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the mean over the videos of every fit and renderer, times relative to `full` of the same video and fit."""
    import numpy as np

    full_ms = {(row["video"], row["fit"]): row["cpu_ms"] for row in rows if row["renderer"] == "full"}
    for fit, renderer in dict.fromkeys((row["fit"], row["renderer"]) for row in rows):
        chosen = [row for row in rows if (row["fit"], row["renderer"]) == (fit, renderer)]
        mean: dict[str, Any] = {"fit": fit, "renderer": renderer}
        for key in chosen[0]:
            values = [row[key] for row in chosen]
            if key not in ("video", "fit", "renderer"):
                mean[key] = None if None in values else float(np.mean(values))
        mean["time"] = float(np.mean([row["cpu_ms"] / full_ms[row["video"], fit] for row in chosen]))
        yield mean


def _cells(row: dict[str, Any]) -> list[str]:
    same = row["psnr_to_full_db"]
    cells = [
        f"{row['kbps']:5.1f} kbit/s",
        f"{row['cpu_ms']:6.1f} ms",
        f"x{row['time']:.2f}",
        f"{row['gflop']:.2f} GFLOP",
    ]
    cells += [f"{100 * row['references']:3.0f} % references", "the same" if same is None else f"{same:5.1f} dB to full"]
    known = ("video", "fit", "renderer", "kbps", "cpu_ms", "gflop", "references", "psnr_to_full_db", "time")
    return cells + [f"{key} {value:.3f}" for key, value in row.items() if key not in known]


if __name__ == "__main__":
    raise SystemExit(main())
