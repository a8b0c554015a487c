"""Segments in processes of their own: the same bytes as in one, one line when a process fails, nothing left running."""

import hashlib
import multiprocessing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.prepare import package_key
from packager import package as package_module
from packager import workers as workers_module
from packager.encoder import load_encoder
from packager.errors import BuildError, WorkerError
from packager.fit import fit_preset
from packager.ladder import PromptLadder
from packager.package import build_prompts, folder_name
from packager.segments import Tools
from packager.settings import BuildConfig
from packager.video import write_h264
from packager.workers import Workers

pytestmark = pytest.mark.slow  # each process imports torch


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """21 frames at 20 frames/s: segments of 8, 8 and 5 frames."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    texture = np.random.default_rng(5).integers(0, 200, (64, 160, 3)).astype(np.uint8)
    frames = [texture[:, 3 * k : 3 * k + 64] for k in range(21)]
    write_h264(path, frames, fps=Fraction(20), width=64, height=64, crf=10)
    return path


@pytest.fixture
def config(tiny_folder):
    return BuildConfig(
        segment_s=0.4, metrics=["psnr_db"], device="cpu", ranks=[4, 1], generator=str(tiny_folder), iterations=2
    )


def digest_of(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_for_quality(workers, job):
    while job.quality is None:
        workers.wait()


def test_jobs_change_neither_the_bytes_nor_what_is_left_of_a_broken_build(video, config, tmp_path):
    # Target bitrates, since each segment gets what those before it left.
    config = replace(config, prompt_bitrates_bps=[30_000, 60_000])
    build_prompts(video, tmp_path / "one", config)
    folder, done = tmp_path / "two", []

    class EnoughError(Exception):
        pass

    def stop(stage, segments, total):
        done.append(segments)
        if list((folder / ".build").glob("seg-*.json")):
            raise EnoughError

    with pytest.raises(EnoughError):
        build_prompts(video, folder, replace(config, jobs=2), progress=stop)
    assert multiprocessing.active_children() == []
    assert not (folder / "manifest.mpd").exists()
    assert done == sorted(done)
    build_prompts(video, folder, config, resume=True)
    assert digest_of(folder) == digest_of(tmp_path / "one")


def test_a_process_that_fails_or_dies_gives_one_line(tiny_generator):
    codec = PromptLadder(tiny_generator, load_encoder(tiny_generator), ranks=[2], fit=fit_preset("fast", iterations=1))
    with Workers(Tools(codec, {}, []), 1) as workers:
        job = workers.fit(0, np.zeros((2, 80, 64, 3), np.uint8))
        with pytest.raises(WorkerError, match=r"^segment 1: ValueError: .*\Z"):
            wait_for_quality(workers, job)
    with Workers(Tools(codec, {}, []), 1) as workers:
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(WorkerError, match=r"killed by signal 9 \(out of memory\?\); --resume goes on"):
            wait_for_quality(workers, workers.fit(0, np.zeros((2, 64, 64, 3), np.uint8)))
    assert multiprocessing.active_children() == []


def test_jobs_are_no_part_of_what_a_package_is(video, config):
    several = replace(config, jobs=4)
    assert folder_name(video, "prompt", several) == folder_name(video, "prompt", config)
    assert package_key("prompt", video, several) == package_key("prompt", video, config)
    with pytest.raises(BuildError, match=r"jobs=-1: expected 1 to 256 processes, or 0"):
        replace(config, jobs=-1)


@pytest.mark.parametrize(
    ("segments", "processes", "threads"),
    [(2, 2, 2), (3, 3, 1), (4, 4, 1), (5, 5, 1), (7, 7, 1), (8, 4, 1), (9, 5, 1), (60, 4, 1), (61, 4, 1), (None, 4, 1)],
)
def test_a_machine_of_four_cores_fits_with_as_many_processes_as_leave_none_idle(
    segments, processes, threads, monkeypatch
):
    machine(monkeypatch, cores=4, available_bytes=1e12)
    assert workers_module.plan(segments, 60, 60, 256**2) == (processes, threads)


def test_little_work_and_one_core_start_no_process(monkeypatch):
    machine(monkeypatch, cores=4, available_bytes=1e12)
    assert workers_module.plan(5, 2, 60, 256**2) is None
    assert workers_module.plan(1, 60, 60, 256**2) is None
    machine(monkeypatch, cores=1, available_bytes=1e12)
    assert workers_module.plan(5, 60, 60, 256**2) is None


def test_memory_lowers_the_number_of_processes_and_not_that_of_threads_which_decides_the_bytes(monkeypatch):
    for free_bytes, processes in ((1e12, 4), (4e9, 2), (1e9, 1), (0, 1)):
        machine(monkeypatch, cores=4, available_bytes=free_bytes)
        assert workers_module.plan(60, 60, 60, 256**2) == (processes, 1)
    machine(monkeypatch, cores=4, available_bytes=8e9)
    assert workers_module.plan(60, 60, 60, 512**2) == (1, 1)
    assert workers_module.plan(60, 60, 30, 256**2) == (4, 1)


def test_threads_that_were_limited_limit_the_processes_too(monkeypatch):
    machine(monkeypatch, cores=8, available_bytes=1e12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert workers_module.plan(60, 60, 60, 256**2) == (4, 1)
    assert workers_module.plan(2, 60, 60, 256**2) == (2, 2)


def test_a_large_generator_is_loaded_once_unless_asked(tiny_generator, monkeypatch):
    codec = PromptLadder(tiny_generator, None, ranks=[2], fit=fit_preset("fast"))
    machine(monkeypatch, cores=4, available_bytes=1e12)
    assert codec.processes(8) == (4, 1)
    monkeypatch.setattr("packager.ladder._SMALL_GENERATOR", 10)
    assert codec.processes(8) is None


def machine(monkeypatch, *, cores, available_bytes):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(workers_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(workers_module, "available_bytes", lambda: available_bytes)


def test_a_build_that_is_left_to_choose_makes_the_bytes_of_one_process(video, config, tmp_path, monkeypatch):
    build_prompts(video, tmp_path / "one", config)
    monkeypatch.setattr(workers_module, "_STEPS_WORTH_PROCESSES", 1)
    machine(monkeypatch, cores=2, available_bytes=1e12)
    started = []
    monkeypatch.setattr(
        package_module, "Workers", lambda *plan: started.append(plan[1:]) or workers_module.Workers(*plan)
    )
    build_prompts(video, tmp_path / "chosen", replace(config, jobs=0))
    assert started == [(3, 1)]
    assert digest_of(tmp_path / "chosen") == digest_of(tmp_path / "one")


def test_segments_that_workers_code_themselves_are_those_of_one_process(video, config, tmp_path):
    config = replace(config, top_intervals=[])
    build_prompts(video, tmp_path / "one", config)
    build_prompts(video, tmp_path / "two", replace(config, jobs=2))
    assert digest_of(tmp_path / "two") == digest_of(tmp_path / "one")


class Pipe:
    """A worker's end of the talk: what it was sent, and what it will say next."""

    def __init__(self):
        self.sent, self.says = [], []

    def send(self, message):
        self.sent.append(message)

    def recv(self):
        return self.says.pop(0)


class Idle(workers_module._Worker):
    """A worker without a process."""

    def __init__(self, *unused):
        self.connection, self.own, self.task, self.measures = Pipe(), None, None, ""


@pytest.fixture
def without_processes(monkeypatch):
    monkeypatch.setattr(workers_module, "_Worker", Idle)
    monkeypatch.setattr(workers_module, "start_early", lambda: True)
    monkeypatch.setattr(workers_module, "wait", lambda pipes: [pipe for pipe in pipes if pipe.says])


@pytest.mark.usefixtures("without_processes")
def test_who_has_nothing_to_fit_measures_for_others():
    workers = Workers("tools", 2, 1)
    first, second = (worker.connection for worker in workers._workers)
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    job = workers.fit(7, frames)
    coded = {"r1": b"1", "r2": b"2", "r4": b"4"}
    first.says = [workers_module.Result(workers_module.Coded(coded))]
    workers.wait()
    assert [pipe.sent[-1].representation for pipe in (first, second)] == ["r1", "r2"]
    assert first.sent[-1].frames is None
    assert second.sent[-1].frames is frames
    assert workers.full  # one waits for its segment to be measured, the other one helps
    second.says = [workers_module.Result({"psnr_db": [2.0]})]
    workers.wait()
    assert second.sent[-1].representation == "r4"
    assert job.quality is None
    second.says = [workers_module.Result({"psnr_db": [4.0]})]
    workers.wait()
    assert not workers.full  # the second may fit again
    first.says = [workers_module.Result({"psnr_db": [1.0]})]
    workers.wait()
    assert job.quality == {"r1": {"psnr_db": [1.0]}, "r2": {"psnr_db": [2.0]}, "r4": {"psnr_db": [4.0]}}
    assert list(job.quality) == list(coded)
    assert job.share == 1.0


@pytest.mark.usefixtures("without_processes")
def test_frames_too_large_to_send_are_measured_where_they_were_fitted(monkeypatch):
    monkeypatch.setattr(workers_module, "_WORTH_SENDING", 10)
    workers = Workers("tools", 2, 1)
    first, second = (worker.connection for worker in workers._workers)
    workers.fit(0, np.zeros((1, 4, 4, 3), np.uint8))
    first.says = [workers_module.Result(workers_module.Coded({"r1": b"1", "r2": b"2"}))]
    workers.wait()
    assert first.sent[-1].representation == "r1"
    assert len(second.sent) == 1


def test_processes_are_spawned_where_no_server_can_be_reached(monkeypatch):
    def no_place():
        raise OSError("AF_UNIX path too long")

    assert workers_module.start_early()
    monkeypatch.setattr(workers_module.forkserver, "ensure_running", no_place)
    assert not workers_module.start_early()
