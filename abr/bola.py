"""BOLA: choose by the buffer, maximising utility. Spiteri, Urgaonkar, Sitaraman, INFOCOM 2016 (1601.06748).

With the buffer Q in seconds, S_m the size of the next segment at representation m, utilities u_m = ln(b_m / b_0) from
the average bitrates, and constants V and gp (the paper's gamma p), BOLA takes the m with the largest

    (V (u_m + gp) - Q) / S_m

and downloads nothing while it is negative for every m, that is while Q > V (u_M + gp). That is BOLA-BASIC, `Bola`.
`FiniteBola` adds what the authors' simulator Sabre adds: BOLA-FINITE, BOLA-U or BOLA-O, and abandonment.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, Progress, check_fraction, check_positive
from abr.errors import OptionError
from abr.qoe import concave_quality, scaled_quality
from abr.split import check_sizes, highest_in_time, rule_estimator, rule_sizes
from abr.throughput import Estimator

BOLA_UTILITIES = ("log", "quality", "log_quality")
LOW_BUFFER = 0.2
"""Share of the cap below which only the lowest representation is taken: Puffer's 3 s of 15 s."""


class Bola:
    """BOLA-BASIC with V and gp from the buffer cap, and the real size of each segment.

    Highest level: V (u_M + gp) = cap - segment, so that the buffer just reaches the cap (Section IV of the paper).
    Lowest: with `gp` given (5 in the paper and in Sabre), that equation fixes V. Without it the two lowest
    representations tie at `low_buffer` of the cap (as in Puffer): V (gp - a) = Q_low with a = b_0 u_1 / (b_1 - b_0),
    so V = (cap - segment - Q_low) / (u_M + a) and gp = Q_low / V + a. Then a small buffer is used over its whole range.
    Ties go to the lower representation, as in Sabre.

    With measured quality for utility (-LPIPS, say, scaled to 0..1, or a concave map of it: `abr.qoe`), u_m is that of
    the segment in question; V and gp follow from the means over the programme, less that of the lowest.
    """

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        gp: float | None = None,
        low_buffer: float = LOW_BUFFER,
        utility: str = "log",
    ) -> None:
        """Args:
        gp: weight of not rebuffering, in units of utility, > 0; None: from `low_buffer`, a share < 1.
        utility: log (of the bitrate, the paper's), quality or log_quality.
        """
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        check_fraction("low_buffer", low_buffer, most=math.nextafter(1.0, 0.0))
        self.ladder = ladder
        self._table = _utility_table(ladder, utility)
        if self._table is None:
            self.utilities = np.log(ladder.bitrate_bps / ladder.bitrate_bps[0])  # [R], u_0 = 0
        else:
            self.utilities = self._table.mean(axis=0)
        top_s = capacity_s - float(ladder.segment_duration_s.max())
        if top_s <= 0:  # a segment as long as the cap leaves no range to work in; half the cap keeps V positive
            top_s = capacity_s / 2
        best = float(self.utilities[-1])
        if gp is not None:
            self.gp = check_positive("gp", gp)
            self.v_s = top_s / (best + self.gp)
            return
        low_s = min(low_buffer * capacity_s, top_s / 2)
        tie = _tie(ladder) if self._table is None else _tie_of(ladder, self.utilities)
        self.v_s = (top_s - low_s) / (best + tie)
        self.gp = low_s / self.v_s + tie

    def utilities_of(self, segment: int) -> NDArray[np.float64]:
        """Return the utilities [R] of a segment; of the bitrates, they are the same for all."""
        return self.utilities if self._table is None else self._table[segment]

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        sizes = self.ladder.segment_bytes[observation.segment_index]  # [R]
        utilities = self.utilities_of(observation.segment_index)
        levels_s = self.v_s * (utilities + self.gp)  # [R] buffer at which each score falls to zero
        top = int(np.argmax(levels_s))
        wait_s = max(observation.buffer_s - float(levels_s[top]), 0.0)
        if wait_s > 0:
            return Decision(
                top, wait_s, reason=f"buffer {observation.buffer_s:.2f} s above {levels_s[top]:.2f} s: wait"
            )
        scores = (levels_s - observation.buffer_s) / sizes
        choice = int(np.argmax(scores))  # the first, so the lowest, of equals
        return Decision(choice, reason=f"score {scores[choice] * 1e3:.4g} s/kB at buffer {observation.buffer_s:.2f} s")


class FiniteBola(Bola):
    """BOLA-FINITE with BOLA-U or BOLA-O (arXiv version, Sections V-VI), and abandonment, as in Sabre.

    Finite: while few segments are behind or left, the buffer aimed at is that number of segments / 2, at least three.
    A step up beyond q_T, the highest representation that downloads within its own duration, is not taken where the last
    choice is above q_T already; else it ends at q_T + 1 (BOLA-U), or at q_T (BOLA-O) after a wait until the buffer is
    down to the level V (u + gp) at which q_T scores nothing.

    A download is given up for the m with the largest (V (u_m + gp) - Q) / S_m, if that is larger than the same score
    with what is left of the present download as its size, and S_m is less than that.
    """

    def __init__(
        self,
        ladder: Ladder,
        estimator: Estimator,
        *,
        buffer_capacity_s: float,
        gp: float | None = None,
        low_buffer: float = LOW_BUFFER,
        oscillates: bool = True,
        finite: bool = True,
        sizes: str = "segment",
    ) -> None:
        """Args: oscillates: True is BOLA-U, False BOLA-O. sizes: see `abr.split.SIZES`."""
        super().__init__(ladder, buffer_capacity_s=buffer_capacity_s, gp=gp, low_buffer=low_buffer)
        self.estimator, self.oscillates, self.finite = estimator, oscillates, finite
        self.sizes = check_sizes(sizes)
        self._whole_v_s, self._last = self.v_s, 0

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        index, buffer_s = observation.segment_index, observation.buffer_s
        self.v_s = self._v_at(index, observation.buffer_capacity_s) if self.finite else self._whole_v_s
        sizes = rule_sizes(self.ladder, index, self.sizes)
        levels_s = self.v_s * (self.utilities + self.gp)  # [R]
        choice, wait_s, why = int(np.argmax((levels_s - buffer_s) / sizes)), 0.0, "BOLA"
        if choice > self._last:
            sustainable = highest_in_time(sizes, estimate, float(self.ladder.segment_duration_s[index]))
            if choice > sustainable:
                why = f"BOLA's {choice} is above the sustainable {sustainable}"
                if self._last > sustainable:
                    choice = self._last
                elif self.oscillates:
                    choice = sustainable + 1
                else:
                    choice = sustainable
                    wait_s = max(buffer_s - float(levels_s[choice]), 0.0)
        self._last = choice
        reason = f"{why}; buffer {buffer_s:.2f} s, V {self.v_s:.3f} s"
        return Decision(choice, wait_s, estimate_bps=estimate.rate_bps, reason=reason)

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`."""
        left_bytes = progress.size_bytes - progress.received_bytes
        if progress.received_bytes == 0 or left_bytes == 0:
            return None
        sizes = rule_sizes(self.ladder, progress.observation.segment_index, self.sizes)
        spans_s = self.v_s * (self.utilities + self.gp) - progress.observation.buffer_s  # [R]
        target = better_download(spans_s, sizes, progress, float(left_bytes))
        if target is not None:
            self._last = target
        return target

    def _v_at(self, index: int, capacity_s: float) -> float:
        """Return V for the buffer that the segments behind and left call for."""
        near = max(min(index, self.ladder.segments - index) / 2, 3)
        longest_s = float(self.ladder.segment_duration_s.max())
        if near * longest_s >= capacity_s:
            return self._whole_v_s
        return (near * longest_s - longest_s) / (float(self.utilities[-1]) + self.gp)


def better_download(
    spans_s: NDArray[np.float64], sizes: NDArray[np.float64], progress: Progress, left_bytes: float
) -> int | None:
    """Return the lower representation with the best score, if giving up for it scores more than going on.

    Args: spans_s: [R] V (u_m + gp) - Q. sizes: [R] bytes. left_bytes: of the present download, > 0.
    """
    current, target = progress.representation, None
    score = float(spans_s[current]) / left_bytes
    if score < 0:
        return None
    for index in range(current):
        other_bytes = progress.size_bytes * sizes[index] / sizes[current]
        if other_bytes < left_bytes and spans_s[index] / other_bytes > score:
            score, target = float(spans_s[index]) / other_bytes, index
    return target


def bola_u(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    gp: float | None = None,
    low_buffer: float = LOW_BUFFER,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> FiniteBola:
    """Build `bola_u`."""
    rule = rule_estimator(estimator, ladder)
    return FiniteBola(ladder, rule, buffer_capacity_s=buffer_capacity_s, gp=gp, low_buffer=low_buffer, sizes=sizes)


def bola_o(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    gp: float | None = None,
    low_buffer: float = LOW_BUFFER,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> FiniteBola:
    """Build `bola_o`."""
    rule = rule_estimator(estimator, ladder)
    return FiniteBola(
        ladder, rule, buffer_capacity_s=buffer_capacity_s, gp=gp, low_buffer=low_buffer, sizes=sizes, oscillates=False
    )


def _utility_table(ladder: Ladder, utility: str) -> NDArray[np.float64] | None:
    """Return the utilities [S, R] of measured quality, the mean of the lowest representation being 0; None: log."""
    if utility not in BOLA_UTILITIES:
        raise OptionError(f"unknown utility {utility!r}; known: {', '.join(BOLA_UTILITIES)}")
    if utility == "log":
        return None
    table = scaled_quality(ladder) if utility == "quality" else concave_quality(ladder)
    table = table - table[:, 0].mean()
    if ladder.representations > 1 and table[:, -1].mean() <= 0:
        raise OptionError(f"utility {utility}: no representation is measured better than the lowest")
    return table


def _tie_of(ladder: Ladder, utilities: NDArray[np.float64]) -> float:
    """Return a = b_0 u_m / (b_m - b_0) of the lowest representation that is better than the first; 1 if none is."""
    rates = ladder.bitrate_bps
    better = np.flatnonzero((utilities > 0) & (rates > rates[0]))
    return float(rates[0] * utilities[better[0]] / (rates[better[0]] - rates[0])) if len(better) else 1.0


def _tie(ladder: Ladder) -> float:
    """Return a = b_0 u_1 / (b_1 - b_0) of the two lowest distinct bitrates; its limit 1 if there is only one."""
    distinct = np.unique(ladder.bitrate_bps)
    if len(distinct) == 1:
        return 1.0
    ratio = float(distinct[1] / distinct[0])
    return math.log(ratio) / (ratio - 1)
