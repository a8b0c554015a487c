"""FastMPC: MPC as a table, solved before playback and looked up during it. Yin et al., SIGCOMM 2015, Section 5.

The optimal first choice is tabulated over buffer level, predicted throughput and last representation for segments of
mean size (the paper's assumption of a constant bitrate). The paper enumerates every cell offline and compresses the
table by runs; here one backward induction over the buffer's bins solves all cells at once in tens of milliseconds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, check_positive
from abr.errors import OptionError
from abr.mpc import HORIZON
from abr.qoe import create_qoe
from abr.rate_based import check_count
from abr.throughput import create_estimator

BUFFER_BINS, RATE_BINS = 100, 100
"""As many as in the paper. Buffer bins are even over [0, cap]; rate bins even in the logarithm."""
RATE_SPAN = 8.0
"""The table's rates reach from the lowest bitrate / 8 to the highest x 8; beyond, the nearest bin stands in."""


class FastMpc:
    """`fastmpc`: look the plan's first choice up."""

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        horizon: int = HORIZON,
        utility: str = "linear",
        rebuffering: float | None = None,
        switching: float = 1.0,
        estimator: str = "slow_start",
    ) -> None:
        if utility == "quality":
            raise OptionError("fastmpc's table is for segments that are alike; utility quality needs quality_mpc")
        qoe = create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching)
        self.capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        self.estimator = create_estimator(estimator)
        self.duration_s = float(ladder.segment_duration_s.mean())
        self.mean_bytes = ladder.segment_bytes.mean(axis=0)  # [R]
        self._rates_bps = np.geomspace(ladder.bitrate_bps[0] / RATE_SPAN, ladder.bitrate_bps[-1] * RATE_SPAN, RATE_BINS)
        self.table = solve(
            tuple((qoe.utility[0] / qoe.unit).tolist()),
            tuple((8 * self.mean_bytes).tolist()),
            tuple(self._rates_bps.tolist()),
            self.duration_s,
            self.capacity_s,
            check_count("horizon", horizon),
            qoe.rebuffering,
            qoe.switching,
        )

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        belief = self.estimator.estimate(observation.samples, observation.now_s)
        last = observation.last_representation
        if belief is None or last is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        # What the transfer model makes of a mean segment is the throughput the table is asked for.
        size = self.mean_bytes[last]
        rate_bps = 8 * size / belief.predict_transfer_s(int(size))
        rate_bin = int(np.argmin(np.abs(np.log(self._rates_bps / rate_bps))))
        buffer_bin = min(round(observation.buffer_s / self.capacity_s * (BUFFER_BINS - 1)), BUFFER_BINS - 1)
        choice = int(self.table[rate_bin, buffer_bin, last])
        level_s = buffer_bin * self.capacity_s / (BUFFER_BINS - 1)
        cell = f"cell ({self._rates_bps[rate_bin] / 1e3:.0f} kbit/s, {level_s:.2f} s, last {last})"
        return Decision(choice, estimate_bps=rate_bps, reason=cell)


@lru_cache(maxsize=32)
def solve(
    utility: tuple[float, ...],
    bits: tuple[float, ...],
    rates_bps: tuple[float, ...],
    duration_s: float,
    capacity_s: float,
    horizon: int,
    rebuffering: float,
    switching: float,
) -> NDArray[np.int8]:
    """Return the table [rates, buffers, R (last)] of first choices; equal plans go to the lower.

    Between two buffer bins the value of the rest of the plan is interpolated linearly.
    """
    gain = np.array(utility)  # [R]
    level_s = np.linspace(0.0, capacity_s, BUFFER_BINS)
    time_s = np.array(bits) / np.array(rates_bps)[:, None]  # [rates, R]
    after_s = level_s[None, :, None] - time_s[:, None, :]  # [rates, buffers, R]
    stage = gain - rebuffering * np.maximum(-after_s, 0.0)
    place = np.minimum(np.maximum(after_s, 0.0) + duration_s, capacity_s) / capacity_s * (BUFFER_BINS - 1)
    below = np.minimum(place.astype(np.int64), BUFFER_BINS - 2)
    weight = place - below
    change = switching * np.abs(gain - gain[:, None])  # [last, R]
    rows, choices = np.arange(len(rates_bps))[:, None, None], np.arange(len(gain))
    value = np.zeros((len(rates_bps), BUFFER_BINS, len(gain)))  # of what follows, by last choice
    for _ in range(horizon):
        ahead = (1 - weight) * value[rows, below, choices] + weight * value[rows, below + 1, choices]
        options = (stage + ahead)[:, :, None, :] - change  # [rates, buffers, last, R]
        value = options.max(axis=-1)
    table = options.argmax(axis=-1).astype(np.int8)
    table.setflags(write=False)
    return table
