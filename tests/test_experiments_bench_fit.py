"""The fit bench: rows for every setting and rank, and user errors in one line."""

import json
from fractions import Fraction

import pytest

from experiments import bench_fit, fit_study
from packager.errors import BuildError
from packager.video import write_h264


@pytest.fixture
def video(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    write_h264(path, clip, fps=Fraction(30), width=64, height=64, crf=20)
    return path


def test_prints_a_row_for_every_setting_and_rank(video, tiny_folder, tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = ["--generator", str(tiny_folder), "--device", "cpu", "--ranks", "1,4", "--json", str(out)]
    changes = ["--set", "iterations=1", "--set", "iterations=2,share_v=false"]
    assert bench_fit.main([str(video), *arguments, *changes]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["set"], row["rank"]) for row in rows] == [
        ("iterations=1", 1),
        ("iterations=1", 4),
        ("iterations=2,share_v=false", 1),
        ("iterations=2,share_v=false", 4),
    ]
    assert rows[0]["bitrate_bps"] < rows[1]["bitrate_bps"]
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(("text", "message"), [("speed=1", "expected one of"), ("iterations=x", "type int")])
def test_bad_changes_are_refused(text, message):
    with pytest.raises(BuildError, match=message):
        fit_study.parse_changes(text)


def test_a_missing_segment_is_one_line(video, tiny_folder, capsys):
    assert bench_fit.main([str(video), "--generator", str(tiny_folder), "--device", "cpu", "--segment", "9"]) == 1
    assert capsys.readouterr().err == f"bench_fit: {video}: has no segment 9\n"
