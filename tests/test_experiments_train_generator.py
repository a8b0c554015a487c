"""Training: runs, resumes to the same result, exports a generator that loads, and refuses bad input in one line."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import held_out, train_generator
from experiments.moving_pictures import moving_picture, moving_pictures
from experiments.train_data import TrainingDataError, load_pictures
from experiments.train_models import TrainConfig, make_models
from experiments.trainer import HELD_OUT_HEADING, Trainer
from packager.encoder import load_encoder
from player.autoencoder import LatentEncoder, grid_sinusoids
from player.generator import load_generator


@pytest.fixture
def pictures(tmp_path):
    """Six smooth random pictures, half loose, half in a tar file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = [Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8)).resize((160, 128)) for _ in range(6)]
    for i, image in enumerate(images[:3]):
        image.save(folder / f"{i}.png")
    with tarfile.open(folder / "more.tar", "w") as archive:
        for i, image in enumerate(images[3:]):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            member = tarfile.TarInfo(f"source/{i}.png")
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)
    return folder


def run(pictures, out, *more):
    arguments = ["--images", str(pictures), "--out", str(out), "--size", "64", "--rank", "4", "--device", "cpu"]
    return train_generator.main([*arguments, *more])


@pytest.mark.slow
def test_trains_exports_and_loads(pictures, tmp_path):
    out = tmp_path / "run"
    assert run(pictures, out, "--steps", "2,2,2,2") == 0
    assert (out / "samples_joint.png").stat().st_size > 0
    card = (out / "export" / "MODEL_CARD.md").read_text()
    assert "rank 4" in card
    generator = load_generator(str(out / "export"), device="cpu")
    encoder = load_encoder(generator)
    u, v = encoder(torch.zeros(1, 3, 64, 64))
    assert u.shape == (1, 16, 4)
    assert v.shape == (1, 4, 128)
    assert generator.generate(generator.space.compose(u, v, 4)).shape == (1, 3, 64, 64)
    assert run(pictures, out, "--steps", "2,2,2,2") == 0  # finished: resumes at the end and exports again
    assert held_out.main([str(out / "export"), "--images", str(pictures), "--device", "cpu"]) == 0
    again = (out / "export" / "MODEL_CARD.md").read_text()
    start, _, table = again.partition(HELD_OUT_HEADING)
    assert card.startswith(start)
    table, _, between = table.partition(held_out.BETWEEN_HEADING)
    header, _, *rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert header.startswith("| prompt | PSNR [dB] |")
    assert [row.split("|")[1].strip() for row in rows] == ["rank 1", "rank 2", "rank 4"]
    psnr = [float(line.split("|")[2]) for line in card.splitlines() if line.startswith("| rank")]
    assert [float(row.split("|")[2]) for row in rows] == pytest.approx(psnr, abs=0.1)  # card: before half precision
    names = [line.split("|")[1].strip() for line in between.splitlines() if line.startswith("| ")]
    assert names.pop(1) == "---"
    assert len(names) == 1 + 3 * len(held_out.BETWEEN_PX)
    assert names[1] == "2 px, interpolated prompt"


@pytest.mark.slow
def test_stops_in_time_and_resumes_with_the_same_settings_only(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(pictures, out, "--steps", "2,2,2,2", "--minutes", "1e-9") == 0
    assert not (out / "export").exists()
    assert run(pictures, out, "--steps", "2,2,2,2", "--rank", "3") == 1
    assert "made with rank 4, expected 3" in capsys.readouterr().err
    assert run(pictures, out, "--steps", "2,2,2,2") == 0
    assert (out / "export" / "promptdash.json").exists()


def test_held_out_refuses_what_is_no_export_in_one_line(pictures, tmp_path, capsys):
    (tmp_path / "MODEL_CARD.md").write_text("# A generator\n")
    for folder, expected in ((tmp_path, "has no part that begins with"), (tmp_path / "none", "No such file")):
        assert held_out.main([str(folder), "--images", str(pictures)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("held_out: ")
        assert expected in error
        assert error.count("\n") == 1
    assert (tmp_path / "MODEL_CARD.md").read_text() == "# A generator\n"


def test_pictures_are_split_and_cropped(pictures):
    training, held = load_pictures(pictures)
    assert len(training.pictures) + len(held.pictures) == 6
    assert not {p.name for p in training.pictures} & {p.name for p in held.pictures}
    crops = training.crops(5, 64, np.random.default_rng(0))
    assert crops.shape == (5, 3, 64, 64)
    assert crops.min() >= -1
    assert crops.max() <= 1
    assert training.weights.sum() == pytest.approx(1)


def test_pictures_move_evenly_from_the_first_frame_to_the_last(pictures):
    training, _ = load_pictures(pictures)
    rng = np.random.default_rng(0)
    clip = moving_picture(training, 64, 0.5, rng, displacement=4.0)
    assert clip.shape == (3, 3, 64, 64)
    assert clip.abs().max() <= 1
    first, between, last = clip
    apart = (last - first).abs().mean()
    assert (between - first).abs().mean() < apart
    assert (between - last).abs().mean() < apart
    still = moving_picture(training, 64, 0.5, rng, displacement=0.0)
    torch.testing.assert_close(still[0], still[2])
    again, shares = moving_pictures(training, 3, 64, np.random.default_rng(5))
    assert again.shape == (3, 3, 3, 64, 64)
    assert set(shares.tolist()) <= {0.25, 0.5, 0.75}


def test_a_step_draws_the_ends_of_motion_and_what_lies_between(pictures, tmp_path):
    training, held = load_pictures(pictures)
    config = TrainConfig(size=64, rank=4, batch=(8, 8, 8, 8), moving_share=0.5)
    trainer = Trainer(config, make_models(config), training, held, tmp_path, torch.device("cpu"))
    trainer.stage = 2
    drawn = trainer.draw()
    assert len(drawn.frames) == 8
    assert len(drawn.between) == len(drawn.shares) == 2
    clips, shares = moving_pictures_of(config, training)
    torch.testing.assert_close(drawn.frames[:4], torch.cat([clips[:, 0], clips[:, 2]]))
    torch.testing.assert_close(drawn.between, clips[:, 1])
    torch.testing.assert_close(drawn.shares, shares)
    still = replace(config, moving_share=0.0)
    trainer = Trainer(still, make_models(still), training, held, tmp_path, torch.device("cpu"))
    trainer.stage = 2
    assert len(trainer.draw().frames) == 8
    assert len(trainer.draw().between) == 0


def moving_pictures_of(config, training):
    """The pictures in motion that the first draw of a training sees."""
    rng = np.random.default_rng(config.seed)
    training.crops(4, config.size, rng)
    return moving_pictures(training, 2, config.size, rng)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(TrainingDataError, match="found 0 usable pictures"):
        load_pictures(tmp_path)


def test_bad_arguments_are_one_line(pictures, tmp_path, capsys):
    assert run(pictures, tmp_path / "out", "--steps", "1,2") == 1
    assert capsys.readouterr().err == "train_generator: --steps 1,2: expected four numbers\n"
    assert run(pictures, tmp_path / "out", "--moving-share", "1.5") == 1
    assert capsys.readouterr().err == "train_generator: moving share 1.5: expected 0 to 1\n"


def test_sinusoids_tell_cells_apart():
    cells = grid_sinusoids(16, 4, 4).flatten(1).T
    distances = torch.cdist(cells, cells) + torch.eye(16) * 1e3
    assert distances.min() > 0.1


def test_folding_the_normalisation_keeps_the_latents():
    torch.manual_seed(0)
    encoder = LatentEncoder(8, widths=(8, 8, 16), blocks=(1, 0, 1)).eval()
    encoder.norm.running_mean.uniform_(-2e3, 2e3)
    encoder.norm.running_var.uniform_(1e6, 1e7)
    frames = torch.rand(2, 3, 64, 64) * 2 - 1
    before = encoder(frames)
    encoder.fold_normalisation()
    torch.testing.assert_close(encoder(frames), before, rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(value.half()).all() for value in encoder.state_dict().values())
