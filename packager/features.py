"""The feature network: what a fit compares pictures by beside their pixels, so that texture counts, not only averages.

Trained here for the purpose (experiments/train_features.py), to tell sources, distortions and their strength, and which
pictures belong together. No reported metric knows it, and it knows none of them (docs/metrics.md).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from packager.errors import PackagerError

WEIGHTS_FILE = Path(__file__).parent / "weights" / "features.safetensors"
WIDTHS = (24, 32, 64, 96, 128)
"""Channels at the full, a half, a quarter, an eighth and a sixteenth of the side."""
_WINDOW_SHARE = 0.75  # of each side of the frames, that a step of a descent compares
_FLOOR = 1e-4  # of a feature vector's squared length: flat places have no direction to compare


class FeatureNetwork(nn.Module):
    """Convolutions at five scales; between them averages, not strides, which would not see patterns finer than they."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = WIDTHS
        self.stages = nn.ModuleList([_layers(3, first)])
        for width in rest:
            self.stages.append(
                nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), _layers(first, width), _layers(width, width))
            )
            first = width

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return features [N, C, h, w] of frames [N, 3, H, W] in [-1, 1], from a half of their side downwards."""
        found = []
        for stage in self.stages:
            frames = stage(frames)
            found.append(frames)
        return found[1:]


def _layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def feature_distance(
    network: FeatureNetwork, output: Tensor, target: Tensor, windows: torch.Generator | None = None
) -> Tensor:
    """Return how far frames are apart [N]: squared differences of features of unit length, over places and scales.

    The form is that of LPIPS (Zhang et al. 2018), without its weights or any other network's.

    Args:
        network: whose features count.
        output, target: [N, 3, H, W] in [-1, 1].
        windows: what the random window is drawn from that alone is compared; None: whole frames.
    """
    if windows is not None:
        height, width = output.shape[2:]
        rows, columns = random_window(height, width, windows)
        output, target = output[..., rows, columns], target[..., rows, columns]
    distances = []
    with torch.no_grad():
        wanted = [_directions(features) for features in network(target)]
    for features, want in zip(network(output), wanted, strict=True):
        distances.append((_directions(features) - want).square().sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(distances).sum(dim=0)


def _directions(features: Tensor) -> Tensor:
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + _FLOOR)


def random_window(height: int, width: int, source: torch.Generator) -> tuple[slice, slice]:
    """Return rows and columns of a random window, three quarters of each side wide.

    A fit that looks through another window each step cannot count on where a network's grid lies.
    """
    sides = [max(1, min(side, round(_WINDOW_SHARE * side))) for side in (height, width)]
    starts = [
        int(torch.randint(side - own + 1, (), generator=source))
        for side, own in zip((height, width), sides, strict=True)
    ]
    rows, columns = (slice(start, start + own) for start, own in zip(starts, sides, strict=True))
    return rows, columns


def save_features(network: FeatureNetwork, path: Path) -> None:
    """Write the network's weights in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}, path)


@cache
def load_features(device: torch.device, path: Path = WEIGHTS_FILE) -> FeatureNetwork:
    """Return the shipped network, frozen, on a device; raise PackagerError if its file is missing or another's."""
    network = FeatureNetwork()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise PackagerError(f"{path}: the feature network cannot be loaded ({str(error).splitlines()[0]})") from error
    network.eval()
    for layers in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        if isinstance(layers[0], nn.Conv2d) and isinstance(layers[1], nn.BatchNorm2d):
            layers[0], layers[1] = fuse_conv_bn_eval(layers[0], layers[1]), nn.Identity()  # a sixth of the time
    return network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
