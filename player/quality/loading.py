"""Metrics by name, and the default set: everything this machine can measure."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from player.quality.base import Metric, QualityError
from player.quality.embedded import EmbeddedLpips
from player.quality.flip import Flip
from player.quality.lpips import BACKBONES, Lpips
from player.quality.pixel import MsSsim, Psnr
from player.quality.plugins import MetricPlugins
from player.quality.ssimulacra2 import Ssimulacra2
from player.quality.weights import MissingWeightsError, load_lpips_network

log = logging.getLogger(__name__)

AUTO = "auto"

_AUTO = (Psnr, MsSsim, Ssimulacra2)
_WEIGHT_FREE = {metric.name: metric for metric in (*_AUTO, Flip)}
_LPIPS = {f"lpips_{net}": net for net in BACKBONES}

METRIC_NAMES = (*_WEIGHT_FREE, *_LPIPS, EmbeddedLpips.name)
"""Every built-in metric, in the order in which tables show them."""
METRIC_PLUGINS = MetricPlugins(frozenset((AUTO, *METRIC_NAMES)))


def known_metrics() -> list[str]:
    """Return the names of all metrics: the built-in ones, then those of installed packages in alphabetical order."""
    return [*METRIC_NAMES, *METRIC_PLUGINS.names()]


def load_metrics(
    names: Sequence[str] | str = "auto",
    *,
    weights_dir: Path | None = None,
    device: str = "cpu",
    frame_size: tuple[int, int] | None = None,
    download: bool = True,
) -> list[Metric]:
    """Return metrics ready to be called on frames.

    Args:
        names: known names, or "auto": psnr_db, ms_ssim, ssimulacra2 and the first LPIPS whose weights can be had
            (squeeze, alex, vgg; only squeeze is downloaded for "auto", 5 MB), else lpips_embedded, which is said once.
            In a list "auto" stands for these. flip, which costs as much as the other three together, and metrics of
            other packages are measured where they are named.
        weights_dir: where LPIPS' weights lie; without it the folder that PROMPTDASH_WEIGHTS names.
        device: auto, cpu, cuda or any torch device.
        frame_size: (height, width) in px of the frames to come. "auto" then leaves out, with a warning, what cannot
            measure frames so small; a metric asked for by name is refused.
        download: whether missing weights may be downloaded. Without network this costs four seconds, once.

    Raises:
        QualityError: an unknown or repeated name, or frames too small for a metric asked for by name.
        PluginError: a metric of another package that is broken.
        WeightsError: weights asked for by name cannot be had, or any weights found are damaged.
    """
    if isinstance(names, str):
        names = [names]
    for name in names:
        if name != AUTO and name not in METRIC_NAMES and name not in METRIC_PLUGINS.names():
            raise QualityError(f"metric {name!r} is unknown, expected auto or some of {', '.join(known_metrics())}")
    if len(set(names)) != len(names):
        raise QualityError(f"metrics {', '.join(names)}: one is named twice")
    metrics: list[Metric] = []
    for name in names:
        if name == AUTO:
            default: list[Metric] = [metric(device=device) for metric in _AUTO]
            default.append(_first_lpips(weights_dir, device, download=download))
            metrics += [metric for metric in default if _fits(metric, frame_size)]
            continue
        metrics.append(_load(name, weights_dir, device, download=download))
        if frame_size is not None and min(frame_size) < metrics[-1].minimum_side:
            raise QualityError(_too_small(metrics[-1], frame_size))
    if len({metric.name for metric in metrics}) != len(metrics):
        raise QualityError(f"metrics {', '.join(names)}: auto measures one of them already")
    return metrics


def _load(name: str, weights_dir: Path | None, device: str, *, download: bool) -> Metric:
    if name in _WEIGHT_FREE:
        return _WEIGHT_FREE[name](device=device)
    if name == EmbeddedLpips.name:
        return EmbeddedLpips(device=device)
    if name not in _LPIPS:
        return METRIC_PLUGINS.load(name, device=device)
    net = _LPIPS[name]
    return Lpips(net, load_lpips_network(net, weights_dir=weights_dir, download=download), device=device)


def _first_lpips(weights_dir: Path | None, device: str, *, download: bool) -> Metric:
    """Return the first LPIPS to be had, else lpips-embedded and say so once; damaged weights are an error."""
    misses = []
    for name, net in _LPIPS.items():
        try:
            return _load(name, weights_dir, device, download=download and net == "squeeze")
        except MissingWeightsError as error:
            misses.append(str(error))
    _warn_once(
        "perceptual quality is measured by lpips-embedded, this project's own estimate of LPIPS (SqueezeNet), not by "
        f"LPIPS itself: {misses[0]}"
    )
    return EmbeddedLpips(device=device)


def _fits(metric: Metric, frame_size: tuple[int, int] | None) -> bool:
    if frame_size is None or min(frame_size) >= metric.minimum_side:
        return True
    _warn_once(f"{metric.name} is not measured: {_too_small(metric, frame_size)}")
    return False


def _too_small(metric: Metric, frame_size: tuple[int, int]) -> str:
    height, width = frame_size
    return f"frames of {width}x{height} are below the {metric.minimum_side} pixels a side that {metric.name} needs"


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, once per process and message: sets of metrics are loaded again and again."""
    log.warning("%s", message)
