"""The published system's streams as a user plays them: import with chained latents, serve, play to a film, render."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from experiments.playback import open_store, render_played
from experiments.random_models import SD_TURBO
from packager.__main__ import main
from packager.server import run_origin
from player.bitstream import read_init
from player.decoder import load_model
from player.errors import DecodeError
from player.presentation import Presentation

RANK, KEYS = 2, 3


@pytest.fixture(scope="module")
def tiny_sd_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of SD-Turbo's shapes outside, 77 tokens of 1024 and latents of 64x64, and small inside."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "sd-turbo"
    UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=1024,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    widths, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).save_pretrained(folder / "vae")
    shutil.copytree(SD_TURBO / "scheduler", folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine published frames, imported as a chained stream of two segments."""
    root = tmp_path_factory.mktemp("published")
    prompts = root / "sky"
    prompts.mkdir()
    for frame in range(0, 4 * KEYS, 4):
        source = torch.Generator().manual_seed(frame)
        content = {
            "U": torch.randint(0, 256, (77, RANK), generator=source, dtype=torch.uint8),
            "V": torch.randint(0, 256, (RANK, 1024), generator=source, dtype=torch.uint8),
            "U_scale": torch.tensor(0.02),
            "U_zero_point": torch.tensor(128.0),
            "V_scale": torch.tensor(0.05),
            "V_zero_point": torch.tensor(128.0),
        }
        torch.save(content, prompts / f"frame_{frame:05d}.prompt")
    torch.save(torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(9)), prompts / "init.pth")
    out = root / "packages" / "sky-chained"
    assert main(["import", str(prompts), "-o", str(out), "--carry", "0.05", "--segment", "0.15"]) == 0
    return out


def test_a_chained_import_plays_over_http_to_a_film(package: Path, tiny_sd_turbo: Path, tmp_path: Path) -> None:
    film, log = tmp_path / "seen.mp4", tmp_path / "log"

    async def play() -> tuple[int, str]:
        async with run_origin(package.parent) as url:
            command = [sys.executable, "-m", "player", "play", f"{url.rstrip('/')}/{package.name}", "--out", str(film)]
            command += ["--log", str(log), "--generator", str(tiny_sd_turbo), "--device", "cpu"]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate()
            return process.returncode or 0, said.decode()

    assert asyncio.run(play()) == (0, "")
    summary = json.loads((log / "summary.json").read_text())
    assert summary["segments"] == 2
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 9


def test_a_session_renders_what_the_chain_says(package: Path, tiny_sd_turbo: Path) -> None:
    presentation = Presentation.load(package)
    assert presentation.manifest.chained
    assert read_init(presentation.read_init(0)).chain is not None
    model = load_model("prompt", str(tiny_sd_turbo), device="cpu")
    segments = pd.DataFrame({"clip_segment": [0, 1], "representation": [0, 0], "play_start_s": [0.0, 4 / 30]})
    with open_store(presentation, model) as store:
        speed = render_played(store, segments)
        frames = [store.frames(index, 0) for index in (0, 1)]
        assert (speed["segments"], speed["frames"]) == (2, 9)
        assert [part.shape for part in frames] == [(4, 512, 512, 3), (5, 512, 512, 3)]
        assert all(np.diff(part.astype(int), axis=0).any(axis=(1, 2, 3)).all() for part in frames)
    with open_store(presentation, model) as store, pytest.raises(DecodeError, match="segment"):
        store.render(1, 0)  # nothing to start from
