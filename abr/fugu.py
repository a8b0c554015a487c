"""Fugu: a learned predictor of transfer time, and MPC over its whole distribution. Yan et al., NSDI 2020.

The network (the paper's Section 4.2, "transmission time predictor") gives, for a candidate size and a step ahead, the
probabilities of 21 bins of transfer time: time given size, not throughput, which is what small objects need. Value
iteration over a discretised buffer then takes expectations (Section 4.3):

    V_h(Q, last) = max_m  u_m - lambda |u_m - u_last| + E_t [ -mu max(0, t - Q) + V_{h+1}(Q', m) ],
    Q' = min(max(Q - t, 0) + p, cap).

Ours differs: no TCP statistics (a browser has none), bins in the logarithm of time / segment duration instead of 0.5 s,
one network told the step instead of five, inputs relative to the candidate so that any scale of ladder and link is
served, horizon 5. Trained by `python -m experiments.train_abr fugu`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, ThroughputSample, check_positive
from abr.mpc import HORIZON
from abr.network import Network, load_network
from abr.qoe import create_qoe
from abr.rate_based import check_count

HISTORY = 8
FEATURES = 3 * HISTORY + 3
BINS = 21
EDGES = np.geomspace(0.02, 8.0, BINS - 1)
"""[20] inner edges of the bins, in segment durations; the outer bins are open."""
CENTRES = np.concatenate([[0.014], np.sqrt(EDGES[1:] * EDGES[:-1]), [11.0]])
"""[21] the time that stands for each bin."""
BUFFER_BINS = 100
LEAST_S = 1e-3
_SPAN = 4.0


class Fugu:
    """`fugu`: stochastic MPC on the predictor's distribution."""

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        horizon: int = HORIZON,
        utility: str = "linear",
        rebuffering: float | None = None,
        switching: float = 1.0,
        weights: str | None = None,
    ) -> None:
        """Args: weights: a file that `experiments.train_abr` wrote; None: the shipped one."""
        self.ladder, self.horizon = ladder, check_count("horizon", horizon)
        self.qoe = create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching)
        self.capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        self.network = load_network("fugu", weights, inputs=FEATURES, outputs=BINS)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        if not observation.samples:
            return Decision(0, reason="no transfer measured yet: lowest")
        index, last = observation.segment_index, observation.last_representation
        steps = slice(index, min(index + self.horizon, self.ladder.segments))
        durations_s = self.ladder.segment_duration_s[steps]
        chance = predict(self.network, observation.samples, self.ladder.segment_bytes[steps], durations_s)  # [h, R, 21]
        utility = self.qoe.utility[steps] / self.qoe.unit
        before = None if last is None else float(self.qoe.utility[max(index - 1, 0), last] / self.qoe.unit)
        values = self._values(chance, durations_s, utility, observation.buffer_s, before)
        choice = int(np.argmax(values))
        expected_s = float(chance[0, choice] @ CENTRES * durations_s[0])
        late = float(chance[0, choice] @ (CENTRES * durations_s[0] > observation.buffer_s))
        return Decision(
            choice, reason=f"expected transfer {expected_s:.3f} s, longer than the buffer with p = {late:.3f}"
        )

    def _values(
        self,
        chance: NDArray[np.float64],
        durations_s: NDArray[np.float64],
        utility: NDArray[np.float64],
        buffer_s: float,
        before: float | None,
    ) -> NDArray[np.float64]:
        """Return the expected QoE [R] of each first choice, followed by the best ones."""
        level_s = np.linspace(0.0, self.capacity_s, BUFFER_BINS)
        ahead = np.zeros((BUFFER_BINS, utility.shape[1]))  # [buffers, R] what follows after choice m
        for step in range(len(durations_s) - 1, 0, -1):
            value = self._expect(level_s, chance[step], float(durations_s[step]), utility[step], ahead)
            change = self.qoe.switching * np.abs(utility[step] - utility[step - 1][:, None])  # [last, R]
            ahead = (value[:, None, :] - change).max(axis=2)
        (value,) = self._expect(np.array([buffer_s]), chance[0], float(durations_s[0]), utility[0], ahead)
        change = 0.0 if before is None else self.qoe.switching * np.abs(utility[0] - before)
        return np.asarray(value - change)

    def _expect(
        self,
        level_s: NDArray[np.float64],
        chance: NDArray[np.float64],
        duration_s: float,
        utility: NDArray[np.float64],
        ahead: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the expected value [levels, R] of one step and of `ahead`, linear between the buffer's bins."""
        after_s = level_s[:, None] - CENTRES * duration_s  # [levels, 21]
        place = np.minimum(np.maximum(after_s, 0.0) + duration_s, self.capacity_s) / self.capacity_s * (BUFFER_BINS - 1)
        below = np.minimum(place.astype(np.int64), BUFFER_BINS - 2)
        weight = (place - below)[..., None]
        follow = (1 - weight) * ahead[below] + weight * ahead[below + 1]  # [levels, 21, R]
        cost = self.qoe.rebuffering * np.maximum(-after_s, 0.0)
        expected: NDArray[np.float64] = utility + np.einsum("ltr,rt->lr", follow - cost[..., None], chance)
        return expected


def predict(
    network: Network,
    samples: tuple[ThroughputSample, ...],
    sizes: NDArray[np.int64],
    durations_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the probabilities [h, R, 21] of the transfer times of objects of `sizes` [h, R], the first one next."""
    scores = network(features(samples, sizes, durations_s))
    chance = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = chance / chance.sum(axis=-1, keepdims=True)
    return result


def features(
    samples: tuple[ThroughputSample, ...], sizes: NDArray[np.int64], durations_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the network's input [h, R, FEATURES]: logarithms, relative to the candidate's size and duration.

    Of each of the last eight transfers (a shorter history repeats its oldest): throughput over the candidate's bitrate,
    size over its size, first-byte time over its duration. Then the step ahead, how much history there is, and the
    candidate's size in initial windows of 10 packets.
    """
    recent = samples[-HISTORY:]
    recent = (recent[0],) * (HISTORY - len(recent)) + tuple(recent)
    size = np.array([sample.size_bytes for sample in recent], dtype=np.float64)
    spent_s = np.array([max(sample.finish_s - sample.request_s, LEAST_S) for sample in recent])
    wait_s = np.array([max(sample.first_byte_s - sample.request_s, LEAST_S) for sample in recent])
    wanted, lasting_s = sizes[..., None].astype(np.float64), durations_s[:, None, None]
    rate = np.log(size / spent_s) - np.log(wanted / lasting_s)
    ratio = np.log(size) - np.log(wanted)
    trip = np.broadcast_to(np.log(wait_s) - np.log(lasting_s), rate.shape)
    step = np.broadcast_to(np.arange(len(sizes))[:, None, None] / HORIZON, wanted.shape)
    known = np.full(wanted.shape, min(len(samples), HISTORY) / HISTORY)
    rows = np.concatenate([rate, ratio, trip, step * _SPAN, known * _SPAN, np.log(wanted / 14_480)], axis=-1)
    clipped: NDArray[np.float64] = np.clip(rows / _SPAN, -2.0, 2.0)
    return clipped


def bin_of(ratio: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bins of times / segment durations."""
    return np.searchsorted(EDGES, ratio)
