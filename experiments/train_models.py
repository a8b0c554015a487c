"""What training trains: its configuration, and the freshly initialised networks of the embedded generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from packager.encoder import PromptEncoder, PromptHead
from player.autoencoder import PIXELS_PER_CELL, LatentDecoder, LatentEncoder, grid_sinusoids
from player.generator import Generator, GeneratorSettings


@dataclass
class TrainConfig:
    """Settings of one training run."""

    steps: tuple[int, int, int] = (30_000, 6_000, 12_000)
    """Steps of the three stages."""
    batch: tuple[int, int, int] = (16, 32, 8)
    """Frames a step in the three stages."""
    learning_rate: tuple[float, float, float] = (2e-3, 1e-3, 5e-4)
    """Peak learning rate of each stage; linear warm-up over 200 steps, cosine to zero."""
    crop: int = 128
    """Side in pixels of the crops of stage 1."""
    size: int = 256
    """Side in pixels of the frames of stages 2 and 3: the generator's native size."""
    rank: int = 16
    """Largest rank; smaller ranks are prefixes."""
    width: int = 128
    """D, the width of an embedding."""
    latent_channels: int = 16
    unet_widths: tuple[int, int] = (96, 128)
    u_step: float = 0.25
    """Quantization step of U that training imitates by noise."""
    rate_weight: tuple[float, float, float] = (0.0, 0.02, 0.004)
    """Weight of the bits-per-value estimate of U in each stage's loss."""
    seed: int = 0
    save_every: int = 500
    """Steps between checkpoints."""


@dataclass
class Models:
    """The networks under training."""

    encoder: PromptEncoder
    generator: Generator

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "generator": self.generator}

    def to(self, device: torch.device) -> Models:
        """Move both to a device, channels last in memory."""
        for part in self.parts().values():
            part.to(device).to(memory_format=torch.channels_last)
        return self


def make_models(config: TrainConfig) -> Models:
    """Return freshly initialised networks for a configuration."""
    torch.manual_seed(config.seed)
    cells = config.size // PIXELS_PER_CELL
    unet = UNet2DConditionModel(
        sample_size=cells,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.unet_widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=config.width,
        # diffusers takes this as the number of heads here; 32 would mean heads of 3 channels, three times slower
        attention_head_dim=4,
        norm_num_groups=32,
    )
    # Tokens and start latent begin as the same sinusoids, so that attention can find a cell's own token.
    base = grid_sinusoids(config.width, cells, cells).flatten(1).T.contiguous()  # [L, D]
    start = 0.1 * grid_sinusoids(config.latent_channels, cells, cells)
    dictionary, _ = torch.linalg.qr(torch.randn(config.width, config.rank))
    tensors = {
        "base": 0.3 * base,
        "dictionary": dictionary.T * math.sqrt(config.width) * 0.5,
        "start_latent": start,
        "layout": torch.randn(config.latent_channels, config.width) / math.sqrt(config.width),
    }
    settings = GeneratorSettings(
        tokens=cells * cells,
        width=config.width,
        max_rank=config.rank,
        grid=(cells, cells),
        timestep=999,
        c_skip=1.0,
        c_out=1.0,
        norm_rank=config.rank,
    )
    decoder = LatentDecoder(config.latent_channels)
    generator = Generator(unet, decoder, settings, tensors, identity="training")
    head = PromptHead(config.latent_channels, rank=config.rank, width=config.width)
    return Models(PromptEncoder(LatentEncoder(config.latent_channels), head), generator)
