"""What a session has measured of its link, and the player's own belief about it. No I/O and no clock."""

from __future__ import annotations

from abr import Observation, RateEstimate, SlowStartEstimator, ThroughputSample

SAMPLE_HISTORY = 64
"""Transfers a controller gets to see."""


class LinkMeter:
    """Every transfer's timing, and what `abr.SlowStartEstimator` made of it at each decision.

    The estimate costs more than most controllers do, and a session whose log nobody reads has no use for it: it is
    computed when asked for, from the transfers known at the decision.
    """

    def __init__(self) -> None:
        self._samples: list[ThroughputSample] = []
        self._recent: tuple[ThroughputSample, ...] = ()
        self._decisions: dict[int, tuple[int, float]] = {}  # segment -> transfers known, time
        self._estimator = SlowStartEstimator()

    @property
    def recent(self) -> tuple[ThroughputSample, ...]:
        """What a controller gets to see, oldest first."""
        return self._recent

    def add(self, sample: ThroughputSample) -> None:
        """Take in a transfer."""
        self._samples.append(sample)
        self._recent = tuple(self._samples[-SAMPLE_HISTORY:])

    def remember(self, observation: Observation) -> None:
        """Note when a segment was decided, so that `at_decision` can tell; the latest decision counts."""
        self._decisions[observation.segment_index] = len(self._samples), observation.now_s

    def at_decision(self, segment: int) -> RateEstimate | None:
        """Return what was known of the link when `segment` was decided; None before the first transfer."""
        known, now_s = self._decisions[segment]
        return self._estimator.estimate(self._samples[max(known - SAMPLE_HISTORY, 0) : known], now_s)
