"""lpips-embedded: its network and weights, its agreement with LPIPS, its place where LPIPS' weights are absent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from player.errors import WeightsError
from player.quality import QualityError, load_metrics
from player.quality.embedded import MINIMUM_SIDE, WEIGHTS_FILE, EmbeddedLpips, EmbeddedNetwork, load_network


def pattern(height: int = 128, width: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    red = 127.5 + 80 * np.sin(x / 9 + y / 23) + 40 * np.cos(y / 5)
    green = np.where((x // 16 + y // 16) % 2, 200, 60) + 20 * np.sin(x * y / 800)
    return np.clip(np.stack([red, green, (x + y) / 2], axis=-1), 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def metric() -> EmbeddedLpips:
    return EmbeddedLpips()


def test_the_shipped_file_is_at_most_a_megabyte_of_half_precision_with_a_model_card():
    assert WEIGHTS_FILE.stat().st_size <= 1_000_000
    assert {value.dtype for value in load_file(WEIGHTS_FILE).values()} == {torch.float16}
    card = (WEIGHTS_FILE.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "It is not LPIPS" in card


def test_equal_frames_are_at_distance_zero_and_noise_moves_them_apart(metric):
    picture = pattern()
    frames = np.stack([picture, noisy(picture, 4), noisy(picture, 16), noisy(picture, 64)])
    scores = metric(np.stack([picture] * 4), frames)
    assert scores.dtype == np.float64
    assert scores[0] == 0.0
    assert (np.diff(scores) > 0).all()


def test_is_symmetric_and_the_same_twice_and_in_any_batch(metric):
    a, b = pattern()[None], noisy(pattern(), 20)[None]
    assert metric(a, b) == metric(a, b)
    assert metric(a, b) == pytest.approx(metric(b, a), rel=1e-5)
    several = metric(np.concatenate([a] * 5), np.concatenate([b] * 5))
    assert several == pytest.approx(np.repeat(metric(a, b), 5), rel=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (65, 130), (99, 71)])
def test_takes_any_size_from_64_on(metric, shape):
    picture = pattern(*shape)
    assert 0 < metric(picture[None], noisy(picture, 20)[None])[0] < 2


def test_refuses_smaller_frames_in_one_line(metric):
    small = pattern(MINIMUM_SIDE - 1, 80)[None]
    with pytest.raises(QualityError, match="lpips_embedded: frames of 80x63 are too small, expected at least 64"):
        metric(small, small)


def test_passes_no_gradient():
    frames = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert not load_network()(frames, torch.zeros_like(frames)).requires_grad


def test_no_head_can_lower_a_distance():
    network = EmbeddedNetwork()
    with torch.no_grad():
        for head in network.heads:
            head.normal_()
        for tap in network.tap_maps(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)):
            assert tap.min() >= 0


def test_damaged_weights_are_an_error_in_one_line(tmp_path: Path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(WEIGHTS_FILE.read_bytes()[:5000])
    for path in (cut, tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match="no weights of lpips-embedded") as caught:
            load_network(path)
        assert "\n" not in str(caught.value)


def test_is_not_taken_where_lpips_is_at_hand(shared_data: Path):
    names = [metric.name for metric in load_metrics("auto", weights_dir=shared_data / "weights", download=False)]
    assert names == ["psnr_db", "ms_ssim", "ssimulacra2", "lpips_squeeze"]


def test_follows_lpips(metric, shared_data: Path):
    lpips = load_metrics("lpips_squeeze", weights_dir=shared_data / "weights", download=False)[0]
    from skimage import data

    picture = data.coffee()[100:356, 150:406]
    levels = (2, 4, 8, 16, 32, 64)
    blocky = [np.kron(picture[::n, ::n], np.ones((n, n, 1), np.uint8)) for n in (2, 4, 8)]
    frames = np.stack([*(noisy(picture, sigma) for sigma in levels), *blocky])
    reference = np.stack([picture] * len(frames))
    found, wanted = metric(reference, frames), lpips(reference, frames)
    assert stats.pearsonr(found, wanted).statistic > 0.95
    assert np.abs(found - wanted).mean() < 0.06
