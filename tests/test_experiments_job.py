"""The main job in miniature: every output file, the same logs twice, and errors that lose nothing already written."""

import json
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from experiments import run
from experiments.results import TABLES, load_run
from packager.video import write_h264

FPS = 8
OUTPUTS = [
    "config.yaml", "provenance.json", "summary.json", "trace.parquet", "run.log",
    *(f"{codec}/{name}.parquet" for codec in ("prompt", "h265") for name in TABLES),
    *(f"{codec}/{name}" for codec in ("prompt", "h265") for name in ("summary.json", "render.json", "session.mp4")),
    *(
        f"figures/{name}.{suffix}"
        for name in ("timeline", "stall_quality", "cdf", "severe", "contact_sheet")
        for suffix in ("pdf", "png")
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Hydra configures logging for its process; give it back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a square that moves over a gradient, 64x64."""
    path = tmp_path_factory.mktemp("video") / "a, clip.mp4"
    frames = []
    for index in range(3 * FPS):
        frame = np.tile(np.linspace(0, 255, 64)[:, None, None], (1, 64, 3)).astype(np.uint8)
        frame[20:40, 2 * index % 50 : 2 * index % 50 + 14] = (200, 40, 40)
        frames.append(frame)
    write_h264(path, frames, fps=Fraction(FPS), width=64, height=64, crf=10)
    return path


@pytest.fixture(scope="module")
def arguments(video: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of seconds: random generator, one gradient step, two ranks, two bitrates."""
    return [
        f"video={video}", "trace=constant", "rate=30k", f"build.generator='{tiny_folder}'", "build.segment_s=1.0",
        "build.ranks=[2,4]", "build.iterations=1", "build.bitrates_bps=[30000,90000]", "build.metrics=[psnr_db]",
        "session_s=8", f"cache_dir='{tmp_path_factory.mktemp('cache')}'",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert run.main([*arguments, "render=true", f"hydra.run.dir='{folder}'"]) == 0
    return folder


def test_every_output_is_there(finished: Path) -> None:
    found = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert found == set(OUTPUTS)


def test_the_same_command_twice_gives_the_same_logs(finished: Path, arguments: list[str], capsys: Any) -> None:
    second = finished.parent / "second"
    quick = ["figures=false", "render_check=false"]
    assert run.main([*arguments, *quick, f"hydra.run.dir='{second}'"]) == 0
    printed = capsys.readouterr()
    assert "packaging" not in printed.err  # the cache has it
    for codec in ("prompt", "h265"):
        for name in TABLES:
            first, again = (pd.read_parquet(folder / codec / f"{name}.parquet") for folder in (finished, second))
            pd.testing.assert_frame_equal(first, again, check_exact=True)
        assert (finished / codec / "summary.json").read_bytes() == (second / codec / "summary.json").read_bytes()
    assert (finished / "summary.json").read_bytes() == (second / "summary.json").read_bytes()
    assert "Rebuffering ratio [%]" in printed.out
    assert "share 1/1 (whole link)" in printed.out


def test_provenance_says_where_the_numbers_come_from(finished: Path) -> None:
    origin = json.loads((finished / "provenance.json").read_text())
    assert origin["command"][:3] == ["python", "-m", "experiments.run"]
    assert "trace.rate_bps=30000.0" in origin["command"]
    assert set(origin["inputs"]["packages"]) == {"prompt", "h265"}
    assert len(origin["inputs"]["video"]["sha256"]) == 64
    assert origin["versions"]["torch"]
    assert load_run(finished).config["trace"]["rate_bps"] == 30000.0


def test_the_film_lasts_as_long_as_the_session(finished: Path) -> None:
    for codec, result in load_run(finished).codecs.items():
        with av.open(str(finished / codec / "session.mp4")) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == pytest.approx(result.summary["elapsed_s"] * FPS, abs=1)


def test_the_renderers_speed_is_measured_and_kept_out_of_the_logs(finished: Path) -> None:
    report = json.loads((finished / "prompt" / "render.json").read_text())
    assert report["frames"] > 0
    assert report["frames_per_s"] > 0
    assert report["playback_fps"] == FPS


def test_frames_carry_the_packagers_measurements(finished: Path) -> None:
    frames = load_run(finished).codecs["h265"].frames
    assert len(frames) == 8 * FPS
    assert frames["psnr_db"].between(10, 100).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["build.generator=nonesuch"], "nonesuch"),
        (["quality.severe_metric=lpips_vgg"], "psnr_db"),
    ],
)
def test_a_run_that_fails_is_one_line(
    changes: list[str], expected: str, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    assert run.main([*arguments, *changes, "figures=false", f"hydra.run.dir='{folder}'"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("experiments.run:")]
    assert len(error) == 1
    assert expected in error[0]
    assert (folder / "config.yaml").is_file()  # what was written stays


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["trace=nonesuch", "rate=null"], "nonesuch"),
        (["abr=nonesuch"], "bola"),
        (["quality.severe_metric=nonesuch"], "lpips_squeeze"),
        (["video=nonesuch.mp4"], "no such file"),
    ],
)
def test_a_misspelt_name_does_not_take_the_folder(
    changes: list[str], expected: str, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    assert run.main([*arguments, *changes, "figures=false", f"hydra.run.dir='{folder}'"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("experiments.run:")]
    assert len(error) == 1
    assert expected in error[0]
    assert not (folder / "config.yaml").exists()  # so the same command put right is not refused


def test_a_run_folder_that_cannot_be_made_is_one_line(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    assert run.main([*arguments, f"hydra.run.dir='{tmp_path / 'file' / 'run'}'"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("experiments.run: ")
    assert error.count("\n") == 1


def test_a_folder_that_holds_a_run_is_left_alone(finished: Path, arguments: list[str], capsys: Any) -> None:
    before = (finished / "summary.json").read_bytes()
    assert run.main([*arguments, f"hydra.run.dir='{finished}'"]) == 1
    assert "overwrite=true" in capsys.readouterr().err
    assert (finished / "summary.json").read_bytes() == before


def test_a_sweep_that_renders_makes_a_run_folder_for_every_combination(arguments: list[str], tmp_path: Path) -> None:
    quick = ["figures=false", "render=true", "codec=h265"]
    sweep = ["-m", "abr=bola,bba", f"hydra.sweep.dir='{tmp_path}'"]
    assert run.main([*arguments, *quick, *sweep]) == 0
    runs = sorted(path.parent for path in tmp_path.rglob("summary.json") if path.parent.name != "h265")
    assert [load_run(path).conditions["abr"] for path in runs] == ["bola", "bba"]
