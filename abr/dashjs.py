"""dash.js 5's default rules: DYNAMIC and what it is made of, with the constants of src/streaming (version 5.1.1).

Each rule names a representation and the lowest wins. Bitrates are averages, not sizes; throughput is the lower of two
exponentially weighted means, of which 0.9 count as safe. Ours differs in one thing: with a buffer that can never hold
the 18 s at which BOLA takes over, it does so at the highest level that a decision can see.
"""

from __future__ import annotations

import numpy as np

from abr.base import Decision, Ladder, Observation, Outcome, Progress, check_fraction
from abr.bolae import BolaE
from abr.split import SplitEstimator
from abr.throughput import RateEstimate

SAFETY = 0.9
WEIGHT = 1.5
"""Weight of a download second in the means: 0.0015 per ms."""
BUFFER_DEFAULT_S = 18.0
"""bufferTimeDefault: BOLA from here on, the throughput rule again below half of it."""
PLACEHOLDER_DECAY = 0.99
LOW_BUFFER_SAFETY, FREE_SEGMENTS = 0.7, 2
"""InsufficientBufferRule: share of the throughput that a low buffer is trusted with; segments without the rule."""
SWITCH_SAMPLES, SWITCH_SHARE = 8, 0.075
"""SwitchHistoryRule: decisions to judge by, and drops for each of the others above which one level less is taken."""
GRACE_S, ABANDON_MULTIPLE, ABANDON_REPORTS = 0.5, 1.8, 6
"""AbandonRequestsRule: time since the first byte, segment durations in all, and reports of progress."""


class DashBola(BolaE):
    """BolaRule.js: BOLA-E's constants without its insufficient-buffer rule, BOLA-O, a placeholder that fades."""

    def __init__(self, ladder: Ladder, estimator: SplitEstimator, *, buffer_capacity_s: float) -> None:
        super().__init__(ladder, estimator, buffer_capacity_s=buffer_capacity_s, oscillates=False, sizes="nominal")

    def decide(self, observation: Observation, safe: int) -> Decision:
        """Choose, given the highest representation within the safe throughput."""
        self.placeholder_s += observation.held_back_s
        buffer_s = observation.buffer_s
        if not self._steady and buffer_s < float(self.ladder.segment_duration_s[observation.segment_index]):
            self.placeholder_s = max(self.min_level_s(safe) - buffer_s, 0.0)
            self._last = safe
            return Decision(safe, reason=f"BOLA starts: the safe {safe}")
        self._steady = True
        self.placeholder_s *= PLACEHOLDER_DECAY
        scores = (self.v_s * (self.utilities + self.gp) - buffer_s - self.placeholder_s) / self.ladder.bitrate_bps
        choice = len(scores) - 1 - int(np.argmax(scores[::-1]))  # the highest of equals
        reason = f"BOLA: {choice} at buffer {buffer_s:.2f} s + placeholder {self.placeholder_s:.2f} s"
        if choice > max(self._last, safe):
            choice = max(self._last, safe)
        wait_s = self._spend_placeholder(buffer_s, choice)
        self._last = choice
        return Decision(choice, wait_s, reason=reason)


class SwitchHistory:
    """SwitchHistoryRule.js: a representation that was left downwards too often is avoided."""

    def __init__(self, representations: int) -> None:
        self._drops, self._others = np.zeros(representations), np.zeros(representations)

    def note(self, before: int, after: int) -> None:
        """Note a decision taken while `before` was shown."""
        if after < before:
            self._drops[before] += 1
        else:
            self._others[before] += 1

    def highest(self) -> int:
        """Return the highest representation to take."""
        for index, (drops, others) in enumerate(zip(self._drops, self._others, strict=True)):
            if drops + others >= SWITCH_SAMPLES and drops > SWITCH_SHARE * others:
                return max(index - 1, 0)
        return len(self._drops) - 1


class DashDynamic:
    """DynamicRule, ThroughputRule or BolaRule by the buffer, under InsufficientBufferRule and SwitchHistoryRule."""

    def __init__(
        self, ladder: Ladder, *, buffer_capacity_s: float, safety: float = SAFETY, always_throughput: bool = False
    ) -> None:
        """Args: always_throughput: leave BOLA out (dash.js: ABRStrategy abrThroughput)."""
        self.ladder, self.safety = ladder, check_fraction("safety", safety)
        longest_s = float(ladder.segment_duration_s.max())
        self.estimator = SplitEstimator(longest_s, weight=WEIGHT)
        self.bola = DashBola(ladder, self.estimator, buffer_capacity_s=buffer_capacity_s)
        self.switch_s = np.inf if always_throughput else max(min(BUFFER_DEFAULT_S, buffer_capacity_s - longest_s), 0.0)
        self._by_bola = False
        self._history = SwitchHistory(ladder.representations)
        self._reports: tuple[int | None, int] = (None, 0)
        self._abandoned: int | None = None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        buffer_s = observation.buffer_s
        safe = self.ladder.highest_within(self.safety * estimate.rate_bps)
        threshold_s = self.switch_s / 2 if self._by_bola else self.switch_s
        self._by_bola = buffer_s >= threshold_s - 1e-9
        by_bola = self.bola.decide(observation, safe)  # it keeps account of the placeholder whoever decides
        decision = by_bola if self._by_bola else Decision(safe, reason=f"the safe {safe} at {buffer_s:.2f} s")
        limits = {"low buffer": self._buffer_limit(observation, estimate), "switch history": self._history.highest()}
        rule, limit = min(limits.items(), key=lambda item: item[1])
        choice, wait_s, reason = decision.representation, decision.wait_s, decision.reason
        if limit < choice:
            choice, wait_s, reason = limit, 0.0, f"{reason}; {rule} allows {limit}"
        if observation.last_representation is not None:
            self._history.note(observation.last_representation, choice)
        return Decision(choice, wait_s, estimate_bps=estimate.rate_bps, reason=reason)

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`: AbandonRequestsRule, once for each segment."""
        observation, first_byte_s = progress.observation, progress.first_byte_s
        index = observation.segment_index
        self._reports = (index, self._reports[1] + 1 if self._reports[0] == index else 1)
        if first_byte_s is None or observation.now_s - first_byte_s <= GRACE_S or self._abandoned == index:
            return None
        if self._reports[1] < ABANDON_REPORTS or progress.representation == 0:
            return None
        if observation.buffer_s > BUFFER_DEFAULT_S or progress.received_bytes == 0:
            return None
        bytes_per_s = progress.received_bytes / (observation.now_s - first_byte_s)
        duration_s = float(self.ladder.segment_duration_s[index])
        if progress.size_bytes / bytes_per_s < ABANDON_MULTIPLE * duration_s:
            return None
        choice = self.ladder.highest_within(self.safety * 8 * bytes_per_s)
        left_bytes = progress.size_bytes - progress.received_bytes
        if choice >= progress.representation or left_bytes <= self.ladder.bitrate_bps[choice] * duration_s / 8:
            return None
        self._abandoned = index
        return choice

    def learn(self, outcome: Outcome) -> None:
        """See `abr.base.Learning`."""
        self.bola.learn(outcome)

    def _buffer_limit(self, observation: Observation, estimate: RateEstimate) -> int:
        """Return the highest representation that InsufficientBufferRule allows."""
        index, top = observation.segment_index, self.ladder.representations - 1
        if index < FREE_SEGMENTS:
            return top
        if observation.buffer_s <= 0 or not observation.playing:
            return 0
        duration_s = float(self.ladder.segment_duration_s[index])
        return self.ladder.highest_within(LOW_BUFFER_SAFETY * estimate.rate_bps * observation.buffer_s / duration_s)


def dash_throughput(ladder: Ladder, *, buffer_capacity_s: float, safety: float = SAFETY) -> DashDynamic:
    """Build `dash_throughput`."""
    return DashDynamic(ladder, buffer_capacity_s=buffer_capacity_s, safety=safety, always_throughput=True)


def dash_dynamic(ladder: Ladder, *, buffer_capacity_s: float, safety: float = SAFETY) -> DashDynamic:
    """Build `dash_dynamic`."""
    return DashDynamic(ladder, buffer_capacity_s=buffer_capacity_s, safety=safety)
