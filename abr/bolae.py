"""BOLA-E and BOLA-PL: BOLA that starts fast and survives small buffers. Spiteri, Sitaraman, Sparacio, MMSys 2018, 4.

The buffer that BOLA decides by is Q + P. The *placeholder* P stands for media that could have been in the buffer if the
player had not been held back: by its start, by a seek, by a full buffer. Scores as in `abr.bola`, with u_0 = 1 and

    gp = (u_M - 1) / (Qt / 10 s - 1),    V = 10 s / gp,    Qt = max(cap, 10 s + 2 s per representation)

so that the lowest two levels lie at 10 s whatever the ladder. Without the insufficient-buffer rule it is BOLA-PL, with
BOLA's V and gp.
"""

from __future__ import annotations

import numpy as np

from abr.base import Decision, Ladder, Observation, Outcome, Progress, check_positive
from abr.bola import better_download
from abr.split import InsufficientBuffer, check_sizes, highest_in_time, rule_estimator, rule_sizes
from abr.throughput import Estimator

LOW_LEVEL_S = 10.0
"""Virtual buffer below which only the lowest representation is taken (MINIMUM_BUFFER_S of dash.js)."""
LEVEL_S = 2.0
"""Least virtual buffer for each representation (MINIMUM_BUFFER_PER_BITRATE_LEVEL_S)."""
TIE_S = 1e-9
"""How far above a tie the placeholder is set, so that rounding does not decide it for the lower representation."""
GP = 5.0
"""BOLA-PL: the paper's gamma p."""


class BolaE:
    """BOLA with placeholder and insufficient-buffer rule, as in Sabre."""

    def __init__(
        self,
        ladder: Ladder,
        estimator: Estimator,
        *,
        buffer_capacity_s: float,
        oscillates: bool = True,
        low_buffer_rule: bool = True,
        gp: float = GP,
        sizes: str = "segment",
    ) -> None:
        """Args: oscillates: BOLA-U, else BOLA-O. gp: of BOLA-PL only. sizes: see `abr.split.SIZES`."""
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        self.ladder, self.estimator, self.oscillates = ladder, estimator, oscillates
        self.sizes = check_sizes(sizes)
        self.utilities = 1 + np.log(ladder.bitrate_bps / ladder.bitrate_bps[0])  # [R], u_0 = 1
        best = float(self.utilities[-1])
        if low_buffer_rule:
            target_s = max(LOW_LEVEL_S + LEVEL_S * ladder.representations, capacity_s)
            # A ladder of one bitrate leaves nothing to weigh: any positive gp gives the same choices.
            self.gp = (best - 1) / (target_s / LOW_LEVEL_S - 1) or 1.0
            self.v_s = LOW_LEVEL_S / self.gp
        else:
            top_s = capacity_s - float(ladder.segment_duration_s.max())
            self.gp = check_positive("gp", gp) - 1  # u_0 = 1 here, 0 in BOLA
            self.v_s = (top_s if top_s > 0 else capacity_s / 2) / (best + self.gp)
        self.placeholder_s = 0.0
        self._low_buffer = InsufficientBuffer() if low_buffer_rule else None
        self._steady = False
        self._last = 0

    def min_level_s(self, representation: int) -> float:
        """Return the buffer above which a representation scores more than every lower one; 0 for the lowest."""
        b, u, q = self.ladder.bitrate_bps, self.utilities, representation
        ties = ((b[q] * u[j] - b[j] * u[q]) / (b[q] - b[j]) for j in range(q) if b[j] < b[q])
        return max((self.v_s * (self.gp + float(tie)) for tie in ties), default=0.0)

    def max_level_s(self, representation: int) -> float:
        """Return the buffer above which a representation scores less than nothing."""
        return float(self.v_s * (self.utilities[representation] + self.gp))

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        self.placeholder_s += observation.held_back_s
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        index, buffer_s = observation.segment_index, observation.buffer_s
        sizes = rule_sizes(self.ladder, index, self.sizes)
        sustainable = highest_in_time(sizes, estimate, float(self.ladder.segment_duration_s[index]))
        if not self._steady:
            self._steady = True
            self.placeholder_s = max(self.min_level_s(sustainable) - buffer_s, 0.0)
            reason = f"start: the sustainable {sustainable}, placeholder {self.placeholder_s:.2f} s"
            return Decision(sustainable, estimate_bps=estimate.rate_bps, reason=reason)
        level_s = buffer_s + self.placeholder_s
        choice = int(np.argmax((self.v_s * (self.utilities + self.gp) - level_s) / sizes))
        reason = f"BOLA: {choice} at buffer {buffer_s:.2f} s + placeholder {self.placeholder_s:.2f} s"
        if choice > self._last and choice > sustainable:
            choice = max(self._last, sustainable) + self.oscillates
            reason += f"; at most {choice} is sustainable"
        wait_s = self._spend_placeholder(buffer_s, choice)
        if self._low_buffer is not None:
            safe = self._low_buffer.limit(choice, sizes, estimate, buffer_s)
            if safe < choice:
                choice, wait_s = safe, 0.0
                self.placeholder_s = min(self.placeholder_s, max(self.min_level_s(safe) - buffer_s, 0.0))
                reason += f"; the buffer allows {safe}"
        self._last = choice
        return Decision(choice, wait_s, estimate_bps=estimate.rate_bps, reason=reason)

    def learn(self, outcome: Outcome) -> None:
        """See `abr.base.Learning`: keep the placeholder where the decision that was carried out makes sense."""
        observation, representation = outcome.observation, outcome.representation
        self._last = representation
        buffer_s = observation.buffer_s
        if outcome.abandoned_for is not None:
            target = outcome.abandoned_for
            wanted_s = self.min_level_s(target) if target > 0 else LOW_LEVEL_S
            self.placeholder_s = min(self.placeholder_s, max(wanted_s + TIE_S - buffer_s, 0.0))
        elif outcome.is_upgrade:
            self.placeholder_s += float(self.ladder.segment_duration_s[observation.segment_index])
        else:
            level_s = buffer_s + observation.now_s - outcome.request_s
            self.placeholder_s = min(self.placeholder_s, max(self.max_level_s(representation) - level_s, 0.0))
            if buffer_s > 0:
                self.placeholder_s = max(self.placeholder_s, self.min_level_s(representation) - level_s)

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`: as `FiniteBola`, allowing for the latency of a new request."""
        observation, first_byte_s = progress.observation, progress.first_byte_s
        if first_byte_s is None or progress.received_bytes == 0 or observation.now_s <= first_byte_s:
            return None
        latency_s = first_byte_s - progress.request_s
        bytes_per_s = progress.received_bytes / (observation.now_s - first_byte_s)
        left_bytes = progress.size_bytes - progress.received_bytes - latency_s * bytes_per_s
        if left_bytes <= 0:
            return None
        level_s = max(observation.buffer_s + self.placeholder_s - latency_s, 0.0)
        sizes = rule_sizes(self.ladder, observation.segment_index, self.sizes)
        spans_s = self.v_s * (self.utilities + self.gp) - level_s
        target = better_download(spans_s, sizes, progress, left_bytes)
        if target is not None:
            self._last = target
        return target

    def _spend_placeholder(self, buffer_s: float, choice: int) -> float:
        """Wait where BOLA would, but let the placeholder pass first; return what is left to wait, 0 for the highest."""
        wait_s = buffer_s + self.placeholder_s - self.max_level_s(choice)
        if wait_s <= 0:
            return 0.0
        spent_s = min(wait_s, self.placeholder_s)
        self.placeholder_s -= spent_s
        return 0.0 if choice == self.ladder.representations - 1 else wait_s - spent_s


def bolae(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    oscillates: bool = True,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> BolaE:
    """Build `bolae`."""
    rule = rule_estimator(estimator, ladder)
    return BolaE(ladder, rule, buffer_capacity_s=buffer_capacity_s, oscillates=oscillates, sizes=sizes)


def bolapl(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    gp: float | None = None,
    oscillates: bool = True,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> BolaE:
    """Build `bolapl`. Args: gp: None is 5."""
    return BolaE(
        ladder,
        rule_estimator(estimator, ladder),
        buffer_capacity_s=buffer_capacity_s,
        low_buffer_rule=False,
        gp=GP if gp is None else gp,
        oscillates=oscillates,
        sizes=sizes,
    )
