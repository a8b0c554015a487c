"""BOLA-BASIC: choose by the buffer, maximising utility. Spiteri, Urgaonkar, Sitaraman, INFOCOM 2016 (1601.06748).

With the buffer Q in seconds, S_m the size of the next segment at representation m, utilities u_m = ln(b_m / b_0) from
the average bitrates, and constants V and gp (the paper's gamma p), BOLA takes the m with the largest

    (V (u_m + gp) - Q) / S_m

and downloads nothing while it is negative for every m, that is while Q > V (u_M + gp).
"""

from __future__ import annotations

import math

import numpy as np

from abr.base import Decision, Ladder, Observation, check_fraction, check_positive

LOW_BUFFER = 0.2
"""Share of the cap below which only the lowest representation is taken: Puffer's 3 s of 15 s."""


class Bola:
    """BOLA-BASIC with V and gp from the buffer cap, and the real size of each segment.

    Highest level: V (u_M + gp) = cap - segment, so that the buffer just reaches the cap (Section IV of the paper).
    Lowest: with `gp` given (5 in the paper and in Sabre), that equation fixes V. Without it the two lowest
    representations tie at `low_buffer` of the cap (as in Puffer): V (gp - a) = Q_low with a = b_0 u_1 / (b_1 - b_0),
    so V = (cap - segment - Q_low) / (u_M + a) and gp = Q_low / V + a. Then a small buffer is used over its whole range.
    Ties go to the lower representation, as in Sabre.
    """

    def __init__(
        self, ladder: Ladder, *, buffer_capacity_s: float, gp: float | None = None, low_buffer: float = LOW_BUFFER
    ) -> None:
        """Args: gp: weight of not rebuffering, in units of utility, > 0; None: from `low_buffer`, a share < 1."""
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        check_fraction("low_buffer", low_buffer, most=math.nextafter(1.0, 0.0))
        self.ladder = ladder
        self.utilities = np.log(ladder.bitrate_bps / ladder.bitrate_bps[0])  # [R], u_0 = 0
        top_s = capacity_s - float(ladder.segment_duration_s.max())
        # A segment of half the cap or more leaves no range to work in; half the cap keeps V positive and harmless.
        top_s = max(top_s, capacity_s / 2)
        best = float(self.utilities[-1])
        if gp is not None:
            self.gp = check_positive("gp", gp)
            self.v_s = top_s / (best + self.gp)
            return
        low_s = min(low_buffer * capacity_s, top_s / 2)
        tie = _tie(ladder)
        self.v_s = (top_s - low_s) / (best + tie)
        self.gp = low_s / self.v_s + tie

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        sizes = self.ladder.segment_bytes[observation.segment_index]  # [R]
        levels_s = self.v_s * (self.utilities + self.gp)  # [R] buffer at which each score falls to zero
        wait_s = max(observation.buffer_s - float(levels_s[-1]), 0.0)
        if wait_s > 0:
            top = self.ladder.representations - 1
            return Decision(top, wait_s, reason=f"buffer {observation.buffer_s:.2f} s above {levels_s[-1]:.2f} s: wait")
        scores = (levels_s - observation.buffer_s) / sizes
        choice = int(np.argmax(scores))  # the first, so the lowest, of equals
        return Decision(choice, reason=f"score {scores[choice] * 1e3:.4g} s/kB at buffer {observation.buffer_s:.2f} s")


def _tie(ladder: Ladder) -> float:
    """Return a = b_0 u_1 / (b_1 - b_0) of the two lowest distinct bitrates; its limit 1 if there is only one."""
    distinct = np.unique(ladder.bitrate_bps)
    if len(distinct) == 1:
        return 1.0
    ratio = float(distinct[1] / distinct[0])
    return math.log(ratio) / (ratio - 1)
