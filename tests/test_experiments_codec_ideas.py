"""What was tried on the prompt codec: spheres, and one small run of each idea."""

from fractions import Fraction

import pytest
import torch

from experiments import codec_ideas, title_adapter
from packager.video import write_h264


@pytest.fixture
def video(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    write_h264(path, clip, fps=Fraction(30), width=64, height=64, crf=20)
    return path


def test_spherical_interpolation_keeps_to_the_great_circle():
    keys = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])  # [K, L, D]: a right angle, lengths 2 and 4
    middle, end = codec_ideas.spherical(keys, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    assert middle[0].tolist() == pytest.approx([3 / 2**0.5, 3 / 2**0.5], abs=1e-5)
    assert end[0].tolist() == pytest.approx([0.0, 4.0], abs=1e-5)


@pytest.mark.parametrize(
    ("idea", "rows"),
    [
        ("interpolation", ["U and V (the paper)", "the embedding, spherical", "rendered key frames, moved"]),
        ("carry", ["carry 0 ", "carry 0.3 "]),
        ("tokens", ["16x16 tokens, rank 4", "8x8 tokens, rank 4", "no V"]),
    ],
)
def test_an_idea_prints_a_row_for_everything_tried(idea, rows, video, tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(codec_ideas, "RANK", 4)
    monkeypatch.setattr(codec_ideas, "_INTERVAL", 3)
    monkeypatch.setattr(codec_ideas, "_STEPS", 1)
    monkeypatch.setattr(codec_ideas, "GRID_RANKS", (4,))
    monkeypatch.setattr(codec_ideas, "COARSE_RANKS", (4,))
    assert codec_ideas.main([idea, str(video), "--generator", str(tiny_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| tried | ")
    assert "psnr_db" in lines[0]
    for row in rows:
        assert any(row in line for line in lines[2:])
    assert "nan" not in "".join(lines[2:])


def test_an_update_of_the_decoder_is_counted_and_taken_out_again(video, tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(title_adapter, "LADDER", (2, 4))
    monkeypatch.setattr(title_adapter, "UPDATE_RANKS", (1,))
    monkeypatch.setattr(title_adapter, "_STEPS", 1)
    made = []
    monkeypatch.setattr(title_adapter, "_adapt", lambda *a: made.append(adapt(*a)) or made[-1])
    assert codec_ideas.main(["adapter", str(video), "--generator", str(tiny_folder)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    ((size, _),) = made
    assert f"| {size} |" in row
    assert "adapter bytes" in header


adapt = title_adapter._adapt


def test_a_generator_without_an_encoder_is_one_line_on_stderr(video, plain_folder, capsys):
    assert codec_ideas.main(["carry", str(video), "--generator", str(plain_folder)]) == 1
    assert "has no encoder to start from" in capsys.readouterr().err.splitlines()[-1]
