"""FLIP for pictures of low dynamic range, for batches of frames.

Source: Andersson, Nilsson, Akenine-Möller, Oskarsson, Åström, Fairchild: FLIP: A difference evaluator for alternating
images. Proceedings of the ACM on Computer Graphics and Interactive Techniques 3(2), HPG 2020; numbers of sections are
that paper's. The sums of Gaussians are filtered one axis after the other, as in the authors' own version 1.7 (the
package `flip-evaluator`), with which the tests show agreement to 1e-5.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from player.quality.base import as_device, check_frames, linear_from_srgb, score_in_batches

PIXELS_PER_DEGREE = 0.7 * 3840 / 0.7 * math.pi / 180
"""The authors' default viewer: 0.7 m before a screen 0.7 m and 3840 pixels wide."""

# sRGB's primaries and white (D65), linear RGB to XYZ; each row over its sum gives XYZ relative to white.
_XYZ_FROM_RGB = (
    (10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794),
    (2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897),
    (1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382),
)
# Contrast sensitivity in space (4.1.1): sums of Gaussians a sqrt(pi / b) exp(-pi^2 x^2 / b), x in degrees, as (a, b).
_ACHROMATIC, _RED_GREEN = (1.0, 0.0047), (1.0, 0.0053)
_BLUE_YELLOW = ((34.1, 0.04), (13.5, 0.025))
_COLOUR_EXPONENT = 0.7  # qc of 4.1.4
_KNEE, _KNEE_VALUE = 0.4, 0.95  # pc, pt of 4.1.4: where small differences end, and what that is mapped to
_FEATURE_WIDTH_DEG = 0.082  # w of 4.2: of an edge or a point
_FEATURE_EXPONENT = 0.5  # qf of 4.2


def spatial_kernels() -> np.ndarray:
    """Return the contrast-sensitivity filters, float64 [4, taps]: achromatic, red-green, and two for blue-yellow.

    Filtering along both axes with each row, and adding the last two results, is the paper's filter.
    """
    widest = max(b for _, b in (_ACHROMATIC, _RED_GREEN, *_BLUE_YELLOW))
    radius = math.ceil(3 * math.sqrt(widest / (2 * math.pi**2)) * PIXELS_PER_DEGREE)
    squares = (np.arange(-radius, radius + 1) / PIXELS_PER_DEGREE) ** 2
    single = [np.exp(-(math.pi**2) * squares / b) for _, b in (_ACHROMATIC, _RED_GREEN)]
    double = [math.sqrt(a * math.sqrt(math.pi / b)) * np.exp(-(math.pi**2) * squares / b) for a, b in _BLUE_YELLOW]
    norm = math.hypot(*(row.sum() for row in double))
    return np.stack([*(row / row.sum() for row in single), *(row / norm for row in double)])


def feature_kernels() -> np.ndarray:
    """Return a Gaussian and its first two derivatives, float64 [3, taps]; positive and negative weights of the
    derivatives sum to 1 and -1."""
    deviation = 0.5 * _FEATURE_WIDTH_DEG * PIXELS_PER_DEGREE
    radius = math.ceil(3 * deviation)
    x = np.arange(-radius, radius + 1)
    gaussian = np.exp(-(x**2) / (2 * deviation**2))
    derivatives = [-x * gaussian, (x**2 / deviation**2 - 1) * gaussian]
    rows = [np.where(row > 0, row / row[row > 0].sum(), row / -row[row < 0].sum()) for row in derivatives]
    return np.stack([gaussian / gaussian.sum(), *rows])


def _filter(image: torch.Tensor, kernels: torch.Tensor, *, along_width: bool) -> torch.Tensor:
    """Filter each plane of [1, C, H, W] with n kernels [C, n, taps] along one axis, the borders repeated; returns
    [1, C n, H, W], the n results of a plane side by side."""
    channels, count, taps = kernels.shape
    half = taps // 2
    padded = functional.pad(image, (half, half, 0, 0) if along_width else (0, 0, half, half), mode="replicate")
    weights = kernels.reshape(channels * count, 1, *((1, taps) if along_width else (taps, 1)))
    return functional.conv2d(padded.contiguous(memory_format=torch.channels_last), weights, groups=channels)


class Flip:
    """Mean FLIP of a frame: 0 is equal, 1 is as different as colours can be.

    It foresees what a viewer notices who flips between the two frames in place: differences of colour after the eye's
    filtering, made larger where edges and points differ.
    """

    name = "flip"
    higher_is_better = False
    minimum_side = 1

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self._device = as_device(device)
        matrix = np.array(_XYZ_FROM_RGB)
        matrix /= matrix.sum(axis=1, keepdims=True)
        self._linear = torch.from_numpy(linear_from_srgb()).to(self._device)
        self._xyz, self._rgb, self._spatial, self._features = (
            torch.from_numpy(array.astype(np.float32)).to(self._device)
            for array in (matrix, np.linalg.inv(matrix), spatial_kernels(), feature_kernels())
        )
        green, blue = self._hunt_lab(torch.eye(3, device=self._device)[1:].T[:, :, None, None]).unbind(1)
        self._largest = float(_hyab(green, blue)) ** _COLOUR_EXPONENT

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the FLIP of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks of sRGB; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device)

    def _scores(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        codes = torch.cat([reference, distorted]).permute(3, 0, 1, 2)  # [3, 2 B, H, W]
        xyz = torch.einsum("ij,jnhw->inhw", self._xyz, self._linear[codes.int()])
        colour = self._colour_difference(xyz)
        # Edges and points make a difference of colour more visible, not visible (4.3).
        return colour.pow(1 - self._feature_difference(xyz[1])).double().mean(dim=(1, 2))

    def _colour_difference(self, xyz: torch.Tensor) -> torch.Tensor:
        """Return the difference of colours in [0, 1], [B, H, W], of XYZ [3, 2 B, H, W], references first."""
        x, y, z = xyz
        # The opponent colours YCxCz but for scales and an offset, which the filters, linear and of sum 1, leave alone.
        planes = torch.cat([y, x - y, y - z, y - z])[None]  # [1, 8 B, H, W]
        kernels = self._spatial.repeat_interleave(len(y), dim=0)[:, None]
        filtered = _filter(_filter(planes, kernels, along_width=True), kernels, along_width=False)[0]
        y, cx, cz, cz_narrow = filtered.unflatten(0, (4, -1))
        seen = torch.stack([y + cx, y, y - cz - cz_narrow])
        rgb = torch.einsum("ij,jnhw->inhw", self._rgb, seen).clamp_(0, 1)
        difference = _hyab(*self._hunt_lab(rgb).chunk(2, dim=1)).pow_(_COLOUR_EXPONENT)
        knee = _KNEE * self._largest
        return torch.where(
            difference < knee,
            difference * (_KNEE_VALUE / knee),
            _KNEE_VALUE + (difference - knee) * ((1 - _KNEE_VALUE) / (self._largest - knee)),
        )

    def _hunt_lab(self, rgb: torch.Tensor) -> torch.Tensor:
        """Return CIELAB [3, N, H, W] of linear RGB, chroma scaled by lightness (the Hunt effect, 4.1.3)."""
        ratio = torch.einsum("ij,jnhw->inhw", self._xyz, rgb)
        low = 6 / 29
        root = torch.where(ratio > low**3, ratio.clamp(min=0).pow(1 / 3), ratio / (3 * low**2) + 4 / 29)
        lightness = 116 * root[1] - 16
        a, b = 5 * (root[0] - root[1]), 2 * (root[1] - root[2])  # a hundredth of CIELAB's
        return torch.stack([lightness, lightness * a, lightness * b])

    def _feature_difference(self, y: torch.Tensor) -> torch.Tensor:
        """Return the difference of edges and points in [0, 1], [B, H, W], of luminance [2 B, H, W]."""
        count = len(y)
        rows = _filter(y[None], self._features.expand(count, -1, -1), along_width=True)[0].unflatten(0, (count, 3))
        across = _filter(
            rows[:, 1:].flatten(0, 1)[None], self._features[:1].expand(2 * count, -1, -1), along_width=False
        )
        down = _filter(rows[:, 0][None], self._features[1:].expand(count, -1, -1), along_width=False)
        strength = torch.hypot(across, down)[0].unflatten(0, (count, 2))  # of edges, of points
        reference, distorted = strength.chunk(2)
        return (reference - distorted).abs().amax(dim=1).div_(math.sqrt(2)).pow_(_FEATURE_EXPONENT)


def _hyab(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the HyAB distance of two [3, ...] in a Lab space (Abasi et al. 2020): city block in L, Euclid in a, b."""
    difference = a - b
    return difference[0].abs() + torch.hypot(difference[1], difference[2])
