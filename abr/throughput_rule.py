"""The throughput rule as Sabre has it: rate and latency apart, an insufficient-buffer rule, and abandonment.

Spiteri, Sitaraman, Sparacio, MMSys 2018, Section 3, after dash.js 2. (`abr.throughput` has the rule for small objects.)
"""

from __future__ import annotations

import dataclasses

from abr.base import Decision, Ladder, Observation, Progress, check_fraction
from abr.split import InsufficientBuffer, check_sizes, highest_in_time, rule_estimator, rule_sizes
from abr.throughput import Estimator

SAFETY = 0.9
"""Share of the measured rate that is counted on."""
GRACE_S = 0.5
"""A download is judged only after this long."""
ABANDON_MULTIPLE = 1.8
"""A download is given up if it would take this many segment durations in all."""


class ThroughputRule:
    """The highest representation that downloads within its own duration at 0.9 of the rate, as the buffer allows."""

    def __init__(
        self,
        ladder: Ladder,
        estimator: Estimator,
        *,
        safety: float = SAFETY,
        low_buffer_rule: bool = True,
        sizes: str = "segment",
    ) -> None:
        """Args: low_buffer_rule: whether the insufficient-buffer rule holds. sizes: see `abr.split.SIZES`."""
        self.ladder, self.estimator, self.sizes = ladder, estimator, check_sizes(sizes)
        self.safety = check_fraction("safety", safety)
        self._low_buffer = InsufficientBuffer() if low_buffer_rule else None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. The first segment, before anything is known, is the lowest."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        index = observation.segment_index
        sizes = rule_sizes(self.ladder, index, self.sizes)
        limit_s = float(self.ladder.segment_duration_s[index])
        choice = wanted = highest_in_time(sizes, estimate, limit_s, safety=self.safety)
        if self._low_buffer is not None:
            choice = self._low_buffer.limit(wanted, sizes, estimate, observation.buffer_s)
        reason = f"rate {estimate.rate_bps / 1e3:.0f} kbit/s, latency {estimate.rtt_s:.3f} s allow {wanted}"
        if choice < wanted:
            reason += f"; buffer {observation.buffer_s:.2f} s only {choice}"
        return Decision(choice, estimate_bps=estimate.rate_bps, reason=reason)

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`: judge by this download's own rate, once 0.5 s have passed."""
        observation, first_byte_s = progress.observation, progress.first_byte_s
        if first_byte_s is None or progress.received_bytes == 0 or observation.now_s <= first_byte_s:
            return None
        elapsed_s = observation.now_s - progress.request_s
        if elapsed_s < GRACE_S:
            return None
        bytes_per_s = progress.received_bytes / (observation.now_s - first_byte_s)
        left_bytes = progress.size_bytes - progress.received_bytes
        limit_s = float(self.ladder.segment_duration_s[observation.segment_index])
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None or elapsed_s + left_bytes / bytes_per_s <= ABANDON_MULTIPLE * limit_s:
            return None
        sizes = rule_sizes(self.ladder, observation.segment_index, self.sizes)
        current = dataclasses.replace(estimate, rate_bps=8 * bytes_per_s)
        choice = highest_in_time(sizes, current, limit_s, safety=self.safety)
        other_bytes = progress.size_bytes * sizes[choice] / sizes[progress.representation]
        return choice if choice < progress.representation and other_bytes < left_bytes else None


def throughput_rule(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    safety: float = SAFETY,
    low_buffer_rule: bool = True,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> ThroughputRule:
    """Build `throughput_ibr`."""
    rule = rule_estimator(estimator, ladder)
    return ThroughputRule(ladder, rule, safety=safety, low_buffer_rule=low_buffer_rule, sizes=sizes)
