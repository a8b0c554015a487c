"""Where a study's work is done: in this process, in others of this machine, or as tasks of a Ray cluster.

A launcher only decides where: `run_tasks` brings the same results with each, in whatever order they come. A task whose
process dies (a crash, no memory left) is tried again, and if that fails it comes back as `Lost`; the others go on.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from experiments.errors import ExperimentError, UsageError
from packager.ray_workers import AUTO, import_ray, initialize

LOCAL, RAY = LAUNCHERS = ("local", "ray")
LONE_TRIES = 2
"""How often a task that was under way when a process died is begun again in a process of its own."""
RAY_RETRIES = 3
"""How often Ray starts a task again whose worker or node has died."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class LauncherConfig:
    """Where the sessions of a sweep are played."""

    name: str = LOCAL
    """local: processes of this machine; ray: a Ray cluster, or Ray's processes on this machine."""
    address: str = AUTO
    """ray: auto (RAY_ADDRESS, else a cluster on this machine, else a new local one), local (a new one that ends with
    the sweep), or host:port of a cluster's head."""

    def __post_init__(self) -> None:
        if self.name not in LAUNCHERS:
            raise UsageError(f"launcher={self.name}: expected one of {', '.join(LAUNCHERS)}")
        if self.address != AUTO and self.name != RAY:
            raise UsageError(f"launcher.address={self.address}: only launcher=ray has an address")


@dataclass(frozen=True)
class Lost:
    """What comes of a task whose process died again and again."""

    reason: str


def run_tasks(
    worker: Callable[[Task], Result], tasks: Sequence[Task], *, launcher: LauncherConfig, jobs: int
) -> Iterator[tuple[Task, Result | Lost]]:
    """Call `worker` with every task and yield what comes of each as it ends.

    Args:
        worker: sent once to every process; it and the tasks are pickled, so both are best dataclasses.
        jobs: processes; 0: all cores of this machine, or of the cluster.
    Raises:
        BuildError: Ray is not installed, or no cluster can be reached.
    """
    if launcher.name == RAY:
        yield from _on_ray(worker, tasks, launcher.address, jobs)
        return
    jobs = min(jobs or os.cpu_count() or 1, len(tasks))
    if jobs <= 1:
        yield from ((task, worker(task)) for task in tasks)
        return
    waiting = deque(tasks)
    while waiting:
        suspects: list[Task] = []
        yield from _in_pool(worker, waiting, jobs, suspects)
        # Which of them killed its process is not known, so each is tried by itself, in a process of its own.
        for task in suspects:
            for _ in range(LONE_TRIES):
                dead: list[Task] = []
                yield from _in_pool(worker, deque([task]), 1, dead)
                if not dead:
                    break
            else:
                yield task, Lost(f"its process died {LONE_TRIES} times (a crash, or no memory left)")


def _in_pool(
    worker: Callable[[Task], Result], waiting: deque[Task], jobs: int, suspects: list[Task]
) -> Iterator[tuple[Task, Result | Lost]]:
    """Take tasks from `waiting` until none is left or a process dies; `suspects` were under way then."""
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from experiments import launchers  # the module by its name, which workers can import

    context = get_context("spawn")  # torch may be loaded here, and its threads do not survive a fork
    running: dict[Any, Task] = {}
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=launchers._adopt, initargs=(worker,)) as pool:
        try:
            while (waiting or running) and not suspects:
                while waiting and len(running) < 2 * jobs:  # no more, so that few are suspects when a process dies
                    running[pool.submit(launchers._work, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(task)
                    else:
                        yield task, future.result()
        except BrokenProcessPool:  # found when submitting
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        suspects += running.values()


_worker: Callable[[Any], Any] | None = None  # of a pool's process


def _adopt(worker: Callable[[Any], Any]) -> None:
    global _worker
    _worker = worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which lets this one finish its task


def _work(task: Any) -> Any:
    if _worker is None:
        raise ExperimentError("a process without a worker")
    return _worker(task)


def _call(worker: Callable[[Task], Result], task: Task) -> Result:
    return worker(task)


def check_launcher(launcher: LauncherConfig) -> None:
    """Raise BuildError if the launcher's library is not installed; before any work is done."""
    if launcher.name == RAY:
        import_ray()


def _on_ray(
    worker: Callable[[Task], Result], tasks: Sequence[Task], address: str, jobs: int
) -> Iterator[tuple[Task, Result | Lost]]:
    ray = import_ray()
    ours = not ray.is_initialized()
    if ours:
        initialize(ray, address)
    try:
        yield from _ray_tasks(ray, worker, tasks, jobs)
    finally:
        if ours:
            ray.shutdown()


def _ray_tasks(
    ray: Any, worker: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | Lost]]:
    remote = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(_call)
    shared = ray.put(worker)
    waiting = deque(tasks)
    running: dict[Any, Task] = {}
    most = jobs or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < most:
            task = waiting.popleft()
            running[remote.remote(shared, task)] = task
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            task = running.pop(reference)
            try:
                yield task, ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise  # the worker's own error: a fault of this program, not of the machine
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                yield task, Lost(f"its Ray worker died, {RAY_RETRIES + 1} times ({reason})")
