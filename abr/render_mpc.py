"""MPC over representations and render modes: the link and the device are two servers in a row.

A segment is fetched, then rendered, then shown. With tau, rho and pi the times at which the link is free, the device is
free, and what has been planned so far has been shown, one step of a plan with download time d, rendering time c and
duration p is

    tau <- max(tau, pi + p - cap) + d,    rho <- max(rho, tau) + c,
    rebuffering = max(0, rho - pi),       pi <- max(pi, rho) + p.

With c = 0 this is the buffer of `abr.mpc`. Considered are the mode that shows most frames of those that the device
keeps up with and, if that takes half of its time or more, the next cheaper one. Planned is the measured quality of what
each mode shows, less what a lower frame rate costs: measures of single pictures do not see it. At f of F frames/s that
is

    1 - (1 - exp(-a f / F)) / (1 - exp(-a)),   a = 7.4,

of the range of quality: 0.02 at half, 0.08 at a third, 0.33 at 4.5 of 30 frames/s. The form, an inverted falling
exponential of the frame rate, is that of the temporal correction factor in Ou, Ma, Liu, Wang, "Perceptual Quality
Assessment of Video Considering Both Frame Rate and Quantization Artifacts", IEEE TCSVT 21(3), 2011. There it multiplies
the quality of the frames and its parameter depends on the content (both so in the abstract, all that could be checked);
here it is subtracted, and one a, a setting of ours that no source was found for, serves all content.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation
from abr.errors import OptionError
from abr.mpc import HORIZON, Mpc, Plan, PredictionErrors, transfer_times_s
from abr.qoe import Qoe, create_qoe, oriented_quality
from abr.render_aware import SAFETY
from abr.rendering import Rendering
from abr.throughput import Estimator

TIGHT = 0.5
"""Share of the device's time above which a cheaper mode is weighed too; below, rendering asks for no fewer frames."""
TEMPORAL = 7.4
"""a: how soon more frames stop to matter; ours, see above."""


def best_render_plan(
    qoe: Qoe,
    utility: NDArray[np.float64],
    times_s: NDArray[np.float64],
    renders_s: NDArray[np.float64],
    durations_s: NDArray[np.float64],
    *,
    buffer_s: float,
    queue_s: float,
    capacity_s: float,
    last: float | None,
) -> Plan:
    """Return the best of all sequences of actions; its `representation` is the index of its first action.

    Args:
        qoe: its weights and unit.
        utility: [h, A] of each action for each segment planned.
        times_s: [h, A] predicted download times.
        renders_s: [h, A] predicted rendering times.
        durations_s: [h] of the segments.
        queue_s: what the device still needs for all that has arrived.
        last: utility of the segment before, or None.
    """
    count = utility.shape[1]
    link_s, device_s, shown_s = np.zeros(1), np.array([queue_s]), np.array([buffer_s])
    stalled_s, gained, switched = np.zeros(1), np.zeros(1), np.zeros(1)
    before: NDArray[np.float64] | None = None if last is None else np.array([last])
    for value, time_s, render_s, duration_s in zip(utility, times_s, renders_s, durations_s, strict=True):
        arrived_s = np.maximum(link_s, shown_s + duration_s - capacity_s)[:, None] + time_s  # [n, A]
        ready_s = np.maximum(device_s[:, None], arrived_s) + render_s
        late_s = np.maximum(ready_s - shown_s[:, None], 0.0)
        stalled_s = (stalled_s[:, None] + late_s).ravel()
        shown_s = (np.maximum(shown_s[:, None], ready_s) + duration_s).ravel()
        link_s, device_s = arrived_s.ravel(), ready_s.ravel()
        change = np.abs(value - before[:, None]) if before is not None else np.zeros((1, count))
        switched, gained = (switched[:, None] + change).ravel(), (gained[:, None] + value).ravel()
        before = np.tile(value, len(gained) // count)
    values = gained / qoe.unit - qoe.rebuffering * stalled_s - qoe.switching * (switched / qoe.unit)
    best = int(np.argmax(values))
    return Plan(best // (len(values) // count), float(values[best]), float(stalled_s[best]))


class RenderMpc(Mpc):
    """`quality_mpc` on a ladder that says what rendering costs."""

    def __init__(
        self,
        ladder: Ladder,
        rendering: Rendering,
        estimator: Estimator,
        *,
        buffer_capacity_s: float,
        horizon: int = HORIZON,
        rebuffering: float | None = None,
        switching: float = 1.0,
    ) -> None:
        """Raise OptionError if the quality of the render modes was not measured."""
        qoe = create_qoe(ladder, "quality", rebuffering=rebuffering, switching=switching)
        errors = PredictionErrors()
        super().__init__(ladder, qoe, estimator, buffer_capacity_s=buffer_capacity_s, horizon=horizon, errors=errors)
        self.rendering = rendering
        self.utility = scaled_mode_quality(ladder, rendering)  # [S, R, M]
        self._shown: float | None = None

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        belief = self.believe(observation.samples, observation.now_s)
        index = observation.segment_index
        steps = slice(index, min(index + self.horizon, self.ladder.segments))
        speed = observation.passes_per_s or self.rendering.passes_per_s
        modes = self._modes(steps, speed)
        if belief is None:
            return Decision(self.first, mode=modes[0], reason="no transfer measured yet")
        discount = 1 + (self.errors.worst if self.errors is not None else 0.0)
        times_s = discount * transfer_times_s(belief, self.ladder.segment_bytes[steps])  # [h, R]
        renders_s = self.rendering.passes[steps][:, :, modes] / speed  # [h, R, m]
        utility = self.utility[steps][:, :, modes]
        plan = best_render_plan(
            self.qoe,
            utility.reshape(len(times_s), -1),
            np.repeat(times_s, len(modes), axis=1),
            renders_s.reshape(len(times_s), -1),
            self.ladder.segment_duration_s[steps],
            buffer_s=observation.buffer_s,
            queue_s=observation.render_queue_s,
            capacity_s=self.capacity_s,
            last=self._shown,
        )
        representation, place = divmod(plan.representation, len(modes))
        self._shown = float(utility[0, representation, place])
        reason = f"QoE {plan.value:.4g} over {len(times_s)} segments at {belief.rate_bps / discount / 1e3:.0f} kbit/s "
        reason += f"and {speed:.3g} passes/s, {plan.rebuffered_s:.2f} s rebuffered; "
        reason += self.rendering.modes[modes[place]]
        return Decision(representation, estimate_bps=belief.rate_bps / discount, mode=modes[place], reason=reason)

    def _modes(self, steps: slice, speed: float) -> list[int]:
        """Return the mode with most frames that the device keeps up with, and the next cheaper one if that is tight."""
        share = self.rendering.passes[steps] / speed / self.ladder.segment_duration_s[steps, None, None]  # [h, R, M]
        needed = share.mean(axis=0).min(axis=0)  # [M]
        order = np.argsort(-needed, kind="stable").tolist()
        first = next((place for place, mode in enumerate(order) if needed[mode] <= SAFETY), len(order) - 1)
        return order[first : first + 2] if needed[order[first]] > TIGHT else order[first : first + 1]


def scaled_mode_quality(ladder: Ladder, rendering: Rendering) -> NDArray[np.float64]:
    """Return the measured quality [S, R, M] of the modes on the scale of `abr.qoe.scaled_quality`, less what their
    frame rate costs; it may lie below 0."""
    full = oriented_quality(ladder)
    if rendering.quality is None:
        raise OptionError("the quality of the render modes was not measured, which this controller plans with")
    sign = 1.0 if full is ladder.quality else -1.0
    worst, best = float(full[:, 0].min()), float(full.max())
    scaled = (sign * rendering.quality - worst) / (best - worst) if best > worst else np.zeros_like(rendering.quality)
    return scaled - frame_rate_cost(rendering.frame_rate / rendering.frame_rate[:, :, :1])


def frame_rate_cost(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what showing a share of the frames, in (0, 1], costs: 0 for all of them."""
    return 1 - np.expm1(-TEMPORAL * share) / np.expm1(-TEMPORAL)
