"""The benchmark of renderers: a row for each fit and renderer, and one line for what it cannot read."""

import json
from fractions import Fraction

import pytest

from experiments.bench_render import main
from packager.video import write_h264


@pytest.fixture
def generator_folder(tmp_path):
    """A generator of random weights for 128x128 pixels, which half the size is still enough for."""
    from experiments.train_models import TrainConfig, make_models
    from player.autoencoder import LatentDecoder

    models = make_models(TrainConfig(size=128, rank=4, width=16, latent_channels=8, unet_widths=(32, 32)))
    models.generator.decoder = LatentDecoder(8, widths=(16, 8, 8, 8), blocks=(1, 1, 0, 0))
    models.generator.save(tmp_path / "generator")
    return tmp_path / "generator"


def test_rows_of_every_renderer(clip, generator_folder, tmp_path, capsys):
    video, table = tmp_path / "clip.mp4", tmp_path / "rows.json"
    write_h264(video, list(clip), fps=Fraction(20), width=64, height=64, crf=10)
    given = ["--generator", str(generator_folder), "--rank", "2", "--iterations", "1", "--metrics", "psnr_db"]
    shortcuts = ["--depths", "0,1", "--thresholds", "0,9", "--every", "2", "--json", str(table)]
    assert main([str(video), *given, *shortcuts]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads(table.read_text())["rows"]
    names = ["full", *(f"cached, depth {d}, {t}" for d in (0, 1) for t in (0, 9)), "fitted at half size, bicubic"]
    assert [(row["fit"], row["renderer"]) for row in rows] == [(f, n) for f in ("prompts", "motion") for n in names]
    assert len(printed) == len(rows)
    by_name = {row["renderer"]: row for row in rows[: len(names)]}
    assert by_name["full"]["psnr_to_full_db"] is None
    assert by_name["cached, depth 0, 9"]["references"] < by_name["cached, depth 0, 0"]["references"] == 1
    gflop = [by_name[name]["gflop"] for name in ("cached, depth 0, 9", "cached, depth 1, 9", "full")]
    assert gflop == sorted(set(gflop))


def test_a_video_that_is_none_is_one_line(tiny_folder, tmp_path, capsys):
    assert main([str(tmp_path / "none.mp4"), "--generator", str(tiny_folder), "--metrics", "psnr_db"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("none.mp4: no such file")
