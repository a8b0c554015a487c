"""Which frames count as severely distorted: one threshold per metric, with its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from player.quality.base import QualityError


@dataclass(frozen=True)
class SevereDistortion:
    """From where on a score means a severely distorted frame."""

    threshold: float
    higher_is_better: bool
    source: str


_PROMPTUS = (
    "Promptus (Wu et al., AAAI 2026, section 4.2; arXiv 2405.20032) counts frames with LPIPS higher than 0.32, "
    "measured with the VGG backbone (its generation.py)"
)

SEVERE_DISTORTION = {
    "lpips_vgg": SevereDistortion(0.32, False, _PROMPTUS),
    "lpips_alex": SevereDistortion(0.32, False, f"carried over from lpips_vgg: {_PROMPTUS}"),
    "lpips_squeeze": SevereDistortion(0.32, False, f"carried over from lpips_vgg: {_PROMPTUS}"),
    "lpips_embedded": SevereDistortion(
        0.32, False, f"that of lpips_squeeze, whose scores it estimates; carried over from lpips_vgg: {_PROMPTUS}"
    ),
    "ssimulacra2": SevereDistortion(
        10.0, True, "SSIMULACRA 2's README: 10 is very low quality, 'bad' in a BT.500 test, very annoying artefacts"
    ),
    "psnr_db": SevereDistortion(
        20.0, True, "EvalVid (Klaue, Rathke and Wolisz, TOOLS 2003), table of PSNR to MOS: below 20 dB is 'bad'"
    ),
}
"""By metric name. MS-SSIM and FLIP are absent: no published scale says which of their values are bad."""


def severely_distorted_share(scores: ArrayLike, metric_name: str, *, threshold: float | None = None) -> float:
    """Return the share, in [0, 1], of frames whose score is strictly worse than the metric's threshold.

    Args:
        scores: one score per frame, any shape, at least one, no NaN.
        metric_name: a key of SEVERE_DISTORTION.
        threshold: used instead of the table's, in the metric's own unit.

    Raises:
        QualityError: no scores, a NaN, or a metric without a published threshold.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        raise QualityError(f"{metric_name}: a share needs at least one score and no NaN, got {values.size} scores")
    if metric_name not in SEVERE_DISTORTION:
        known = ", ".join(sorted(SEVERE_DISTORTION))
        raise QualityError(f"{metric_name}: no published threshold of severe distortion, expected one of {known}")
    severe = SEVERE_DISTORTION[metric_name]
    limit = severe.threshold if threshold is None else threshold
    return float(np.mean(values < limit if severe.higher_is_better else values > limit))
