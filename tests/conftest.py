"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

# The tests' models are tiny: more threads only wait for each other, for minutes if the machine does other work too.
# Read by OpenMP when torch is first imported, and by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from packager.encoder import PromptEncoder
    from player.generator import Generator

# The same examples every time: a red run means that something changed, not that a new example was drawn.
settings.register_profile("promptdash", derandomize=True, deadline=None)
settings.load_profile("promptdash")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The third-party development data beside a developer's checkout; tests that need it skip without it."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("third-party development data (../shared/data) is not at hand")
    return path


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    """Eight frames uint8 [8, 64, 64, 3] of a bright disc crossing a shaded background, drawn in code."""
    rows, columns = np.mgrid[0:64, 0:64]
    frames = []
    for t in range(8):
        disc = (rows - 32) ** 2 + (columns - 12 - 5 * t) ** 2 < 100
        shade = np.stack([rows * 2, columns * 2, 128 - rows], axis=-1)
        frames.append(np.where(disc[..., None], np.array([240, 200, 40]), shade))
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of random weights with its encoder, 64x64 pixels, saved in diffusers layout."""
    from experiments.train_models import TrainConfig, make_models
    from player.autoencoder import LatentDecoder, LatentEncoder

    config = TrainConfig(size=64, rank=4, width=16, latent_channels=8, unet_widths=(32, 32))
    models = make_models(config)
    models.generator.decoder = LatentDecoder(8, widths=(16, 8, 8, 8), blocks=(1, 1, 0, 0))
    models.encoder.latents = LatentEncoder(8, widths=(8, 8, 16), blocks=(0, 0, 1))
    folder = tmp_path_factory.mktemp("generator")
    models.generator.save(folder)
    models.encoder.eval().save(folder / "encoder")
    return folder


@pytest.fixture(scope="session")
def tiny_generator(tiny_folder: Path) -> Generator:
    """The generator of `tiny_folder`, loaded as a user's would be."""
    from player.generator import load_generator

    return load_generator(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_generator: Generator) -> PromptEncoder:
    """The encoder that belongs to `tiny_generator`."""
    from packager.encoder import load_encoder

    encoder = load_encoder(tiny_generator)
    assert encoder is not None
    return encoder


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in the layout of SD-Turbo: UNet, AutoencoderTiny and scheduler, nothing of ours."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    from experiments.random_models import SD_TURBO

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("plain") / "sd-turbo"
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    widths = (16, 16, 16, 16)
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    last = vae.decoder.layers[-1]  # as it is drawn, every picture would be black
    torch.nn.init.normal_(last.weight, std=0.5)
    torch.nn.init.constant_(last.bias, 0.5)
    vae.save_pretrained(folder / "vae")
    shutil.copytree(SD_TURBO / "scheduler", folder / "scheduler")
    return folder


@pytest.fixture
def box_package(tmp_path: Path) -> Path:
    """Four segments of 0.2 s in two representations, 600 and 1800 bytes each, in boxes without pictures."""
    from player.manifest import Manifest, Representation
    from player.mp4 import box
    from player.presentation import RepresentationQuality, write_manifest, write_sidecar

    folder = tmp_path / "root" / "clip"
    rungs = [Representation("low", 25_000, None, "hvc1.1"), Representation("high", 75_000, None, "hvc1.1")]
    quality = {}
    for rung, size, psnr_db in zip(rungs, (600, 1800), (25.0, 35.0), strict=True):
        (folder / rung.id).mkdir(parents=True)
        (folder / rung.init).write_bytes(box(b"ftyp", bytes(8)) + box(b"moov", bytes(100)))
        for index in range(4):
            data = box(b"styp", bytes(8)) + box(b"moof", bytes(84))
            (folder / rung.media(index)).write_bytes(data + box(b"mdat", bytes(size - len(data) - 8)))
        quality[rung.id] = RepresentationQuality((size,) * 4, {"psnr_db": (np.full(2, psnr_db),) * 4})
    manifest = Manifest("clip", "h265", 64, 64, Fraction(10), (2,) * 4, tuple(rungs))
    write_manifest(folder, manifest)
    write_sidecar(folder, manifest, quality)
    return folder
