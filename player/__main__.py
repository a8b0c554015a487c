"""Command line of the player: `play` a package from a server, and compare two videos' `quality`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from abr import AbrError
from player.config import PlayerConfig
from player.errors import PlayerError, SessionError

MAX_DURATION_S = 86_400.0
"""Longest session: a day."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit code, 1 with one line on stderr where the input is at fault."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return options.run(options)
    except (PlayerError, AbrError, OSError) as error:  # OSError: a log folder that cannot be written
        print(f"player: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a session began; from then on it ends in order
        print("player: interrupted", file=sys.stderr)
        return 130


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
        help="psnr_db, ms_ssim, ssimulacra2, flip, lpips_squeeze, lpips_alex, lpips_vgg, lpips_embedded; default:"
        " the first three and the first LPIPS to be had, else lpips_embedded, the estimate that is shipped",
    )
    quality.add_argument("--weights", type=Path, metavar="DIR", help="LPIPS' weights (default: $PROMPTDASH_WEIGHTS)")
    quality.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    quality.add_argument("--no-download", action="store_true", help="never fetch missing weights")
    quality.set_defaults(run=_quality)
    listing = commands.add_parser(
        "list",
        help="list the metrics and generators, those of other packages too",
        description="List the quality metrics and the generators that have a name.",
    )
    listing.set_defaults(run=_list)
    _add_play(commands)
    return parser


def _add_play(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    play = commands.add_parser(
        "play",
        help="stream a package over HTTP in real time",
        description="Stream a package from any HTTP server in real time, with the session that simulations use.",
    )
    play.set_defaults(run=_play)
    play.add_argument("url", metavar="URL", help="of a manifest.mpd, or of the folder it is in")
    play.add_argument("--abr", default="bola", metavar="NAME", help="controller (python -m abr lists them)")
    play.add_argument("--abr-option", type=_pair, action="append", default=[], metavar="K=V", help="may be repeated")
    play.add_argument(
        "--duration", type=float, metavar="S", help="loop or cut the clip to this (default: play it once)"
    )
    play.add_argument("--buffer", type=float, metavar="S", help="buffer cap; short for --player-option buffer_s=S")
    play.add_argument(
        "--player-option", type=_pair, action="append", default=[], metavar="K=V", help="startup_s=1, timeout_s=5, ..."
    )
    play.add_argument("--log", type=Path, metavar="DIR", help="write the tables and the summary here")
    play.add_argument("--begin-at", type=float, metavar="S", help="send the first request then, on the monotonic clock")
    link = play.add_argument_group(
        "an emulated link in front of the server (python -m emulator proxy, docs/emulation.md)"
    )
    link.add_argument("--trace", metavar="NAME|FILE", help="shape what is fetched by this trace")
    link.add_argument("--share", metavar="N", help="what one of N users gets of the trace")
    link.add_argument("--delay-ms", metavar="MS", help="one way")
    link.add_argument(
        "--link-option",
        action="append",
        default=[],
        metavar="K=V",
        help="any other of the proxy's, as queue-packets=100",
    )
    render = play.add_argument_group("rendering, in a process of its own")
    render.add_argument("--render", action="store_true", help="decode what arrives; it is shown once it is decoded")
    render.add_argument("--out", type=Path, metavar="FILE.mp4", help="write what the viewer saw (implies --render)")
    render.add_argument("--generator", default="embedded", metavar="ID|DIR", help="of prompt streams")
    render.add_argument("--decoder", default="", metavar="ID|DIR", help="another latent decoder (madebyollin/taesd)")
    render.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    render.add_argument("--dtype", default="auto", help="auto (default), float32, float16 or bfloat16")
    render.add_argument(
        "--compile", default="off", metavar="MODE", help="off (default), default or max-autotune (docs/gpu.md)"
    )
    render.add_argument("--batch", type=int, default=0, metavar="N", help="frames at a time (default: what fits)")


def _pair(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE; numbers, true, false and null are read as such."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _play(options: argparse.Namespace) -> int:
    import asyncio

    from player.play import PlayOptions, play
    from player.report import summary_table

    wanted = PlayOptions(
        url=options.url,
        abr=options.abr,
        abr_options=dict(options.abr_option),
        player=_player_config(options),
        duration_s=options.duration,
        link=_link_arguments(options),
        render=options.render or options.out is not None,
        generator=options.generator,
        decoder=options.decoder,
        device=options.device,
        dtype=options.dtype,
        compile_mode=options.compile,
        batch=options.batch,
        film=options.out,
        log=options.log,
        begin_at_s=options.begin_at,
    )
    line = _Line()
    try:
        played = asyncio.run(play(wanted, on_line=line.show if sys.stderr.isatty() else None))
    finally:
        line.clear()
    print(summary_table(played.record.summary))
    if played.interrupted:
        print(f"player: interrupted{f'; {options.log} is complete' if options.log else ''}", file=sys.stderr)
    return 130 if played.interrupted else 0


def _player_config(options: argparse.Namespace) -> PlayerConfig:
    values = dict(options.player_option)
    if options.buffer is not None:
        values["buffer_s"] = options.buffer
    known = {setting.name for setting in fields(PlayerConfig)}
    if unknown := sorted(set(values) - known):
        raise SessionError(f"unknown player option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    for key, value in values.items():
        if key != "renderer" and not isinstance(value, (bool, int, float, type(None))):
            raise SessionError(f"player option {key}={value!r}: expected a number")
    if options.duration is not None and not 0 < options.duration <= MAX_DURATION_S:
        raise SessionError(f"--duration {options.duration:g}: expected more than 0 and up to {MAX_DURATION_S:g} s")
    return PlayerConfig(**values)


def _link_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the proxy's arguments; none without a trace."""
    given = {"share": options.share, "delay-ms": options.delay_ms}
    pairs = [(key, value) for key, value in given.items() if value is not None]
    for text in options.link_option:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise SessionError(f"--link-option {text}: expected KEY=VALUE")
        pairs.append((key.replace("_", "-"), value))
    if options.trace is None:
        if pairs:
            raise SessionError(f"--{pairs[0][0]} describes an emulated link, which needs --trace")
        return ()
    return ("--trace", options.trace, *(f"--{key}={value}" for key, value in pairs))


class _Line:
    """One line on a terminal that is written over again and again."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()


def _list(options: argparse.Namespace) -> int:
    """Print one line per metric and generator; a broken plug-in's line says what is wrong with it."""
    from player.generators import EMBEDDED, describe, known_generators
    from player.quality import METRIC_NAMES, METRIC_PLUGINS, known_metrics

    for name in known_metrics():
        try:
            what = "built in" if name in METRIC_NAMES else METRIC_PLUGINS.describe(name)
        except PlayerError as error:
            what = f"broken: {error}"
        print(f"metric     {name:16} {what}")
    for name in known_generators():
        try:
            what = "built in" if name == EMBEDDED else describe(name)
        except PlayerError as error:
            what = f"broken: {error}"
        print(f"generator  {name:16} {what}")
    return 0


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
