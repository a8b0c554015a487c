"""Fit speed: counted evaluations, nested ranks, and user errors in one line."""

import json
from fractions import Fraction

import pytest
import torch

from experiments import fit_speed
from packager.video import write_h264


@pytest.fixture
def video(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    write_h264(path, clip, fps=Fraction(30), width=64, height=64, crf=20)
    return path


def test_counts_the_frames_that_the_generator_renders(tiny_generator):
    embeddings = torch.zeros(3, tiny_generator.tokens, tiny_generator.width)
    with torch.no_grad():
        with fit_speed.counted_frames(tiny_generator) as batches:
            tiny_generator.generate(embeddings)
            tiny_generator.generate(embeddings[:2])
        tiny_generator.generate(embeddings)
    assert batches == [3, 2]


def test_more_steps_cost_more_evaluations_and_nested_ranks_come_in_pairs(video, tiny_folder, tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = [str(video), "--generator", str(tiny_folder), "--device", "cpu", "--rank", "2", "--json", str(out)]
    assert fit_speed.main([*arguments, "--run", "paper:1", "--run", "paper:3", "--nested", "1", "--top-rank", "2"]) == 0
    first, second, prefix, alone = json.loads(out.read_text())["rows"]
    frames_a_step = 8  # of this clip, which is shorter than this preset's ten
    assert second["evaluations"] - first["evaluations"] == 2 * frames_a_step
    assert [(row["run"], row["rank"]) for row in (prefix, alone)] == [("within rank 2", 1), ("alone", 1)]
    assert first["paper_loss"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_run_is_measured_on_its_way_and_ends_where_a_metric_is_good_enough(video, tiny_folder, tmp_path):
    out = tmp_path / "rows.json"
    arguments = [str(video), "--generator", str(tiny_folder), "--device", "cpu", "--rank", "2", "--json", str(out)]
    assert fit_speed.main([*arguments, "--run", "paper:4", "--track", "2"]) == 0
    early, late, end = json.loads(out.read_text())["rows"]
    assert (early["step"], late["step"]) == (2, 4)
    frames_a_step = 8
    assert late["evaluations"] - early["evaluations"] == 2 * frames_a_step  # what was measured is not counted
    assert end["evaluations"] == late["evaluations"] + 2  # the last loss, of every sixth frame
    assert end["paper_loss"] == late["paper_loss"]
    reached = f"psnr_db={early['psnr_db']}"
    assert fit_speed.main([*arguments, "--run", "paper:4", "--track", "2", "--until", reached]) == 0
    first, stopped = json.loads(out.read_text())["rows"]
    assert stopped["evaluations"] == first["evaluations"] == early["evaluations"]
    assert stopped["psnr_db"] == early["psnr_db"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do"),
        (["--run", "paper"], "--run paper: expected PRESET:STEPS"),
        (["--run", "best:3"], "preset 'best' is not known"),
        (["--run", "fast:1", "--until", "psnr_db=30"], "expected --track STEPS beside it"),
        (["--run", "fast:1", "--track", "1", "--until", "beauty=1"], "--until beauty=1: expected NAME=VALUE with a na"),
        (["--nested", "2,16"], "expected ranks below --top-rank 16"),
    ],
)
def test_bad_input_is_one_line_on_stderr(video, options, message, capsys):
    assert fit_speed.main([str(video), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
