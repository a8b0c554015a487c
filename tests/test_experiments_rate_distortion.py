"""Rate-distortion studies: the command line, a study in miniature, what survives failures, and means."""

import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import rate_distortion
from experiments.errors import UsageError
from experiments.rd_config import StudyConfig, find_videos, help_text, parse_study
from experiments.rd_measure import measure_clip
from experiments.rd_study import MEAN, average_ladders, compare, nearest_point
from packager.video import write_h264

LADDER = [8_000, 14_000, 21_000]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two clips of ten frames: a square that moves over a gradient, fast and slow."""
    folder = tmp_path_factory.mktemp("clips")
    for name, speed in (("fast", 4), ("slow", 1)):
        frames = []
        for index in range(10):
            frame = np.tile(np.linspace(0, 255, 64)[:, None, None], (1, 64, 3)).astype(np.uint8)
            frame[20:40, speed * index : speed * index + 14] = (200, 40, 40)
            frames.append(frame)
        write_h264(folder / f"{name}.mp4", frames, fps=Fraction(10), width=64, height=64, crf=10)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_logging():
    """The command configures logging for its process; give it back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def arguments(videos, cache, output, *more):
    return [
        f"videos={videos}", "codecs=h265,h264", "bitrates=8k,14k,21k", "metrics=psnr_db", "size=64", "segment=0.5",
        "sheets_bps=14k", f"cache_dir={cache}", f"output={output}", *more,
    ]  # fmt: skip


def test_a_study_leaves_tables_report_and_figures(videos, cache, tmp_path, capsys, own_logging):
    assert rate_distortion.main(arguments(videos, cache, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "H.264" in printed
    points = pd.read_parquet(tmp_path / "points.parquet")
    assert len(points) == 2 * 2 * len(LADDER)
    assert set(points["clip"]) == {"fast", "slow"}
    assert len(pd.read_parquet(tmp_path / "frames.parquet")) == 10 * len(points)
    assert pd.read_csv(tmp_path / "deltas.csv")["clip"].tolist() == ["fast", "slow", MEAN]
    assert "| slow | H.264 |" in (tmp_path / "report.md").read_text()
    figures = {path.relative_to(tmp_path / "figures").as_posix() for path in tmp_path.glob("figures/**/*.png")}
    clips = {f"clips/{clip}-{kind}.png" for clip in ("fast", "slow") for kind in ("curves", "14k")}
    assert figures == {"curves.png", "severe_distortion.png", "delta_rates.png", *clips}
    assert len(list(tmp_path.glob("figures/**/*.pdf"))) == len(figures)


def test_finished_packages_give_what_measuring_them_gives(videos, cache, tmp_path, capsys, own_logging):
    assert rate_distortion.main(arguments(videos, cache, tmp_path / "videos")) == 0
    given = [f"packages={cache}/*", "codecs=h265,h264", f"output={tmp_path / 'packages'}"]
    assert rate_distortion.main(given) == 0
    one, other = (pd.read_parquet(tmp_path / name / "points.parquet") for name in ("videos", "packages"))
    keys = ["clip", "codec", "representation"]
    one, other = one.sort_values(keys, ignore_index=True), other.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(one, other[list(one)], rtol=1e-6)
    assert not list(tmp_path.glob("packages/figures/clips/*-15k.png"))
    capsys.readouterr()
    assert rate_distortion.main(["packages=nowhere/*", f"output={tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_clip_that_fails_leaves_the_others_whole(videos, cache, tmp_path, capsys, caplog, own_logging):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    given = arguments(f"{videos},{broken}", cache, tmp_path / "out", "figures=false")
    assert rate_distortion.main(given) == 1
    captured = capsys.readouterr()
    assert "broken as h265" in caplog.text
    assert "2 of 6 could not be measured" in captured.err
    assert "Traceback" not in captured.err
    assert set(pd.read_parquet(tmp_path / "out" / "points.parquet")["clip"]) == {"fast", "slow"}
    assert "broken as h265" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_measured_is_not_measured_again(videos, cache, monkeypatch):
    config = parse_study([f"videos={videos}", "codecs=h265", "bitrates=8k,14k,21k", "metrics=psnr_db", "size=64",
                          "segment=0.5", f"cache_dir={cache}", "every=3"])  # fmt: skip
    first = measure_clip(videos / "slow.mp4", "h265", config)
    monkeypatch.setattr("experiments.rd_measure._measure", None)
    assert measure_clip(videos / "slow.mp4", "h265", config) == first
    assert first.points["frames_measured"].tolist() == [4] * 3  # frames 0, 3, 6, 9
    assert sorted(set(first.frames["frame"])) == [0, 3, 6, 9]
    assert first.pictures("original").shape == (5, 64, 64, 3)


def test_deltas_have_a_sign_and_a_reason(videos, cache):
    config = parse_study([f"videos={videos}", "codecs=h265,h264", "bitrates=8k,14k,21k", "metrics=psnr_db", "size=64",
                          "segment=0.5", f"cache_dir={cache}"])  # fmt: skip
    measured = {(clip, codec): measure_clip(videos / f"{clip}.mp4", codec, config)
                for clip in ("fast", "slow") for codec in config.codecs}  # fmt: skip
    study = compare(measured, config)
    assert study.deltas["clip"].tolist() == ["fast", "slow", MEAN]
    known = study.deltas["bd_rate"].notna()
    assert (study.deltas["bd_rate_reason"] == "").equals(known)
    alone = compare({key: value for key, value in measured.items() if key[1] == "h264"}, config)
    assert alone.deltas.empty
    assert alone.mean_points.empty


def test_mean_ladders_are_geometric_in_rate_and_leave_incomplete_clips_out():
    rows = [("a", "h265", 10e3, 1.0), ("a", "h265", 40e3, 2.0), ("b", "h265", 40e3, 3.0), ("b", "h265", 90e3, 5.0),
            ("a", "av1", 10e3, 1.5), ("b", "av1", 10e3, 2.5), ("c", "av1", 10e3, 100.0)]  # fmt: skip
    points = pd.DataFrame(rows, columns=["clip", "codec", "bitrate_bps", "psnr_db"])
    mean = average_ladders(points, ["h265", "av1"])
    assert mean[["codec", "representation", "clips", "psnr_db"]].to_numpy().tolist() == [
        ["h265", "rung 1", 2, 2.0], ["h265", "rung 2", 2, 3.5], ["av1", "rung 1", 2, 2.0],
    ]  # fmt: skip
    assert mean["bitrate_bps"].tolist() == pytest.approx([20e3, 60e3, 10e3])
    assert nearest_point(points, 25e3)["bitrate_bps"] == 40e3


def test_short_keys_lists_and_units():
    config = parse_study(["bitrates=8k,1.5M", "ranks=2,8", "seconds=4", "codecs=h265,av1", "sheets_bps=20k", "jobs=3"])
    assert config.build.bitrates_bps == [8_000, 1_500_000]
    assert (config.build.ranks, config.build.seconds, config.sheets_bps, config.jobs) == ([2, 8], 4.0, [20_000], 3)
    assert config.codecs == ["h265", "av1"]
    assert parse_study([]) == StudyConfig()
    assert "build.bitrates_bps" in help_text()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("video=a.mp4", "did you mean videos"),
        ("codecs=mpeg2", "expected some of prompt"),
        ("codecs=av1", "anchor=h265"),
        ("bitrates=fast", "expected bit/s"),
        ("jobs=many", "jobs"),
        ("jobs=0", "expected 1 to 256"),
        ("build=3", "group of keys"),
        ("seconds=-1", "seconds"),
        ("videos", "KEY=VALUE"),
    ],
)
def test_a_wrong_command_line_is_one_line(argument, expected, capsys):
    assert rate_distortion.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_videos_are_files_folders_and_patterns(videos, tmp_path):
    both = [videos / "fast.mp4", videos / "slow.mp4"]
    assert find_videos([str(videos)]) == both
    assert find_videos([f"{videos}/*.mp4", str(both[0])]) == both
    assert find_videos(["demo"]) == [Path("demo")]
    (tmp_path / "fast.mp4").touch()
    same_name = [str(videos), str(tmp_path)]
    for names, expected in (["nonesuch.mp4"], "no such file"), (same_name, "several are called fast"):
        with pytest.raises(UsageError, match=expected):
            find_videos(names)
