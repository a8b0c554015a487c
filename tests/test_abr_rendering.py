"""Controllers that know what rendering costs: the wrapper for any of them, and MPC over render modes."""

import dataclasses

import numpy as np
import pytest

from abr import Buffered, Decision, Ladder, Observation, OptionError, Rendering, ThroughputSample, create_abr
from abr.mpc import best_plan
from abr.qoe import create_qoe
from abr.render_aware import RenderAware
from abr.render_mpc import best_render_plan, frame_rate_cost, scaled_mode_quality

S, R = 8, 3
MODES = ("full", "half", "keys")
PASSES = np.array([60.0, 30.0, 8.0])
QUALITY = np.array([0.5, 0.4, 0.3])  # a distance: less is better
LOSS = np.array([0.0, 0.05, 0.15])  # by mode


def make_ladder(passes_per_s: float = 40.0, *, quality: bool = True, passes: np.ndarray = PASSES) -> Ladder:
    """Segments of 2 s at 40, 80 and 160 kbit/s that take 60, 30 or 8 passes."""
    shape = (S, R, len(MODES))
    table = np.broadcast_to(QUALITY[:, None] + LOSS, shape) if quality else None
    rates = np.broadcast_to([30.0, 15.0, 4.0], shape)
    rendering = Rendering(passes_per_s, MODES, np.broadcast_to(passes, shape), rates, table)
    sizes = np.tile([10_000, 20_000, 40_000], (S, 1))
    return Ladder([4e4, 8e4, 16e4], sizes, np.full(S, 2.0), np.tile(QUALITY, (S, 1)), rendering=rendering)


def observe(buffer_s: float = 12.0, rate_bps: float = 1e6, **fields) -> Observation:
    sample = ThroughputSample(20_000, 0.0, 0.0, 160_000 / rate_bps)
    return Observation(
        10.0, 1, buffer_s, 20.0, **{"last_representation": 1, "samples": (sample,), "playing": True, **fields}
    )


class Always:
    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def choose(self, observation):
        return self.decision

    def upgrade(self, observation):
        return self.decision


@pytest.mark.parametrize(
    ("passes_per_s", "mode"), [(200.0, 0), (32.0, 0), (31.0, 1), (16.0, 1), (15.0, 2), (4.3, 2), (1.0, 2)]
)
def test_a_device_is_sent_no_more_frames_than_it_renders(passes_per_s, mode):
    """0.95 of 2 s for 60 passes: 31.6 a second; for 30, 15.8; none is fast enough at 1, so the cheapest."""
    decision = RenderAware(Always(Decision(2)), make_ladder(passes_per_s)).choose(observe())
    assert (decision.representation, decision.mode) == (2, mode)
    assert MODES[mode] in decision.reason


def test_the_measured_speed_counts_more_than_the_profile():
    controller = RenderAware(Always(Decision(2)), make_ladder(200.0))
    assert controller.choose(observe(passes_per_s=20.0)).mode == 1


def test_what_would_be_late_is_made_cheaper():
    """At 40 passes a second every frame takes 1.5 s, and 1.2 s are left behind what is in the queue."""
    controller = RenderAware(Always(Decision(2)), make_ladder(40.0))
    assert controller.choose(observe(buffer_s=4.0, render_queue_s=2.8)).mode == 1
    assert controller.choose(observe(buffer_s=4.0, render_queue_s=2.8, playing=False)).mode == 0


def test_a_smaller_picture_that_keeps_up_is_taken_before_fewer_frames_of_none():
    """Ten times the passes for the top: the device manages the middle one."""
    shape = (S, R, len(MODES))
    passes = np.broadcast_to(np.array([1.0, 1.0, 100.0])[:, None] * PASSES, shape)
    ladder = make_ladder(40.0)
    ladder = dataclasses.replace(ladder, rendering=dataclasses.replace(ladder.rendering, passes=passes))
    decision = RenderAware(Always(Decision(2)), ladder).choose(observe())
    assert (decision.representation, decision.mode) == (1, 0)


def test_an_upgrade_that_could_not_be_rendered_again_is_dropped():
    held = Buffered(3, 0, 2.0)
    controller = RenderAware(Always(Decision(2, segment=3)), make_ladder(40.0))
    assert controller.upgrade(observe(buffered=(held,), render_queue_s=0.4)) is not None
    assert controller.upgrade(observe(buffered=(held,), render_queue_s=0.6)) is None
    assert controller.choose(observe(buffered=(held,), render_queue_s=0.4)).segment == 3
    dropped = controller.choose(observe(buffered=(held,), render_queue_s=0.6))
    assert (dropped.segment, dropped.representation) == (None, 1)


def test_a_ladder_without_costs_is_refused():
    with pytest.raises(OptionError, match="does not say what rendering costs"):
        RenderAware(Always(Decision(0)), dataclasses.replace(make_ladder(), rendering=None))


def test_without_rendering_time_the_plan_is_mpcs():
    ladder = make_ladder()
    qoe, steps = create_qoe(ladder, "quality"), slice(1, 5)
    times_s = 8 * ladder.segment_bytes[steps] / 7e4
    durations_s = ladder.segment_duration_s[steps]
    for buffer_s in (0.5, 3.0, 9.0, 18.0):
        plain = best_plan(qoe, steps, times_s, durations_s, buffer_s=buffer_s, capacity_s=1e3, last=0.2)
        ours = best_render_plan(
            qoe, qoe.utility[steps], times_s, np.zeros_like(times_s), durations_s,
            buffer_s=buffer_s, queue_s=0.0, capacity_s=1e3, last=0.2,
        )  # fmt: skip
        assert ours.representation == plain.representation
        assert (ours.value, ours.rebuffered_s) == pytest.approx((plain.value, plain.rebuffered_s))


def test_two_servers_in_a_row_by_hand():
    """One action, 1 s to fetch and 3 s to render 2 s of media, from 4 s of buffer and 1 s of queue.

    Ready at 1 + 3 = 4 (no stop, shown until 6), at 4 + 3 = 7 (1 s late, until 9), at 10 (1 s late).
    """
    qoe = create_qoe(make_ladder(), "quality")
    one = np.ones((3, 1))
    plan = best_render_plan(
        qoe, one, one, 3 * one, np.full(3, 2.0), buffer_s=4.0, queue_s=1.0, capacity_s=20.0, last=None
    )
    assert plan.rebuffered_s == pytest.approx(2.0)
    assert plan.value == pytest.approx(3.0 - 2.0 * qoe.rebuffering)


@pytest.mark.parametrize(("passes_per_s", "modes"), [(200.0, {0}), (20.0, {1, 2}), (2.0, {2})])
def test_quality_mpc_plans_modes_that_the_device_keeps_up_with(passes_per_s, modes):
    controller = create_abr("quality_mpc", make_ladder(passes_per_s), buffer_capacity_s=20.0, estimator="naive")
    decision = controller.choose(observe())
    assert decision.mode in modes
    assert decision.representation == 2


def test_modes_lie_on_the_ladders_scale():
    table = scaled_mode_quality(make_ladder(), make_ladder().rendering)
    assert table[0, :, 0] == pytest.approx([0.0, 0.5, 1.0])
    rate = 1 - (1 - np.exp(-7.4 * 4 / 30)) / (1 - np.exp(-7.4))
    assert table[0, 0, 2] == pytest.approx(-0.75 - rate)


def test_fewer_frames_cost_more_the_fewer_they_are():
    assert frame_rate_cost(np.array([1.0, 0.5, 1 / 3, 0.15])) == pytest.approx([0.0, 0.024, 0.084, 0.329], abs=5e-4)


def test_modes_that_were_not_measured_cannot_be_planned():
    with pytest.raises(OptionError, match="was not measured"):
        create_abr("quality_mpc", make_ladder(quality=False), buffer_capacity_s=20.0)


@pytest.mark.parametrize("utility", ["quality", "log_quality"])
def test_bola_by_measured_quality_saves_bits_that_buy_nothing(utility):
    flat = dataclasses.replace(make_ladder(), quality=np.tile([0.5, 0.31, 0.30], (S, 1)))
    chosen = {
        name: create_abr("bola", flat, buffer_capacity_s=20.0, utility=name).choose(observe(14.0)).representation
        for name in ("log", utility)
    }
    assert chosen == {"log": 2, utility: 1}


@pytest.mark.parametrize("name", ["bola", "layered_bola"])
def test_more_buffer_never_lowers_bolas_choice(name):
    controller = create_abr(name, make_ladder(), buffer_capacity_s=20.0, utility="quality")
    choices = [controller.choose(observe(float(level))).representation for level in range(1, 18)]
    assert choices == sorted(choices)
    assert len(set(choices)) == 3


@pytest.mark.parametrize(
    ("change", "utility", "message"),
    [
        ({}, "vmaf", "known: log, quality, log_quality"),
        ({"quality": None}, "quality", "no measured quality"),
        ({"quality": np.full((S, R), 0.4)}, "quality", "no representation is measured better"),
    ],
)
def test_bolas_utility_must_be_known_and_measured(change, utility, message):
    ladder = dataclasses.replace(make_ladder(), rendering=None, **change)
    with pytest.raises(OptionError, match=message):
        create_abr("bola", ladder, buffer_capacity_s=20.0, utility=utility)


def test_a_decision_under_rendering_costs_can_be_explained(tmp_path, capsys):
    import json

    from abr.__main__ import main

    ladder = {
        "bitrate_bps": [4e4, 8e4],
        "segment_bytes": [[10_000, 20_000]] * 2,
        "segment_duration_s": [2.0, 2.0],
        "quality": [[0.5, 0.3]] * 2,
        "rendering": {
            "passes_per_s": 20,
            "modes": ["full", "half"],
            "passes": [[[60, 30]] * 2] * 2,
            "frame_rate": [[[30, 15]] * 2] * 2,
            "quality": [[[0.5, 0.52], [0.3, 0.33]]] * 2,
        },
    }
    sample = {"size_bytes": 15_000, "request_s": 0.0, "first_byte_s": 0.05, "finish_s": 0.12}
    seen = {"now_s": 6.0, "segment_index": 1, "buffer_s": 7.5, "buffer_capacity_s": 20.0, "samples": [sample]}
    path = tmp_path / "observation.json"
    path.write_text(json.dumps({"ladder": ladder, "observation": seen}))
    assert main(["explain", "quality_mpc", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == 1
    assert main(["explain", "bola", str(path)]) == 0  # any other controller under the device's speed
    explained = json.loads(capsys.readouterr().out)
    assert explained["mode"] == 1
    assert "half: renders in 1.50 s, limit 1.90 s" in explained["reason"]
    ladder["rendering"]["passes_per_s"] = 0
    path.write_text(json.dumps({"ladder": ladder, "observation": seen}))
    assert main(["explain", "quality_mpc", str(path)]) == 1
    assert capsys.readouterr().err == "abr: rendering: passes_per_s must be positive, not 0\n"
