"""Training lpips-embedded: pairs, distortions, the loop and its resumption, agreement, and the command line."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import lpips_data, lpips_trainer, train_lpips
from experiments.lpips_data import PairMaker, Pairs, build_pairs, is_held_out, load_clips
from experiments.lpips_distortions import families
from experiments.lpips_trainer import LpipsTrainConfig, LpipsTrainer, agreement
from experiments.train_data import TrainingDataError, load_pictures
from packager.video import write_h264
from player import generator as player_generator
from player.quality import weights
from player.quality.lpips import LpipsNetwork

SIDE = 64  # of frames and crops here: what the tiny generator renders


@pytest.fixture(scope="module")
def teacher():
    """LPIPS' network with random weights: something to learn from, without the published file."""
    torch.manual_seed(0)
    network = LpipsNetwork("squeeze")
    for head in (getattr(network, f"lin{tap}") for tap in range(7)):
        head.uniform_(0, 5)
    return network


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of eight pairs of small crops."""
    changes = {"FRAME_SIDE": SIDE, "CROP_SIDE": SIDE, "_RUNS": 2, "_FRAMES": 2, "PAIRS_PER_SHARD": 8}
    for name, value in changes.items():
        monkeypatch.setattr(lpips_data, name, value)
    monkeypatch.setattr(train_lpips, "_HELD_SHARDS", 1)
    monkeypatch.setattr(lpips_trainer, "_WARM_UP_STEPS", 1)


@pytest.fixture
def folders(tmp_path, clip):
    """A folder of pictures and one of clips, of which some are held out."""
    rng = np.random.default_rng(0)
    pictures, videos = tmp_path / "pictures", tmp_path / "videos"
    pictures.mkdir()
    videos.mkdir()
    for number in range(40):
        image = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8)).resize((320, 256))
        image.save(pictures / f"{number}.png")
    for name in ("a", "b", "c", "d"):
        write_h264(videos / f"{name}.mp4", iter(clip), fps=Fraction(10), width=64, height=64, crf=20)
    return pictures, videos


@pytest.fixture
def maker(folders, teacher, tiny_generator, tiny_encoder):
    pictures, videos = folders
    training, _ = load_pictures(pictures)
    return PairMaker(training, load_clips(videos, held_out=False), tiny_generator, tiny_encoder, teacher)


@pytest.mark.parametrize("motion", [False, True])
def test_distortions_keep_the_shape_change_the_frames_and_follow_the_seed(clip, motion, tiny_generator, tiny_encoder):
    for name, distort in families(tiny_generator, tiny_encoder, motion=motion).items():
        first, again = (distort(clip, np.random.default_rng(3)) for _ in range(2))
        assert (first.shape, first.dtype) == (clip.shape, np.uint8), name
        assert (first == again).all() or name == "x264", name  # x264's bytes vary a little from run to run
        assert (first != clip).any(), name


def test_a_quarter_of_the_clips_is_held_out_by_name(folders):
    _, videos = folders
    held, training = ({clip.name for clip in load_clips(videos, held_out=held_out)} for held_out in (True, False))
    assert held == {name for name in "abcd" if is_held_out(name)}
    assert held | training == set("abcd")
    assert not held & training


def test_a_shard_is_decided_by_its_seed_and_number(maker):
    first, again, other = maker.shard(0, 5), maker.shard(0, 5), maker.shard(1, 5)
    assert first.crops.shape == (8, 2, SIDE, SIDE, 3)
    assert first.maps.shape == (8, 7, lpips_data.GRID, lpips_data.GRID)
    assert (first.crops == again.crops).all()
    assert (first.taps == again.taps).all()
    assert (first.crops != other.crops).any()


def test_taught_distances_are_the_teachers(maker, teacher):
    pairs = maker.shard(0, 5)
    tensors = [torch.from_numpy(pairs.crops[:, side]).permute(0, 3, 1, 2).float() / 127.5 - 1 for side in (0, 1)]
    assert pairs.taps.sum(axis=1) == pytest.approx(teacher(*tensors).numpy(), rel=1e-4, abs=1e-6)


def test_pairs_are_made_once_and_a_damaged_shard_is_an_error(maker, tmp_path):
    seen = []
    pairs = build_pairs(lambda: maker, tmp_path / "pairs", 2, seed=0, progress=seen.append)
    assert seen == [1, 2]

    def refuse():
        raise AssertionError("nothing is to be made")

    again = build_pairs(refuse, tmp_path / "pairs", 2, seed=0, progress=seen.append)
    assert (again.crops == pairs.crops).all()
    damaged = tmp_path / "pairs" / "seed0-0001.npz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(TrainingDataError, match=r"seed0-0001\.npz: not a whole shard"):
        build_pairs(refuse, tmp_path / "pairs", 2, seed=0, progress=seen.append)


def learned(pairs: Pairs, out, epochs: int, **options) -> LpipsTrainer:
    out.mkdir(exist_ok=True)
    trainer = LpipsTrainer(LpipsTrainConfig(epochs=epochs, batch=4), pairs, pairs, out, torch.device("cpu"))
    trainer.resume()
    trainer.run(**options)
    return trainer


def test_training_brings_the_scores_nearer_to_the_teachers(maker, tmp_path):
    pairs = maker.shard(0, 5)
    wanted = pairs.taps.sum(axis=1)
    untrained = LpipsTrainer(LpipsTrainConfig(), pairs, pairs, tmp_path, torch.device("cpu"))
    trained = learned(pairs, tmp_path / "run", epochs=8)
    before, after = (np.abs(trainer.scores(pairs) - wanted).mean() for trainer in (untrained, trained))
    assert after < before
    assert (tmp_path / "run" / "log.csv").read_text(encoding="utf-8").startswith("step,seconds,loss,pearson")


def test_interrupted_training_goes_on_to_the_same_network(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_trainer, "_LOG_STEPS", 2)
    pairs = maker.shard(0, 5)
    whole = learned(pairs, tmp_path / "whole", epochs=3)
    part = learned(pairs, tmp_path / "parts", epochs=3, seconds=0)
    assert part.step == 2
    resumed = learned(pairs, tmp_path / "parts", epochs=3)
    assert resumed.step == whole.step == 6
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_a_checkpoint_of_other_pairs_is_refused(maker, tmp_path):
    pairs = maker.shard(0, 5)
    learned(pairs, tmp_path, epochs=1)
    fewer = Pairs(pairs.crops[:4], pairs.maps[:4], pairs.taps[:4])
    with pytest.raises(TrainingDataError, match="trained on 8 pairs, not 4"):
        learned(fewer, tmp_path, epochs=1)


def test_agreement_of_known_scores():
    teacher = np.array([0.1, 0.2, 0.4])
    found = agreement(2 * teacher, teacher)
    assert (found.frames, found.pearson, found.spearman) == (3, pytest.approx(1), pytest.approx(1))
    assert (found.slope, found.intercept) == (pytest.approx(2), pytest.approx(0))
    assert found.mean_absolute_error == pytest.approx(0.7 / 3)
    assert agreement(np.array([0.4, 0.2, 0.1]), teacher).spearman == pytest.approx(-1)
    assert np.isnan(agreement(np.ones(3), teacher).pearson)


@pytest.fixture
def command(folders, teacher, tiny_generator, monkeypatch, tmp_path):
    """Run the command line on the tiny generator and the random teacher."""
    monkeypatch.setattr(weights, "load_lpips_network", lambda *args, **kwargs: teacher)
    monkeypatch.setattr("player.quality.loading.load_lpips_network", lambda *args, **kwargs: teacher)
    monkeypatch.setattr(player_generator, "load_generator", lambda *args, **kwargs: tiny_generator)
    pictures, videos = folders

    def run(*more: str) -> int:
        action, options = ("evaluate", more[1:]) if more[:1] == ("evaluate",) else ("train", more)
        return train_lpips.main([action, "--images", str(pictures), "--videos", str(videos), *options])

    return run


def test_command_trains_exports_and_measures(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("--out", str(out), "--shards", "1", "--epochs", "1") == 0
    card = (out / "export" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "8 pairs of 64x64 crops" in card
    assert "It is not LPIPS" in card
    network = out / "export" / "lpips_embedded.safetensors"
    capsys.readouterr()
    table = tmp_path / "table.json"
    assert command("evaluate", "--network", str(network), "--pictures", "2", "--json", str(table)) == 0
    printed = capsys.readouterr().out
    assert "| held-out clips, this codec |" in printed
    assert "| clips: av1 |" in printed
    rows = json.loads(table.read_text())
    assert rows["held-out pictures, all distortions"]["frames"] == 14 * rows["pictures: jpeg"]["frames"] == 28


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "--images nowhere: not a folder"),
        (["--images", ".", "--epochs", "-1"], "epochs is -1, expected 1 or more"),
        (["evaluate", "--images", ".", "--frames", "1"], "--frames 1: expected 2 or more"),
        (["evaluate", "--images", ".", "--network", "nowhere.safetensors"], "no weights of lpips-embedded"),
    ],
)
def test_bad_input_is_one_line_on_stderr(options, message, capsys):
    assert train_lpips.main(options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
