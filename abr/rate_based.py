"""Rate rules: the harmonic-mean rule that Pensieve compares with, and FESTIVE.

Both measure throughput as bytes / (last byte - request), as published; `throughput` is the rule for small objects.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from abr.base import Decision, Ladder, Observation, ThroughputSample, check_fraction, check_positive
from abr.errors import OptionError
from abr.linear_buffer import check_first

LEAST_S = 1e-3
"""Times below a link's millisecond grain count as one."""


class HarmonicRate:
    """`rb`: the highest bitrate <= share x harmonic mean of the last five throughputs. Pensieve, SIGCOMM 2017, 5.1."""

    def __init__(
        self, ladder: Ladder, *, buffer_capacity_s: float, transfers: int = 5, share: float = 1.0, first: int = 0
    ) -> None:
        """Args: transfers: in the mean. first: representation of the first segment."""
        self.ladder, self.transfers = ladder, check_count("transfers", transfers)
        self.share, self.first = check_fraction("share", share), check_first(first, ladder)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        if not observation.samples:
            return Decision(self.first, reason="no transfer measured yet")
        rate_bps = harmonic_mean_bps(observation.samples[-self.transfers :])
        choice = self.ladder.highest_within(self.share * rate_bps)
        return Decision(
            choice, estimate_bps=rate_bps, reason=f"highest within {self.share * rate_bps / 1e3:.0f} kbit/s"
        )


class Festive:
    """`festive`: slow upward steps, stability against efficiency. Jiang, Sekar, Zhang, CoNEXT 2012, Sections 4.2-4.3.

    Target: the highest bitrate <= `share` x harmonic mean of the last 20 throughputs; from level k one step up only
    after k decisions in a row wanted more (gradual switching), one step down at once. The step is taken only if

        2^(switches in the last `memory` decisions) + alpha |b / min(T, b_step) - 1|

    is less for the new bitrate, which counts one switch more, than for the present one (delayed update, alpha = 12).
    Levels count from 1 here, so that the lowest needs one vote, as in the paper. The paper's third part, randomised
    request times, is for players that share a bottleneck in step and is left out: one decision, one answer.
    """

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        transfers: int = 20,
        share: float = 0.85,
        alpha: float = 12.0,
        memory: int = 5,
    ) -> None:
        self.ladder, self.transfers = ladder, check_count("transfers", transfers)
        self.share, self.alpha = check_fraction("share", share), check_positive("alpha", alpha)
        self._switched: deque[bool] = deque(maxlen=check_count("memory", memory))
        self._votes = 0

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        current = observation.last_representation
        if not observation.samples or current is None:
            return Decision(0, reason="no transfer measured yet: lowest")
        rate_bps = harmonic_mean_bps(observation.samples[-self.transfers :])
        target = self.ladder.highest_within(self.share * rate_bps)
        reference = self._reference(current, target)
        stay, move = (self._score(index, reference != current, rate_bps, reference) for index in (current, reference))
        choice = reference if move < stay else current
        self._switched.append(choice != current)
        if choice != current:
            self._votes = 0
        reason = f"target {target}, step to {reference}: score {move:.3g} against {stay:.3g} of staying"
        return Decision(choice, estimate_bps=rate_bps, reason=reason)

    def _reference(self, current: int, target: int) -> int:
        """Return the level that gradual switching allows: one down at once, one up after level-many votes in a row."""
        if target > current:
            self._votes += 1
            return current + 1 if self._votes > current else current
        self._votes = 0
        return max(target, current - 1)

    def _score(self, index: int, moving: bool, rate_bps: float, reference: int) -> float:
        """Return stability + alpha x efficiency of a level; `moving` is whether the choice is between two."""
        rates = self.ladder.bitrate_bps
        switches = sum(self._switched) + (moving and index == reference)
        fair_bps = min(rate_bps, float(rates[reference]))
        return float(2.0**switches + self.alpha * abs(rates[index] / fair_bps - 1))


def harmonic_mean_bps(samples: tuple[ThroughputSample, ...]) -> float:
    """Return the harmonic mean of the transfers' throughputs."""
    rates_bps = [8 * sample.size_bytes / max(sample.finish_s - sample.request_s, LEAST_S) for sample in samples]
    return len(rates_bps) / float(np.sum(1 / np.array(rates_bps)))


def check_count(name: str, value: int) -> int:
    """Return `value` if it is a whole number >= 1; raise OptionError naming the option otherwise."""
    if not (isinstance(value, int) and value >= 1):
        raise OptionError(f"{name} must be a whole number >= 1, not {value!r}")
    return value
