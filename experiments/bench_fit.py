"""Fit one segment under several settings: `python -m experiments.bench_fit VIDEO --set rate_weight=0 --set u_step=0.5`.

Prints, for every setting and rank, the bytes as kbit/s, the mean quality of what decodes from them, and the seconds the
fit took; `--json FILE` writes the same rows. Metrics are those this machine can measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_fit", description=__doc__.split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--segment", type=int, default=0, help="which segment, from 0")
    parser.add_argument("--segment-s", type=float, default=2.0, help="its duration, s")
    parser.add_argument("--set", dest="settings", action="append", help="changes to the preset fast: name=value,...")
    parser.add_argument("--ranks", default="4,8,16")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    # torch is imported late, so that --help answers at once
    import torch

    from experiments.fit_study import bench, read_segment_frames
    from packager.encoder import load_encoder
    from packager.errors import PackagerError
    from packager.video import probe
    from player.errors import PlayerError
    from player.generator import load_generator
    from player.quality import load_metrics

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
