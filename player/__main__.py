"""Command line of the player: `python -m player quality REF DIST`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from player.errors import PlayerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit code, 1 with one line on stderr where the input is at fault."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return options.run(options)
    except PlayerError as error:
        print(f"player: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m player", description="Decode, play and measure.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    quality = commands.add_parser(
        "quality",
        help="compare two videos or pictures frame by frame",
        description="Compare two videos or pictures of one size frame by frame; print the scores as JSON.",
    )
    quality.add_argument("reference", type=Path, metavar="REF", help="the original")
    quality.add_argument("distorted", type=Path, metavar="DIST", help="what the viewer saw")
    quality.add_argument(
        "--metrics",
        default="auto",
        metavar="NAME[,NAME...]",
        help="psnr_db, ms_ssim, ssimulacra2, lpips_squeeze, lpips_alex, lpips_vgg; default: all weight-free ones and"
        " the first LPIPS to be had",
    )
    quality.add_argument("--weights", type=Path, metavar="DIR", help="LPIPS' weights (default: $PROMPTDASH_WEIGHTS)")
    quality.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    quality.add_argument("--no-download", action="store_true", help="never fetch missing weights")
    quality.set_defaults(run=_quality)
    return parser


def _quality(options: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help should not.
    from player.quality import SEVERE_DISTORTION, load_metrics, severely_distorted_share
    from player.quality.compare import compare_files, first_frame_size

    metrics = load_metrics(
        "auto" if options.metrics == "auto" else options.metrics.split(","),
        weights_dir=options.weights,
        device=options.device,
        frame_size=first_frame_size(options.reference),
        download=not options.no_download,
    )
    result = compare_files(options.reference, options.distorted, metrics)
    report: dict[str, object] = {
        "reference": str(options.reference),
        "distorted": str(options.distorted),
        "width": result.width,
        "height": result.height,
        "frames": result.frames,
        "metrics": {
            name: {
                "mean": math.fsum(scores) / len(scores),
                "severely_distorted_share": (
                    severely_distorted_share(scores, name) if name in SEVERE_DISTORTION else None
                ),
                "frames": scores.tolist(),
            }
            for name, scores in result.scores.items()
        },
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
