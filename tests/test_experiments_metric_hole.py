"""The example of why no loss may see a reported metric."""

import numpy as np
import pytest
import torch

from experiments import metric_hole
from experiments.metric_hole import METRICS, Candidate
from player.decoder import to_pixels
from player.quality.lpips import LpipsNetwork


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    network = LpipsNetwork("squeeze")
    for tap in range(7):
        getattr(network, f"lin{tap}").fill_(0.1)
    return network


def test_descent_lowers_the_metric_it_sees(clip, teacher, tiny_generator, tiny_encoder):
    latent = metric_hole.rendered_latent(clip[0], tiny_generator, tiny_encoder)
    moved = metric_hole.descend(latent, clip[0], tiny_generator, teacher, steps=8, step_size=0.05)

    def distance(latents: torch.Tensor) -> float:
        frames = [torch.from_numpy(clip[:1].copy()), to_pixels(tiny_generator.decode_latents(latents))]
        return teacher(*(frame.permute(0, 3, 1, 2).float() / 127.5 - 1 for frame in frames)).item()

    assert distance(moved) < distance(latent)


def test_h265_codes_the_segment_near_its_bitrate(clip):
    frames, bitrate_bps = metric_hole.code_h265(np.tile(clip, (8, 1, 1, 1))[:60], 60_000)
    assert frames.shape == (60, 64, 64, 3)
    assert bitrate_bps == pytest.approx(60_000, rel=0.1)


def test_the_segment_lies_inside_the_clip():
    first, last = (metric_hole.demo_segment(second, 16) for second in (-5.0, 100.0))
    assert first.shape == last.shape == (60, 16, 16, 3)
    assert (first != last).any()


def test_table_and_figure_name_the_metrics(clip, tmp_path):
    scores = dict.fromkeys(METRICS, 0.25)
    candidates = [Candidate(title, clip[0], scores) for title in ("original", "prompt", "H.265")]
    assert metric_hole.table(candidates).splitlines()[0] == (
        "| | LPIPS (SqueezeNet) | SSIMULACRA2 | MS-SSIM | PSNR [dB] |"
    )
    metric_hole.draw(candidates, tmp_path / "hole.jpg")
    assert (tmp_path / "hole.jpg").stat().st_size > 1000


def test_bad_input_is_one_line_on_stderr(capsys, tmp_path):
    for options, message in (
        (["--steps", "0"], "--steps 0 --step-size 0.05: expected more than 0"),
        (["--weights", str(tmp_path / "nowhere")], "is not a folder"),
    ):
        assert metric_hole.main(options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
