"""Training the feature network: crops and their distortions, the loop and its resumption, the export."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import train_features
from experiments.train_data import load_pictures
from experiments.train_features import KINDS, FeatureTrainConfig, distorted, draw_crops
from packager.features import load_features


@pytest.fixture
def pictures(tmp_path):
    """Eight smooth random pictures of two sources."""
    rng = np.random.default_rng(0)
    for source in ("animals", "streets"):
        (tmp_path / "pictures" / source).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8)).resize((160, 128))
            image.save(tmp_path / "pictures" / source / f"{number}.png")
    return tmp_path / "pictures"


@dataclass
class Few(FeatureTrainConfig):
    """Steps of six small crops."""

    pictures: int = 3
    crop: int = 32


def run(pictures, out, *more):
    return train_features.main(["--images", str(pictures), "--out", str(out), "--device", "cpu", *more])


@pytest.mark.parametrize("kind", KINDS[1:-1])
def test_a_higher_level_distorts_more(kind):
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((48, 48)))
    errors = [
        np.abs(distorted(pixels, kind, level, np.random.default_rng(0)).astype(float) - pixels).mean()
        for level in (0.1, 0.9)
    ]
    assert distorted(pixels, kind, 0.5, rng).shape == pixels.shape
    assert 0 < errors[0] < errors[1]


def test_nothing_is_done_to_the_crops_of_no_kind_and_of_the_generators():
    pixels = np.full((4, 4, 3), 7, np.uint8)
    for kind in ("none", "generator"):
        assert distorted(pixels, kind, 0.5, np.random.default_rng(0)) is pixels


def test_crops_come_in_pairs_of_one_source(pictures):
    training, _ = load_pictures(pictures)
    crops = draw_crops(training, FeatureTrainConfig(pictures=20, crop=32), np.random.default_rng(0))
    assert crops.pixels.shape == (40, 32, 32, 3)
    assert (crops.source[::2] == crops.source[1::2]).all()
    assert set(crops.kind) <= set(range(len(KINDS)))
    assert (crops.level[crops.kind == 0] == 0).all()
    assert crops.level.max() <= 1


@pytest.mark.slow
def test_trains_stops_resumes_and_exports(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(train_features, "FeatureTrainConfig", Few)
    out = tmp_path / "run"
    assert run(pictures, out, "--steps", "3", "--minutes", "1e-9") == 0
    assert not (out / "export").exists()
    assert run(pictures, out, "--steps", "3") == 0
    assert (out / "log.csv").read_text().splitlines()[0] == "step,source,kind,level,picture"
    card = (out / "export" / "MODEL_CARD.md").read_text()
    assert "Steps: 3, 6 crops of 32x32" in card
    assert "of 2 sources" in card
    network = load_features(torch.device("cpu"), out / "export" / train_features.FILE)
    assert len(network(torch.zeros(1, 3, 32, 32))) == 4


def test_bad_input_is_one_line(pictures, tmp_path, capsys):
    assert run(tmp_path / "nothing", tmp_path / "out") == 1
    assert run(pictures, tmp_path / "out", "--steps", "0") == 1
    lines = capsys.readouterr().err.splitlines()
    assert "train_features: --steps 0: expected 1 or more" in lines
    assert all(not line.startswith("Traceback") for line in lines)
