"""Processes that fit and measure segments beside each other: one segment each at a time, no files.

A worker and the build talk over a pipe. Down it go the tools once, then frames to fit, then what was coded of them, to
be measured one representation at a time; up come shares of progress, log records, and the result of each step. Whoever
has nothing to fit helps others with measuring. A worker ends when its pipe does, so none outlives the build, however
that ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from packager.errors import PackagerError, WorkerError
from packager.machine import MOST_PROCESSES, available_bytes, usable_cores
from player.errors import PlayerError

if TYPE_CHECKING:
    from packager.segments import Quality, Tools

log = logging.getLogger(__name__)

# What takes a worker long to import. Nothing of this project: the server, started with `-c`, could find another copy of
# it in the folder that it stands in.
_LIBRARIES = [
    "av",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "scipy.linalg",
]

FIT_SHARE = 0.7
"""Of a segment's time, the rest is measuring; for the progress bar only."""
_STEPS_WORTH_PROCESSES = 60  # a process takes about as long to start as 10 steps
_IDLE_WORTH_MORE = 0.1
# A process that fits 60 frames at 256x256, and measures them by every metric, takes 1.5 GB (docs/packaging.md).
_BASE_BYTES, _SEGMENT_BYTES = 0.6e9, 0.9e9
_MEMORY_SHARE = 0.8  # of what is available
_WORTH_SENDING = 64e6  # bytes of a segment's frames, of which another process then holds a copy for a while


@dataclass(frozen=True)
class Result:
    """What a step came to."""

    value: Any


@dataclass(frozen=True)
class Coded:
    """What a fit comes to where a segment's bytes do not depend on the segments before it: the bytes."""

    files: Mapping[str, bytes]  # by representation


@dataclass(frozen=True)
class _Measure:
    """One representation of a segment, to be measured."""

    index: int
    frames: np.ndarray | None  # None: the worker has fitted it
    coded: dict[str, bytes]
    representation: str


@dataclass(frozen=True)
class Failure:
    """Why a step came to nothing, in one line."""

    line: str
    expected: bool  # bad input, which explains itself; anything else is a fault of the program or the machine

    def error(self, job: Job) -> PackagerError:
        """Return what the build raises."""
        return PackagerError(self.line) if self.expected else WorkerError(f"segment {job.index + 1}: {self.line}")


@dataclass
class Job:
    """A segment in the hands of workers: `fitted` is there after the first step, `quality` after the second."""

    index: int
    frames: int
    share: float = 0.0  # of its work that is done
    fitted: Result | None = None
    quality: Quality | None = None


@dataclass
class _Measured:
    """How far a fitted segment is measured: one representation after the other, by whoever has time."""

    job: Job
    coded: dict[str, bytes]
    frames: np.ndarray | None  # to send to those who did not fit it; None: too large for that
    waiting: deque[str]  # representations
    quality: Quality = field(default_factory=dict)


class _Worker:
    def __init__(
        self, context: multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext, threads: int
    ) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, _log_level()), daemon=True)
        try:
            with _interrupts_held():  # Ctrl-C reaches the whole group; it is the build that ends its workers
                self.process.start()
        except EOFError as error:
            raise WorkerError("the process that workers are forked from was killed (out of memory?)") from error
        theirs.close()
        self.own: Job | None = None  # which it fits or has fitted, until that is measured
        self.task: Job | None = None  # which it works on
        self.measures = ""  # which representation of it; empty: it fits

    @property
    def free(self) -> bool:
        """Whether it could take a segment."""
        return self.own is None and self.task is None


class Workers:
    """Up to `count` segments at work at a time; use as a context manager, which ends the processes."""

    def __init__(self, tools: Tools, count: int, threads: int = 0) -> None:
        """Start `count` processes of so many threads each; 0: their part of the cores."""
        forks = start_early()
        context = multiprocessing.get_context("forkserver") if forks else multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._frames: dict[int, np.ndarray] = {}  # of segments that are being fitted
        self._measured: dict[int, _Measured] = {}  # segments that are being measured
        try:
            threads = threads or threads_each(count)
            self._workers += (_Worker(context, threads) for _ in range(count))
            content = pickle.dumps(tools)
            for worker in self._workers:
                self._send(worker, content)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def full(self) -> bool:
        """Whether no worker could take a segment."""
        return not any(worker.free for worker in self._workers)

    def fit(self, index: int, frames: np.ndarray) -> Job:
        """Give frames uint8 [T, H, W, 3] to a free worker."""
        worker = next(worker for worker in self._workers if worker.free)
        worker.own = worker.task = job = Job(index, len(frames))
        worker.measures = ""
        if frames.nbytes <= _WORTH_SENDING:
            self._frames[index] = frames
        self._send(worker, (index, frames))
        return job

    def measure(self, job: Job, coded: Mapping[str, bytes]) -> None:
        """Have a fitted segment measured, as the bytes that were made of it decode; where the worker codes segments
        itself, it goes without saying."""
        measured = _Measured(job, dict(coded), self._frames.pop(job.index, None), deque(coded))
        self._measured[job.index] = measured
        self._hand_out()

    def wait(self) -> None:
        """Wait until at least one worker has something to say, and take it into its job.

        Raises:
            PackagerError: what a worker met; WorkerError if it died.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.task}
        for connection in wait(list(busy)):
            self._receive(busy[connection])  # type: ignore[index]
        self._hand_out()

    def close(self) -> None:
        """End the processes at once; they write nothing that could be left in pieces."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker.connection.send(message)
        except ConnectionError as error:
            raise _died(worker) from error

    def _receive(self, worker: _Worker) -> None:
        job = worker.task
        assert job is not None
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise _died(worker) from error
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, Failure):
            raise message.error(job)
        elif not isinstance(message, Result):
            job.share = message
        elif worker.measures:
            worker.task = None
            self._take(job, worker.measures, message.value)
        else:
            worker.task = None
            job.fitted, job.share = message, FIT_SHARE
            if isinstance(message.value, Coded):
                self.measure(job, message.value.files)

    def _take(self, job: Job, representation: str, scores: dict[str, list[float]]) -> None:
        """Take the scores of one representation; after the last one the segment is done."""
        measured = self._measured[job.index]
        measured.quality[representation] = scores
        job.share = FIT_SHARE + (1 - FIT_SHARE) * len(measured.quality) / len(measured.coded)
        if len(measured.quality) == len(measured.coded):
            job.quality = {name: measured.quality[name] for name in measured.coded}
            del self._measured[job.index]
            next(worker for worker in self._workers if worker.own is job).own = None

    def _hand_out(self) -> None:
        """Give idle workers what is to be measured: of their own segments first, then of others'."""
        for worker in self._workers:
            if worker.task is not None:
                continue
            open_ones = [measured for measured in self._measured.values() if measured.waiting]
            own = [measured for measured in open_ones if measured.job is worker.own]
            others = [measured for measured in open_ones if measured.frames is not None]
            if not (own or others):
                continue
            measured = (own or others)[0]
            worker.task, worker.measures = measured.job, measured.waiting.popleft()
            frames = None if own else measured.frames
            self._send(worker, _Measure(measured.job.index, frames, measured.coded, worker.measures))


def start_early() -> bool:
    """Begin with what processes take seconds for, loading libraries, in a process that they are then forked from.

    That process has not computed anything, so forking it is safe, unlike this one, where torch may hang once it has. It
    ends with this one. A second call does nothing.

    Returns:
        Whether there is such a process; where the system has none, or no place for its socket, processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return False
    multiprocessing.set_forkserver_preload(_LIBRARIES)
    try:
        resource_tracker.ensure_running()  # which the server would start, and with it the interrupts again
        with _interrupts_held():
            forkserver.ensure_running()
    except OSError as error:  # such as a path of more than 108 bytes to the folder of temporary files
        log.info("workers are spawned, not forked: %s", error)
        return False
    return True


def plan(segments: int | None, steps: int, frames: int, frame_pixels: int) -> tuple[int, int] | None:
    """Return how many processes of how many threads fit segments best on this machine's CPU; None: this one alone.

    One thread each is the most work a core can do: four threads on one fit are not twice as fast as one
    (docs/RESULTS.md). So there is a process a core, or a few more where the last round would leave cores idle: five
    segments on four cores take five processes, not one that waits for four. Memory may lower the number of processes,
    but never changes that of threads, which decides the bytes. Where starting processes would take longer than the
    work, there is this one alone.

    Args:
        segments: how many there are; None: nobody knows.
        steps: of gradient descent on each.
        frames, frame_pixels: of a segment, of a frame; what memory goes by.
    """
    import torch

    cores = min(torch.get_num_threads(), usable_cores(), MOST_PROCESSES)
    if cores == 1 or segments in (0, 1) or (segments and segments * steps < _STEPS_WORTH_PROCESSES):
        return None
    count, threads = cores, 1
    if segments and segments < cores:
        count, threads = segments, cores // segments
    elif segments:
        rounds = segments // cores
        idle = 1 - segments / (cores * -(-segments // cores))  # share of the time, with a process a core
        count = -(-segments // rounds) if idle >= _IDLE_WORTH_MORE else cores
    each_bytes = _BASE_BYTES + _SEGMENT_BYTES * (frames / 60) * (frame_pixels / 256**2)
    fitting = max(1, int(_MEMORY_SHARE * available_bytes() / each_bytes))
    if fitting < count:
        log.info("free memory is enough for %d of %d processes", fitting, count)
    return min(count, fitting), threads


def threads_each(count: int) -> int:
    """Return the threads of each of `count` processes: its part of the cores, never more than this process uses."""
    import torch

    return max(1, min(torch.get_num_threads(), usable_cores() // count))


def _died(worker: _Worker) -> WorkerError:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    return WorkerError(f"a worker process was {how}; --resume goes on, and fewer --jobs need less memory")


def _log_level() -> int:
    return logging.getLogger().getEffectiveLevel()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from this thread for a moment, and from processes started meanwhile for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker --------------------------------------------------------------------------------------------------


class _Forward(QueueHandler):
    """Sends log records to the build, which handles them as its own."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)  # type: ignore[arg-type]
        self._connection = connection

    def enqueue(self, record: logging.LogRecord) -> None:
        self._connection.send(record)


def _serve(connection: Connection, threads: int, log_level: int) -> None:
    """Work until the pipe ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a server that was there before may not have held it
    import torch

    torch.set_num_threads(threads)
    logging.basicConfig(level=log_level, handlers=[_Forward(connection)])
    try:
        tools: Tools = pickle.loads(connection.recv())
        own: np.ndarray | None = None  # the frames fitted last
        while True:
            message = connection.recv()
            if isinstance(message, _Measure):
                frames = own if message.frames is None else message.frames
                assert frames is not None
                step = partial(tools.measure_one, message.index, frames, message.coded, message.representation)
            else:
                index, own = message
                step = partial(tools.fit_and_code, index, own, lambda share: connection.send(FIT_SHARE * share))
            connection.send(outcome(step))  # after a failure the build is over, and the pipe ends
    except (EOFError, ConnectionError):  # the build is over
        return


def outcome(step: Callable[[], Any]) -> Result | Failure:
    """Return what a step returns, or the line that says why it failed; a pipe that broke is raised."""
    try:
        return Result(step())
    except ConnectionError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("in a worker", exc_info=True)
        expected = isinstance(error, PackagerError | PlayerError | OSError)
        line = str(error) if expected else f"{type(error).__name__}: {error}"
        return Failure(" ".join(line.split()), expected)
