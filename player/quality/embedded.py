"""lpips-embedded: a small network of this project's own, trained to give the scores of LPIPS with SqueezeNet.

It is always there, where LPIPS' published backbones may not be shipped; it estimates LPIPS and is never called LPIPS.
The network has LPIPS' form (Zhang et al. 2018, arXiv 1801.03924: features of unit length, squared differences,
nonnegative heads) and SqueezeNet's geometry at a part of its width, so that its taps lie where the teacher's do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from player.errors import WeightsError
from player.quality.base import as_device, check_frames, score_in_batches
from player.quality.lpips import Fire, distance_maps, sum_of_means

TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Layers of `EmbeddedNetwork.features` that are compared: the teacher's."""
MINIMUM_SIDE = 64
"""px; agreement with the teacher was not measured below."""
WEIGHTS_FILE = Path(__file__).parents[1] / "weights" / "lpips_embedded" / "lpips_embedded.safetensors"

_BATCH_PIXELS = 2 * 256 * 256  # as LPIPS: larger batches spend their time in page faults


class EmbeddedNetwork(nn.Module):
    """Features and heads of lpips-embedded; 0.48 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(32, 12, 32),
            Fire(64, 12, 32),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 24, 64),
            Fire(128, 24, 64),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 48, 128),
            Fire(256, 48, 128),
            Fire(256, 64, 192),
            Fire(384, 64, 192),
        )
        channels = (32, 64, 128, 256, 256, 384, 384)
        self.heads = nn.ParameterList(nn.Parameter(torch.full((1, c, 1, 1), 0.3)) for c in channels)

    def tap_maps(self, reference: torch.Tensor, distorted: torch.Tensor) -> list[torch.Tensor]:
        """Return the distance at every place of every tap, float [B, 1, h, w] each, of frames [B, 3, H, W] in [-1, 1].

        Differentiable, for this network's own training; what measures is `forward`.
        """
        # squaring keeps the heads nonnegative: no difference may ever lower the distance
        heads = [head.square() for head in self.heads]
        return distance_maps(torch.cat((reference, distorted)), self.features, TAPS, heads)

    @torch.no_grad()
    def forward(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        """Return the distances [B] of two batches of frames, float32 [B, 3, H, W] in [-1, 1].

        No gradient passes: what is reported is never fitted to (docs/metrics.md).
        """
        return sum_of_means(self.tap_maps(reference, distorted))


def save_network(network: EmbeddedNetwork, path: Path) -> None:
    """Write the weights as float16 safetensors."""
    save_file({name: value.detach().half().contiguous().cpu() for name, value in network.state_dict().items()}, path)


def load_network(path: Path = WEIGHTS_FILE) -> EmbeddedNetwork:
    """Return the network, weights widened to float32; raise WeightsError for a file that does not hold them."""
    try:
        state = load_file(path)
        network = EmbeddedNetwork()
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path}: no weights of lpips-embedded ({str(error).splitlines()[0]})") from error
    return network.requires_grad_(False).eval()


class EmbeddedLpips:
    """A distance, 0 is equal: an estimate of LPIPS with SqueezeNet. Labelled lpips-embedded, never LPIPS."""

    name = "lpips_embedded"
    higher_is_better = False
    minimum_side = MINIMUM_SIDE

    def __init__(self, *, device: str | torch.device = "cpu", network: EmbeddedNetwork | None = None) -> None:
        self._device = as_device(device)
        self._network = (network or load_network()).to(self._device, memory_format=torch.channels_last)

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the distance of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device, batch_pixels=_BATCH_PIXELS)

    def _scores(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        pair = (frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0) for frames in (reference, distorted))
        return self._network(*pair)
