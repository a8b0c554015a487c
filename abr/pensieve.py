"""Pensieve: a policy network trained by reinforcement learning. Mao, Netravali, Alizadeh, SIGCOMM 2017.

State, action and reward are the paper's (Section 4.2, 5.1): the last eight throughputs and download times, the next
segment's sizes, the buffer, what is left of the programme, the last bitrate; one representation; QoE_lin. Two things
differ, so that one set of weights serves any ladder and any scale of link. Everything is measured in units of the
ladder (throughput in top bitrates, times in segment durations), with the expected download time of each size written
out; and instead of one output per representation of a fixed ladder, one scorer looks at each representation in turn,
and a softmax over the scores is the policy. Training (`python -m experiments.train_abr pensieve`) is PPO, not A3C.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation
from abr.network import load_network

HISTORY = 8
"""Transfers in the state."""
REMAINING = 48.0
"""Segments at or above which "what is left" is full: the length of Pensieve's programme."""
FEATURES = 2 * HISTORY + 4 + 7
LEAST_S = 1e-3


class Pensieve:
    """`pensieve`: the representation that the policy finds most likely."""

    def __init__(self, ladder: Ladder, *, buffer_capacity_s: float, weights: str | None = None) -> None:
        """Args: weights: a file that `experiments.train_abr` wrote; None: the shipped one."""
        self.ladder = ladder
        self.network = load_network("pensieve", weights, inputs=FEATURES, outputs=1)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        if not observation.samples:
            return Decision(0, reason="no transfer measured yet: lowest")
        scores = self.network(features(self.ladder, observation))[:, 0]
        chance = np.exp(scores - scores.max())
        choice = int(np.argmax(chance))
        return Decision(choice, reason="policy " + " ".join(f"{p:.2f}" for p in chance / chance.sum()))


def features(ladder: Ladder, observation: Observation) -> NDArray[np.float64]:
    """Return the network's input [R, FEATURES]: the state, repeated, and what concerns each representation."""
    index, samples = observation.segment_index, observation.samples[-HISTORY:]
    duration_s, top_bps = float(ladder.segment_duration_s[index]), float(ladder.bitrate_bps[-1])
    utility = ladder.bitrate_bps / top_bps  # [R]
    spent_s = np.array([max(sample.finish_s - sample.request_s, LEAST_S) for sample in samples])
    rates = np.array([8 * sample.size_bytes for sample in samples]) / spent_s / top_bps
    state = np.zeros(2 * HISTORY + 4)
    state[HISTORY - len(samples) : HISTORY] = rates / (rates + 1)
    state[2 * HISTORY - len(samples) : 2 * HISTORY] = spent_s / (spent_s + duration_s)
    last = utility[observation.last_representation] if observation.last_representation is not None else 0.0
    buffer_s = observation.buffer_s
    state[2 * HISTORY :] = (
        buffer_s / (buffer_s + 5 * duration_s),
        buffer_s / observation.buffer_capacity_s,
        min((ladder.segments - index) / REMAINING, 1.0),
        last,
    )
    sizes = 8 * ladder.segment_bytes[index] / duration_s / top_bps  # [R] in top bitrates
    mean_s = duration_s * sizes * np.mean(1 / rates[-5:])  # expected download, harmonic mean of the last five
    worst_s = duration_s * sizes / rates.min()
    each = (
        sizes,
        utility,
        utility - last,
        np.abs(utility - last),
        mean_s / (mean_s + duration_s),
        mean_s / (mean_s + buffer_s + LEAST_S),
        worst_s / (worst_s + buffer_s + LEAST_S),
    )
    return np.column_stack([np.tile(state, (len(sizes), 1)), *each])
