"""L2A: online convex optimisation of a mix of bitrates, for low latency. Karagkioulis et al., MMSys 2020.

A weight vector w on the simplex over representations is learnt; the buffer is a Lagrange multiplier ("virtual queue")
Q. With segment duration p, throughput T of the latest transfer, bitrates b, step p / (2 alpha), per segment:

    w_i <- w_i +- p / (2 alpha) (Q + VL) b_i / T      + for b_i <= T, - above,
    w   <- projection of w on the simplex,
    Q   <- max(0, Q - p + p b.w / T),
    choose the b_i nearest to b.w, at most one step up and only to b <= T.

Choosing at or above T sets Q to 2 max(VL, Q). Constants are dash.js 5's: horizon H = 4, VL = H^0.99, alpha =
max(H, VL sqrt(H)). dash.js mixes bit/s with kbit/s in the queue's update and uses the new weights as the old ones; here
units agree, so b.w_old + b.(w - w_old) is simply b.w.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, check_fraction, check_positive
from abr.rate_based import harmonic_mean_bps

HORIZON = 4
VL = HORIZON**0.99
ALPHA = max(HORIZON, VL * math.sqrt(HORIZON))
REACT = 2.0


class L2A:
    """`l2a`. Until `target_s` is buffered for the first time: the highest bitrate <= share x throughput."""

    def __init__(
        self, ladder: Ladder, *, buffer_capacity_s: float, target_s: float = 1.5, startup_share: float = 0.9
    ) -> None:
        """Args: target_s: buffer at which learning begins; dash.js plays at 1.5 s of latency."""
        self.ladder = ladder
        self.target_s = check_positive("target_s", target_s)
        self.startup_share = check_fraction("startup_share", startup_share)
        self.queue = VL
        self.weights: NDArray[np.float64] | None = None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        last, rates = observation.last_representation, self.ladder.bitrate_bps
        if not observation.samples or last is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        rate_bps = harmonic_mean_bps(observation.samples[-1:])
        if self.weights is None:
            if observation.buffer_s < self.target_s:
                choice = self.ladder.highest_within(self.startup_share * rate_bps)
                return Decision(choice, estimate_bps=rate_bps, reason=f"startup below {self.target_s:g} s")
            self.weights = np.zeros(len(rates))
            self.weights[last] = 1.0
        duration_s = float(self.ladder.segment_duration_s[observation.segment_index])
        sign = np.where(rates > rate_bps, -1.0, 1.0)
        step = duration_s / (2 * ALPHA) * (self.queue + VL)
        self.weights = project_on_simplex(self.weights + step * sign * rates / rate_bps)
        mix_bps = float(rates @ self.weights)
        self.queue = max(0.0, self.queue - duration_s + duration_s * mix_bps / rate_bps)
        choice = int(np.argmin(np.abs(rates - mix_bps)))
        if choice > last:
            choice = last + 1 if rates[last + 1] <= rate_bps else last
        if rates[choice] >= rate_bps:
            self.queue = REACT * max(VL, self.queue)
        reason = f"mix {mix_bps / 1e3:.0f} kbit/s, queue {self.queue:.2f}"
        return Decision(choice, estimate_bps=rate_bps, reason=reason)


def project_on_simplex(point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest [R] vector with non-negative parts that sum to 1 (Duchi et al., ICML 2008, Figure 1)."""
    point = point - point.max()  # which moves nothing, and keeps the 1 from being lost beside large parts
    ordered = np.sort(point)[::-1]
    excess = np.cumsum(ordered) - 1
    count = np.count_nonzero(ordered - excess / np.arange(1, len(point) + 1) > 0)
    return np.maximum(point - excess[count - 1] / count, 0.0)
