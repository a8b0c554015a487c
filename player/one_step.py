"""One denoising step: its constants, and what a plain one-step diffusers model is driven with.

The published system (Promptus, github.com/JiangkaiWu/Promptus) renders a frame by one evaluation of SD-Turbo's UNet at
timestep 999 from seeded noise; everything here is derived from a model's own configuration files and equals it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from player.errors import GeneratorError
from player.model_files import SETTINGS_FILE, TENSORS_FILE, read_json

FORMAT_VERSION = 1
# Of the published system: the seed of its noise, its single timestep and CLIP's number of tokens.
PAPER_SEED = 88
PAPER_TIMESTEP = 999
CLIP_TOKENS = 77
_TIME_IDS = 6  # of SDXL: original height and width, crop top and left, target height and width
_MANY_STEP_SCHEDULERS = ("PNDMScheduler", "LCMScheduler")


@dataclass(frozen=True)
class GeneratorSettings:
    """What a generator needs beside its networks; stored as `promptdash.json`.

    c_skip and c_out are the one-step preconditioning, denoised = c_out * unet(x) + c_skip * x (Karras et al. 2022,
    section 5, with x the already scaled input).
    """

    tokens: int
    width: int
    max_rank: int
    grid: tuple[int, int]  # rows and columns the tokens are laid out in; (0, 0) if they have no layout
    timestep: int
    c_skip: float
    c_out: float
    norm_rank: int = 0  # what U V is divided by the square root of; 0: the rank of the fit (Promptus)
    version: int = FORMAT_VERSION


def one_step_constants(scheduler: Mapping[str, Any], timestep: int = PAPER_TIMESTEP) -> tuple[float, float]:
    """Return (c_skip, c_out) of one denoising step from `timestep`, with x the scaled input.

    With a = alphas_cumprod[timestep]: epsilon prediction gives denoised = x / sqrt(a) - sqrt((1 - a) / a) unet(x).
    For SD-Turbo that is c_in = sqrt(a) = 0.0683 and c_out = -14.6146, the published system's constants.

    Raises:
        GeneratorError: another prediction type or schedule, or no noise schedule to step from.
    """
    kind = scheduler.get("prediction_type", "epsilon")
    if kind == "sample":
        return 0.0, 1.0
    if kind != "epsilon":
        raise GeneratorError(f"prediction_type {kind!r} is not supported: expected epsilon or sample")
    if scheduler.get("trained_betas"):
        raise GeneratorError("scheduler: trained_betas are not supported: expected a beta_schedule")
    if scheduler.get("rescale_betas_zero_snr"):
        raise GeneratorError("scheduler: rescale_betas_zero_snr leaves nothing to predict noise from in one step")
    steps = scheduler.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not timestep < steps:
        raise GeneratorError(f"scheduler: num_train_timesteps {steps!r}, expected more than {timestep}")
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    schedule = scheduler.get("beta_schedule", "linear")
    if schedule == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float32)
    else:
        raise GeneratorError(f"beta_schedule {schedule!r} is not supported: expected linear or scaled_linear")
    alpha = torch.cumprod(1 - betas, dim=0)[timestep].item()
    return 1 / alpha**0.5, -(((1 - alpha) / alpha) ** 0.5)


def check_unet(config: Mapping[str, Any], where: str) -> None:
    """Raise GeneratorError unless a UNet's configuration is one that prompts alone can drive."""
    mid = str(config.get("mid_block_type") or "")
    kinds = [*config["down_block_types"], mid, *config["up_block_types"]]
    if not any("CrossAttn" in str(kind) for kind in kinds):
        raise GeneratorError(f"{where}: has no cross-attention, so prompts cannot drive it")
    width = config["cross_attention_dim"]
    if not isinstance(width, int):
        raise GeneratorError(f"{where}: cross_attention_dim is {width!r}, expected one width")
    if config["in_channels"] != config["out_channels"]:
        raise GeneratorError(
            f"{where}: takes {config['in_channels']} channels and makes {config['out_channels']}, expected as many "
            "(an inpainting or depth model?)"
        )
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if config.get(name) is not None:
            raise GeneratorError(f"{where}: {name} is {config[name]!r}; models with that condition are not supported")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise GeneratorError(
            f"{where}: addition_embed_type is {config['addition_embed_type']!r}, expected none or text_time (SDXL)"
        )


def added_conditions(config: Mapping[str, Any], size_px: int) -> dict[str, Tensor]:
    """Return what SDXL's UNets take beside the embedding: text_embeds [P], zeros, and time_ids [6]; else nothing.

    A fit meets whatever constant stands here, so the pooled text embedding is zero; a folder's `promptdash.safetensors`
    may hold others.
    """
    if config.get("addition_embed_type") != "text_time":
        return {}
    pooled = config["projection_class_embeddings_input_dim"] - _TIME_IDS * config["addition_time_embed_dim"]
    side = float(size_px)
    return {"text_embeds": torch.zeros(pooled), "time_ids": torch.tensor([side, side, 0.0, 0.0, side, side])}


def load_prompt_space(
    folder: Path, config: Mapping[str, Any], size_px: int
) -> tuple[GeneratorSettings, dict[str, Tensor]]:
    """Return a model's settings and tensors: its own (`promptdash.json`), or else the published system's.

    Args:
        folder: of the model.
        config: its UNet's.
        size_px: side of its frames, pixels.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return _published_prompt_space(folder, config, size_px)
    found = read_json(folder / SETTINGS_FILE, str(folder))
    if found.get("version") != FORMAT_VERSION:
        version = found.get("version")
        raise GeneratorError(f"{folder / SETTINGS_FILE}: version {version}, this build reads {FORMAT_VERSION}")
    try:
        found["grid"] = tuple(found["grid"])
        settings = GeneratorSettings(**found)
        tensors = load_file(folder / TENSORS_FILE)
    except (KeyError, TypeError, OSError, SafetensorError) as error:
        raise GeneratorError(f"{folder}: {SETTINGS_FILE} or {TENSORS_FILE} cannot be read ({error})") from error
    expected: dict[str, tuple[int, ...]] = {
        "base": (settings.tokens, settings.width),
        "dictionary": (settings.max_rank, settings.width),
    }
    if "step_scale" in tensors:
        expected["step_scale"] = (settings.max_rank,)
    added = added_conditions(config, size_px)
    expected |= {name: tuple(value.shape) for name, value in added.items() if name in tensors}
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise GeneratorError(f"{folder / TENSORS_FILE}: expected {name} of shape {shape}")
    return settings, added | tensors


def _published_prompt_space(
    folder: Path, config: Mapping[str, Any], size_px: int
) -> tuple[GeneratorSettings, dict[str, Tensor]]:
    """Return the published system's settings for a plain diffusers model: no base, no dictionary, seeded noise."""
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(path, str(folder))
    name, spacing = scheduler.get("_class_name"), scheduler.get("timestep_spacing", "trailing")
    if name in _MANY_STEP_SCHEDULERS or spacing != "trailing":
        raise GeneratorError(
            f"{path}: {name} with {spacing!r} timesteps belongs to a model of many steps; expected one made for a "
            "single step, such as SD-Turbo ('trailing')"
        )
    try:
        c_skip, c_out = one_step_constants(scheduler)
    except GeneratorError as error:
        raise GeneratorError(f"{path}: {error}") from error
    width, channels, side = config["cross_attention_dim"], config["in_channels"], config["sample_size"]
    if not isinstance(side, int):
        raise GeneratorError(f"{folder / 'unet'}: sample_size is {side!r}, expected one side")
    max_rank = min(CLIP_TOKENS, width)
    settings = GeneratorSettings(CLIP_TOKENS, width, max_rank, (0, 0), PAPER_TIMESTEP, c_skip, c_out)
    tensors = {
        "base": torch.zeros(CLIP_TOKENS, width),
        "dictionary": torch.zeros(max_rank, width),
        "start_latent": seeded_noise(channels, side),
    }
    return settings, tensors | added_conditions(config, size_px)


def seeded_noise(channels: int, side: int) -> Tensor:
    """Return the published system's start latent, float32 [C, side, side]."""
    noise = np.random.RandomState(PAPER_SEED).randn(1, channels, side, side)[0]
    return torch.from_numpy(noise).float()
