"""Weight-free metrics, their choice by name, severe distortion, and the command line."""

import io
import json
import logging
import math
import urllib.error
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest
import ssimulacra2.ssimulacra2 as ssimulacra2_package
import torch
from PIL import Image
from scipy import ndimage
from skimage import metrics as skimage_metrics

from player.__main__ import main
from player.quality import METRIC_NAMES, SEVERE_DISTORTION, QualityError, load_metrics, severely_distorted_share
from player.quality import loading as quality_loading
from player.quality import weights as quality_weights
from player.quality.flip import Flip, feature_kernels, spatial_kernels
from player.quality.pixel import PSNR_CAP_DB, MsSsim, Psnr
from player.quality.ssimulacra2 import MINIMUM_SIDE, Ssimulacra2, blur_kernel


def pattern(height: int = 256, width: int = 256) -> np.ndarray:
    """Draw a picture with waves, hard edges and a gradient, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    red = 127.5 + 80 * np.sin(x / 9 + y / 23) + 40 * np.cos(y / 5)
    green = np.where((x // 16 + y // 16) % 2, 200, 60) + 20 * np.sin(x * y / 800)
    return np.clip(np.stack([red, green, (x + y) / 2], axis=-1), 0, 255).astype(np.uint8)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0)), 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=quality)
    return np.array(Image.open(file))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights folder, an empty hub cache, no network, and nothing remembered from other tests."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.delenv("PROMPTDASH_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    quality_weights._server_answers.cache_clear()
    quality_loading._warn_once.cache_clear()


class TestPsnr:
    def test_constant_difference(self):
        reference = np.full((2, 8, 8, 3), 100, np.uint8)
        distorted = reference + np.array([5, 10], np.uint8).reshape(2, 1, 1, 1)
        expected = [20 * math.log10(255 / 5), 20 * math.log10(255 / 10)]
        assert Psnr()(reference, distorted) == pytest.approx(expected, abs=1e-9)

    def test_agrees_with_scikit_image(self):
        a, b = pattern(), noisy(pattern(), 12)
        expected = skimage_metrics.peak_signal_noise_ratio(a, b)
        assert Psnr()(a[None], b[None])[0] == pytest.approx(expected, abs=1e-9)

    def test_largest_difference_is_zero_db(self):
        black = np.zeros((1, 300, 300, 3), np.uint8)
        assert Psnr()(black, black + 255) == pytest.approx(0.0, abs=1e-12)

    def test_identical_frames_score_the_cap(self):
        assert Psnr()(pattern()[None], pattern()[None]) == PSNR_CAP_DB


def ms_ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of one colour channel, float64 [H, W] of peak 255, as Wang et al. (2003) write it."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    taps /= taps.sum()

    def window(x: np.ndarray) -> np.ndarray:
        rows = ndimage.correlate1d(x, taps, axis=0)
        return ndimage.correlate1d(rows, taps, axis=1)[5:-5, 5:-5]

    result = 1.0
    for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mean_a, mean_b = window(a), window(b)
        covariance = window(a * b) - mean_a * mean_b
        variances = window(a * a) - mean_a**2 + window(b * b) - mean_b**2
        term = (2 * covariance + (0.03 * 255) ** 2) / (variances + (0.03 * 255) ** 2)
        if scale == 4:
            c1 = (0.01 * 255) ** 2
            term *= (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        result *= max(term.mean(), 0.0) ** exponent
        height, width = (side // 2 * 2 for side in a.shape)
        a, b = (x[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for x in (a, b))
    return result


class TestMsSsim:
    @pytest.mark.parametrize("size", [(256, 256), (176, 203)])
    def test_equals_the_definition(self, size: tuple[int, int]):
        reference = pattern(*size)
        for distorted in (blurred(reference, 2.5), noisy(reference, 25), 255 - reference):
            expected = [ms_ssim_by_definition(reference[..., c] * 1.0, distorted[..., c] * 1.0) for c in range(3)]
            assert MsSsim()(reference[None], distorted[None])[0] == pytest.approx(np.mean(expected), abs=1e-5)

    def test_is_close_to_torchmetrics(self):
        """Not equal: torchmetrics mirrors the borders of its coarsest scale."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torchmetrics_ms_ssim

        reference = np.stack([pattern()] * 3)
        distorted = np.stack([blurred(pattern(), 2), noisy(pattern(), 20), jpeg(pattern(), 15)])
        a, b = (
            torch.from_numpy(x).permute(0, 3, 1, 2).double().reshape(9, 1, 256, 256) for x in (reference, distorted)
        )
        channels = torchmetrics_ms_ssim(b, a, data_range=255.0, reduction="none")
        expected = channels.view(3, 3).mean(dim=1).numpy()
        assert MsSsim()(reference, distorted) == pytest.approx(expected, abs=3e-3)

    def test_identical_frames_score_one(self):
        flat = np.full((1, 256, 256, 3), 77, np.uint8)
        assert MsSsim()(pattern()[None], pattern()[None]) == 1.0
        assert MsSsim()(flat, flat) == 1.0


def recursive_blur(image: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Blur [H, W, C] as libjxl's FastGaussian does: its recursion, zeros beyond all borders, float64."""
    radius = round(3.2795 * sigma + 0.2546)
    omega = np.array([1, 3, 5]) * np.pi / (2 * radius)
    p = np.array([1, -1, 1]) / np.tan(omega / 2)
    r = np.array([1, -1, 1]) * p * p / np.sin(omega)
    rho = np.exp(-0.5 * sigma**2 * omega**2) / radius
    d_13, d_35, d_51 = (p[i] * r[j] - r[i] * p[j] for i, j in ((0, 1), (1, 2), (2, 0)))
    last = np.array([d_35 / d_13, d_51 / d_13, 1.0])
    beta = np.linalg.solve(np.array([p, r, last]), [1.0, radius**2 - sigma**2, last @ rho])
    gain, feedback = -beta * np.cos(omega * (radius + 1)), -2 * np.cos(omega)
    for _ in range(2):
        rest = image.shape[1:]
        padded = np.concatenate([np.zeros((2 * radius, *rest)), image, np.zeros((2 * radius, *rest))])
        before = before_that = np.zeros((3, *rest))
        result = np.empty_like(image)
        for n in range(-radius + 1, len(image)):
            total = padded[n + radius - 1] + padded[n + 3 * radius - 1]
            terms = [gain[k] * total - feedback[k] * before[k] - before_that[k] for k in range(3)]
            before_that, before = before, np.stack(terms)
            if n >= 0:
                result[n] = before.sum(axis=0)
        image = result.swapaxes(0, 1)
    return image


class TestSsimulacra2:
    def test_blur_kernel_is_the_impulse_response_of_the_recursive_filter(self):
        impulse = np.zeros((21, 21, 1))
        impulse[10, 10] = 1.0
        expected = np.zeros((21, 21))
        expected[6:15, 6:15] = np.outer(blur_kernel(), blur_kernel())
        assert recursive_blur(impulse)[..., 0] == pytest.approx(expected, abs=1e-12)
        assert blur_kernel().sum() == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize(
        ("size", "distort"),
        [
            ((256, 256), lambda x: jpeg(x, 20)),
            ((256, 256), lambda x: blurred(x, 3)),
            ((256, 256), lambda x: noisy(x, 1)),
            ((243, 331), lambda x: noisy(x, 20)),
            ((256, 256), lambda x: np.roll(x, 2, axis=1)),
            ((256, 256), lambda x: x // 5 * 4),
        ],
    )
    def test_equals_the_package_given_the_blur_of_the_reference(
        self, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], distort
    ):
        monkeypatch.setattr(ssimulacra2_package, "blur_image", recursive_blur)
        reference = pattern(*size)
        distorted = distort(reference)
        files = [io.BytesIO(), io.BytesIO()]
        for file, picture in zip(files, (reference, distorted), strict=True):
            Image.fromarray(picture).save(file, "png")
        expected = ssimulacra2_package.compute_ssimulacra2(*files)
        assert Ssimulacra2()(reference[None], distorted[None])[0] == pytest.approx(expected, abs=1e-3)

    def test_identical_frames_score_100(self):
        frames = np.stack([pattern(), np.full((256, 256, 3), 90, np.uint8), np.zeros((256, 256, 3), np.uint8)])
        assert Ssimulacra2()(frames, frames) == pytest.approx([100.0] * 3, abs=0)

    def test_is_the_same_for_each_picture_of_a_batch(self):
        reference = np.stack([pattern(), pattern()[::-1], pattern()[:, ::-1]] * 4)
        distorted = np.stack([noisy(frame, 3 * index + 1) for index, frame in enumerate(reference)])
        together = Ssimulacra2()(reference, distorted)
        apart = [Ssimulacra2()(a[None], b[None])[0] for a, b in zip(reference, distorted, strict=True)]
        assert together == pytest.approx(apart, abs=1e-3)

    def test_measures_the_smallest_frame_with_six_scales(self):
        small = pattern(MINIMUM_SIDE, 300)
        assert Ssimulacra2()(small[None], noisy(small, 10)[None])[0] < 90
        with pytest.raises(QualityError, match="ssimulacra2: frames of 300x112 are too small, expected at least 113"):
            Ssimulacra2()(small[None, :-1], small[None, :-1])


FLIP_DISTORTIONS = {
    # as flip_evaluator 1.7 measures them on pattern() in size (256, 256), (243, 331), (20, 30)
    "blur": (lambda x: blurred(x, 3), (0.4563092, 0.4594892, 0.3886782)),
    "fine noise": (lambda x: noisy(x, 1), (0.0280209, 0.0280656, 0.0325218)),
    "noise": (lambda x: noisy(x, 20), (0.1514534, 0.1520077, 0.1728583)),
    "shift": (lambda x: np.roll(x, 2, axis=1), (0.3752499, 0.3681240, 0.3663584)),
    "darker": (lambda x: x // 5 * 4, (0.5714555, 0.5746670, 0.6345774)),
    "negative": (lambda x: 255 - x, (0.9486852, 0.9513192, 0.9740379)),
}


@pytest.mark.parametrize("kind", FLIP_DISTORTIONS)
@pytest.mark.parametrize(("place", "size"), [(0, (256, 256)), (1, (243, 331)), (2, (20, 30))])
class TestFlip:
    def test_equals_what_the_authors_package_measured(self, kind: str, place: int, size: tuple[int, int]):
        distort, expected = FLIP_DISTORTIONS[kind]
        reference = pattern(*size)
        assert Flip()(reference[None], distort(reference)[None])[0] == pytest.approx(expected[place], abs=1e-5)

    def test_equals_the_authors_package(self, kind: str, place: int, size: tuple[int, int]):
        package = pytest.importorskip("flip_evaluator", reason="flip-evaluator is not installed")
        reference = pattern(*size)
        distorted = FLIP_DISTORTIONS[kind][0](reference)
        pair = [np.float32(frame) / 255 for frame in (reference, distorted)]
        _, expected, _ = package.evaluate(*pair, "LDR", applyMagma=False)
        assert Flip()(reference[None], distorted[None])[0] == pytest.approx(expected, abs=1e-5)


class TestFlipBounds:
    def test_kernels_sum_as_the_paper_says(self):
        spatial, features = spatial_kernels(), feature_kernels()
        planes = [np.outer(row, row) for row in spatial]
        assert [planes[0].sum(), planes[1].sum(), (planes[2] + planes[3]).sum()] == pytest.approx([1.0, 1.0, 1.0])
        assert features[0].sum() == pytest.approx(1.0)
        for row in features[1:]:
            assert (row[row > 0].sum(), row[row < 0].sum()) == pytest.approx((1.0, -1.0))

    def test_identical_frames_score_zero(self):
        frames = np.stack([pattern(), np.full((256, 256, 3), 90, np.uint8), np.zeros((256, 256, 3), np.uint8)])
        assert Flip()(frames, frames) == pytest.approx([0.0] * 3, abs=1e-6)

    def test_green_against_blue_is_the_largest_difference(self):
        green, blue = np.zeros((2, 1, 64, 64, 3), np.uint8)
        green[..., 1], blue[..., 2] = 255, 255
        assert Flip()(green, blue)[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("metric", [Psnr(), MsSsim(), Ssimulacra2(), Flip()], ids=lambda metric: metric.name)
class TestEveryMetric:
    def test_more_distortion_scores_worse(self, metric):
        for distort in (noisy, blurred):
            frames = np.stack([distort(pattern(), strength) for strength in (0.7, 1.5, 3.0, 6.0)])
            scores = metric(np.stack([pattern()] * 4), frames)
            assert scores.dtype == np.float64
            assert ((np.diff(scores) < 0) == metric.higher_is_better).all()

    def test_accepts_views_that_are_not_contiguous(self, metric):
        reference, distorted = pattern()[None], noisy(pattern(), 9)[None]
        flipped = metric(reference[:, ::-1, ::-1], distorted[:, ::-1, ::-1])
        copied = metric(reference[:, ::-1, ::-1].copy(), distorted[:, ::-1, ::-1].copy())
        assert flipped == pytest.approx(copied, abs=0)

    def test_no_frames_give_no_scores(self, metric):
        empty = np.empty((0, 256, 256, 3), np.uint8)
        assert metric(empty, empty).shape == (0,)

    @pytest.mark.parametrize(
        ("reference", "distorted", "message"),
        [
            (np.zeros((1, 256, 256, 3)), np.zeros((1, 256, 256, 3), np.uint8), "reference frames are float64"),
            (np.zeros((1, 256, 256, 3), np.uint8), [1, 2], "distorted frames are list"),
            (np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256, 3), np.uint8), r"\[256, 256, 3\], expected \[T"),
            (np.zeros((1, 3, 256, 256), np.uint8), np.zeros((1, 3, 256, 256), np.uint8), r"expected \[T, H, W, 3\]"),
            (np.zeros((2, 256, 256, 3), np.uint8), np.zeros((1, 256, 256, 3), np.uint8), "differ in shape"),
        ],
    )
    def test_refuses_other_input_in_one_line(self, metric, reference, distorted, message):
        with pytest.raises(QualityError, match=message) as caught:
            metric(reference, distorted)
        assert str(caught.value).startswith(metric.name)
        assert "\n" not in str(caught.value)


class TestLoadMetrics:
    def test_auto_without_weights_says_once_that_lpips_is_missing(self, caplog: pytest.LogCaptureFixture):
        for _ in range(3):
            names = [metric.name for metric in load_metrics()]
            assert names == ["psnr_db", "ms_ssim", "ssimulacra2", "lpips_embedded"]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("perceptual quality is measured by lpips-embedded, this project's own ")
        assert "not by LPIPS itself: no weights for lpips_squeeze: " in record.getMessage()
        assert "set PROMPTDASH_WEIGHTS to that folder" in record.getMessage()

    def test_auto_leaves_out_what_small_frames_do_not_allow(self, caplog: pytest.LogCaptureFixture):
        names = [metric.name for metric in load_metrics(frame_size=(128, 640), download=False)]
        assert names == ["psnr_db", "ssimulacra2", "lpips_embedded"]
        expected = "ms_ssim is not measured: frames of 640x128 are below the 176 pixels a side that ms_ssim needs"
        assert expected in caplog.text

    def test_names_are_kept_in_order(self):
        assert [metric.name for metric in load_metrics(["ssimulacra2", "psnr_db"])] == ["ssimulacra2", "psnr_db"]
        assert [metric.name for metric in load_metrics("ms_ssim")] == ["ms_ssim"]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["vmaf"], "metric 'vmaf' is unknown, expected auto or some of psnr_db, ms_ssim, ssimulacra2, flip, lpips"),
            (["psnr_db", "psnr_db"], "named twice"),
        ],
    )
    def test_refuses_unknown_and_repeated_names(self, names: list[str], message: str):
        with pytest.raises(QualityError, match=message):
            load_metrics(names)

    def test_refuses_a_named_metric_that_cannot_measure_the_frames(self):
        with pytest.raises(QualityError, match="frames of 64x48 are below the 176 pixels a side"):
            load_metrics(["ms_ssim"], frame_size=(48, 64))

    def test_refuses_an_unknown_device(self):
        with pytest.raises(QualityError, match="device 'abacus' is unknown"):
            load_metrics(["psnr_db"], device="abacus")


class TestSevereDistortion:
    def test_counts_frames_beyond_the_threshold(self):
        assert severely_distorted_share([0.1, 0.32, 0.33, 0.9], "lpips_squeeze") == 0.5
        assert severely_distorted_share([[9.9, 10.0], [-30.0, 80.0]], "ssimulacra2") == 0.5
        assert severely_distorted_share(np.array([19.0, 40.0]), "psnr_db") == 0.5

    def test_takes_another_threshold(self):
        assert severely_distorted_share([0.1, 0.32, 0.33, 0.9], "lpips_vgg", threshold=0.05) == 1.0

    def test_every_threshold_belongs_to_a_metric_and_has_a_source(self):
        assert SEVERE_DISTORTION.keys() <= set(METRIC_NAMES)
        assert all(severe.source for severe in SEVERE_DISTORTION.values())

    @pytest.mark.parametrize(
        ("scores", "name", "message"),
        [
            ([], "psnr_db", "at least one score"),
            ([float("nan")], "psnr_db", "no NaN"),
            ([0.5], "ms_ssim", "no published threshold"),
        ],
    )
    def test_refuses_what_has_no_share(self, scores: list[float], name: str, message: str):
        with pytest.raises(QualityError, match=message):
            severely_distorted_share(scores, name)


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


class TestCommandLine:
    def test_compares_videos_frame_by_frame(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        reference = [pattern()] * 3
        distorted = [noisy(pattern(), sigma) for sigma in (2, 8, 60)]
        write_video(tmp_path / "a.mkv", reference)
        write_video(tmp_path / "b.mkv", distorted)
        assert main(["quality", str(tmp_path / "a.mkv"), str(tmp_path / "b.mkv"), "--metrics", "psnr_db,ms_ssim"]) == 0
        report = json.loads(capsys.readouterr().out)
        expected = Psnr()(np.stack(reference), np.stack(distorted))
        assert (report["frames"], report["width"], report["height"]) == (3, 256, 256)
        assert report["metrics"]["psnr_db"]["frames"] == pytest.approx(expected)
        assert report["metrics"]["psnr_db"]["mean"] == pytest.approx(expected.mean())
        assert report["metrics"]["psnr_db"]["severely_distorted_share"] == pytest.approx(1 / 3)
        assert report["metrics"]["ms_ssim"]["severely_distorted_share"] is None

    def test_compares_pictures(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        Image.fromarray(pattern()).save(tmp_path / "a.png")
        assert main(["quality", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--no-download"]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        assert {name: entry["mean"] for name, entry in metrics.items()} == {
            "psnr_db": PSNR_CAP_DB,
            "ms_ssim": 1.0,
            "ssimulacra2": 100.0,
            "lpips_embedded": 0.0,
        }

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ("missing.png", "missing.png: cannot be read"),
            ("text.png", "text.png: cannot be read"),
            ("small.png", "frame 0 has sizes 256x256, 200x256, expected equal ones"),
            ("long.mkv", "a.png ends after 1 frames and the other file does not"),
            ("sound.wav", "sound.wav: no video stream"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, message: str
    ):
        Image.fromarray(pattern()).save(tmp_path / "a.png")
        Image.fromarray(pattern(256, 200)).save(tmp_path / "small.png")
        (tmp_path / "text.png").write_text("not a picture")
        write_video(tmp_path / "long.mkv", [pattern()] * 2)
        with av.open(str(tmp_path / "sound.wav"), "w") as container:
            sound = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
        code = main(["quality", str(tmp_path / "a.png"), str(tmp_path / other), "--metrics", "psnr_db"])
        captured = capsys.readouterr()
        assert (code, captured.out) == (1, "")
        assert captured.err.startswith("player: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
