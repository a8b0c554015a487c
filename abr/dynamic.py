"""DYNAMIC: the throughput rule while the buffer is low, BOLA once it is not.

Spiteri, Sitaraman, Sparacio, "From Theory to Practice", MMSys 2018, Section 5, as in their simulator Sabre.
"""

from __future__ import annotations

from abr.base import Decision, Ladder, Observation, Outcome, Progress, check_positive
from abr.bola import LOW_BUFFER, FiniteBola
from abr.bolae import BolaE
from abr.split import rule_estimator
from abr.throughput_rule import ThroughputRule

SWITCH_S = 10.0
"""Buffer above which BOLA may take over."""
LOW_SWITCH_S = 5.0
"""With BOLA-E, buffer below which the throughput rule takes over again."""


class Dynamic:
    """Both rules choose each time; which one counts depends on the buffer, and changes where it does no harm.

    With BOLA: to it when Q > 10 s and its choice is at least the throughput rule's; back when Q < 10 s and its choice
    is lower. With BOLA-E: to it when Q > 10 s, back when Q < 5 s. Abandonment is the throughput rule's. After a
    buffered segment was replaced the throughput rule counts (BOLA only).
    """

    def __init__(self, bola: FiniteBola | BolaE, throughput: ThroughputRule, *, switch_s: float = SWITCH_S) -> None:
        self.bola, self.throughput = bola, throughput
        self.switch_s = check_positive("switch_s", switch_s)
        self._by_bola = False

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        buffer_s = observation.buffer_s
        if isinstance(self.bola, BolaE):
            low_s = self.switch_s * LOW_SWITCH_S / SWITCH_S
            self._by_bola = buffer_s >= low_s if self._by_bola else buffer_s > self.switch_s
            return self.bola.choose(observation) if self._by_bola else self.throughput.choose(observation)
        by_buffer, by_rate = self.bola.choose(observation), self.throughput.choose(observation)
        safe = by_buffer.representation >= by_rate.representation
        if self._by_bola:
            self._by_bola = buffer_s >= self.switch_s or safe
        else:
            self._by_bola = buffer_s > self.switch_s and safe
        return by_buffer if self._by_bola else by_rate

    def abandon(self, progress: Progress) -> int | None:
        """See `abr.base.Abandoning`."""
        if self._by_bola and isinstance(self.bola, BolaE):
            return self.bola.abandon(progress)
        return self.throughput.abandon(progress)

    def learn(self, outcome: Outcome) -> None:
        """See `abr.base.Learning`."""
        if isinstance(self.bola, BolaE):
            self.bola.learn(outcome)
        elif outcome.is_upgrade:
            self._by_bola = False


def dynamic(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    gp: float | None = None,
    low_buffer: float = LOW_BUFFER,
    oscillates: bool = True,
    switch_s: float = SWITCH_S,
    sizes: str = "segment",
    estimator: str = "slow_start",
) -> Dynamic:
    """Build `dynamic`."""
    bola = FiniteBola(
        ladder,
        rule_estimator(estimator, ladder),
        buffer_capacity_s=buffer_capacity_s,
        gp=gp,
        low_buffer=low_buffer,
        oscillates=oscillates,
        sizes=sizes,
    )
    return Dynamic(bola, ThroughputRule(ladder, rule_estimator(estimator, ladder), sizes=sizes), switch_s=switch_s)
