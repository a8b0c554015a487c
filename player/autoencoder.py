"""The embedded model's autoencoder: a small convolutional encoder and decoder, 16 pixels a latent cell.

Written as diffusers models, so that they save and load in diffusers layout beside a `UNet2DConditionModel`. The shape
follows AutoencoderTiny (residual blocks without normalisation at the bottom, learned upsampling on the way out), with
widths that fall as the resolution rises because `AutoencoderTiny` itself keeps one width at every resolution, which
costs 4.8 GFLOP a layer at 256x256.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

PIXELS_PER_CELL = 16


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip, the second starting at zero so that depth costs nothing at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        return x + self.conv2(nn.functional.silu(self.conv1(nn.functional.silu(x))))


def _stack(channels: int, blocks: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(blocks)]


class LatentEncoder(ModelMixin, ConfigMixin):
    """Frames [N, 3, H, W] in [-1, 1] -> latents [N, C, H/16, W/16] of about unit variance per channel.

    The latent's variance is normalised by a batch normalisation without affine part, so `latent_channels` maps share
    one scale and one quantization step fits them all.
    """

    @register_to_config
    def __init__(
        self, latent_channels: int = 16, widths: Sequence[int] = (64, 96, 128), blocks: Sequence[int] = (1, 2, 2)
    ) -> None:
        super().__init__()
        w4, w8, w16 = widths
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),  # [N, 48, H/4, W/4]
            nn.Conv2d(48, w4, 3, padding=1),
            *_stack(w4, blocks[0]),
            nn.Conv2d(w4, w8, 4, stride=2, padding=1),
            *_stack(w8, blocks[1]),
            nn.Conv2d(w8, w16, 4, stride=2, padding=1),
            *_stack(w16, blocks[2]),
            nn.SiLU(),
            nn.Conv2d(w16, latent_channels, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames [N, 3, H, W] in [-1, 1] to latents [N, C, H/16, W/16]."""
        return self.norm(self.body(frames).float())

    @torch.no_grad()
    def fold_normalisation(self) -> None:
        """Move the running mean and variance into the last convolution; the latents stay the same.

        Nothing bounds the scale before the normalisation: in training the variance grows to 10^7, which float16
        cannot hold.
        """
        last = self.body[-1]
        mean, variance = self.norm.running_mean, self.norm.running_var
        scale = torch.rsqrt(variance + self.norm.eps)
        last.weight.mul_(scale[:, None, None, None])
        last.bias.sub_(mean).mul_(scale)
        mean.zero_()
        variance.fill_(1 - self.norm.eps)


class LatentDecoder(ModelMixin, ConfigMixin):
    """Latents [N, C, h, w] -> frames [N, 3, 16 h, 16 w], nominally in [-1, 1]."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        widths: Sequence[int] = (128, 96, 40, 24),
        blocks: Sequence[int] = (3, 2, 1, 1),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
        for width, following, count in zip(widths, [*widths[1:], None], blocks, strict=True):
            layers += _stack(width, count)
            if following is not None:  # each stage doubles the resolution
                layers += [nn.Conv2d(width, 4 * following, 1), nn.PixelShuffle(2)]
        layers += [nn.SiLU(), nn.Conv2d(widths[-1], 12, 3, padding=1), nn.PixelShuffle(2)]
        self.body = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [N, C, h, w] to frames [N, 3, 16 h, 16 w]."""
        return self.body(latents)


def count_parameters(module: nn.Module) -> int:
    """Return the number of learned values of a module."""
    return sum(p.numel() for p in module.parameters())


def grid_sinusoids(channels: int, height: int, width: int) -> Tensor:
    """Return [channels, height, width] 2-D sinusoids: where each cell lies, in a form attention can match.

    A quarter of the channels each for sin and cos over rows and over columns, wavelengths from 4 cells geometrically
    up to twice the grid, as in Vaswani et al. 2017, section 3.5, laid out in two dimensions.
    """
    if channels % 4:
        raise ValueError(f"{channels} channels do not divide into 4 groups of sinusoids")
    count = channels // 4
    longest = 2.0 * max(height, width)
    wavelength = 4.0 * (longest / 4.0) ** (torch.arange(count) / max(1, count - 1))
    rows = torch.arange(height)[:, None] * (2 * torch.pi / wavelength)  # [h, count]
    columns = torch.arange(width)[:, None] * (2 * torch.pi / wavelength)  # [w, count]
    row_part = torch.cat([rows.sin(), rows.cos()], dim=1).T[:, :, None].expand(-1, -1, width)
    column_part = torch.cat([columns.sin(), columns.cos()], dim=1).T[:, None, :].expand(-1, height, -1)
    return torch.cat([row_part, column_part]).contiguous()
