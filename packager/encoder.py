"""The amortised encoder: one pass from a frame to a prompt, where the fit starts."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from packager.errors import PackagerError
from player.autoencoder import LatentEncoder, ResidualBlock
from player.generator import Generator
from player.model_files import cast


class PromptHead(ModelMixin, ConfigMixin):
    """Latents [N, C, h, w] -> U [N, h*w, R] and V [N, R, D] (a change to the generator's dictionary)."""

    @register_to_config
    def __init__(self, latent_channels: int = 16, hidden: int = 96, blocks: int = 2, rank: int = 16, width: int = 128):
        super().__init__()
        self.direct = nn.Conv2d(latent_channels, rank, 1)
        self.features = nn.Sequential(
            nn.Conv2d(latent_channels, hidden, 3, padding=1), *(ResidualBlock(hidden) for _ in range(blocks)), nn.SiLU()
        )
        self.maps = nn.Conv2d(hidden, rank, 3, padding=1)
        self.change = nn.Linear(hidden, rank * width)
        for layer in (self.maps, self.change):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return u [N, L, R], v [N, R, D] of latents [N, C, h, w]."""
        features = self.features(latents)
        u = (self.direct(latents) + self.maps(features)).flatten(2).transpose(1, 2)  # [N, L, R]
        v = self.change(features.mean(dim=(2, 3))).unflatten(1, (self.config["rank"], self.config["width"]))
        return u, v


class PromptEncoder(nn.Module):
    """Frames [N, 3, H, W] in [-1, 1] -> prompts, by the autoencoder's encoder and a prompt head."""

    def __init__(self, latents: LatentEncoder, head: PromptHead) -> None:
        super().__init__()
        self.latents = latents
        self.head = head

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return u [N, L, R], v [N, R, D]."""
        return self.head(self.latents(frames))

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write both parts below a folder in diffusers layout."""
        for name, part in (("latent_encoder", self.latents), ("prompt_head", self.head)):
            cast(part, dtype).save_pretrained(folder / name)
            part.float()


def load_encoder(generator: Generator) -> PromptEncoder | None:
    """Return the encoder that was trained with a generator, or None for a generator that has none (SD-Turbo)."""
    if generator.folder is None or not (generator.folder / "encoder").is_dir():
        return None
    folder = generator.folder / "encoder"
    # without the last, diffusers asks for the accelerate package, which nothing here needs
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    try:
        latents = LatentEncoder.from_pretrained(folder / "latent_encoder", **options)
        head = PromptHead.from_pretrained(folder / "prompt_head", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise PackagerError(f"{folder}: the encoder cannot be loaded: {str(error).splitlines()[0]}") from error
    return PromptEncoder(latents, head).to(generator.device).eval()
