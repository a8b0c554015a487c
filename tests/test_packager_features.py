"""The feature network: what its distance does, that it is shipped, and that it has nothing of a metric in it."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from packager import features
from packager.encoder import load_encoder
from packager.errors import BuildError, PackagerError
from packager.features import (
    FeatureNetwork,
    feature_distance,
    load_features,
    random_window,
    save_features,
)
from packager.fit import PRESETS, fit_preset, fit_segment
from packager.fit_config import FAST
from packager.fit_forward import Forward
from player.decoder import render_segment
from player.generator import load_generator
from player.pixels import from_pixels
from player.quality.embedded import load_network as load_lpips_embedded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return load_features(CPU)


@pytest.fixture(scope="module")
def frames(clip):
    return from_pixels(clip)


def test_features_shrink_by_halves(network):
    shapes = [tuple(found.shape) for found in network(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(2, 32, 32, 48), (2, 64, 16, 24), (2, 96, 8, 12), (2, 128, 4, 6)]
    assert [found.shape[2] for found in network(torch.zeros(1, 3, 5, 5))] == [3, 2, 1, 1]


def test_equal_frames_are_no_distance_apart(network, frames):
    assert feature_distance(network, frames, frames).tolist() == [0] * len(frames)


def test_the_distance_grows_with_distortion_and_is_each_frames_own(network, frames):
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    small, large = (feature_distance(network, frames + amount * noise, frames) for amount in (0.05, 0.3))
    assert bool((small > 0).all())
    assert bool((small < large).all())
    alone = feature_distance(network, (frames + 0.3 * noise)[1:2], frames[1:2])
    torch.testing.assert_close(alone, large[1:2], rtol=1e-4, atol=1e-5)


def test_it_minds_a_blur_that_squared_error_hardly_does(network):
    """Fine stripes turned grey are further off than a shift of light with the same squared error."""
    stripes = 0.2 * torch.tensor([1.0, -1.0]).repeat(32).expand(1, 3, 64, 64).contiguous()
    grey, lighter = torch.zeros_like(stripes), stripes + 0.2
    assert (grey - stripes).square().mean() == pytest.approx((lighter - stripes).square().mean().item())
    assert feature_distance(network, grey, stripes) > 2 * feature_distance(network, lighter, stripes)


def test_gradients_reach_the_rendered_frames_alone(network, frames):
    output = (0.9 * frames).requires_grad_(True)
    feature_distance(network, output, frames).sum().backward()
    assert output.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_windows_lie_within_the_frame_and_everywhere():
    source = torch.Generator().manual_seed(0)
    tops = set()
    for _ in range(200):
        rows, columns = random_window(16, 64, source)
        assert rows.stop - rows.start == 12
        assert columns.stop - columns.start == 48
        assert rows.start >= 0
        assert rows.stop <= 16
        assert columns.stop <= 64
        tops.add(rows.start)
    assert tops == set(range(5))
    assert random_window(1, 1, source) == (slice(0, 1), slice(0, 1))


def test_a_saved_network_is_the_one_that_loads(tmp_path, frames):
    torch.manual_seed(0)
    made = FeatureNetwork().eval()
    save_features(made, tmp_path / "features.safetensors")
    loaded = load_features(CPU, tmp_path / "features.safetensors")
    expected, found = (feature_distance(net, frames, -frames) for net in (made, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # float16 on disk


def test_what_is_no_network_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(PackagerError, match=f"{name}: the feature network cannot be loaded") as raised:
            load_features(CPU, tmp_path / name)
        assert "\n" not in str(raised.value)


def test_no_metric_has_these_weights():
    """The rule of docs/metrics.md: what a fit sees is never reported."""
    stored = load_file(features.WEIGHTS_FILE)
    seen = {tuple(value.shape): value.float() for value in stored.values() if value.ndim == 4}
    for value in load_lpips_embedded().state_dict().values():
        own = seen.get(tuple(value.shape))
        assert own is None or not torch.allclose(own, value.float(), atol=1e-2)
    assert "features" not in {path.parent.name for path in features.WEIGHTS_FILE.parents}


def test_presets_say_whether_features_count():
    assert FAST.feature_weight > 0
    assert PRESETS["paper"].feature_weight == 0  # as published, but for VGG
    with pytest.raises(BuildError, match=r"fit.feature_weight is -1"):
        fit_preset("fast", feature_weight=-1)


@pytest.mark.slow
def test_a_fit_minds_features_when_they_count(network):
    """Grass-like noise, moving: with features in the loss it comes out nearer in features, further off in pixels."""
    generator = load_generator("embedded", device="cpu")
    encoder, generator = load_encoder(generator), generator.at_size(64, 64)
    texture = 0.4 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    frames = torch.stack([texture.roll(step, dims=2) for step in range(5)])
    apart, errors = [], []
    for weight in (0.0, 0.3):
        config = fit_preset("fast", iterations=20, feature_weight=weight, autocast="float32")
        segment = fit_segment(frames, generator, encoder, config, ranks=[16])[16]
        shown = from_pixels(render_segment(segment, generator.norm_rank(16), generator))
        apart.append(feature_distance(network, shown, frames).mean().item())
        errors.append((shown - frames).square().mean().item())
    assert apart[1] < 0.9 * apart[0]
    assert errors[1] > errors[0]


def test_forward_without_the_term_loads_nothing(tiny_generator, frames, monkeypatch):
    monkeypatch.setattr("packager.fit_forward.load_features", lambda device: pytest.fail("loaded"))
    forward = Forward(tiny_generator, fit_preset("paper"))
    np.testing.assert_array_equal(forward.feature_losses(frames, -frames).numpy(), np.zeros(len(frames)))
