"""Segments as tasks of a Ray cluster: the same bytes as in one process, also when workers die; else one line."""

import hashlib
import logging
import os
import signal
import socket
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from packager import ray_workers
from packager.__main__ import main
from packager.errors import BuildError, PackagerError, WorkerError
from packager.folder import BuildFolder
from packager.package import build_prompts, build_video, folder_name
from packager.ray_workers import RayWorkers, Slot, connect
from packager.segments import Tools
from packager.settings import BuildConfig
from packager.video import write_h264

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow  # a cluster starts, and each of its workers imports torch


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three places in this process, which builds then use."""
    ray.init("local", num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """45 frames at 20 frames/s: five segments of 8 frames and one of 5."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    texture = np.random.default_rng(5).integers(0, 200, (64, 200, 3)).astype(np.uint8)
    frames = [texture[:, 3 * k : 3 * k + 64] for k in range(45)]
    write_h264(path, frames, fps=Fraction(20), width=64, height=64, crf=10)
    return path


@pytest.fixture
def config(tiny_folder):
    return BuildConfig(
        segment_s=0.4, metrics=["psnr_db"], device="cpu", ranks=[4, 1], generator=str(tiny_folder), iterations=30
    )


def digest_of(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def busy_workers():
    """Return the processes below this one that work on a segment, by the titles that Ray gives its workers."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # has ended meanwhile
                continue

    def below_us(pid):
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    return [pid for pid, title in titles.items() if title.startswith("ray::promptdash") and below_us(pid)]


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_changes_neither_the_bytes_nor_writes_anything_twice(
    video, config, tmp_path, monkeypatch, caplog
):
    # Target bitrates, since each segment gets what those before it left.
    config = replace(config, prompt_bitrates_bps=[30_000, 60_000])
    build_prompts(video, tmp_path / "here", config)
    written, killed, done = Counter(), [], []
    write = BuildFolder.write

    def counted(folder, path, data):
        written[str(path.relative_to(folder.path))] += 1
        write(folder, path, data)

    def kill_one(stage, segments, total):
        done.append(segments)
        if segments > 0 and not killed:
            killed.extend(busy_workers()[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(BuildFolder, "write", counted)
    build_prompts(video, tmp_path / "cluster", replace(config, ray="auto"), progress=kill_one)
    assert len(killed) == 1
    assert any("its worker died, and it is done again" in record.message for record in caplog.records)
    assert set(written.values()) == {1}
    assert done == sorted(done)
    assert digest_of(tmp_path / "cluster") == digest_of(tmp_path / "here")


@pytest.mark.usefixtures("cluster")
def test_a_broken_build_goes_on_wherever(video, config, tmp_path):
    class EnoughError(Exception):
        pass

    def stop(stage, segments, total):
        if list((tmp_path / "cluster" / ".build").glob("seg-*.json")):
            raise EnoughError

    config = replace(config, iterations=2)
    build_prompts(video, tmp_path / "here", config)
    with pytest.raises(EnoughError):
        build_prompts(video, tmp_path / "cluster", replace(config, ray="auto"), progress=stop)
    assert not (tmp_path / "cluster" / "manifest.mpd").exists()
    build_prompts(video, tmp_path / "cluster", replace(config, ray="auto"), resume=True)
    assert digest_of(tmp_path / "cluster") == digest_of(tmp_path / "here")
    assert build_prompts(video, tmp_path / "cluster", config).reused


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.usefixtures("cluster")
def test_what_kills_every_worker_ends_in_one_line(caplog):
    with connect("auto", "cpu") as here, RayWorkers(Tools(Bomb(), {}, []), here) as workers:
        workers.fit(0, np.zeros((2, 64, 64, 3), np.uint8))
        for _ in range(ray_workers.TRIES - 1):
            workers.wait()
        with pytest.raises(WorkerError, match=r"^segment 1: 3 workers died of it \(.*\); --resume goes on\Z"):
            workers.wait()
    assert len(caplog.records) == ray_workers.TRIES - 1
    assert ray.is_initialized()  # it was not the build that started the cluster


@pytest.mark.usefixtures("cluster")
def test_what_a_task_meets_is_one_line(monkeypatch):
    def failure():
        with connect("auto", "cpu") as here, RayWorkers(Tools(None, {}, []), here) as workers:
            workers.fit(6, np.zeros((2, 64, 64, 3), np.uint8))
            workers.wait()

    with pytest.raises(WorkerError, match=r"^segment 7: AttributeError: .*\Z"):
        failure()
    versions = ray_workers.machine_versions() | {"torch": "1.0"}
    monkeypatch.setattr(ray_workers, "machine_versions", lambda: versions)
    with pytest.raises(PackagerError, match=r"^ray: node \S+ has torch \S+, but the build 1\.0; their bytes would"):
        failure()


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_a_place_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with (
        pytest.raises(BuildError, match=r"^ray: no node of the cluster has 64 CPUs, which each task takes"),
        connect("auto", "cpu"),
    ):
        pytest.fail("a place was found")


def test_places_of_a_node():
    assert Slot(2, 0).places({"CPU": 7.0}) == 3
    assert Slot(1, 1).places({"CPU": 16.0, "GPU": 4.0}) == 4
    assert Slot(1, 1).places({"CPU": 16.0}) == 0


def test_a_cluster_that_cannot_be_had_is_one_line(video, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def error(*arguments):
        given = ["--segment", "0.4", "--metrics", "psnr_db", "--device", "cpu", "--size", "64", *arguments]
        assert main(["build", str(video), "-o", str(tmp_path / "out"), *given]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()  # nothing is begun
        assert len(lines) == 1
        return lines[0]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        port = free.getsockname()[1]
        assert (
            error("--ray", f"127.0.0.1:{port}") == f"packager: ray: no cluster at 127.0.0.1:{port} (Connection refused)"
        )
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert "no cluster at 127.0.0.1" in error("--ray")
    assert "expected auto, local or host:port" in error("--ray", "ray://127.0.0.1:10001")
    assert "a Ray cluster decides itself" in error("--ray", "local", "--jobs", "2")

    def mismatch(*arguments, **options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.9\nbut this is 2"
        )

    monkeypatch.setattr(ray, "init", mismatch)
    assert "Version mismatch: The cluster was started with: Ray: 2.1" in error("--ray", "local")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'promptdash[ray]'" in error("--ray", "local")


def test_the_cluster_is_no_part_of_what_a_package_is(video, config, tmp_path):
    assert folder_name(video, "prompt", replace(config, ray="auto")) == folder_name(video, "prompt", config)
    with pytest.raises(BuildError, match=r"ray=auto: h265 is encoded in one process"):
        build_video("h265", video, tmp_path / "out", replace(config, ray="auto"))
