"""LoL+: a self-organising map of representations, matched to the state of the session. Bentaleb et al., IEEE TMM 2022.

One neuron per representation with the state (bitrate / |b|, latency, rebuffering, switch). The neuron nearest, under
weights, to (T / |b|, 0, 0, 0) is chosen: the throughput as measured, everything else as wished for. The weights are the
best of all 5^4 vectors from {0.2 .. 1} by the QoE of one more segment, as in dash.js 5 (LoLpRule and its parts), which
is where constants come from. Ours differs where dash.js cannot be repeated or is at odds with itself: no random first
weights (the search replaces them at once), bitrates in one unit throughout, and, as sessions here are not live, no
latency: its part of the state and of the QoE is 0.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, check_positive
from abr.rate_based import harmonic_mean_bps

LEAST_BUFFER_S = 0.3
THROUGHPUT_MARGIN_BPS = 10_000.0
HEAVY = 100.0
"""Weight of the throughput's distance for bitrates that it does not carry."""
LEARNING_RATE, SIGMA = 0.01, 0.1
WEIGHTS = np.array(list(itertools.product((0.2, 0.4, 0.6, 0.8, 1.0), repeat=4)))  # [625, 4]
_LEAST_REBUFFERING_S = 1e-5
_BITRATE, _REBUFFERING, _SWITCH = 0, 2, 3


class LoLPlus:
    """`lolp`."""

    def __init__(self, ladder: Ladder, *, buffer_capacity_s: float, least_buffer_s: float = LEAST_BUFFER_S) -> None:
        """Args: least_buffer_s: what the next download must leave in the buffer."""
        self.ladder, self.least_buffer_s = ladder, check_positive("least_buffer_s", least_buffer_s)
        self.norm_bps = float(np.linalg.norm(ladder.bitrate_bps))
        self.neurons = np.zeros((ladder.representations, 4))
        self.neurons[:, _BITRATE] = ladder.bitrate_bps / self.norm_bps

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        last, rates = observation.last_representation, self.ladder.bitrate_bps
        if not observation.samples or last is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        rate_bps = harmonic_mean_bps(observation.samples[-1:])
        duration_s = float(self.ladder.segment_duration_s[observation.segment_index])
        download_s = rates * duration_s / rate_bps  # [R]
        if observation.buffer_s - download_s[last] < self.least_buffer_s:
            choice = max((m for m in range(last) if rates[m] < rate_bps), default=0)
            reason = f"{last} would drain {observation.buffer_s:.2f} s"
            return Decision(choice, estimate_bps=rate_bps, reason=reason)
        weights = self._weights(observation.buffer_s, download_s, duration_s)
        throughput = min(rate_bps / self.norm_bps, 1.0)
        distance = self._distances(np.array([throughput, 0.0, 0.0, 0.0]), weights, rate_bps)
        choice = int(np.argmin(distance))
        stalled_s = max(0.0, download_s[last] - observation.buffer_s)
        change = abs(rates[choice] - rates[last]) / self.norm_bps
        self._learn(last, np.array([throughput, 0.0, stalled_s, 0.0]))
        self._learn(choice, np.array([throughput, 0.0, 0.0, change]))
        reason = f"nearest to {rate_bps / 1e3:.0f} kbit/s under weights {weights.round(1).tolist()}"
        return Decision(choice, estimate_bps=rate_bps, reason=reason)

    def _weights(self, buffer_s: float, download_s: NDArray[np.float64], duration_s: float) -> NDArray[np.float64]:
        """Return the weight vector [4] of the best neuron's best next segment; equal ones: the first in order.

        QoE = duration x bitrate - highest bitrate x rebuffering / its weight; only neurons that leave enough buffer.
        """
        slow = download_s > duration_s
        after_s = np.where(slow, buffer_s - duration_s, buffer_s + duration_s - download_s)  # [R]
        stalled_s = np.maximum(download_s - after_s, _LEAST_REBUFFERING_S)
        rates = self.ladder.bitrate_bps
        value = duration_s * rates[:, None] - rates[-1] * stalled_s[:, None] / WEIGHTS[:, _REBUFFERING]  # [R, 625]
        value = np.where(after_s[:, None] >= self.least_buffer_s, value, -np.inf)
        best: NDArray[np.float64] = WEIGHTS[int(np.argmax(value)) % len(WEIGHTS)]
        return best

    def _distances(
        self, wanted: NDArray[np.float64], weights: NDArray[np.float64], rate_bps: float
    ) -> NDArray[np.float64]:
        """Return the weighted Euclidean distance [R] of each neuron from the wanted state."""
        table = np.tile(weights, (len(self.neurons), 1))
        beyond = self.ladder.bitrate_bps > rate_bps - THROUGHPUT_MARGIN_BPS
        beyond[0] = False
        table[beyond, _BITRATE] = HEAVY
        return np.sqrt((table * (self.neurons - wanted) ** 2).sum(axis=1))

    def _learn(self, index: int, state: NDArray[np.float64]) -> None:
        """Draw the neurons towards `state`, those near neuron `index` most."""
        apart = ((self.neurons - self.neurons[index]) ** 2).sum(axis=1)
        pull = LEARNING_RATE * np.exp(-apart / (2 * SIGMA**2))
        self.neurons += pull[:, None] * (state - self.neurons)
