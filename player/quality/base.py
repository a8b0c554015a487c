"""What every per-frame metric shares: the protocol, the check of its input, and the cutting into batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from player.errors import PlayerError

_BATCH_PIXELS = 8 * 256 * 256  # measured at once: enough to fill vector units, in 140 MB

BatchScores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores [B] of a batch of references and distorted frames, both uint8 [B, H, W, 3] on the metric's device."""


class QualityError(PlayerError, ValueError):
    """Frames that a metric cannot compare, or a metric nobody knows."""


@runtime_checkable
class Metric(Protocol):
    """A full-reference measure of single frames."""

    name: str
    higher_is_better: bool
    minimum_side: int  # px; smaller frames are refused

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return one score per frame, float64 [T], of two uint8 [T, H, W, 3] RGB stacks; raise QualityError."""
        ...


def check_frames(reference: np.ndarray, distorted: np.ndarray, *, name: str, minimum_side: int) -> None:
    """Raise QualityError unless both are uint8 [T, H, W, 3] of one shape, at least `minimum_side` pixels a side."""
    for role, frames in (("reference", reference), ("distorted", distorted)):
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
            found = getattr(frames, "dtype", type(frames).__name__)
            raise QualityError(f"{name}: {role} frames are {found}, expected a uint8 array")
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise QualityError(f"{name}: {role} frames have shape {list(frames.shape)}, expected [T, H, W, 3]")
    if reference.shape != distorted.shape:
        raise QualityError(
            f"{name}: reference {list(reference.shape)} and distorted {list(distorted.shape)} differ in shape"
        )
    height, width = reference.shape[1:3]
    if min(height, width) < minimum_side:
        raise QualityError(
            f"{name}: frames of {width}x{height} are too small, expected at least {minimum_side} pixels a side"
        )


def score_in_batches(
    scores: BatchScores,
    reference: np.ndarray,
    distorted: np.ndarray,
    *,
    device: torch.device,
    batch_pixels: int = _BATCH_PIXELS,
) -> np.ndarray:
    """Apply `scores` to a few frames at a time, so that memory stays bounded whatever T is; returns float64 [T]."""
    frames, height, width = reference.shape[:3]
    step = max(1, batch_pixels // (height * width))
    result = np.empty(frames, dtype=np.float64)
    with torch.inference_mode(), _full_precision(device):
        for start in range(0, frames, step):
            batch = slice(start, start + step)
            pair = [torch.from_numpy(np.ascontiguousarray(f[batch])).to(device) for f in (reference, distorted)]
            result[batch] = scores(*pair).to("cpu", torch.float64).numpy()
    return result


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Keep cuDNN from rounding factors to TF32's 10 bits, its default, which shows in these scores' third digit."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def linear_from_srgb() -> np.ndarray:
    """Return the linear value in [0, 1] of each sRGB code, float32 [256]."""
    code = np.arange(256) / 255.0
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)


def separable_blur(planes: torch.Tensor, kernel: torch.Tensor, *, padding: int) -> torch.Tensor:
    """Filter each plane of [H, W, C] with a 1-D kernel along both axes, over `padding` zeros at each border.

    The planes are the channels of one channels-last image: on a CPU that is over ten times faster than a batch of
    single-channel images.
    """
    channels, taps = planes.shape[-1], kernel.numel()
    image = planes[None].permute(0, 3, 1, 2)  # [1, C, H, W], channels last in memory
    along_width = kernel.view(1, 1, 1, taps).expand(channels, 1, 1, taps)
    along_height = kernel.view(1, 1, taps, 1).expand(channels, 1, taps, 1)
    image = torch.nn.functional.conv2d(image, along_width, padding=(0, padding), groups=channels)
    image = torch.nn.functional.conv2d(image, along_height, padding=(padding, 0), groups=channels)
    return image.permute(0, 2, 3, 1)[0]  # [H', W', C]


@dataclass(frozen=True)
class Moments:
    """Local first and second moments of two pictures a and b and of their difference, each [H', W', C].

    SSIM's contrast and structure term is `covariance / (covariance + difference_variance)` once its constant is in
    `covariance`. Written so, float32 does: nothing is subtracted that a small distortion would drown in, and equal
    pictures give exactly one.
    """

    mean_a: torch.Tensor
    mean_difference: torch.Tensor  # mean_a - mean_b
    covariance: torch.Tensor  # 2 (E[ab] - E[a] E[b]) + c2
    difference_variance: torch.Tensor  # E[(a - b)^2] - E[a - b]^2, at least 0


def moments(a: torch.Tensor, b: torch.Tensor, kernel: torch.Tensor, *, c2: float, padding: int) -> Moments:
    """Return the moments of a and b [H, W, C] under a separable window, over `padding` zeros at each border."""
    height, width, channels = a.shape
    stack = a.new_empty(height, width, 4, channels)
    stack[:, :, 0] = a
    torch.sub(a, b, out=stack[:, :, 1])
    torch.mul(a, b, out=stack[:, :, 2])
    torch.mul(stack[:, :, 1], stack[:, :, 1], out=stack[:, :, 3])
    blurred = separable_blur(stack.flatten(2), kernel, padding=padding)
    mean_a, mean_d, product, square = blurred.unflatten(2, (4, channels)).unbind(2)
    mean_b = mean_a - mean_d
    return Moments(
        mean_a=mean_a,
        mean_difference=mean_d,
        covariance=torch.addcmul(product, mean_a, mean_b, value=-1).mul_(2.0).add_(c2),
        difference_variance=torch.addcmul(square, mean_d, mean_d, value=-1).clamp_(min=0.0),
    )


def as_device(device: str | torch.device) -> torch.device:
    """Return the torch device of that name; "auto" is a CUDA device where there is one, else the CPU."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise QualityError(f"device {device!r} is unknown, expected auto, cpu or cuda") from error
