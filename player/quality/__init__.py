"""Quality of rendered frames against the original: PSNR, MS-SSIM, SSIMULACRA 2, FLIP, LPIPS and an
estimate of it, frame by frame.

No network used here may appear in a training or fitting loss (docs/metrics.md says why).
"""

from player.quality.base import Metric, QualityError
from player.quality.loading import METRIC_NAMES, METRIC_PLUGINS, known_metrics, load_metrics
from player.quality.severity import SEVERE_DISTORTION, SevereDistortion, severely_distorted_share
from player.quality.weights import MissingWeightsError

__all__ = [
    "METRIC_NAMES",
    "METRIC_PLUGINS",
    "SEVERE_DISTORTION",
    "Metric",
    "MissingWeightsError",
    "QualityError",
    "SevereDistortion",
    "known_metrics",
    "load_metrics",
    "severely_distorted_share",
]
