"""LPIPS v0.1 as published (Zhang et al. 2018, arXiv 1801.03924), with its three backbones.

Source: https://github.com/richzhang/PerceptualSimilarity (package `lpips` 0.1.4), which these scores reproduce. The
backbones are written here, layer for layer under torchvision's names, so that torchvision need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from player.quality.base import as_device, check_frames, score_in_batches

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_BATCH_PIXELS = 2 * 256 * 256  # larger batches spend their time in page faults: intermediates pass 32 MB


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 squeeze, then 1x1 and 3x3 filters side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.squeeze(x))
        return torch.relu_(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


def _squeezenet() -> list[nn.Module]:
    """Layers 0..12 of torchvision's `squeezenet1_1().features`."""
    return [
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    ]


def _alexnet() -> list[nn.Module]:
    """Layers 0..11 of torchvision's `alexnet().features`."""
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    ]


def _vgg16() -> list[nn.Module]:
    """Layers 0..29 of torchvision's `vgg16().features`."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (depth, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return layers


@dataclass(frozen=True)
class Backbone:
    """One of the published feature networks, and where LPIPS reads it."""

    taps: tuple[int, ...]  # layers whose output is compared
    channels: tuple[int, ...]  # of each tap
    minimum_side: int  # px; below it the deepest tap is empty

    def layers(self) -> list[nn.Module]:
        """Build the layers up to the last tap, with random weights."""
        return {13: _squeezenet, 12: _alexnet, 30: _vgg16}[self.taps[-1] + 1]()


BACKBONES = {
    "squeeze": Backbone((1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512), 17),
    "alex": Backbone((1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "vgg": Backbone((3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
}
"""By LPIPS' name of the network: SqueezeNet 1.1, AlexNet, VGG-16."""


def distance_maps(
    pair: torch.Tensor, layers: Iterable[nn.Module], taps: Sequence[int], heads: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the distances [B, 1, h, w] at the taps of a backbone, for `pair` [2 B, 3, H, W], reference first.

    At every place: features of unit length over channels, squared differences, summed under the head [1, C, 1, 1].
    """
    x = pair.contiguous(memory_format=torch.channels_last)
    maps: list[torch.Tensor] = []
    for index, layer in enumerate(layers):
        x = layer(x)
        if index == taps[len(maps)]:
            features = x.float()
            a, b = (features * (features.norm(dim=1, keepdim=True) + _EPSILON).reciprocal()).chunk(2)
            maps.append(torch.nn.functional.conv2d((a - b).square(), heads[len(maps)]))
    return maps


def sum_of_means(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the scores [B] of maps [B, 1, h, w]: each averaged over its places, then summed."""
    return torch.stack([tap.mean(dim=(1, 2, 3)) for tap in maps]).sum(dim=0)


class LpipsNetwork(nn.Module):
    """Backbone and heads; `state_dict` has `features.*` under torchvision's names and `lin0`.. [1, C, 1, 1]."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self._backbone = BACKBONES[net]
        self.features = nn.Sequential(*self._backbone.layers())
        for index, channels in enumerate(self._backbone.channels):
            self.register_parameter(f"lin{index}", nn.Parameter(torch.zeros(1, channels, 1, 1)))
        # Derived from the module's fixed constants, not weights: kept out of the state dict.
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def tap_maps(self, reference: torch.Tensor, distorted: torch.Tensor) -> list[torch.Tensor]:
        """Return the distance at every place of every tap, [B, 1, h, w] each, of frames [B, 3, H, W] in [-1, 1].

        Differentiable in the frames. For studies of the metric itself; what measures is `forward`.
        """
        pair = (torch.cat((reference, distorted)) - self.shift) / self.scale
        heads = [getattr(self, f"lin{tap}") for tap in range(len(self._backbone.taps))]
        return distance_maps(pair, self.features, self._backbone.taps, heads)

    @torch.no_grad()
    def forward(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        """Return the distances [B] of two batches of frames, float32 [B, 3, H, W] in [-1, 1].

        No gradient passes: what is reported is never fitted to (docs/metrics.md).
        """
        return sum_of_means(self.tap_maps(reference, distorted))


class Lpips:
    """Learned perceptual image patch similarity, a distance: 0 is equal. Named `lpips_` and the backbone."""

    higher_is_better = False

    def __init__(self, net: str, network: LpipsNetwork, *, device: str | torch.device = "cpu") -> None:
        self.name = f"lpips_{net}"
        self.minimum_side = BACKBONES[net].minimum_side
        self._device = as_device(device)
        self._network = network.to(self._device, memory_format=torch.channels_last)

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the distance of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device, batch_pixels=_BATCH_PIXELS)

    def _scores(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        pair = (frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0) for frames in (reference, distorted))
        return self._network(*pair)
