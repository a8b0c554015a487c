"""SSIMULACRA 2.1 as its C++ reference computes it, for batches of frames.

Source: `ssimulacra2.cc` and `gauss_blur.cc` of libjxl (Jon Sneyers, Cloudinary; version 2.1 of April 2023),
https://github.com/cloudinary/ssimulacra2. The PyPI package `ssimulacra2` 0.3.0 differs from it in the blur: it mirrors
the picture across two of the four borders, where the reference continues it with zeros on all four, and its kernel is
a plain Gaussian; scores move by up to six points. The tests show agreement to 1e-3 once the package is given the
reference's blur.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from player.quality.base import as_device, check_frames, linear_from_srgb, moments, score_in_batches

MINIMUM_SIDE = 113
"""px; smaller frames have fewer than six scales, and the reference then pairs the weights with the wrong terms."""

_SCALES = 6
_C2 = 0.0009
_OPSIN_ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
_OPSIN_BIAS = 0.0037930732552754493
_BLUR_SIGMA = 1.5  # px

# Of structure, artefacts and lost detail; one row per component, scale (1:1 first) and norm (1-norm, then 4-norm).
_WEIGHTS = (
    # X
    (0.0, 0.0007376606707406586, 0.0),
    (0.0, 0.0007793481682867309, 0.0),
    (0.0, 0.0004371155730107379, 0.0),
    (1.1041726426657346, 0.00066284834129271, 0.00015231632783718752),
    (0.0, 0.0016406437456599754, 0.0),
    (1.8422455520539298, 11.441172603757666, 0.0),
    (0.0007989109436015163, 0.000176816438078653, 0.0),
    (1.8787594979546387, 10.94906990605142, 0.0),
    (0.0007289346991508072, 0.9677937080626833, 0.0),
    (0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053),
    (0.0004550992113792063, 0.0, 0.0),
    (0.0013648766163243398, 0.0, 0.0),
    # Y
    (0.0, 0.0, 0.0),
    (7.466890328078848, 0.0, 17.445833984131262),
    (0.0006235601634041466, 0.0, 0.0),
    (6.683678146179332, 0.00037724407979611296, 1.027889937768264),
    (225.20515300849274, 0.0, 0.0),
    (19.213238186143016, 0.0011401524586618361, 0.001237755635509985),
    (176.39317598450694, 0.0, 0.0),
    (24.43300999870476, 0.28520802612117757, 0.0004485436923833408),
    (0.0, 0.0, 0.0),
    (34.77906344483772, 44.835625328877896, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
    # B - Y
    (0.0, 0.0008680556573291698, 0.0),
    (0.0, 0.0, 0.0),
    (0.0, 0.0005313191874358747, 0.0),
    (0.00016533814161379112, 0.0, 0.0),
    (0.0, 0.0, 0.0),
    (0.0004179171803251336, 0.0017290828234722833, 0.0),
    (0.0020827005846636437, 0.0, 0.0),
    (8.826982764996862, 23.19243343998926, 0.0),
    (95.1080498811086, 0.9863978034400682, 0.9834382792465353),
    (0.0012286405048278493, 171.2667255897307, 0.9807858872435379),
    (0.0, 0.0, 0.0),
    (0.0005130064588990679, 0.0, 0.00010854057858411537),
)


def blur_kernel() -> np.ndarray:
    """Return the reference's 9-tap blur, float64, summing to 1.

    It is the impulse response of the recursive filter in `gauss_blur.cc`, "Recursive Implementation of the Gaussian
    Filter Using Truncated Cosine Functions" (Charalampidis 2016), whose equation numbers are given. The outermost of
    its taps, at the radius itself, are zero.
    """
    radius = round(3.2795 * _BLUR_SIGMA + 0.2546)  # (57)
    omega = np.array([1, 3, 5]) * math.pi / (2 * radius)
    sign = np.array([1, -1, 1])
    p = sign / np.tan(0.5 * omega)  # (37)
    r = sign * p**2 / np.sin(omega)  # (44)
    rho = np.exp(-0.5 * _BLUR_SIGMA**2 * omega**2) / radius  # (50)
    determinant = p[0] * r[1] - r[0] * p[1]  # (52)
    zeta_15 = (p[1] * r[2] - r[1] * p[2]) / determinant
    zeta_35 = (p[2] * r[0] - r[2] * p[0]) / determinant
    system = np.array([p, r, [zeta_15, zeta_35, 1.0]])  # (56)
    gamma = [1.0, radius**2 - _BLUR_SIGMA**2, zeta_15 * rho[0] + zeta_35 * rho[1] + rho[2]]  # (55)
    beta = np.linalg.solve(system, gamma)  # (53)
    offsets = np.arange(-radius + 1, radius)
    return (beta[:, None] * np.cos(omega[:, None] * offsets)).sum(axis=0)


def _halve(image: torch.Tensor) -> torch.Tensor:
    """Average blocks of 2x2 of [3, H, W, B], repeating the last row or column of an odd side."""
    if image.shape[1] % 2:
        image = torch.cat((image, image[:, -1:]), dim=1)
    if image.shape[2] % 2:
        image = torch.cat((image, image[:, :, -1:]), dim=2)
    rows = image[:, 0::2] + image[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]).mul_(0.25)


def _positive_xyb(linear: torch.Tensor) -> torch.Tensor:
    """Return X, Y, B - Y, each scaled to about 0..1, as [H, W, 3, B], of linear RGB [3, H, W, B]."""
    bias_root = _OPSIN_BIAS ** (1 / 3)
    long, medium, short = (
        (red * linear[0]).add_(linear[1], alpha=green).add_(linear[2], alpha=blue).add_(_OPSIN_BIAS).pow_(1 / 3)
        for red, green, blue in _OPSIN_ABSORBANCE
    )
    y = (long + medium).mul_(0.5).sub_(bias_root)
    _, height, width, frames = linear.shape
    xyb = linear.new_empty(height, width, 3, frames)
    xyb[:, :, 0] = (long - medium).mul_(7.0).add_(0.42)
    xyb[:, :, 1] = y + 0.01
    xyb[:, :, 2] = short.sub_(bias_root).sub_(y).add_(0.55)
    return xyb


def _norms(error: torch.Tensor) -> torch.Tensor:
    """Return the 1-norm and the 4-norm over the pixels, float64 [2, C], of an error map [H, W, C]."""
    pixels = error.flatten(0, 1)
    average = pixels.new_full((1, len(pixels)), 1.0 / len(pixels))  # as a matrix product: sums over rows are slow
    mean = (average @ pixels)[0].double()
    return torch.stack((mean, (average @ pixels.square().square_())[0].double().pow_(0.25)))


def _scale_norms(reference: torch.Tensor, distorted: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return the six numbers of one scale per component, float64 [6, 3, B], of two [H, W, 3, B] in positive XYB."""
    a, b = reference.flatten(2), distorted.flatten(2)
    local = moments(a, b, kernel, c2=_C2, padding=kernel.numel() // 2)
    # The reference's 1 - (1 - d^2) cov / (cov + var), with d the difference of means and var that of the difference.
    total = local.covariance + local.difference_variance
    structure = local.mean_difference.square().mul_(local.covariance).add_(local.difference_variance).div_(total)

    edges_a = (a - local.mean_a).abs_()
    edges_b = (b - local.mean_a).add_(local.mean_difference).abs_()
    edges = edges_b.sub_(edges_a).div_(edges_a.add_(1.0))
    maps = (structure.clamp_(min=0.0), edges.clamp(min=0.0), edges.neg_().clamp_(min=0.0))
    norms = torch.stack([_norms(error) for error in maps], dim=1)  # [norm, map, 3 B]
    return norms.flatten(0, 1).unflatten(1, (3, -1))


def _pooled(norms: torch.Tensor) -> torch.Tensor:
    """Return the scores [B] of all norms, float64 [scales, 6, 3, B]."""
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64, device=norms.device).view(3, _SCALES, 6)
    error = torch.einsum("csn,sncb->b", weights, norms).mul_(0.9562382616834844)
    error = 2.326765642916932 * error - 0.020884521182843837 * error**2 + 6.248496625763138e-05 * error**3
    return 100.0 - 10.0 * error.clamp(min=0.0) ** 0.6276336467831387


class Ssimulacra2:
    """SSIMULACRA 2.1: 100 is lossless, 90 visually lossless, 50 medium, 10 very low; there is no lower bound."""

    name = "ssimulacra2"
    higher_is_better = True
    minimum_side = MINIMUM_SIDE

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self._device = as_device(device)
        self._linear = torch.from_numpy(linear_from_srgb()).to(self._device)
        self._kernel = torch.from_numpy(blur_kernel().astype(np.float32)).to(self._device)

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the score of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks of sRGB; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device)

    def _scores(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        pair = [self._linear[frames.permute(3, 1, 2, 0).int()] for frames in (reference, distorted)]  # [3, H, W, B]
        norms = []
        for scale in range(_SCALES):
            if scale:
                pair = [_halve(image) for image in pair]
            norms.append(_scale_norms(_positive_xyb(pair[0]), _positive_xyb(pair[1]), self._kernel))
        return _pooled(torch.stack(norms))
