"""Generators of random weights in an exact architecture, for measurements and tests that need no download."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn

from player.generator import Generator, set_precision
from player.model_files import cast
from player.one_step import check_unet, load_prompt_space

ARCHITECTURES = Path(__file__).parent / "architectures"
SD_TURBO, TAESD = ARCHITECTURES / "sd-turbo", ARCHITECTURES / "taesd"
TINY_SIDE = 8
"""Of the latents of the small model: frames of 64x64."""
_TINY = {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64, "attention_head_dim": [2, 2, 4, 4]}
_TINY_DECODERS = {
    "AutoencoderTiny": {"encoder_block_out_channels": [16] * 4, "decoder_block_out_channels": [16] * 4},
    "AutoencoderKL": {"block_out_channels": [32] * 4},
}
_CLASSES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


def random_generator(
    *,
    decoder: Path = TAESD,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    latent_side: int = 64,
    tiny: bool = False,
    seed: int = 0,
) -> Generator:
    """Return a generator of SD-Turbo's architecture with random weights, made on the device itself.

    Args:
        decoder: folder with the configuration of its latent decoder.
        device: `meta` counts operations without memory.
        latent_side: of its latents; 64 for frames of 512x512.
        tiny: make a small model of the same build instead.
    """
    where = torch.device(device)
    config = _read(SD_TURBO / "unet") | {"sample_size": latent_side} | (_TINY if tiny else {})
    check_unet(config, str(SD_TURBO / "unet"))
    vae_config = _read(decoder)
    vae_config |= _TINY_DECODERS[vae_config["_class_name"]] if tiny else {}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        vae = _CLASSES[vae_config["_class_name"]].from_config(vae_config)
    if where.type != "meta":
        source = torch.Generator(where).manual_seed(seed)
        for part in (unet, vae):
            cast(part, dtype).to_empty(device=where)
            _fill(part, source)
    settings, tensors = load_prompt_space(SD_TURBO, unet.config, 8 * latent_side)
    generator = Generator(unet, vae, settings, tensors, identity="random-sd-turbo")
    generator.to(where).eval().requires_grad_(False)
    set_precision(generator, dtype)
    return generator.to(memory_format=torch.channels_last)


def _fill(module: nn.Module, source: torch.Generator) -> None:
    """Draw a module's weights as its layers would: uniform, within one over the root of the inputs; norms are ones."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            with torch.no_grad():
                if parameter.ndim > 1:
                    bound = (parameter.numel() / parameter.shape[0]) ** -0.5
                    parameter.uniform_(-bound, bound, generator=source)
                else:
                    parameter.fill_(1.0 if name == "weight" else 0.0)


def parameters_of(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def _read(folder: Path) -> dict:
    path = folder / "config.json"
    return json.loads(path.read_text())
