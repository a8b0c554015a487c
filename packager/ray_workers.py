"""Segments as tasks of a Ray cluster: what `packager.workers` does, on every GPU or core that the cluster has.

The tools (codec, generator, metrics) and each segment's frames go out through Ray's object store, and results come back
through it: nodes share no files, and only the build writes. A task whose worker or node dies is done again.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from packager.errors import BuildError, PackagerError, WorkerError
from packager.versions import machine_versions
from packager.workers import FIT_SHARE, Failure, Job, Result, outcome

if TYPE_CHECKING:
    from packager.segments import Tools

log = logging.getLogger(__name__)

AUTO, LOCAL = "auto", "local"
TRIES = 3
"""How often a step is begun whose workers die; a segment that kills every worker must not keep a cluster busy."""
_CONNECT_TIMEOUT_S = 5.0
_CHECK_S = 30.0  # how often a silent cluster is asked whether it still has a place for a task
_NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}  # a build calls nobody


@dataclass(frozen=True)
class Slot:
    """What one task takes of a node."""

    cpus: int
    gpus: int

    def places(self, resources: Mapping[str, float]) -> int:
        """Return how many tasks fit beside each other into a node's resources."""
        fits = [int(resources.get("CPU", 0) // self.cpus)]
        if self.gpus:
            fits.append(int(resources.get("GPU", 0) // self.gpus))
        return min(fits)

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPU" if self.gpus else "")


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to; made by `connect`."""

    ray: ModuleType
    slot: Slot

    def places(self) -> int:
        """Return how many tasks the living nodes take beside each other."""
        return sum(self.slot.places(node["Resources"]) for node in self.ray.nodes() if node["Alive"])


@contextmanager
def connect(address: str, device: str) -> Iterator[Cluster]:
    """Connect to a cluster, and leave it afterwards; one that is at hand already in this process is used and kept.

    Args:
        address: auto (RAY_ADDRESS, else a cluster on this machine, else a new local one), local (a new one that ends
            with the build), or host:port of a cluster's head.
        device: of the fit, as in `BuildConfig`. On CUDA a task takes a GPU, else as many CPUs as this process has
            threads, so that the bytes are those of a build in this process.
    Raises:
        BuildError: Ray is not installed, the cluster cannot be reached, is of another version, or has no place.
    """
    slot = _slot(device)
    ray = import_ray()
    ours = not ray.is_initialized()
    if ours:
        initialize(ray, address)
    try:
        cluster = Cluster(ray, slot)
        if not cluster.places():
            hint = "OMP_NUM_THREADS sets how many CPUs a task takes" if not slot.gpus else "--device cpu needs none"
            raise BuildError(f"ray: no node of the cluster has {slot}, which each task takes; {hint}")
        yield cluster
    finally:
        if ours:
            ray.shutdown()


def _slot(device: str) -> Slot:
    import torch

    from player.generator import resolve_device

    resolved = resolve_device(device)
    if resolved.type != "cuda":
        return Slot(cpus=torch.get_num_threads(), gpus=0)
    if resolved.index:
        raise BuildError(f"device={device}: with Ray expected auto or cuda, since Ray gives each task its GPU")
    return Slot(cpus=1, gpus=1)


def import_ray() -> ModuleType:
    """Return Ray; BuildError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise BuildError(
            f"ray: the extra `ray` is not installed ({error}); pip install 'promptdash[ray]' on every node"
        ) from error
    return ray


def initialize(ray: ModuleType, address: str) -> None:
    """Connect this process to the cluster at `address`, as in `connect`; BuildError if that fails."""
    target = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if target not in (AUTO, LOCAL):
        _check_reachable(target)  # Ray itself would try for minutes, and then end this process
    for name, value in _NO_STATISTICS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target == LOCAL:
        options["include_dashboard"] = False
    try:
        ray.init(None if target == AUTO else target, **options)
    except (RuntimeError, ConnectionError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise BuildError(f"ray: {address}: {_one_line(error)}") from error


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal() or int(port) > 65535:
        raise BuildError(f"ray: address {address!r}: expected auto, local or host:port of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise BuildError(f"ray: no cluster at {address} ({error.strerror or error})") from error


@dataclass
class _Task:
    """A step of a segment in the hands of the cluster."""

    job: Job
    frames: Any  # reference to uint8 [T, H, W, 3] in the object store
    coded: dict[str, bytes] | None  # None: to be fitted, else to be measured
    tries: int = 0


class RayWorkers:
    """Segments at work on a cluster; used like `packager.workers.Workers`."""

    def __init__(self, tools: Tools, cluster: Cluster) -> None:
        import torch

        self._ray, self._cluster = cluster.ray, cluster
        level = logging.getLogger().getEffectiveLevel()
        setup = _Setup(pickle.dumps(tools), torch.get_num_threads(), level, machine_versions())
        self._setup = self._ray.put(setup)
        slot = cluster.slot
        self._step = self._ray.remote(_step).options(
            num_cpus=slot.cpus, num_gpus=slot.gpus, max_retries=0, name="promptdash segment"
        )
        self._tasks: dict[Any, _Task] = {}  # by the reference of what comes of them
        self._frames: dict[int, Any] = {}  # by segment, until it is measured

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def full(self) -> bool:
        """Whether every place of the cluster has a segment, and one more waits for the next."""
        return len(self._frames) > self._cluster.places()

    def fit(self, index: int, frames: np.ndarray) -> Job:
        """Have frames uint8 [T, H, W, 3] fitted."""
        job = Job(index, len(frames))
        self._frames[index] = self._ray.put(frames)
        self._submit(_Task(job, self._frames[index], None))
        return job

    def measure(self, job: Job, coded: Mapping[str, bytes]) -> None:
        """Have a fitted segment measured, as the bytes that were made of it decode."""
        self._submit(_Task(job, self._frames[job.index], dict(coded)))

    def wait(self) -> None:
        """Wait until at least one task has ended, and take what came of it into its job.

        Raises:
            PackagerError: what a task met; WorkerError if its workers died time and again.
        """
        ended: list[Any] = []
        while not ended:
            ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_CHECK_S)
            if not ended and not self._cluster.places():
                raise WorkerError(f"ray: no node is left that has {self._cluster.slot}; --resume goes on")
        for reference in ended:
            self._take(self._tasks.pop(reference), reference)

    def close(self) -> None:
        """Give up what is still under way."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()

    def _submit(self, task: _Task) -> None:
        task.tries += 1
        # in a list, so that the reference itself arrives: a worker opens the setup once, not with every task
        self._tasks[self._step.remote([self._setup], task.job.index, task.frames, task.coded)] = task

    def _take(self, task: _Task, reference: Any) -> None:
        job, failed = task.job, self._ray.exceptions
        lost = (failed.WorkerCrashedError, failed.NodeDiedError, failed.OutOfMemoryError, failed.ObjectLostError)
        try:
            answer: _Answer = self._ray.get(reference)
        except lost as error:
            if task.tries == TRIES:
                raise WorkerError(
                    f"segment {job.index + 1}: {TRIES} workers died of it ({_one_line(error)}); --resume goes on"
                ) from error
            log.warning("segment %d: its worker died, and it is done again", job.index + 1)
            self._submit(task)
            return
        except failed.RayError as error:
            raise WorkerError(f"segment {job.index + 1}: {_one_line(error)}") from error
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        if isinstance(answer.outcome, Failure):
            raise answer.outcome.error(job)
        if task.coded is None:
            job.fitted, job.share = answer.outcome, FIT_SHARE
        else:
            job.quality, job.share = answer.outcome.value, 1.0
            del self._frames[job.index]


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:4]) if lines else type(error).__name__


# ---- in a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setup:
    """What a worker has to know before its first task."""

    tools: bytes
    threads: int
    log_level: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class _Answer:
    """What a task sends back."""

    outcome: Result | Failure
    records: list[logging.LogRecord]


class _Collect(logging.Handler):
    """Keeps log records, so that the build handles them as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # a record's arguments and traceback may not travel; its text does
        record.msg, record.args, record.exc_info = self.format(record), None, None
        self.records.append(record)


def _step(setup: list[Any], index: int, frames: np.ndarray, coded: Mapping[str, bytes] | None) -> _Answer:
    """Fit a segment, or measure what was made of it."""
    collect, root = _Collect(), logging.getLogger()
    root.addHandler(collect)
    try:
        return _Answer(outcome(functools.partial(_work, setup[0], index, frames, coded)), collect.records)
    finally:
        root.removeHandler(collect)


def _work(setup: Any, index: int, frames: np.ndarray, coded: Mapping[str, bytes] | None) -> Any:
    tools = _open(setup)
    frames = frames.copy()  # what lies in the object store cannot be written to, which torch warns of
    return tools.fit(frames, _unseen) if coded is None else tools.measure(index, frames, coded, _unseen)


@functools.lru_cache(maxsize=1)
def _open(reference: Any) -> Tools:
    """Return the tools of a build, made once in this process."""
    import ray
    import torch

    setup: _Setup = ray.get(reference)
    here = machine_versions()
    for name, version in setup.versions.items():
        if here[name] != version:
            raise PackagerError(
                f"ray: node {socket.gethostname()} has {name} {here[name]}, but the build {version}; "
                "their bytes would differ"
            )
    torch.set_num_threads(setup.threads)
    logging.getLogger().setLevel(setup.log_level)
    return pickle.loads(setup.tools)


def _unseen(share: float) -> None:
    """Report no progress: a task speaks once, at its end."""
