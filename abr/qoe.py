"""Quality of experience as controllers plan it: utility per segment, less rebuffering, less switching. No I/O.

Yin et al., "A Control-Theoretic Approach for Dynamic Adaptive Video Streaming over HTTP", SIGCOMM 2015, Section 3, and
Pensieve (Mao et al., SIGCOMM 2017), Section 5.1: over K segments with utilities q_k,

    QoE = sum q_k  -  mu * rebuffered seconds  -  lambda * sum |q_{k+1} - q_k|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abr.base import Ladder, check_positive
from abr.errors import OptionError

UTILITIES = ("linear", "log", "hd", "quality", "log_quality")
_HD_SCORES = (1.0, 2.0, 3.0, 12.0, 15.0, 20.0)  # Pensieve's QoE_hd, one per representation of its ladder
_HD_REBUFFERING = 8.0


@dataclass(frozen=True, eq=False)
class Qoe:
    """What a plan is worth, for one ladder."""

    utility: NDArray[np.float64]
    """[S, R] utility of each segment, in units of 1 / `unit`."""
    unit: float
    """What utilities are divided by: sums of whole bit/s stay exact until then, so that equal plans tie."""
    rebuffering: float
    """mu: what one second of rebuffering costs, > 0."""
    switching: float
    """lambda: what a change of utility by one costs, >= 0."""


def create_qoe(
    ladder: Ladder, utility: str = "linear", *, rebuffering: float | None = None, switching: float = 1.0
) -> Qoe:
    """Build the QoE that `utility` names for a ladder.

    - linear: bitrate in Mbit/s; log: ln(bitrate / lowest); hd: Pensieve's scores for six representations.
    - quality: the measured quality of each segment, mapped linearly so that the worst of the lowest representation is 0
      and the best segment is 1, whichever way the metric points (see `oriented_quality`): for a distance such as LPIPS
      it is -LPIPS.
    - log_quality: ln(1 + (e - 1) quality), a concave map of that onto 0 to 1: gains at the bottom count more.

    Args:
        rebuffering: mu. None: the highest utility, which is the papers' rule (4.3 for 4.3 Mbit/s, 2.66 = ln(4300/300)
            for log; 8 for hd), so that it suits a ladder of prompts as well as one of pixels.
        switching: lambda, 1 in both papers.
    Raises:
        OptionError: unknown utility, a weight out of range, no measured quality, or not six representations for hd.
    """
    shape, rates = ladder.segment_bytes.shape, ladder.bitrate_bps
    if utility == "linear":
        table, unit = np.broadcast_to(rates, shape), 1e6
    elif utility == "log":
        table, unit = np.broadcast_to(np.log(rates / rates[0]), shape), 1.0
    elif utility == "hd":
        if ladder.representations != len(_HD_SCORES):
            raise OptionError(
                f"utility hd is defined for {len(_HD_SCORES)} representations, not {ladder.representations}"
            )
        table, unit = np.broadcast_to(np.array(_HD_SCORES), shape), 1.0
    elif utility == "quality":
        table, unit = scaled_quality(ladder), 1.0
    elif utility == "log_quality":
        table, unit = concave_quality(ladder), 1.0
    else:
        raise OptionError(f"unknown utility {utility!r}; known: {', '.join(UTILITIES)}")
    if not (np.isfinite(switching) and switching >= 0):
        raise OptionError(f"switching must be 0 or more, not {switching:g}")
    if rebuffering is None:
        rebuffering = _HD_REBUFFERING if utility == "hd" else float(table.max()) / unit or 1.0
    return Qoe(table, unit, check_positive("rebuffering", rebuffering), float(switching))


def oriented_quality(ladder: Ladder) -> NDArray[np.float64]:
    """Return the measured quality [S, R] with the sign by which more is better; OptionError if none was measured.

    A ladder does not say whether its metric is a similarity or a distance. Spending more bits improves the mean over
    the programme, so the highest representation's mean against the lowest one's tells.
    """
    if ladder.quality is None:
        raise OptionError("the ladder holds no measured quality, which this controller's utility is made of")
    if not np.all(np.isfinite(ladder.quality)):
        raise OptionError("the ladder's measured quality holds values that are not finite")
    mean = ladder.quality.mean(axis=0)
    return ladder.quality if mean[-1] >= mean[0] else -ladder.quality


def scaled_quality(ladder: Ladder) -> NDArray[np.float64]:
    """Return the measured quality [S, R] on a scale from 0, the worst at the lowest representation, to 1, the best."""
    quality = oriented_quality(ladder)
    worst, best = float(quality[:, 0].min()), float(quality.max())
    return np.clip((quality - worst) / (best - worst), 0.0, 1.0) if best > worst else np.zeros_like(quality)


def concave_quality(ladder: Ladder) -> NDArray[np.float64]:
    """Return ln(1 + (e - 1) q) of `scaled_quality` [S, R], from 0 to 1."""
    return np.log1p((math.e - 1) * scaled_quality(ladder))
