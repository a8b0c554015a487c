"""Controllers that may upgrade what is buffered: BOLA and MPC over base layers, whole segments and enhancements.

On a layered ladder (`Ladder.layer_bytes`) an upgrade fetches the layers above the ones at hand; on any other it fetches
the segment again. The rules are the same and weigh what an upgrade costs there, so the two ladders can be compared.

Both weigh *gain per second of link time*. An upgrade counts only if it should arrive before its segment begins to play,
at a rate of `SAFETY` times the estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abr.base import Buffered, Decision, Ladder, Observation
from abr.bola import LOW_BUFFER, Bola
from abr.mpc import HORIZON, Mpc, PredictionErrors, best_plan, transfer_times_s
from abr.qoe import Qoe, create_qoe
from abr.split import rule_estimator
from abr.throughput import Estimator, RateEstimate, create_estimator

SAFETY = 0.9
"""Share of the estimated rate at which an upgrade must still arrive in time."""


@dataclass(frozen=True)
class Upgrade:
    """A buffered segment in a higher representation."""

    held: Buffered
    representation: int
    time_s: float
    """Predicted time to fetch it."""

    def decision(self, estimate: RateEstimate, why: str) -> Decision:
        """Return the decision to fetch it."""
        reason = f"upgrade of segment {self.held.segment} from {self.held.representation}, due in "
        reason += f"{self.held.starts_in_s:.2f} s, takes {self.time_s:.3f} s: {why}"
        return Decision(self.representation, estimate_bps=estimate.rate_bps, reason=reason, segment=self.held.segment)


def possible_upgrades(ladder: Ladder, estimate: RateEstimate, observation: Observation) -> Iterator[Upgrade]:
    """Yield every upgrade that should arrive in time, segments in order of playback, representations ascending."""
    for held in observation.buffered:
        for representation in range(held.representation + 1, ladder.representations):
            size_bytes = ladder.upgrade_bytes(held.segment, representation, held.representation)
            time_s = estimate.predict_transfer_s(size_bytes)
            if time_s <= SAFETY * held.starts_in_s:
                yield Upgrade(held, representation, time_s)


class LayeredBola(Bola):
    """BOLA's drift plus penalty over all that could be fetched now.

    BOLA takes the action with the largest (V x utility gained - Q x media added) / time. For the next segment at m that
    is (V (u_m + gp) - Q) / t as ever; an upgrade from h to m adds no media, so V (u_m - u_h) / t. Bases come first
    while the buffer is low, enhancements once it is not. t is the predicted time of the transfer, its round trip
    included, where BOLA has the size.
    """

    def __init__(
        self,
        ladder: Ladder,
        estimator: Estimator,
        *,
        buffer_capacity_s: float,
        gp: float | None = None,
        low_buffer: float = LOW_BUFFER,
        utility: str = "log",
    ) -> None:
        super().__init__(ladder, buffer_capacity_s=buffer_capacity_s, gp=gp, low_buffer=low_buffer, utility=utility)
        self.estimator = estimator

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. Without an estimate, sizes stand for times and nothing is upgraded."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        if estimate is None:
            return super().choose(observation)
        index, buffer_s = observation.segment_index, observation.buffer_s
        times_s = np.array([estimate.predict_transfer_s(int(size)) for size in self.ladder.segment_bytes[index]])
        utilities = self.utilities_of(index)
        scores = (self.v_s * (utilities + self.gp) - buffer_s) / times_s  # [R], utility seconds per second
        choice = int(np.argmax(scores))
        best = self._best_upgrade(observation, estimate)
        if best is not None and self._score(best) > scores[choice]:
            return best.decision(estimate, f"scores {self._score(best):.3g}, segment {index} {scores[choice]:.3g}")
        reason = f"score {scores[choice]:.3g} at buffer {buffer_s:.2f} s"
        # Nothing scores: media would come too early. The session asks `upgrade` next if it can still wait.
        wait_s = max(buffer_s - float(self.v_s * (utilities.max() + self.gp)), 0.0)
        return Decision(choice, wait_s, estimate_bps=estimate.rate_bps, reason=reason)

    def upgrade(self, observation: Observation) -> Decision | None:
        """See `abr.base.Upgrading`: the link is free, so any gain is worth it; the largest per second goes first."""
        estimate = self.estimator.estimate(observation.samples, observation.now_s)
        best = None if estimate is None else self._best_upgrade(observation, estimate)
        if best is None or estimate is None or self._score(best) <= 0:
            return None
        return best.decision(estimate, f"scores {self._score(best):.3g}")

    def _best_upgrade(self, observation: Observation, estimate: RateEstimate) -> Upgrade | None:
        """Return the upgrade with the largest score; of equals the one that plays first."""
        return max(possible_upgrades(self.ladder, estimate, observation), key=self._score, default=None)

    def _score(self, upgrade: Upgrade) -> float:
        utilities = self.utilities_of(upgrade.held.segment)
        gain = utilities[upgrade.representation] - utilities[upgrade.held.representation]
        return float(self.v_s * gain / upgrade.time_s)


class LayeredMpc(Mpc):
    """MPC whose plan may begin with an upgrade.

    Of the upgrades that should arrive in time, the one with the largest gain of QoE per second is weighed: the QoE
    planned for the next segments after it, from a buffer that is shorter by its time, plus its gain, against the QoE
    planned without it. The gain counts the switches to the segments before and after it.
    """

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        decision = super().choose(observation)
        estimate = self._estimate(observation)
        if estimate is None:
            return decision
        best, gain = self._best_upgrade(observation, estimate)
        if best is None or gain <= 0:
            return decision
        without, after = (
            self._planned(observation, estimate, observation.buffer_s - spent_s) for spent_s in (0.0, best.time_s)
        )
        if after + gain <= without:
            return decision
        return best.decision(estimate, f"QoE {gain:+.3g}, {after - without:+.3g} for what follows")

    def upgrade(self, observation: Observation) -> Decision | None:
        """See `abr.base.Upgrading`: the link is free, so any gain is worth it; the largest per second goes first."""
        estimate = self._estimate(observation)
        if estimate is None:
            return None
        best, gain = self._best_upgrade(observation, estimate)
        return best.decision(estimate, f"QoE {gain:+.3g}") if best is not None and gain > 0 else None

    def _estimate(self, observation: Observation) -> RateEstimate | None:
        """Return the belief, its rate discounted by the errors of the latest predictions."""
        belief = self.believe(observation.samples, observation.now_s)
        if belief is None or self.errors is None:
            return belief
        return dataclasses.replace(belief, rate_bps=belief.rate_bps / (1 + self.errors.worst))

    def _planned(self, observation: Observation, estimate: RateEstimate, buffer_s: float) -> float:
        """Return the QoE of the best plan for the next segments from `buffer_s` on."""
        index, last = observation.segment_index, observation.last_representation
        steps = slice(index, min(index + self.horizon, self.ladder.segments))
        plan = best_plan(
            self.qoe,
            steps,
            transfer_times_s(estimate, self.ladder.segment_bytes[steps]),
            self.ladder.segment_duration_s[steps],
            buffer_s=buffer_s,
            capacity_s=self.capacity_s,
            last=None if last is None else float(self.qoe.utility[max(index - 1, 0), last]),
        )
        return plan.value

    def _best_upgrade(self, observation: Observation, estimate: RateEstimate) -> tuple[Upgrade | None, float]:
        """Return the upgrade with the largest gain per second, and its gain."""
        shown = {held.segment: held.representation for held in observation.buffered}
        upgrades = possible_upgrades(self.ladder, estimate, observation)
        gains = [(self._gain(upgrade, shown), upgrade) for upgrade in upgrades]
        gain, best = max(gains, key=lambda item: item[0] / item[1].time_s, default=(0.0, None))
        return best, gain

    def _gain(self, upgrade: Upgrade, shown: dict[int, int]) -> float:
        """Return how much QoE an upgrade adds."""
        utility, segment = self.qoe.utility, upgrade.held.segment
        before, after = (float(utility[segment, m]) for m in (upgrade.held.representation, upgrade.representation))
        beside = [float(utility[other, shown[other]]) for other in (segment - 1, segment + 1) if other in shown]
        switching = sum(abs(after - value) - abs(before - value) for value in beside)
        return (after - before - self.qoe.switching * switching) / self.qoe.unit


def layered_bola(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    gp: float | None = None,
    low_buffer: float = LOW_BUFFER,
    utility: str = "log",
    estimator: str = "slow_start",
) -> LayeredBola:
    """Build `layered_bola`."""
    rule = rule_estimator(estimator, ladder)
    return LayeredBola(ladder, rule, buffer_capacity_s=buffer_capacity_s, gp=gp, low_buffer=low_buffer, utility=utility)


def layered_mpc(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    horizon: int = HORIZON,
    utility: str = "linear",
    rebuffering: float | None = None,
    switching: float = 1.0,
    estimator: str = "slow_start",
) -> LayeredMpc:
    """Build `layered_mpc`: `robustmpc` that upgrades."""
    qoe: Qoe = create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching)
    errors = PredictionErrors()
    return LayeredMpc(
        ladder, qoe, create_estimator(estimator), buffer_capacity_s=buffer_capacity_s, horizon=horizon, errors=errors
    )
