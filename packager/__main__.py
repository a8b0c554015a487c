"""Command line of the packager: `build` a video, `inspect` what is in a package, `serve` packages over HTTP."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from packager.errors import BuildError, PackagerError
from packager.machine import usable_cores
from packager.settings import AUTO, CODECS, BuildConfig, parse_bitrate
from packager.workers import start_early
from player.codecs import PLUGINS, known_codecs, load_codec
from player.errors import PlayerError

if TYPE_CHECKING:
    from tqdm import tqdm

    from packager.package import BuildResult

DEMO = "demo"
_DEMO_FOLDER = Path("outputs/cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit code: 0, 1 with one line on stderr for bad input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="packager: %(message)s", stream=sys.stderr)
    try:
        return options.run(options)
    except (PackagerError, PlayerError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"packager: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("packager: interrupted; what is whole is kept, --resume continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    defaults = BuildConfig()
    parser = argparse.ArgumentParser(
        prog="python -m packager", description="Package a video for streaming, look into packages, publish them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build",
        help="package a video as a ladder of prompts or of another codec",
        description="Package a video: init and media segments, MPD manifest and measured quality in one folder.",
    )
    build.set_defaults(run=_build)
    build.add_argument("video", metavar="VIDEO", help=f"any video file, or `{DEMO}`: a clip that is made on first use")
    build.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write (default: VIDEO's name-CODEC)")
    build.add_argument("--codec", choices=known_codecs(), default=CODECS[0])
    build.add_argument(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="processes that fit a segment each, prompts and vae (default: vae one, prompts what suits the machine)",
    )
    build.add_argument(
        "--ray",
        nargs="?",
        const=AUTO,
        default="",
        metavar="ADDRESS",
        help="fit on a Ray cluster: host:port, local, or (default) the one at hand, else a local one",
    )
    build.add_argument("--resume", action="store_true", help="continue an unfinished build")
    build.add_argument("--force", action="store_true", help="replace what another build left in the folder")
    source = build.add_argument_group("the video")
    source.add_argument("--segment", type=float, default=defaults.segment_s, metavar="S", help="segment duration, s")
    source.add_argument("--size", default=AUTO, metavar="N|WxH", help="frame size (default: the generator's)")
    source.add_argument(
        "--fit", choices=("crop", "pad"), default=defaults.fit, help="for another shape than the size's"
    )
    source.add_argument("--seconds", type=float, default=0.0, metavar="S", help="only the first S (default: all)")
    source.add_argument("--fps", type=float, default=0.0, help="constant frame rate (default: the video's)")
    prompts = build.add_argument_group("prompts")
    prompts.add_argument("--ranks", type=_numbers, default=defaults.ranks, metavar="R,R...", help="default 4,8,16")
    prompts.add_argument(
        "--layered", action="store_true", help="each representation holds only what the one below lacks"
    )
    prompts.add_argument(
        "--interval",
        type=int,
        default=defaults.interval,
        metavar="N",
        help="frames between key prompts, at most (default 30)",
    )
    prompts.add_argument(
        "--top-intervals",
        type=_numbers,
        default=defaults.top_intervals,
        metavar="N,N...",
        help="of further representations of the highest rank (default 20,10; 0: none)",
    )
    prompts.add_argument(
        "--generator", default=defaults.generator, metavar="ID|DIR", help="embedded (default), a hub id or a folder"
    )
    prompts.add_argument(
        "--decoder", default="", metavar="ID|DIR", help="another latent decoder, such as madebyollin/taesd"
    )
    prompts.add_argument("--preset", default=defaults.preset, help="fast (default) or paper, which takes hours")
    prompts.add_argument(
        "--start", default=AUTO, metavar="HOW", help="where fits start: encoder, empty or random (default: preset's)"
    )
    prompts.add_argument(
        "--iterations", type=int, default=0, metavar="N", help="most steps a segment (default: preset's)"
    )
    prompts.add_argument(
        "--no-motion", action="store_true", help="every frame by the generator, none warped (preset paper: always)"
    )
    prompts.add_argument("--seed", type=int, default=0)
    speed = build.add_argument_group("speed and memory of fits")
    speed.add_argument(
        "--frames-per-step", type=int, default=0, metavar="N", help="of a segment, in a step (default: preset's)"
    )
    speed.add_argument(
        "--frames-at-once", type=int, default=0, metavar="N", help="through the generator (default: as many as fit)"
    )
    speed.add_argument(
        "--segments-at-once", type=int, default=0, metavar="N", help="fitted together (default: on CUDA what fits)"
    )
    speed.add_argument(
        "--compile", default="off", metavar="MODE", help="off (default), default or max-autotune: minutes once"
    )
    baselines = build.add_argument_group("target bitrates")
    baselines.add_argument(
        "--bitrates", type=_bitrates, metavar="B,B...", help="default 10k,20k,40k,80k; of prompts, in place of --ranks"
    )
    measures = build.add_argument_group("measuring")
    measures.add_argument(
        "--metrics", type=_names, default=[AUTO], metavar="NAME,...", help="default auto: all there is"
    )
    measures.add_argument("--device", default=AUTO, help="auto (default), cpu, cuda or cuda:N")
    published = commands.add_parser(
        "import",
        help="package published Promptus prompts",
        description="Check a folder of published prompts (frame_*.prompt) and package it for stabilityai/sd-turbo.",
    )
    published.set_defaults(run=_import)
    published.add_argument("prompts", type=Path, metavar="DIR")
    published.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder to write (default: DIR's name-prompt)"
    )
    published.add_argument("--fps", type=float, default=30.0, help="frame rate; the files do not say it (default 30)")
    published.add_argument("--segment", type=float, default=defaults.segment_s, metavar="S", help="segment duration, s")
    published.add_argument(
        "--carry",
        type=float,
        default=0.0,
        metavar="C",
        help="chain the latents as published (0.05): plays in order only (default 0: segments stand alone)",
    )
    published.add_argument("--force", action="store_true", help="replace what another import left in the folder")
    inspect = commands.add_parser(
        "inspect", help="print what is inside a package or one of its files", description="Print what is inside."
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("path", type=Path, metavar="FOLDER|FILE")
    listing = commands.add_parser(
        "list", help="list the codecs, those of other packages too", description="List the codecs."
    )
    listing.set_defaults(run=_list)
    serve = commands.add_parser(
        "serve",
        help="publish packages over HTTP",
        description="Publish the packages below a folder over HTTP, until Ctrl-C. / lists them (docs/streaming.md).",
    )
    serve.set_defaults(run=_serve)
    serve.add_argument("root", type=Path, metavar="DIR", help="a folder of packages, or one package")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8080, help="default 8080; 0: any free one")
    serve.add_argument("--access-log", default="-", metavar="FILE", help="default -: stderr; none: no access log")
    return parser


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers such as 2,4,8") from error


def _bitrates(text: str) -> list[int]:
    try:
        return [parse_bitrate(part) for part in text.split(",")]
    except BuildError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _build(options: argparse.Namespace) -> int:
    """Build, then print the table; a finished folder is only reported."""
    names = ("bitrates_bps", "prompt_bitrates_bps")  # as the codec goes
    config = BuildConfig(
        segment_s=options.segment,
        size=options.size,
        fit=options.fit,
        fps=options.fps,
        seconds=options.seconds,
        metrics=options.metrics,
        device=options.device,
        jobs=options.jobs,
        ray=options.ray,
        ranks=options.ranks,
        interval=options.interval,
        top_intervals=options.top_intervals,
        generator=options.generator,
        decoder=options.decoder,
        preset=options.preset,
        start=options.start,
        motion=not options.no_motion,
        iterations=options.iterations,
        seed=options.seed,
        frames_per_step=options.frames_per_step,
        frames_at_once=options.frames_at_once,
        segments_at_once=options.segments_at_once,
        compile=options.compile,
        layered=options.layered,
        **({names[options.codec == CODECS[0]]: options.bitrates} if options.bitrates else {}),
    )
    started_s = time.monotonic()
    elsewhere = options.ray or options.device.startswith("cuda")
    if options.codec == CODECS[0] and not elsewhere and (options.jobs or usable_cores()) > 1:
        start_early()  # while this process loads the same libraries
    from packager.package import builder
    from packager.table import quality_table

    with _ProgressBar() as bar:
        video = _demo_clip(bar) if options.video == DEMO and not Path(DEMO).exists() else Path(options.video)
        folder = options.output or Path(f"{video.stem}-{options.codec}")
        result: BuildResult = builder(options.codec)(
            video, folder, config, resume=options.resume, force=options.force, progress=bar.show
        )
    print(quality_table(result.presentation))
    if result.reused:
        print(f"{folder}: already built with these settings; nothing to do")
    else:
        print(f"{folder}: built in {time.monotonic() - started_s:.0f} s")
    return 0


def _demo_clip(bar: _ProgressBar) -> Path:
    from packager.demo import demo_clip_name, make_demo_clip

    path = _DEMO_FOLDER / demo_clip_name()
    return make_demo_clip(path, progress=lambda done, total: bar.show("filming the demo clip", done / total, 1.0))


def _list(options: argparse.Namespace) -> int:
    """Print one line per codec: name and what offers it; a broken plug-in's line says what is wrong with it."""
    for name in known_codecs():
        try:
            what = "built in" if name in CODECS else PLUGINS.describe(load_codec(name)[0])
        except PlayerError as error:
            what = f"broken: {error}"
        print(f"{name:12} {what}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from packager.import_prompts import import_prompts
    from packager.table import quality_table

    folder = options.output or Path(f"{options.prompts.resolve().name}-prompt")
    presentation = import_prompts(
        options.prompts, folder, fps=options.fps, segment_s=options.segment, carry=options.carry, force=options.force
    )
    print(quality_table(presentation))
    print(f"{folder}: imported")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from packager.inspect import describe

    print(describe(options.path))
    return 0


def _serve(options: argparse.Namespace) -> int:
    import asyncio

    from packager.server import serve

    def announce(url: str) -> None:
        print(url, flush=True)

    access_log = _access_log(options.access_log)
    asyncio.run(serve(options.root, host=options.host, port=options.port, access_log=access_log, on_ready=announce))
    return 0


def _access_log(target: str) -> logging.Logger | None:
    """Return the logger of requests, which writes to stderr or a file."""
    if target == "none":
        return None
    handler = logging.StreamHandler(sys.stderr) if target == "-" else logging.FileHandler(target)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("packager.access")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    return log


class _ProgressBar:
    """One tqdm bar per stage on stderr; silent where that is no terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, stage: str, done: float, total: float | None) -> None:
        """Move the bar; open another one where the stage is new."""
        from tqdm import tqdm

        if stage != self._stage:
            if self._bar is not None:
                self._bar.close()
            layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            layout = layout if total else "{desc}: {n:.1f} segments in {elapsed}"
            self._bar = tqdm(desc=stage, total=total, disable=None, leave=False, bar_format=layout, file=sys.stderr)
            self._stage = stage
        assert self._bar is not None
        self._bar.total = total
        self._bar.update(max(0.0, done - self._bar.n))


if __name__ == "__main__":
    sys.exit(main())
