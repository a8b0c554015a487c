"""Estimates of the link's rate from transfers, and the rules that choose by them.

Two ways to read a transfer: `SlowStartEstimator` takes round trips and slow start out of it (`abr.path`),
`NaiveEstimator` divides bytes by time as most players do. Either pools transfers by a harmonic mean over the last few
or by a fast and a slow exponentially weighted mean. Pure functions of the observation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, ThroughputSample, check_fraction, check_positive
from abr.errors import OptionError
from abr.path import PathModel, SpreadEvidence, split_spread, spread_s, undivided, window_after

HISTORY = 20
"""Transfers an estimator looks back on, as many as dash.js keeps."""
FAST_HALF_LIFE_S, SLOW_HALF_LIFE_S = 3.0, 8.0
"""Half-lives of dash.js's and Sabre's two means."""
NOISE_RATIO = 0.5
"""A rate is called measured if the uncertainty of its busy time is at most this share of it; else it is a bound."""


@dataclass(frozen=True)
class RateEstimate:
    """What is believed of the link and of the connection."""

    rate_bps: float
    """Payload bit/s the link delivers, > 0."""
    is_bound: bool
    """True if the transfers were too small to measure it: the link does at least `rate_bps`, perhaps far more."""
    rtt_s: float
    """Seconds from a request to its first byte; 0 if the estimator folds it into the rate."""
    window_packets: int
    """Packets that the next answer may start with."""
    path: PathModel

    def predict_transfer_s(self, size_bytes: float) -> float:
        """Predict the seconds from request to last byte of an object: round trip, slow start, serialisation."""
        if self.rtt_s == 0:
            return 8 * size_bytes / self.rate_bps
        whole, window = math.ceil(size_bytes), self.window_packets
        spread = spread_s(self.path, whole, window_packets=window, rtt_s=self.rtt_s, rate_bps=self.rate_bps)
        return self.rtt_s + spread


class Estimator(Protocol):
    """Turns the latest transfers into a belief about the link."""

    def estimate(self, samples: Sequence[ThroughputSample], now_s: float) -> RateEstimate | None:
        """Return the belief at `now_s`, or None before the first transfer. Samples: oldest first."""
        ...


class SlowStartEstimator:
    """Rate = bits that crossed the link / time the link was busy with them, round trips and slow start taken out.

    Means: "harmonic" pools the last `window` transfers (a harmonic mean of their rates weighted by their bits, so that
    a transfer counts by what it tells); "ewma" does so twice over the last 20, halving a transfer's weight every
    half-life of *session* time, and takes the lower. (dash.js counts half-lives in download time; objects that take
    milliseconds would never age.)
    """

    def __init__(
        self,
        path: PathModel | None = None,
        *,
        mean: str = "harmonic",
        window: int = 5,
        fast_half_life_s: float = FAST_HALF_LIFE_S,
        slow_half_life_s: float = SLOW_HALF_LIFE_S,
    ) -> None:
        self.path = path or PathModel()
        self._mean = _Mean(mean, window, fast_half_life_s, slow_half_life_s)

    def estimate(self, samples: Sequence[ThroughputSample], now_s: float) -> RateEstimate | None:
        """See `Estimator`."""
        recent = samples[-HISTORY:]
        if not recent:
            return None
        trips = _RoundTrips(recent)
        evidence, window = self._evidence(recent, trips, first=self._mean.first(len(recent)))
        if now_s - recent[-1].finish_s > self.path.idle_restart_s:
            window = self.path.initial_window_packets
        rate_bps, is_bound = _pool(evidence, self._mean.weights_of(recent))
        if rate_bps == 0:  # nothing but lone packets: one packet came within the first-byte time
            rate_bps, is_bound = 8 * recent[-1].size_bytes / max(trips.least_s, self.path.resolution_s), True
        return RateEstimate(rate_bps, is_bound, trips.typical_s, window, self.path)

    def evidence(self, samples: Sequence[ThroughputSample]) -> list[SpreadEvidence]:
        """Return what each transfer alone says of the link, for logs and tests."""
        if not samples:
            return []
        return self._evidence(samples, _RoundTrips(samples), first=0)[0]

    def _evidence(
        self, samples: Sequence[ThroughputSample], trips: _RoundTrips, *, first: int
    ) -> tuple[list[SpreadEvidence], int]:
        """Return the evidence of each transfer from the one at `first` on, and the congestion window after the last."""
        path, evidence = self.path, []
        start = first  # of the stretch without idle times that holds the first: the window is known there
        while start > 0 and samples[start].request_s - samples[start - 1].finish_s <= path.idle_restart_s:
            start -= 1
        sizes = [sample.size_bytes for sample in samples[start:first]]
        window = window_after(path, *sizes, window_packets=path.initial_window_packets)
        before_s = samples[first].request_s
        header_bytes, mss_bytes, least_s = path.header_bytes, path.mss_bytes, trips.least_s
        for sample in samples[first:]:
            if sample.request_s - before_s > path.idle_restart_s:
                window = path.initial_window_packets
            size_bytes, spread_s = sample.size_bytes, sample.finish_s - sample.first_byte_s
            if size_bytes + header_bytes <= window * mss_bytes:  # one round
                item = undivided(path, size_bytes, spread_s)
            else:
                rtt_s, error_s = trips.typical_s, trips.error_s
                item = split_spread(path, size_bytes, spread_s, window_packets=window, rtt_s=rtt_s, rtt_error_s=error_s)
            late_s = sample.first_byte_s - sample.request_s - least_s
            if late_s > 2 * least_s + 2 * path.resolution_s:
                item = self._with_silence(item, late_s, least_s)
            evidence.append(item)
            window = window_after(path, size_bytes, window_packets=window)
            before_s = sample.finish_s
        return evidence, window

    def _with_silence(self, item: SpreadEvidence, late_s: float, least_s: float) -> SpreadEvidence:
        """Count a first byte that came far too late as an outage: one packet took that long to cross the link.

        Two round trips more than the least may be a handshake (TCP and TLS 1.3) and are no outage, nor is what slow
        packets explain.
        """
        packet_bits = self.path.packet_bits()
        packet_s = packet_bits * max(item.busy_s, 0.0) / item.bits if item.bits else 0.0
        if late_s <= 2 * least_s + 2 * max(packet_s, self.path.resolution_s):
            return item
        return SpreadEvidence(item.bits + packet_bits, max(item.busy_s, 0.0) + late_s, item.noise_s)


class NaiveEstimator:
    """Rate = bytes / (last byte - request), as players measure it; biased low for small objects.

    "harmonic": plain harmonic mean of the last `window` rates (FESTIVE, MPC). "ewma": means weighted by download time
    with half-lives in download time, the lower of the two (dash.js, Sabre).
    """

    def __init__(
        self,
        path: PathModel | None = None,
        *,
        mean: str = "harmonic",
        window: int = 5,
        fast_half_life_s: float = FAST_HALF_LIFE_S,
        slow_half_life_s: float = SLOW_HALF_LIFE_S,
    ) -> None:
        self.path = path or PathModel()
        self._mean = _Mean(mean, window, fast_half_life_s, slow_half_life_s)

    def estimate(self, samples: Sequence[ThroughputSample], now_s: float) -> RateEstimate | None:
        """See `Estimator`."""
        if not samples:
            return None
        recent = samples if self._mean.kind == "ewma" else samples[-self._mean.window :]
        spent_s = np.array([sample.finish_s - sample.request_s for sample in recent])
        spent_s = np.maximum(spent_s, self.path.resolution_s)
        rates_bps = np.array([8 * sample.size_bytes for sample in recent]) / spent_s
        if self._mean.kind == "harmonic":
            rate_bps = len(rates_bps) / float(np.sum(1 / rates_bps))
        else:
            ages_s = np.append(np.cumsum(spent_s[::-1])[::-1][1:], 0.0)  # download seconds since each transfer
            weights = [row * spent_s for row in self._mean.halved(ages_s)]
            rate_bps = min(float(row @ rates_bps / row.sum()) for row in weights)
        return RateEstimate(rate_bps, False, 0.0, self.path.initial_window_packets, self.path)


class RateController:
    """Choose the highest representation whose predicted download takes at most `safety` of the segment's duration.

    The prediction uses the real size of the next segment, the round trip and slow start. With the naive estimator
    this is the classic rule, highest bitrate <= safety * throughput, on the real segment size. Where the estimate is
    only a bound, the bound must not hold quality down: the choice may step one above the last one, whose larger object
    measures more of the link, once the buffer covers the download at the bound or is half full.
    """

    def __init__(self, ladder: Ladder, estimator: Estimator, *, safety: float = 0.9) -> None:
        self.ladder = ladder
        self.estimator = estimator
        self.safety = check_fraction("safety", safety)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        index = observation.segment_index
        limit_s = self.safety * float(self.ladder.segment_duration_s[index])
        times_s = [estimate.predict_transfer_s(size) for size in self.ladder.segment_bytes[index].tolist()]
        choice = max((rep for rep, time_s in enumerate(times_s) if time_s <= limit_s), default=0)
        kind = "at least" if estimate.is_bound else "rate"
        reason = f"{kind} {estimate.rate_bps / 1e3:.0f} kbit/s: {times_s[choice]:.3f} s of {limit_s:.3f} s"
        last = observation.last_representation
        if estimate.is_bound and last is not None and choice <= last < self.ladder.representations - 1:
            half_full = observation.buffer_s >= observation.buffer_capacity_s / 2
            if not observation.playing or half_full or times_s[last + 1] <= observation.buffer_s:
                choice, reason = last + 1, reason + "; rate not identified: one step up"
        return Decision(choice, estimate_bps=estimate.rate_bps, reason=reason)


def harmonic_controller(
    ladder: Ladder, *, buffer_capacity_s: float, safety: float = 0.9, window: int = 5, estimator: str = "slow_start"
) -> RateController:
    """Build `throughput`: the rate rule on a harmonic mean over the last `window` transfers."""
    return RateController(ladder, create_estimator(estimator, mean="harmonic", window=window), safety=safety)


def ewma_controller(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    safety: float = 0.9,
    fast_half_life_s: float = FAST_HALF_LIFE_S,
    slow_half_life_s: float = SLOW_HALF_LIFE_S,
    estimator: str = "slow_start",
) -> RateController:
    """Build `ewma`: the rate rule on the lower of a fast and a slow exponentially weighted mean."""
    chosen = create_estimator(
        estimator, mean="ewma", fast_half_life_s=fast_half_life_s, slow_half_life_s=slow_half_life_s
    )
    return RateController(ladder, chosen, safety=safety)


def create_estimator(
    name: str,
    path: PathModel | None = None,
    *,
    mean: str = "harmonic",
    window: int = 5,
    fast_half_life_s: float = FAST_HALF_LIFE_S,
    slow_half_life_s: float = SLOW_HALF_LIFE_S,
) -> Estimator:
    """Build the estimator called `name`: "slow_start" or "naive"."""
    kinds: dict[str, type[SlowStartEstimator] | type[NaiveEstimator]] = {
        "slow_start": SlowStartEstimator,
        "naive": NaiveEstimator,
    }
    if name not in kinds:
        raise OptionError(f"unknown estimator {name!r}; known: {', '.join(sorted(kinds))}")
    return kinds[name](
        path, mean=mean, window=window, fast_half_life_s=fast_half_life_s, slow_half_life_s=slow_half_life_s
    )


class _RoundTrips:
    """First-byte times of the latest transfers: the usual one, the shortest, and how far they lie from the usual.

    The median (an outage before one first byte must not move it), the minimum, the median deviation. Of two, the lower:
    the first request of a connection waits for the handshake too.
    """

    def __init__(self, samples: Sequence[ThroughputSample]) -> None:
        self._times_s = sorted([sample.first_byte_s - sample.request_s for sample in samples])
        self._middle = (len(self._times_s) - 1) // 2
        self.typical_s, self.least_s = self._times_s[self._middle], self._times_s[0]

    @functools.cached_property
    def error_s(self) -> float:
        """The median deviation; only objects of several rounds need it."""
        return sorted([abs(time_s - self.typical_s) for time_s in self._times_s])[self._middle]


class _Mean:
    """Which transfers count, and how much: one row of weights per mean."""

    def __init__(self, kind: str, window: int, fast_half_life_s: float, slow_half_life_s: float) -> None:
        if kind not in ("harmonic", "ewma"):
            raise OptionError(f"unknown mean {kind!r}; known: ewma, harmonic")
        if not 1 <= window <= HISTORY:
            raise OptionError(f"window must be in 1..{HISTORY} transfers, not {window}")
        self.kind, self.window = kind, window
        self.half_lives_s = (
            check_positive("fast_half_life_s", fast_half_life_s),
            check_positive("slow_half_life_s", slow_half_life_s),
        )
        self._latest = (np.arange(HISTORY) >= HISTORY - window).astype(np.float64)

    def first(self, count: int) -> int:
        """Return the first of `count` transfers that has a weight."""
        return max(count - self.window, 0) if self.kind == "harmonic" else 0

    def weights_of(self, recent: Sequence[ThroughputSample]) -> list[NDArray[np.float64]]:
        """Return the weights of transfers by session time: one row [n] for the harmonic mean, two exponential ones."""
        if self.kind == "harmonic":
            return [self._latest[HISTORY - len(recent) :]]
        # Ages from the latest transfer: only their differences matter, and after a long pause none may underflow to 0.
        return self.halved(np.array([recent[-1].finish_s - sample.finish_s for sample in recent]))

    def halved(self, ages_s: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Return two rows of weights [n] that halve every half-life, a fast and a slow one."""
        return [0.5 ** (ages_s / half_life_s) for half_life_s in self.half_lives_s]


def _pool(evidence: list[SpreadEvidence], rows: list[NDArray[np.float64]]) -> tuple[float, bool]:
    """Return (rate, is it only a lower bound) from the evidence under each row of weights [n]; (0, True) if empty.

    Of n transfers, only the last need evidence; those before have no weight. A measured mean beats a bound (a slow link
    is always measured); of several measured means the lowest is taken, of several bounds the highest.
    """
    count = len(rows[0])
    skipped = count - len(evidence)
    table = np.zeros((count, 3))
    table[skipped:] = [(item.bits, item.busy_s, item.noise_s) for item in evidence]
    squares = table[:, 2] * table[:, 2]
    lone = [index for index, item in enumerate(evidence) if item.is_bound]
    measured: list[float] = []
    bounds = [0.0]
    for row in rows:
        weights = row
        if lone:
            weights = row.copy()
            weights[[skipped + index for index in lone]] = 0.0
            for index in lone:
                if row[skipped + index] > 0:
                    item = evidence[index]
                    bounds.append(item.bits / (item.busy_s + item.noise_s))
        bits, busy_s = float(weights.dot(table[:, 0])), float(weights.dot(table[:, 1]))
        noise_s = math.sqrt(float((weights * weights).dot(squares)))
        if bits == 0:
            continue
        if busy_s > 0 and noise_s <= NOISE_RATIO * busy_s:
            measured.append(bits / busy_s)
        else:
            bounds.append(bits / (max(busy_s, 0.0) + noise_s))
    return (min(measured), False) if measured else (max(bounds), True)
