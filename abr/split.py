"""Throughput and latency measured apart, and two rules that use both: fitting a download into time, and into buffer.

Spiteri, Sitaraman, Sparacio, "From Theory to Practice: Improving Bitrate Adaptation in the DASH Reference Player",
MMSys 2018, and their simulator Sabre. A transfer of S bits gives throughput S / (last byte - first byte) and latency
first byte - request; transfers that were cut short give nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abr.base import Ladder, ThroughputSample, check_positive
from abr.errors import OptionError
from abr.path import PathModel
from abr.throughput import (
    FAST_HALF_LIFE_S,
    HISTORY,
    SLOW_HALF_LIFE_S,
    NaiveEstimator,
    RateEstimate,
    SlowStartEstimator,
)

SIZES = ("segment", "nominal")
"""What a rule takes as the size of a segment: its real one, or average bitrate x duration (Sabre, dash.js)."""
FIRST_SHARE, LEAST_SHARE = 0.9, 0.5
"""Share of the buffered time that a download may take under the insufficient-buffer rule: at first, and in the end."""
_LEAST_S = 1e-6
"""Times below a link's microsecond count as one."""


@dataclass(frozen=True)
class SplitEstimate(RateEstimate):
    """A rate and a latency that simply add up."""

    def predict_transfer_s(self, size_bytes: float) -> float:
        """Predict latency + size / rate."""
        return self.rtt_s + 8 * size_bytes / self.rate_bps


class SplitEstimator:
    """Sabre's estimates of throughput and latency: the pessimistic one of several means of each.

    "ewma": exponentially weighted means with half-lives of 3 s and 8 s of download time (latency: each sample counts as
    one segment's duration), each divided by 1 - 0.5^(weight so far / half-life); "sliding": the plain mean of the
    last `window` samples. It remembers what it has seen, so that it is not limited to the observation's history.
    """

    def __init__(
        self,
        segment_s: float,
        *,
        mean: str = "ewma",
        window: int = 3,
        half_lives_s: tuple[float, ...] = (FAST_HALF_LIFE_S, SLOW_HALF_LIFE_S),
        weight: float = 1.0,
    ) -> None:
        """Args: segment_s: a segment's duration. weight: seconds of weight for each second (dash.js: 1.5)."""
        if mean not in ("ewma", "sliding"):
            raise OptionError(f"unknown mean {mean!r}; known: ewma, sliding")
        if not 1 <= window <= HISTORY:
            raise OptionError(f"window must be in 1..{HISTORY} transfers, not {window}")
        self._mean, self._window, self._weight = mean, window, check_positive("weight", weight)
        self._segment_s = check_positive("segment_s", segment_s)
        self._rates = [_Ewma(half_life_s) for half_life_s in half_lives_s]
        self._latencies = [_Ewma(half_life_s) for half_life_s in half_lives_s]
        self._recent: list[tuple[float, float]] = []
        self._seen_s = -np.inf

    def estimate(self, samples: Sequence[ThroughputSample], now_s: float) -> RateEstimate | None:
        """See `abr.throughput.Estimator`."""
        new = list(itertools.takewhile(lambda sample: sample.finish_s > self._seen_s, reversed(samples)))
        for sample in reversed(new):
            if sample.complete:
                self._push(sample)
            self._seen_s = sample.finish_s
        if not self._recent:
            return None
        if self._mean == "sliding":
            recent = self._recent[-self._window :]
            rate_bps = sum(rate for rate, _ in recent) / len(recent)
            latency_s = sum(latency for _, latency in recent) / len(recent)
        else:
            rate_bps = min(mean.value for mean in self._rates)
            latency_s = max(mean.value for mean in self._latencies)
        return SplitEstimate(rate_bps, False, latency_s, PathModel().initial_window_packets, PathModel())

    def _push(self, sample: ThroughputSample) -> None:
        spent_s = max(sample.finish_s - sample.first_byte_s, _LEAST_S)
        rate_bps, latency_s = 8 * sample.size_bytes / spent_s, sample.first_byte_s - sample.request_s
        self._recent = [*self._recent, (rate_bps, latency_s)][-HISTORY:]
        for mean in self._rates:
            mean.push(rate_bps, self._weight * spent_s)
        for mean in self._latencies:
            mean.push(latency_s, self._segment_s)


class _Ewma:
    """An exponentially weighted mean, corrected for its start from nothing."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = check_positive("half_life_s", half_life_s)
        self._sum = self._weight_s = 0.0

    def push(self, value: float, weight_s: float) -> None:
        """Take in a value that held for `weight_s`."""
        keep = 0.5 ** (weight_s / self._half_life_s)
        self._sum = keep * self._sum + (1 - keep) * value
        self._weight_s += weight_s

    @property
    def value(self) -> float:
        """The mean."""
        return self._sum / (1 - 0.5 ** (self._weight_s / self._half_life_s))


def rule_estimator(
    name: str, ladder: Ladder, *, window: int = 3
) -> SplitEstimator | SlowStartEstimator | NaiveEstimator:
    """Build an estimator for a rule that takes any: split, sliding (split with a plain mean), slow_start, naive."""
    segment_s = float(ladder.segment_duration_s.max())
    if name == "split":
        return SplitEstimator(segment_s)
    if name == "sliding":
        return SplitEstimator(segment_s, mean="sliding", window=window)
    if name == "slow_start":
        return SlowStartEstimator(mean="ewma")
    if name == "naive":
        return NaiveEstimator(mean="ewma")
    raise OptionError(f"unknown estimator {name!r}; known: naive, slow_start, sliding, split")


def rule_sizes(ladder: Ladder, segment: int, kind: str) -> NDArray[np.float64]:
    """Return the sizes [R] in bytes by which a rule judges a segment; `kind` is one of `SIZES`."""
    if kind == "nominal":
        return ladder.bitrate_bps * (float(ladder.segment_duration_s[segment]) / 8)
    return ladder.segment_bytes[segment].astype(np.float64)


def check_sizes(kind: str) -> str:
    """Return `kind` if it is one of `SIZES`."""
    if kind not in SIZES:
        raise OptionError(f"unknown sizes {kind!r}; known: {', '.join(SIZES)}")
    return kind


def highest_in_time(sizes: NDArray[np.float64], estimate: RateEstimate, limit_s: float, *, safety: float = 1.0) -> int:
    """Return the highest representation up to which every download takes at most `limit_s` at `safety` of the rate."""
    if safety != 1.0:
        estimate = dataclasses.replace(estimate, rate_bps=safety * estimate.rate_bps)
    choice = 0
    while choice + 1 < len(sizes) and estimate.predict_transfer_s(sizes[choice + 1]) <= limit_s:
        choice += 1
    return choice


class InsufficientBuffer:
    """The insufficient-buffer rule of the MMSys paper: a download must end well before the buffer does.

    A representation is allowed if its bits <= f (Q - latency) x rate. f starts at 0.9 and falls by a tenth with each
    decision to 0.5: early on the buffer cannot be large yet.
    """

    def __init__(self) -> None:
        self._share = FIRST_SHARE

    def limit(self, choice: int, sizes: NDArray[np.float64], estimate: RateEstimate, buffer_s: float) -> int:
        """Return `choice`, or the highest representation below it up to which all are allowed."""
        safe_bytes = self._share * (buffer_s - estimate.rtt_s) * estimate.rate_bps / 8
        self._share = max(self._share * FIRST_SHARE, LEAST_SHARE)
        return next((index for index in range(choice) if sizes[index + 1] > safe_bytes), choice)
