"""MPC: plan a few segments against a predicted throughput, take the plan's first choice. Yin et al., SIGCOMM 2015.

Every sequence of representations over the horizon is tried (the paper's QOE_MAX, enumerated as in Pensieve's
simulator). With predicted download times d, buffer Q and segment durations p, one step of a plan is

    rebuffering = max(0, d - Q),      Q <- min(max(0, Q - d) + p, cap).

`mpc` trusts the prediction, `robustmpc` (Section 4.3 of the paper) divides the predicted throughput by 1 + the largest
relative error of the last five predictions. `quality_mpc` plans measured quality instead of bitrate and, where the
ladder says what rendering costs, render modes too (`abr.render_mpc`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, ThroughputSample, check_positive
from abr.errors import OptionError
from abr.linear_buffer import check_first
from abr.qoe import Qoe, create_qoe
from abr.throughput import Estimator, RateEstimate, create_estimator

HORIZON = 5
"""Segments planned ahead, as in the paper's evaluation and in Pensieve's."""
ERROR_MEMORY = 5
"""Predictions whose largest error discounts the next one."""
MAX_SEQUENCES = 2_000_000
"""Most sequences to enumerate per decision: beyond, a decision takes longer than many segments."""
TIES = ("first", "last")


class PredictionErrors:
    """The relative errors of the latest predictions of transfer time, e = |actual / predicted - 1|.

    With a prediction of bytes / throughput this is the paper's |predicted - actual| / actual of throughput.
    """

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=ERROR_MEMORY)
        self._belief: RateEstimate | None = None
        self._seen: ThroughputSample | None = None

    def update(self, samples: Sequence[ThroughputSample], belief: RateEstimate | None) -> None:
        """Judge the belief held so far by the latest transfer, once, and hold `belief` from here on."""
        if samples and samples[-1] is not self._seen:
            latest = self._seen = samples[-1]
            if self._belief is not None:
                actual_s = max(latest.finish_s - latest.request_s, self._belief.path.resolution_s)
                self._errors.append(abs(actual_s / self._belief.predict_transfer_s(latest.size_bytes) - 1))
        self._belief = belief or self._belief

    @property
    def worst(self) -> float:
        """The largest of the last five errors; 0 before any."""
        return max(self._errors, default=0.0)


@dataclass(frozen=True)
class Plan:
    """The best sequence found."""

    representation: int
    """Its first choice."""
    value: float
    """Its QoE over the horizon."""
    rebuffered_s: float
    """Rebuffering it expects."""


def best_plan(
    qoe: Qoe,
    steps: slice,
    times_s: NDArray[np.float64],
    durations_s: NDArray[np.float64],
    *,
    buffer_s: float,
    capacity_s: float,
    last: float | None,
    ties: str = "first",
) -> Plan:
    """Return the best of all sequences of representations, extended step by step as one array.

    Args:
        steps: the segments planned, h rows of `qoe.utility`.
        times_s: [h, R] predicted download times; infinite for what must not be chosen.
        durations_s: [h] of the segments.
        last: utility of the segment before, or None.
        ties: which of equal sequences in lexicographic order wins, "first" (the lowest) or "last".
    """
    count = times_s.shape[1]
    level_s, stalled_s = np.array([buffer_s]), np.zeros(1)
    gained, switched = np.zeros(1), np.zeros(1)
    before: NDArray[np.float64] | None = None if last is None else np.array([last])
    for utility, time_s, duration_s in zip(qoe.utility[steps], times_s, durations_s, strict=True):
        after_s = level_s[:, None] - time_s  # [n, R]
        stalled_s = (stalled_s[:, None] + np.maximum(-after_s, 0.0)).ravel()
        level_s = np.minimum(np.maximum(after_s, 0.0) + duration_s, capacity_s).ravel()
        gained = (gained[:, None] + utility).ravel()
        change = np.abs(utility - before[:, None]) if before is not None else np.zeros((1, count))
        switched = (switched[:, None] + change).ravel()
        before = np.tile(utility, len(gained) // count)
    values = gained / qoe.unit - qoe.rebuffering * stalled_s - qoe.switching * (switched / qoe.unit)
    best = int(np.argmax(values)) if ties == "first" else len(values) - 1 - int(np.argmax(values[::-1]))
    return Plan(best // (len(values) // count), float(values[best]), float(stalled_s[best]))


class Mpc:
    """Model predictive control by enumeration."""

    def __init__(
        self,
        ladder: Ladder,
        qoe: Qoe,
        estimator: Estimator,
        *,
        buffer_capacity_s: float,
        horizon: int = HORIZON,
        errors: PredictionErrors | None = None,
        first: int = 0,
        ties: str = "first",
    ) -> None:
        """Args:
        errors: discount the prediction by these; None trusts it.
        first: representation of the first segment, before anything is measured (Pensieve's simulator: 1).
        ties: which of equally good plans wins: "first" (lowest first choice) or "last" (Pensieve's simulator).
        """
        if not (isinstance(horizon, int) and horizon >= 1):
            raise OptionError(f"horizon must be a whole number of segments >= 1, not {horizon!r}")
        if ladder.representations ** min(horizon, ladder.segments) > MAX_SEQUENCES:
            raise OptionError(
                f"horizon {horizon} over {ladder.representations} representations is more than {MAX_SEQUENCES} "
                "sequences; give a shorter horizon"
            )
        if ties not in TIES:
            raise OptionError(f"unknown ties {ties!r}; known: {', '.join(TIES)}")
        self.ladder, self.qoe, self.estimator = ladder, qoe, estimator
        self.capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        self.horizon, self.errors, self.ties = horizon, errors, ties
        self.first = check_first(first, ladder)

    def believe(self, samples: Sequence[ThroughputSample], now_s: float) -> RateEstimate | None:
        """Take in what was measured, and return the belief; `choose` does so itself before each decision."""
        belief = self.estimator.estimate(samples, now_s)
        if self.errors is not None:
            self.errors.update(samples, belief)
        return belief

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        belief = self.believe(observation.samples, observation.now_s)
        if belief is None:
            return Decision(self.first, reason="no transfer measured yet")
        index, last = observation.segment_index, observation.last_representation
        steps = slice(index, min(index + self.horizon, self.ladder.segments))
        discount = 1 + (self.errors.worst if self.errors is not None else 0.0)
        times_s = discount * transfer_times_s(belief, self.ladder.segment_bytes[steps])
        durations_s = self.ladder.segment_duration_s[steps]
        plan = best_plan(
            self.qoe,
            steps,
            times_s,
            durations_s,
            buffer_s=observation.buffer_s,
            capacity_s=self.capacity_s,
            last=None if last is None else float(self.qoe.utility[max(index - 1, 0), last]),
            ties=self.ties,
        )
        reason = (
            f"QoE {plan.value:.4g} over {len(times_s)} segments at {belief.rate_bps / discount / 1e3:.0f} kbit/s, "
            f"{plan.rebuffered_s:.2f} s rebuffered"
        )
        choice = plan.representation
        higher = self.ladder.representations if last is None else last + 1
        # At a bound, the link does at least this; only a larger object can tell how much more.
        if (
            belief.is_bound
            and choice < higher < self.ladder.representations
            and (times_s[0, higher] <= observation.buffer_s)
        ):
            choice, reason = higher, reason + "; rate not identified: one step up"
        return Decision(choice, estimate_bps=belief.rate_bps / discount, reason=reason)


def transfer_times_s(belief: RateEstimate, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the predicted transfer time of each object, any shape."""
    if belief.rtt_s == 0:
        return 8 * sizes / belief.rate_bps
    times_s = [belief.predict_transfer_s(int(size)) for size in sizes.ravel()]
    return np.array(times_s).reshape(sizes.shape)


def mpc_controller(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    horizon: int = HORIZON,
    utility: str = "linear",
    rebuffering: float | None = None,
    switching: float = 1.0,
    estimator: str = "slow_start",
) -> Mpc:
    """Build `mpc`: the prediction (harmonic mean over five transfers) is trusted. Pensieve calls it fastMPC."""
    qoe = create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching)
    return Mpc(ladder, qoe, create_estimator(estimator), buffer_capacity_s=buffer_capacity_s, horizon=horizon)


def robust_mpc_controller(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    horizon: int = HORIZON,
    utility: str = "linear",
    rebuffering: float | None = None,
    switching: float = 1.0,
    estimator: str = "slow_start",
) -> Mpc:
    """Build `robustmpc`: predicted throughput / (1 + the largest error of the last five predictions)."""
    return Mpc(
        ladder,
        create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching),
        create_estimator(estimator),
        buffer_capacity_s=buffer_capacity_s,
        horizon=horizon,
        errors=PredictionErrors(),
    )


def quality_mpc_controller(
    ladder: Ladder,
    *,
    buffer_capacity_s: float,
    horizon: int = HORIZON,
    rebuffering: float | None = None,
    switching: float = 1.0,
    estimator: str = "slow_start",
) -> Mpc:
    """Build `quality_mpc`: robustmpc on measured quality (0 worst, 1 best), and render modes if the ladder has any."""
    if ladder.rendering is not None:
        from abr.render_mpc import RenderMpc  # it is a kind of Mpc

        return RenderMpc(
            ladder,
            ladder.rendering,
            create_estimator(estimator),
            buffer_capacity_s=buffer_capacity_s,
            horizon=horizon,
            rebuffering=rebuffering,
            switching=switching,
        )
    return Mpc(
        ladder,
        create_qoe(ladder, "quality", rebuffering=rebuffering, switching=switching),
        create_estimator(estimator),
        buffer_capacity_s=buffer_capacity_s,
        horizon=horizon,
        errors=PredictionErrors(),
    )
