"""The packager's command line: one success and one user error per command, and a quick --help."""

import subprocess
import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from packager import demo
from packager.__main__ import main
from packager.video import write_h264
from player.bitstream import read_init, read_segment
from player.presentation import Presentation


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "clip.mp4"
    frames = [np.full((48, 64, 3), 12 * k, np.uint8) for k in range(12)]
    write_h264(path, frames, fps=Fraction(20), width=64, height=48, crf=20)
    return path


def build_arguments(video, folder, *more):
    fast = ["--metrics", "psnr_db", "--device", "cpu", "--segment", "0.4", "--size", "64x48"]
    return ["build", str(video), "-o", str(folder), "--codec", "h265", "--bitrates", "50k,100k", *fast, *more]


def test_build_prints_a_table_and_a_second_run_does_nothing(video, tmp_path, capsys):
    assert main(build_arguments(video, tmp_path / "out")) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].split() == ["representation", "rank", "kbit/s", "psnr_db"]
    assert [line.split()[0] for line in first[1:3]] == ["h265-50k", "h265-100k"]
    assert first[3] == "2 segments, 0.60 s, 64x48, 20 frames/s, h265"
    assert "built in" in first[4]
    assert main(build_arguments(video, tmp_path / "out")) == 0
    second = capsys.readouterr().out.splitlines()
    assert second[:4] == first[:4]
    assert second[4].endswith("already built with these settings; nothing to do")


def test_prompts_are_built_from_the_command_line(video, tiny_folder, tmp_path, capsys):
    generator = ["--generator", str(tiny_folder), "--ranks", "1,4", "--iterations", "1"]
    fast = ["--metrics", "psnr_db", "--device", "cpu", "--segment", "0.4"]
    assert main(["build", str(video), "-o", str(tmp_path / "out"), *generator, *fast]) == 0
    assert "r04" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "r04" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "moves"), [([], True), (["--no-motion"], False)])
def test_motion_is_sent_unless_it_is_turned_off(video, tiny_folder, tmp_path, option, moves):
    generator = ["--generator", str(tiny_folder), "--ranks", "1", "--iterations", "1", "--interval", "2"]
    fast = ["--metrics", "psnr_db", "--device", "cpu", "--segment", "0.4"]
    assert main(["build", str(video), "-o", str(tmp_path / "out"), *generator, *fast, *option]) == 0
    package = Presentation.load(tmp_path / "out")
    segment = read_segment(read_init(package.read_init(0)), package.read_segment(0, 0))
    assert (segment.motion is not None) is moves


def test_demo_is_filmed_into_the_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = partial(demo.make_demo_clip, seconds=0.5, fps=10, size=64)
    monkeypatch.setattr(demo, "make_demo_clip", short)
    assert main(build_arguments("demo", tmp_path / "out")) == 0
    assert "2 segments, 0.50 s, 64x48, 10 frames/s" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "outputs" / "cache").iterdir()] == [demo.demo_clip_name()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--segment", "0"], "segment_s=0: expected 0.01 to 60 seconds"),
        (["--size", "63x48"], "even sides"),
        (["--metrics", "vmaf"], "metric 'vmaf' is unknown"),
        (["--device", "tpu"], "device"),
    ],
)
def test_bad_settings_are_one_line_and_exit_1(video, tmp_path, capsys, change, message):
    assert main(build_arguments(video, tmp_path / "out", *change)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("packager: ")
    assert error.count("\n") == 1


def test_bad_inputs_are_one_line_and_exit_1(tmp_path, capsys):
    assert main(build_arguments(tmp_path / "missing.mp4", tmp_path / "out")) == 1
    assert main(["inspect", str(tmp_path / "missing")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "missing.mp4: no such file" in lines[0]


@pytest.mark.parametrize(
    "arguments", [[], ["build"], ["build", "a.mp4", "--ranks", "two"], ["build", "a.mp4", "--bitrates", "x"]]
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(video, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(build_arguments(video, tmp_path / "file" / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith("packager: ")
    assert error.count("\n") == 1


def test_interruption_says_how_to_go_on(video, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("packager.package.open_source", interrupt)
    assert main(build_arguments(video, tmp_path / "out")) == 130
    assert "--resume continues" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    check = (
        "import sys, packager.__main__ as m, packager.settings; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {check}"], check=False
        ).returncode
        == 0
    )
