"""What training trains: its configuration, and the freshly initialised networks of the embedded generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from experiments.train_data import TrainingDataError
from packager.encoder import PromptEncoder, PromptHead, load_encoder
from player.autoencoder import PIXELS_PER_CELL, LatentDecoder, LatentEncoder, grid_sinusoids
from player.generator import Generator, GeneratorSettings, load_generator

_STEP_ERROR = 1e-3


@dataclass
class TrainConfig:
    """Settings of one training run."""

    steps: tuple[int, int, int, int] = (30_000, 6_000, 12_000, 6_000)
    """Steps of the four stages; a stage of 0 steps is left out."""
    batch: tuple[int, int, int, int] = (16, 32, 8, 8)
    """Frames a step in each stage."""
    learning_rate: tuple[float, float, float, float] = (2e-3, 1e-3, 5e-4, 2e-4)
    """Peak learning rate of each stage; linear warm-up over 200 steps, cosine to zero."""
    crop: int = 128
    """Side in pixels of the crops of stage 1."""
    size: int = 256
    """Side in pixels of the frames of stages 2 to 4: the generator's native size."""
    rank: int = 32
    """Largest rank; smaller ranks are prefixes."""
    norm_rank: int = 16
    """What U V is divided by the square root of, at every rank."""
    width: int = 128
    """D, the width of an embedding."""
    latent_channels: int = 32
    unet_widths: tuple[int, int] = (96, 128)
    latent_noise: tuple[float, float] = (0.15, 0.15)
    """Stage 1: half-width of the uniform noise on the latents of unit variance, drawn between these for each picture by
    its logarithm: room for quantization. The codec `vae` quantizes in steps of up to 2."""
    u_step: float = 0.25
    """Quantization step of U that training imitates by noise."""
    rate_weight: tuple[float, float, float, float] = (0.0, 0.02, 0.004, 0.004)
    """Weight of the bits-per-value estimate of U in each stage's loss."""
    adversarial_weight: float = 0.3
    """Stage 4: size of the adversarial gradient against that of the pixel loss, at the decoder's last layer."""
    matching_weight: float = 1.0
    """Stage 4: weight of the distance between the discriminator's features of a frame and of its rendering."""
    feature_weight: float = 0.1
    """Stage 4: weight of the distance between features of our own network (packager/features.py), as in a fit."""
    moving_share: float = 0.5
    """Stages 3 and 4: share of a step's frames that are the ends of pictures in motion, whose interpolated prompts
    should render what lies between (experiments/moving_pictures.py). 0: photographs alone."""
    between_weight: float = 1.0
    """Stages 3 and 4: weight of a frame between against one of an end."""
    seed: int = 0
    save_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if not 0 <= self.moving_share <= 1:
            raise ValueError(f"moving share {self.moving_share:g}: expected 0 to 1")


class PatchDiscriminator(nn.Module):
    """Says of each patch of a frame whether it looks photographed (Isola et al. 2017), spectrally normalised.

    Trained here, with the generator, and thrown away after: no reported metric knows its features.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        shapes = [(3, widths[0], 4, 2), (widths[0], widths[1], 4, 2), (widths[1], widths[2], 4, 2)]
        shapes += [(widths[2], widths[2], 3, 1), (widths[2], 1, 3, 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(inputs, outputs, size, stride=stride, padding=1))
            for inputs, outputs, size, stride in shapes
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the scores [N, 1, H/8, W/8] of frames [N, 3, H, W] and the features of the layers before."""
        features = []
        x = frames
        for layer in self.layers[:-1]:
            x = nn.functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features


@dataclass
class Models:
    """The networks under training."""

    encoder: PromptEncoder
    generator: Generator
    discriminator: PatchDiscriminator

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "generator": self.generator, "discriminator": self.discriminator}

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
        norm_rank=config.norm_rank,
    )
    decoder = LatentDecoder(config.latent_channels)
    generator = Generator(unet, decoder, settings, tensors, identity="training")
    head = PromptHead(config.latent_channels, rank=config.rank, width=config.width)
    return Models(PromptEncoder(LatentEncoder(config.latent_channels), head), generator, PatchDiscriminator())


@torch.no_grad()
def warm_start(models: Models, folder: Path, frames: Tensor) -> None:
    """Take over an exported generator's weights; networks with more latent channels or ranks grow out of it.

    What is new reads as zero at first: the grown networks render what the smaller ones did, and learn from there.

    Args:
        models: freshly made networks, none of their layers smaller than the exported ones.
        folder: an export of `train_generator` with its encoder.
        frames: [N, 3, H, W], to set the scale of new latent channels by.
    """
    source = load_generator(str(folder), device="cpu", dtype="float32")
    encoder = load_encoder(source)
    if encoder is None:
        raise TrainingDataError(f"{folder}: holds no encoder to start from")
    _grow(models.generator, source)
    _grow(models.encoder, encoder)
    latents = models.encoder.latents
    latents.norm.reset_running_stats()
    latents.norm.momentum, momentum = None, latents.norm.momentum  # None: the plain mean over these frames
    latents.train()
    for batch in frames.split(32):
        latents(batch)
    latents.norm.momentum = momentum
    old = encoder.latents.norm
    count = len(old.running_mean)
    latents.norm.running_mean[:count], latents.norm.running_var[:count] = old.running_mean, old.running_var


@torch.no_grad()
def _grow(target: nn.Module, source: nn.Module) -> None:
    """Copy the source's parameters into the leading part of the target's; new inputs weigh nothing."""
    found = source.state_dict()
    for name, value in target.state_dict().items():
        old = found[name]
        if value.shape == old.shape:
            value.copy_(old)
            continue
        if any(new < was for new, was in zip(value.shape, old.shape, strict=True)):
            raise TrainingDataError(f"{name} is {tuple(value.shape)}, too small to grow out of {tuple(old.shape)}")
        if value.ndim > 1:  # [outputs, inputs, ...]: what a known output reads of a new input
            value[: old.shape[0]] = 0
        value[tuple(slice(size) for size in old.shape)] = old


@torch.no_grad()
def calibrate_steps(models: Models, frames: Tensor, seed: int = 0) -> Tensor:
    """Return the quantization step [R] of each component of U that costs a mean squared error of 1e-3 (range 2).

    Noise of variance s^2 on a component raises the squared error of the frames by S s^2, and quantization with a step d
    is noise of variance d^2 / 12; equal errors of all components spread a given error best (Gersho and Gray 1992,
    section 8.3).

    Args:
        models: the networks, trained.
        frames: [N, 3, H, W] to measure S on.
        seed: of the noise.
    """
    generator, noise = models.generator, torch.Generator().manual_seed(seed)
    u, v = models.encoder(frames)
    norm_rank = generator.settings.norm_rank

    def render(u: Tensor) -> Tensor:
        return generator.generate(generator.space.compose(u, v, norm_rank)).float()

    clean = render(u)
    rates = []
    for component in range(u.shape[-1]):
        spread = u[..., component].std() / 5
        noisy = u.clone()
        noisy[..., component] += (spread * torch.randn(u.shape[:2], generator=noise)).to(u.device)
        rates.append((render(noisy) - clean).square().mean() / spread.square())
    return torch.sqrt(12 * _STEP_ERROR / torch.stack(rates))
