"""LPIPS against its definition and its published package's numbers, and the search for its weights."""

import dataclasses
import hashlib
import io
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file

from player.errors import WeightsError
from player.quality import MissingWeightsError, QualityError, load_metrics, weights
from player.quality.lpips import BACKBONES, Lpips, LpipsNetwork

# The feature networks as their papers and torchvision lay them out: (kind, stride or pool, padding).
POOL_CEIL, POOL, RELU = ("pool", 3, True), ("pool", 3, False), ("relu",)
LAYOUTS = {
    "squeeze": [("conv", 2, 0), RELU, POOL_CEIL, ("fire",), ("fire",), POOL_CEIL, ("fire",), ("fire",), POOL_CEIL]
    + [("fire",)] * 4,
    "alex": [("conv", 4, 2), RELU, POOL, ("conv", 1, 2), RELU, POOL] + [("conv", 1, 1), RELU] * 3,
    "vgg": [("conv", 1, 1), RELU] * 2
    + [("pool", 2, False), *[("conv", 1, 1), RELU] * 2]
    + [("pool", 2, False), *[("conv", 1, 1), RELU] * 3] * 3,
}
TAPS = {"squeeze": (1, 4, 7, 9, 10, 11, 12), "alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


def layer_output(x: torch.Tensor, layer: tuple, name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    def conv(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double(), **options)

    if layer[0] == "conv":
        return conv(x, name, stride=layer[1], padding=layer[2])
    if layer[0] == "pool":
        return F.max_pool2d(x, layer[1], 2, ceil_mode=layer[2])
    if layer[0] == "fire":
        x = conv(x, f"{name}.squeeze").relu()
        return torch.cat([conv(x, f"{name}.expand1x1"), conv(x, f"{name}.expand3x3", padding=1)], dim=1).relu()
    return x.relu()


def lpips_by_definition(net: str, state: dict[str, torch.Tensor], pictures: list[np.ndarray]) -> float:
    """LPIPS of two uint8 [H, W, 3], step by step as published, float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(1, 3, 1, 1)
    features = []
    for picture in pictures:
        x = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1 - shift) / scale
        outputs = []
        for index, layer in enumerate(LAYOUTS[net]):
            x = layer_output(x, layer, f"features.{index}", state)
            if index in TAPS[net]:
                outputs.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        features.append(outputs)
    distance = 0.0
    for tap, (a, b) in enumerate(zip(*features, strict=True)):
        head = state[f"lin{tap}"].double().view(1, -1, 1, 1)
        distance += ((a - b) ** 2 * head).sum(dim=1).mean().item()
    return distance


def pattern(height: int = 256, width: int = 256) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    red = 127.5 + 80 * np.sin(x / 9 + y / 23) + 40 * np.cos(y / 5)
    green = np.where((x // 16 + y // 16) % 2, 200, 60) + 20 * np.sin(x * y / 800)
    return np.clip(np.stack([red, green, (x + y) / 2], axis=-1), 0, 255).astype(np.uint8)


def ghosted(picture: np.ndarray, pixels: int = 3) -> np.ndarray:
    """Three parts of the picture and one of itself shifted, in integers: the same bytes everywhere."""
    return (picture.astype(int) * 3 // 4 + np.roll(picture, pixels, axis=1).astype(int) // 4).astype(np.uint8)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No weights folder, an empty hub cache and no network; returns the log of attempted requests."""
    attempts: list[str] = []

    def refuse(request: object, timeout: float) -> None:
        attempts.append(str(getattr(request, "full_url", request)))
        raise urllib.error.URLError("no network in tests")

    monkeypatch.delenv("PROMPTDASH_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    weights._server_answers.cache_clear()
    return attempts


@pytest.fixture
def published(shared_data: Path) -> Path:
    """The weights folder with the published LPIPS-squeeze."""
    return shared_data / "weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights" / "lpips").mkdir(parents=True)
    return tmp_path / "weights"


@pytest.mark.parametrize("net", ["squeeze", "alex", "vgg"])
class TestDefinition:
    def test_random_weights_give_what_the_definition_gives(self, net: str):
        torch.manual_seed(3)
        network = LpipsNetwork(net)
        for tap in range(len(TAPS[net])):
            getattr(network, f"lin{tap}").copy_(torch.rand(1, BACKBONES[net].channels[tap], 1, 1))
        reference, distorted = pattern(67, 80), ghosted(pattern(67, 80), 7)
        expected = lpips_by_definition(net, network.state_dict(), [reference, distorted])
        metric = Lpips(net, network)
        assert metric(reference[None], distorted[None])[0] == pytest.approx(expected, rel=1e-4)
        assert metric(distorted[None], reference[None])[0] == pytest.approx(expected, rel=1e-4)
        assert metric(reference[None], reference[None])[0] == 0.0

    def test_smallest_frame(self, net: str):
        metric = Lpips(net, LpipsNetwork(net))
        side = BACKBONES[net].minimum_side
        frame = np.zeros((1, side, side, 3), np.uint8)
        assert np.isfinite(metric(frame, frame + 9)).all()
        with pytest.raises(QualityError, match=f"at least {side} pixels a side"):
            metric(frame[:, 1:], frame[:, 1:])


class TestPublishedWeights:
    def test_score_of_the_published_package(self, published: Path):
        """The package lpips 0.1.4 gives 0.0146084679 for this pair."""
        (metric,) = load_metrics(["lpips_squeeze"], weights_dir=published)
        scores = metric(pattern()[None], ghosted(pattern())[None])
        assert (metric.name, metric.higher_is_better, scores.dtype) == ("lpips_squeeze", False, np.float64)
        assert scores[0] == pytest.approx(0.0146084679, abs=2e-7)

    def test_equals_the_definition_and_does_not_depend_on_the_batch(self, published: Path):
        (metric,) = load_metrics(["lpips_squeeze"], weights_dir=published)
        state = load_file(published / "lpips" / "squeeze.safetensors")
        reference = np.stack([pattern(96, 120)] * 13)
        distorted = np.stack([ghosted(reference[0], pixels) for pixels in range(13)])
        scores = metric(reference, distorted)
        assert scores[0] == pytest.approx(0.0, abs=1e-3)  # ghosted by nothing but rounding
        expected = lpips_by_definition("squeeze", state, [reference[5], distorted[5]])
        assert scores[5] == pytest.approx(expected, abs=1e-6)
        assert metric(reference[5:6], distorted[5:6])[0] == pytest.approx(scores[5], abs=1e-6)

    def test_more_noise_is_farther_and_equal_is_zero(self, published: Path):
        (metric,) = load_metrics(["lpips_squeeze"], weights_dir=published)
        noise = np.random.default_rng(2).normal(0, 1, pattern().shape)
        frames = [np.clip(pattern() + sigma * noise, 0, 255).astype(np.uint8) for sigma in (0, 4, 12, 36)]
        scores = metric(np.stack([frames[0]] * 4), np.stack(frames))
        assert scores[0] == 0.0
        assert (np.diff(scores) > 0).all()

    def test_auto_takes_squeeze_from_the_folder_that_the_environment_names(
        self, published: Path, monkeypatch: pytest.MonkeyPatch, offline: list[str]
    ):
        monkeypatch.setenv("PROMPTDASH_WEIGHTS", str(published))
        names = [metric.name for metric in load_metrics()]
        assert names == ["psnr_db", "ms_ssim", "ssimulacra2", "lpips_squeeze"]
        assert offline == []

    def test_heads_are_those_that_torchmetrics_carries(self, published: Path):
        state = load_file(published / "lpips" / "squeeze.safetensors")
        heads = weights._read_heads("squeeze")
        assert len(heads) == 7
        assert all(torch.equal(state[name], head) for name, head in heads.items())

    def test_refuses_weights_that_differ_from_the_published(self, published: Path, folder: Path):
        state = load_file(published / "lpips" / "squeeze.safetensors")
        state["features.3.squeeze.bias"][0] += 1e-3
        save_file(state, folder / "lpips" / "squeeze.safetensors")
        with pytest.raises(WeightsError, match=r"squeeze\.safetensors: weights differ from those published"):
            load_metrics("auto", weights_dir=folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("lin3"), "lin3 is missing"),
            (lambda state: state.update(lin9=torch.zeros(3)), "lin9 is unknown"),
            (lambda state: state.update(lin0=torch.zeros(65)), r"lin0 is \[1, 65, 1, 1\] torch.float32, expected"),
            (lambda state: state.update(lin0=torch.zeros(64).half()), "lin0 is .* torch.float16, expected"),
            (lambda state: state["lin0"].fill_(float("nan")), "lin0 holds values that are not finite"),
        ],
    )
    def test_refuses_files_that_are_not_lpips(self, published: Path, folder: Path, change, message: str):
        state = load_file(published / "lpips" / "squeeze.safetensors")
        change(state)
        save_file(state, folder / "lpips" / "squeeze.safetensors")
        with pytest.raises(WeightsError, match=message) as caught:
            load_metrics(["lpips_squeeze"], weights_dir=folder)
        assert "\n" not in str(caught.value)

    def test_refuses_a_truncated_file(self, published: Path, folder: Path):
        data = (published / "lpips" / "squeeze.safetensors").read_bytes()
        (folder / "lpips" / "squeeze.safetensors").write_bytes(data[:1000])
        with pytest.raises(WeightsError, match="not a readable safetensors file") as caught:
            load_metrics(["lpips_squeeze"], weights_dir=folder)
        assert "\n" not in str(caught.value)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint like torchvision's SqueezeNet 1.1, with random weights and a checksum to match."""
    torch.manual_seed(4)
    state = {k: v for k, v in LpipsNetwork("squeeze").state_dict().items() if k.startswith("features.")}
    path = tmp_path / "checkpoint.pth"
    torch.save({**state, "classifier.1.weight": torch.zeros(10, 512, 1, 1)}, path)
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = dataclasses.replace(weights._PUBLISHED["squeeze"], backbone=f"squeezenet1_1-{start}.pth")
    monkeypatch.setitem(weights._PUBLISHED, "squeeze", entry)
    return path.rename(tmp_path / entry.backbone)


class TestBackboneFiles:
    @pytest.mark.parametrize("place", ["weights", "weights/lpips", "hub/checkpoints"])
    def test_are_found_in_each_place(self, place: str, folder: Path, checkpoint: Path, tmp_path: Path):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint, tmp_path / place)
        network = weights.load_lpips_network("squeeze", weights_dir=folder)
        expected = torch.load(checkpoint, weights_only=True)
        state = network.state_dict()
        assert torch.equal(state["features.12.expand3x3.weight"], expected["features.12.expand3x3.weight"])
        assert torch.equal(state["lin6"], weights._read_heads("squeeze")["lin6"])

    def test_with_another_checksum_are_refused(self, folder: Path):
        (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"cut off")
        with pytest.raises(WeightsError, match=r"SHA-256 begins [0-9a-f]{8}, expected b8a52dc0") as caught:
            load_metrics("auto", weights_dir=folder)
        assert not isinstance(caught.value, MissingWeightsError)

    def test_that_would_run_code_are_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        path = folder / "evil.pth"
        torch.save({"features.0.weight": Path("x")}, path)
        start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        entry = dataclasses.replace(weights._PUBLISHED["squeeze"], backbone=f"evil-{start}.pth")
        monkeypatch.setitem(weights._PUBLISHED, "squeeze", entry)
        path.rename(folder / entry.backbone)
        with pytest.raises(WeightsError, match="not a readable checkpoint") as caught:
            load_metrics(["lpips_squeeze"], weights_dir=folder)
        assert "\n" not in str(caught.value)


class _Answer(io.BytesIO):
    status = 200


class TestDownload:
    def test_goes_to_the_hub_cache_and_is_not_repeated(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        requests: list[str] = []

        def answer(request: object, timeout: float) -> _Answer:
            requests.append(request if isinstance(request, str) else "HEAD")
            return _Answer(checkpoint.read_bytes())

        monkeypatch.setattr(urllib.request, "urlopen", answer)
        for _ in range(2):
            weights.load_lpips_network("squeeze")
        assert requests == ["HEAD", f"https://download.pytorch.org/models/{checkpoint.name}"]
        assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == [checkpoint.name]

    def test_of_something_else_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: _Answer(b"<html>log in first</html>"))
        with pytest.raises(MissingWeightsError, match=r"SHA-256 begins .*, expected b8a52dc0"):
            weights.load_lpips_network("squeeze")
        assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []

    def test_without_network_is_tried_once_per_process(self, offline: list[str]):
        for net in ("squeeze", "vgg", "squeeze"):
            with pytest.raises(MissingWeightsError, match="does not answer"):
                weights.load_lpips_network(net)
        assert len(offline) == 1

    def test_can_be_switched_off(self, offline: list[str], tmp_path: Path):
        with pytest.raises(MissingWeightsError) as caught:
            load_metrics(["lpips_alex"], download=False)
        assert str(caught.value) == (
            f"no weights for lpips_alex: alexnet-owt-7be5be79.pth is not in {tmp_path}/hub/checkpoints, and downloading"
            " is switched off; download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth, put it into a"
            " folder and set PROMPTDASH_WEIGHTS to that folder"
        )
        assert offline == []


class TestWeightsFolder:
    def test_that_is_named_must_exist(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(WeightsError, match=r"weights folder .*nowhere is not a folder"):
            load_metrics(["lpips_vgg"], weights_dir=tmp_path / "nowhere")
        monkeypatch.setenv("PROMPTDASH_WEIGHTS", str(tmp_path / "gone"))
        with pytest.raises(WeightsError, match=r"PROMPTDASH_WEIGHTS: .*gone is not a folder"):
            load_metrics("auto")
