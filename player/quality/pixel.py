"""PSNR and multi-scale SSIM, computed for batches of frames on sRGB values as they are."""

from __future__ import annotations

import numpy as np
import torch

from player.quality.base import as_device, check_frames, moments, score_in_batches

PSNR_CAP_DB = 100.0
"""dB; what identical frames score, so that means stay finite. One code value off in one sample of a 2160p frame
gives 122 dB; everything above the cap is reported as the cap."""


class Psnr:
    """Peak signal-to-noise ratio over all samples of an RGB frame, in dB, peak 255, at most PSNR_CAP_DB."""

    name = "psnr_db"
    higher_is_better = True
    minimum_side = 1

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self._device = as_device(device)

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the PSNR of each frame, float64 [T] in dB, of two uint8 [T, H, W, 3] stacks; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device)

    @staticmethod
    def _scores(reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        difference = reference.flatten(1).short().sub_(distorted.flatten(1)).int()
        squared_error = difference.square_().sum(dim=1).double() / difference.shape[1]  # exact: integers up to here
        floor = 255.0**2 * 10.0 ** (-PSNR_CAP_DB / 10.0)
        return 10.0 * torch.log10(255.0**2 / squared_error.clamp(min=floor))


class MsSsim:
    """Multi-scale SSIM (Wang, Simoncelli and Bovik 2003) of each colour channel, averaged over the three; 1 is equal.

    Five scales with the paper's exponents, an 11-tap Gaussian window of 1.5 px, only windows that lie inside the
    picture, 2x2 averages between scales (an odd last row or column is dropped), negative terms set to zero. This is
    what TensorFlow's `ssim_multiscale` and the package `pytorch-msssim` compute, hence what papers on learned codecs
    report; `torchmetrics` pads the coarsest scale by mirroring and pools the channels before the product, and so
    gives other numbers.
    """

    name = "ms_ssim"
    higher_is_better = True
    minimum_side = 176  # px; the coarsest scale, a sixteenth, must hold the window of 11 px

    _EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    _C1 = 0.01**2  # of a peak of 1
    _C2 = 0.03**2

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self._device = as_device(device)
        taps = torch.arange(-5, 6, dtype=torch.float64)
        window = torch.exp(-(taps**2) / (2 * 1.5**2))
        self._window = (window / window.sum()).to(self._device, torch.float32)

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the MS-SSIM of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks; raise QualityError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        return score_in_batches(self._scores, reference, distorted, device=self._device)

    def _scores(self, reference: torch.Tensor, distorted: torch.Tensor) -> torch.Tensor:
        frames = len(reference)
        a, b = (x.permute(1, 2, 3, 0).flatten(2).float().div_(255.0) for x in (reference, distorted))  # [H, W, 3 B]
        product = torch.ones(3 * frames, dtype=torch.float64, device=self._device)
        last = len(self._EXPONENTS) - 1
        for scale, exponent in enumerate(self._EXPONENTS):
            if scale:
                a, b = _halve(a), _halve(b)
            local = moments(a, b, self._window, c2=self._C2, padding=0)
            term = local.covariance / (local.covariance + local.difference_variance)
            if scale == last:
                mean_b = local.mean_a - local.mean_difference
                luminance = (local.mean_a * mean_b).mul_(2.0).add_(self._C1)
                term.mul_(luminance).div_(luminance + local.mean_difference.square())
            product *= term.double().mean(dim=(0, 1)).clamp_(min=0.0) ** exponent
        return product.view(3, frames).mean(dim=0)


def _halve(image: torch.Tensor) -> torch.Tensor:
    """Average blocks of 2x2 of [H, W, C], dropping the last row or column of an odd side."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    rows = image[0:height:2, :width] + image[1:height:2, :width]
    return (rows[:, 0::2] + rows[:, 1::2]).mul_(0.25)
