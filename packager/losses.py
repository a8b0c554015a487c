"""What fitting and training minimise: pixel terms and a multi-scale structural term, never a reported network.

LPIPS and SSIMULACRA2 are measured, so nothing here may look at them: descent on a perceptual network finds its holes
(docs/metrics.md gives the numbers).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Rec. 601 luma of RGB; structure is judged on luma, colour by the pixel term.
_LUMA = (0.299, 0.587, 0.114)
# Wang et al. 2003 stabilisers (K1 = 0.01, K2 = 0.03) for a range of 2, our frames being in [-1, 1].
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def luma(frames: Tensor) -> Tensor:
    """Return the luma [N, 1, H, W] of RGB frames [N, 3, H, W]."""
    weights = torch.tensor(_LUMA, dtype=frames.dtype, device=frames.device).view(1, 3, 1, 1)
    return (frames * weights).sum(dim=1, keepdim=True)


def structural_similarity(a: Tensor, b: Tensor, window: int = 8, stride: int = 4) -> Tensor:
    """Return the mean SSIM [N] of luma planes [N, 1, H, W] in [-1, 1] over uniform windows.

    Wang et al. 2004 with a uniform 8x8 window at stride 4 (their first form, before the Gaussian), since average
    pooling costs a tenth of a Gaussian filter on a CPU and its gradient is as useful. The window is a multiple of the
    stride: it is put together from squares of the stride's side, each summed once.
    """
    a, b = a + 1, b + 1  # the luminance term is defined for intensities, which are not negative
    planes = torch.cat([a, b, a * a, b * b, a * b], dim=1)  # [N, 5, H, W]
    squares = functional.avg_pool2d(planes, stride)
    mean_a, mean_b, aa, bb, ab = functional.avg_pool2d(squares, window // stride, 1).unbind(dim=1)
    variance_a, variance_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    score = ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / (
        (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    )
    return score.mean(dim=(1, 2))


def frame_loss(output: Tensor, target: Tensor, structure_weight: float = 0.3, scales: int = 3) -> Tensor:
    """Return the loss [N] of each frame: mean absolute error + structure_weight * (1 - SSIM), over `scales` octaves.

    Args:
        output, target: [N, 3, H, W] in [-1, 1].
        structure_weight: weight of the structural term against the mean absolute error (range 2).
        scales: number of dyadic scales, each with equal weight; coarse scales keep colour and layout, which a
            full-resolution term alone leaves to chance early on.
    """
    loss = output.new_zeros(output.shape[0])
    for scale in range(scales):
        if scale:
            output, target = functional.avg_pool2d(output, 2), functional.avg_pool2d(target, 2)
        loss = loss + (output - target).abs().mean(dim=(1, 2, 3))
        loss = loss + structure_weight * (1 - structural_similarity(luma(output), luma(target)))
    return loss / scales


def sequence_rate(u: Tensor, grid: tuple[int, int], step: float) -> Tensor:
    """Return a smooth estimate of the bits a value of the key prompts U [K, L, R] of one segment costs.

    As `rate_estimate`, with two differences that matter to a fit: the key prompt before is a predictor too, so still
    content can be sent as a repetition, and the logarithm is taken of every value, so its slope is steepest where a
    residual is about to vanish.

    Args:
        u: prompts of the K key frames, in time order.
        grid: as in `rate_estimate`.
        step: quantization step.
    """
    residuals = [u]
    if grid[0]:
        maps = u.transpose(1, 2).unflatten(2, grid)  # [K, R, h, w]
        west, north = functional.pad(maps, (1, 0))[..., :-1], functional.pad(maps, (0, 0, 1, 0))[..., :-1, :]
        spatial = [maps - west, maps - north, maps - (west + north) / 2]
        residuals += [x.flatten(2).transpose(1, 2) for x in spatial]
    bits = [torch.log2(1 + 2 * x.abs() / step).mean(dim=1) for x in residuals]  # [K, R] each
    best = torch.stack(bits).amin(dim=0)
    if len(u) > 1:
        temporal = torch.log2(1 + 2 * u.diff(dim=0).abs() / step).mean(dim=1)  # [K - 1, R]
        best = torch.cat([best[:1], torch.minimum(best[1:], temporal)])
    return best.mean()


def motion_rate(motion: Tensor, step: float) -> Tensor:
    """Return a smooth estimate of the bits a value of motion [n, 2, rows, columns] costs, as its residuals to the
    vector on the left, above or in the field before: of each field and direction what costs least."""
    west, north = functional.pad(motion, (1, 0))[..., :-1], functional.pad(motion, (0, 0, 1, 0))[..., :-1, :]
    before = torch.cat([torch.zeros_like(motion[:1]), motion[:-1]])
    bits = [torch.log2(1 + 2 * (motion - near).abs() / step).mean(dim=(2, 3)) for near in (west, north, before)]
    return torch.stack(bits).amin(dim=0).mean()


def rate_estimate(u: Tensor, grid: tuple[int, int], step: float) -> Tensor:
    """Return a smooth estimate of the bits a value of U [N, L, R] costs under the bitstream's predictors.

    log2(1 + 2 mean|x| / step) of each component, about the entropy of a Laplacian quantized with `step`; x is the
    values or their differences to the left or upper cell, whichever is least.

    Args:
        u: prompts of N key frames.
        grid: rows and columns that the L tokens are laid out in; (0, 0) without a layout.
        step: quantization step.
    """
    magnitude = u.abs().mean(dim=1)  # [N, R]
    if grid[0]:
        maps = u.transpose(1, 2).unflatten(2, grid)  # [N, R, h, w]
        across, down = maps.diff(dim=3).abs().mean(dim=(2, 3)), maps.diff(dim=2).abs().mean(dim=(2, 3))
        magnitude = torch.minimum(magnitude, torch.minimum(across, down))
    return torch.log2(1 + 2 * magnitude / step).mean()
