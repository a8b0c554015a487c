"""The engine behind every sweep and suite: points in, one data set of sessions out. Resumes, and survives failures."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.dataset import FAILURES, finished_sessions, open_study, write_part
from experiments.errors import ExperimentError
from experiments.expand import Point, Sweep
from experiments.launchers import Lost, check_launcher, run_tasks
from experiments.progress import Progress
from experiments.provenance import provenance
from experiments.schema import RunConfig
from experiments.sources import Source, Sources
from experiments.stream import check_severe_metric, severity
from experiments.sweep_sessions import Cell, Failure, Looked, Spec, Study
from player.digests import file_sha256
from player.files import write_json
from player.programme import Programme, build_programme
from player.record import SevereRule

CELL_SESSIONS = 400
"""Most sessions that a worker plays before their rows are written: a second or two of work."""
CELLS_PER_WORKER = 4
"""Least number of pieces that each worker gets, so that none is idle for long at the end."""
SHOWN_FAILURES = 10
_NOT_SETTINGS = {"trace": ("name", "share", "offset_s"), "abr": ("name",)}
"""Keys that differ from row to row, and have columns of their own."""


@dataclass(frozen=True)
class Session:
    """A session as it is planned, with what it shares its link by."""

    link: str
    config: RunConfig
    spec: Spec


def run_sweep(sweep: Sweep, folder: Path, command: Sequence[str]) -> int:
    """Play all sessions of a sweep that `folder` does not hold yet; return the number of failures.

    Args:
        command: what was typed, for the data set's provenance.
    Raises:
        ExperimentError: bad input, or a folder that holds another study.
    """
    check_launcher(sweep.base.launcher)
    check_severe_metric(sweep.base.quality)
    sources = Sources()
    found = [(point, sources.of(point)) for point in sweep.points]
    if not any(of_point for _, of_point in found):
        first = sources.failures[0]
        raise ExperimentError(f"no video could be packaged; {first['video']} as {first['codec']}: {first['reason']}")
    programmes = Programmes(found)
    sessions = plan(found, programmes)
    packages = {source.package: source.sha256 for _, of_point in found for source in of_point}
    seeds = {"link.seed": sweep.base.link.seed, "trace.seed": sweep.base.trace.seed}
    record = provenance(overrides=[], seeds=seeds, inputs={"packages": packages})
    record = {**record, "command": list(command), "config": asdict(sweep.base)}
    open_study(folder, settings(sweep, programmes.rule), packages, record)
    done = finished_sessions(folder)
    cells = make_cells([one for one in sessions if one.spec.key not in done], sweep.base.jobs)
    total = sum(len(cell.sessions) for cell in cells)
    print(f"{len(sessions) - total} sessions there, {total} to run, in {folder}", file=sys.stderr)
    failures = [*sources.failures, *_play(programmes.study(), cells, sweep.base, folder, total)]
    write_json(folder / FAILURES, {"failures": failures})
    return len(failures)


def _play(study: Study, cells: Sequence[Cell], base: RunConfig, folder: Path, total: int) -> list[dict[str, Any]]:
    """Play the cells, write every one's rows as it ends, and return the failures as rows."""
    progress = Progress(total, "sessions")
    failures: list[dict[str, Any]] = []
    for cell, result in run_tasks(study, cells, launcher=base.launcher, jobs=base.jobs):
        if isinstance(result, Lost):
            failed = [Failure(cell.trace, session, result.reason) for session in cell.sessions]
        else:
            rows, failed = result
            if rows:
                write_part(folder, _digest([row["session"] for row in rows]), rows)
        failures += [_failure_row(failure, study) for failure in failed]
        progress.add(len(cell.sessions), len(failures))
    progress.close()
    return failures


class Programmes:
    """What the sessions stream, cut to their length, under keys that the sessions name."""

    def __init__(self, found: Sequence[tuple[Point, Sequence[Source]]]) -> None:
        self._programmes: dict[str, tuple[Source, Programme, Point]] = {}
        for point, sources in found:
            for source in sources:
                key = self.key(point, source)
                if key not in self._programmes:
                    programme = build_programme(source.presentation, point.config.session_s)
                    self._programmes[key] = source, programme, point
        held = [programme.presentation.metrics for _, programme, _ in self._programmes.values()]
        self.metrics = tuple(name for name in held[0] if all(name in metrics for metrics in held))
        """Metrics that every package holds."""
        if not self.metrics:
            raise ExperimentError("the packages have no metric in common")
        self.rule = self._rule(found[0][0])

    @staticmethod
    def key(point: Point, source: Source) -> str:
        """Return the name of what a session streams: the package, its length, and when a frame counts as severe."""
        quality = point.config.quality
        return f"{source.package} {point.config.session_s:g} {quality.severe_metric} {quality.severe_threshold}"

    def _rule(self, point: Point) -> SevereRule:
        return SevereRule(*severity(self.metrics, point.config.quality))

    def study(self) -> Study:
        """Return what the workers are given."""
        return Study({key: self._looked(*found) for key, found in self._programmes.items()})

    def _looked(self, source: Source, programme: Programme, point: Point) -> Looked:
        from dataclasses import replace

        shared = replace(programme, presentation=replace(programme.presentation, metrics=self.metrics))
        return Looked(source.package, source.video, shared, self._rule(point))


def plan(found: Sequence[tuple[Point, Sequence[Source]]], programmes: Programmes) -> list[Session]:
    """Return every session once, in the order of the points."""
    sessions: dict[str, Session] = {}
    hashes: dict[str, str] = {}
    for point, sources in found:
        config = point.config
        link = _digest([asdict(config.trace), _trace_sha256(config.trace.name, hashes), asdict(config.link)])
        client = [asdict(config.abr), point.label, asdict(config.player), asdict(config.quality)]
        # A device that is not given plays no part: sessions of data sets from before there was one still count.
        if config.device.passes_per_s is not None:
            client.append(asdict(config.device))
        for source in sources:
            key = _digest([link, _digest(client), source.package, source.sha256, config.session_s, dict(point.columns)])
            programme = programmes.key(point, source)
            spec = Spec(key, programme, point.label, config.abr, config.player, config.device, point.columns)
            sessions[key] = Session(f"{link} {config.seed}", config, spec)
    return list(sessions.values())


def _trace_sha256(name: str, known: dict[str, str]) -> str:
    """Return the hash of a trace file; vendored and synthetic traces have none."""
    if name not in known:
        known[name] = file_sha256(Path(name)) if Path(name).is_file() else ""
    return known[name]


def make_cells(sessions: Sequence[Session], jobs: int) -> list[Cell]:
    """Return the sessions link by link, in pieces for the workers, shuffled: an interrupted study is a fair sample."""
    workers = jobs or os.cpu_count() or 1
    most = max(1, min(CELL_SESSIONS, math.ceil(len(sessions) / (CELLS_PER_WORKER * workers))))
    links: dict[str, list[Session]] = {}
    for session in sessions:
        links.setdefault(session.link, []).append(session)
    cells = []
    for members in links.values():
        config = members[0].config
        for begin in range(0, len(members), most):
            specs = tuple(member.spec for member in members[begin : begin + most])
            cells.append(Cell(config.trace, config.link, config.seed, specs))
    random.Random(0).shuffle(cells)  # always the same order
    return cells


def settings(sweep: Sweep, rule: SevereRule) -> dict[str, Any]:
    """Return what all sessions of a data set share, swept keys left out."""
    held: dict[str, Any] = {"swept": sorted(sweep.swept), "session_s": sweep.base.session_s}
    device = () if sweep.base.device.passes_per_s is None else ("device",)
    for group in ("player", *device, "link", "trace", "abr"):
        left_out = _NOT_SETTINGS.get(group, ())
        values = asdict(getattr(sweep.base, group)).items()
        held[group] = {name: value for name, value in values if name not in left_out}
    held["severe_rule"] = [rule.metric, None if math.isnan(rule.threshold) else rule.threshold]
    for key in sweep.swept:
        group, _, name = key.partition(".")
        if name and isinstance(held.get(group), dict):
            held[group].pop(name, None)
        else:
            held.pop("severe_rule" if group == "quality" else key, None)
    return held


def tell_failures(program: str, folder: Path) -> None:
    """List the first failures on stderr, and say where all are."""
    failures = json.loads((folder / FAILURES).read_text(encoding="utf-8"))["failures"]
    for failure in failures[:SHOWN_FAILURES]:
        place = ", ".join(f"{key}={value}" for key, value in failure.items() if key != "reason")
        print(f"{program}: failed: {place}: {failure['reason']}", file=sys.stderr)
    if failures:
        print(f"{program}: {len(failures)} failed; all in {folder / FAILURES}", file=sys.stderr)


def _failure_row(failure: Failure, study: Study) -> dict[str, Any]:
    looked = study.programmes[failure.session.programme]
    place: Mapping[str, Any] = {"trace": failure.trace.name, "offset_s": failure.trace.offset_s}
    what = {"package": looked.package, "abr": failure.session.label, **failure.session.columns}
    return {**place, **what, "reason": failure.reason}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
