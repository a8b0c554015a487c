"""``python -m experiments.sweep trace=all abr=all codec=prompt,h265 offsets=2 jobs=4 output=DIR``: a study.

Every controller over every trace, start offset and codec, in virtual time; quality is measured once, when the clip is
packaged, and looked up. The sessions become one data set (experiments.load); the same command goes on where it stopped.

keys:
  trace=all|FAMILIES|NAMES|PATHS  all families, families (all their members), traces, files; comma-separated
  abr=all|NAMES                   controllers; options as mpc:horizon=3+utility=log
  codec=prompt,h265               packages of `video` to stream, made on first use ...
  package=DIR,DIR                 ... or packaged folders
  offsets=1                       start offsets for each trace, evenly spaced over it
  limit=N                         at most N traces of each family
  jobs=0                          processes; 0: all cores
  output=DIR                      where the data set goes
Every other key of experiments.run (player.*, link.*, build.*, video, session_s, trace.share, cache_dir) holds for all.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, UsageError

if TYPE_CHECKING:
    from experiments.schema import RunConfig
    from experiments.sweep_sessions import Cell, Failure, Study
    from player.programme import Programme

ALL = "all"
LEFT_OUT = ("fixed",)
"""Controllers that `abr=all` leaves out: `lowest` and `highest` say the same."""
BOUNDS = ("oracle", "oracle:utility=quality")


@dataclass
class SweepOptions:
    """The sweep's own keys; see the module's text."""

    trace: str = ALL
    abr: str = ALL
    codec: str = "prompt,h265"
    package: str = ""
    offsets: int = 1
    limit: int = 0
    jobs: int = 0
    output: str = ""
    rest: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.output:
            raise UsageError("output=DIR is missing: where the data set goes")
        if self.offsets < 1 or self.limit < 0 or self.jobs < 0:
            raise UsageError("offsets must be 1 or more, limit and jobs 0 or more")


def parse_options(arguments: Sequence[str]) -> SweepOptions:
    """Return the sweep's own options and the overrides left for the run's configuration; UsageError if malformed."""
    kinds = {item.name: item.type for item in fields(SweepOptions) if item.name != "rest"}
    values: dict[str, Any] = {"rest": []}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UsageError(f"{argument}: expected key=value; --help lists the keys")
        if key not in kinds:
            values["rest"].append(argument)
        elif kinds[key] == "str":
            values[key] = value
        elif value.isascii() and value.isdigit():
            values[key] = int(value)
        else:
            raise UsageError(f"{argument}: expected a whole number")
    return SweepOptions(**values)


def expand_traces(text: str, limit: int = 0) -> list[str]:
    """Return the traces that `trace=` stands for: canonical names, or paths. A family's name stands for all of it."""
    from traces import catalogue

    families = {family.name: family for family in catalogue.families()}
    names: dict[str, None] = {}
    for part in families if text == ALL else [part for part in text.split(",") if part]:
        if part in families:
            members = [entry.name for entry in families[part].entries]
            names |= dict.fromkeys(members[:: max(len(members) // limit, 1)][:limit] if limit else members)
        elif (entry := catalogue.find(part)) is not None:
            names[entry.name] = None
        elif Path(part).is_file():
            names[part] = None
        else:
            raise UsageError(f"trace={part}: no family, trace or file; known families: {', '.join(families)}")
    return list(names)


def expand_controllers(text: str) -> list[str]:
    """Return the controllers that `abr=` stands for; UsageError for one that nobody knows."""
    from abr import AbrError, check_name, known_names
    from experiments.sweep_sessions import parse_controller

    if text == ALL:
        return [*(name for name in known_names() if name not in (*LEFT_OUT, *BOUNDS)), *BOUNDS]
    controllers = list(dict.fromkeys(part for part in text.split(",") if part))
    for controller in controllers:
        try:
            check_name(parse_controller(controller)[0])
        except AbrError as error:
            raise UsageError(f"abr={controller}: {error}") from error
    return controllers


def read_config(overrides: Sequence[str]) -> RunConfig:
    """Return the run's configuration with these overrides; UsageError for unknown keys and wrong values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from experiments.schema import RunConfig

    renamed = [f"video.name{text[5:]}" if text.startswith("video=") else text for text in overrides]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.from_dotlist(renamed))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if not isinstance(config, RunConfig):
        raise UsageError("the overrides do not make a run's configuration")
    return config


def make_cells(options: SweepOptions, config: RunConfig, packages: Sequence[str]) -> list[Cell]:
    """Return the study's cells: every trace, offset and package with all controllers."""
    from experiments.shares import default_share
    from experiments.sweep_sessions import Cell
    from traces import load_trace

    controllers = tuple(expand_controllers(options.abr))
    fixed = config.trace.share if any(text.startswith("trace.share=") for text in options.rest) else None
    cells = []
    for name in expand_traces(options.trace, options.limit):
        period_s = load_trace(name).duration_s if options.offsets > 1 else 0.0
        for number in range(options.offsets):
            offset_s = round(config.trace.offset_s + period_s * number / options.offsets, 3)
            share = fixed or default_share(name)
            cells += [Cell(name, share, offset_s, package, controllers) for package in packages]
    random.Random(0).shuffle(cells)  # an interrupted study is a fair sample, and the time left well guessed
    return cells


def open_packages(options: SweepOptions, config: RunConfig) -> dict[str, Path]:
    """Return the folders to stream, by the name their rows will have; packaged first if need be."""
    if options.package:
        folders = [Path(part) for part in options.package.split(",")]
        if len({folder.resolve().name for folder in folders}) < len(folders):
            raise UsageError(f"package={options.package}: the folders' names must differ")
        return {folder.resolve().name: folder for folder in folders}
    from experiments.prepare import obtain_package, obtain_video

    cache = Path(config.cache_dir)
    video = obtain_video(config.video, cache)

    def quietly(title: str) -> Callable[[str, float, float | None], None]:
        return lambda stage, done, total: None

    codecs = options.codec.split(",")
    folders = [obtain_package(codec, video, config.build, cache, quietly).presentation.directory for codec in codecs]
    return {folder.name: folder for folder in folders}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or any(flag in given for flag in ("-h", "--help")):
        print(__doc__)
        return 0
    from abr import AbrError
    from emulator.errors import EmulatorError
    from packager.errors import PackagerError
    from player.errors import PlayerError
    from traces import TraceError

    known = (ExperimentError, AbrError, EmulatorError, PackagerError, PlayerError, TraceError, OSError)
    try:
        return _run(parse_options(given), given)
    except UsageError as error:
        print(f"experiments.sweep: {error}", file=sys.stderr)
        return 2
    except known as error:
        print(f"experiments.sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments.sweep: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _run(options: SweepOptions, given: Sequence[str]) -> int:
    from dataclasses import asdict

    from experiments.dataset import FAILURES, load, open_study, write_part
    from experiments.provenance import folder_sha256, provenance
    from experiments.sweep_sessions import Study
    from player.files import write_json
    from player.presentation import Presentation
    from player.programme import build_programme
    from player.record import default_rule

    config = read_config(options.rest)
    expand_controllers(options.abr)  # a mistake fails before anything is packaged
    expand_traces(options.trace, options.limit)
    folders = open_packages(options, config)
    programmes = {name: build_programme(Presentation.load(path), config.session_s) for name, path in folders.items()}
    programmes = {name: _with_shared_metrics(one, list(programmes.values())) for name, one in programmes.items()}
    rule = default_rule(next(iter(programmes.values())).presentation.metrics)
    hashes = {name: folder_sha256(path) for name, path in folders.items()}
    settings = {
        "player": asdict(config.player), "link": asdict(config.link), "session_s": config.session_s,
        "severe_rule": [rule.metric, rule.threshold], "packages": hashes,
    }  # fmt: skip
    folder = Path(options.output)
    record = provenance(overrides=list(given), seeds={"link.seed": config.link.seed}, inputs={"packages": hashes})
    open_study(folder, settings, {**record, "command": ["python", "-m", "experiments.sweep", *given]})
    done = {tuple(row) for row in load(folder)[["trace", "offset_s", "package", "abr"]].itertuples(index=False)}
    cells = list(_missing(make_cells(options, config, list(programmes)), done))
    total = sum(len(cell.controllers) for cell in cells)
    print(f"{len(done)} sessions there, {total} to run, in {folder}", file=sys.stderr)
    study = Study(programmes, rule, config.player, config.link)
    failures: list[Failure] = []
    progress = Progress(total)
    for cell, rows, failed in _results(study, cells, options.jobs or os.cpu_count() or 1):
        if rows:
            write_part(folder, _part_name(cell), rows)
        failures += failed
        progress.add(len(cell.controllers), len(failures))
    progress.close()
    write_json(folder / FAILURES, {"failures": [_failure_row(failure) for failure in failures]})
    for failure in failures[:10]:
        place = f"{failure.cell.trace} from {failure.cell.offset_s:g} s, {failure.cell.package}"
        print(f"experiments.sweep: failed: {failure.controller} on {place}: {failure.reason}", file=sys.stderr)
    if failures:
        print(f"experiments.sweep: {len(failures)} of {total} failed; all in {folder / FAILURES}", file=sys.stderr)
    return 1 if failures else 0


class Progress:
    """A line on a terminal, or one every half minute in a log: how far, how fast, how long to go."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._began_s = self._told_s = time.monotonic()
        self._live = sys.stderr.isatty()
        self._start = "\r" if self._live else ""

    def add(self, sessions: int, failed: int) -> None:
        """Count sessions that have ended."""
        self._done, self._failed = self._done + sessions, failed
        now_s = time.monotonic()
        if now_s - self._told_s > (0.2 if self._live else 30.0):
            self._told_s = now_s
            print(self._start + self._line(), end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Say how it went."""
        print(self._start + self._line(), file=sys.stderr)

    def _line(self) -> str:
        spent_s = max(time.monotonic() - self._began_s, 1e-9)
        rate = self._done / spent_s
        left = f", {(self._total - self._done) / rate:.0f} s to go" if 0 < self._done < self._total else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done}/{self._total} sessions in {spent_s:.1f} s, {rate:.1f}/s{left}{failed}"


# ---- processes ------------------------------------------------------------------------------------------------------

_study: Study | None = None  # of a worker process


def _adopt(study: Study) -> None:
    global _study
    _study = study
    _silence(logging.ERROR)  # for good: the process does nothing else


def _silence(level: int) -> int:
    """Let the player log from `level` on; return what it was. What a session met with is in its row."""
    logger = logging.getLogger("player")
    before = logger.level
    logger.setLevel(level)
    return before


def _work(cell: Cell) -> tuple[list[dict[str, Any]], list[Failure]]:
    if _study is None:
        raise ExperimentError("a worker without a study")
    return _study.run(cell)


def _results(
    study: Study, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, list[dict[str, Any]], list[Failure]]]:
    """Run the cells, in this process or in `jobs` others, and return what comes of each as it ends."""
    if jobs == 1 or len(cells) < 2:
        before = _silence(logging.ERROR)
        try:
            yield from ((cell, *study.run(cell)) for cell in cells)
        finally:
            _silence(before)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from experiments import sweep  # the module by its name, which workers can import; here it may be __main__

    context = get_context("spawn")  # torch may be loaded here, and its threads do not survive a fork
    with ProcessPoolExecutor(
        min(jobs, len(cells)), mp_context=context, initializer=sweep._adopt, initargs=(study,)
    ) as pool:
        waiting = {pool.submit(sweep._work, cell): cell for cell in cells}
        try:
            for future in as_completed(waiting):
                yield (waiting[future], *future.result())
        except BrokenProcessPool as error:
            raise ExperimentError("a worker process died; the same command goes on with what is missing") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _missing(cells: Sequence[Cell], done: set[tuple[Any, ...]]) -> Iterator[Cell]:
    """Return what is left of the cells."""
    from dataclasses import replace

    for cell in cells:
        place = (cell.trace, cell.offset_s, cell.package)
        left = tuple(name for name in cell.controllers if (*place, name) not in done)
        if left:
            yield replace(cell, controllers=left)


def _with_shared_metrics(programme: Programme, all_programmes: Sequence[Programme]) -> Programme:
    """Return the programme with only those metrics that every package of the study holds."""
    from dataclasses import replace

    shared = [
        one for one in programme.presentation.metrics if all(one in p.presentation.metrics for p in all_programmes)
    ]
    if not shared:
        raise ExperimentError("the packages have no metric in common")
    return replace(programme, presentation=replace(programme.presentation, metrics=tuple(shared)))


def _part_name(cell: Cell) -> str:
    import hashlib

    return hashlib.sha256(repr(cell).encode()).hexdigest()[:16]


def _failure_row(failure: Failure) -> dict[str, Any]:
    cell = failure.cell
    place = {"trace": cell.trace, "offset_s": cell.offset_s, "package": cell.package}
    return {**place, "abr": failure.controller, "reason": failure.reason}


if __name__ == "__main__":
    sys.exit(main())
