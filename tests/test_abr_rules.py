"""BOLA-U, -O, -E, -PL, DYNAMIC, dash.js and the estimates they use: reference values and cases worked by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import Ladder, Observation, OptionError, Outcome, Progress, ThroughputSample, create_abr
from abr.__main__ import main
from abr.base import Buffered
from abr.bola import FiniteBola
from abr.bolae import BolaE
from abr.dashjs import DashDynamic, SwitchHistory
from abr.dynamic import Dynamic
from abr.fixed import Fixed
from abr.replacement import FastSwitching
from abr.split import InsufficientBuffer, SplitEstimator
from abr.throughput_rule import ThroughputRule

BIG_BUCK_BUNNY_KBPS = [230, 331, 477, 688, 991, 1427, 2056, 2962, 5027, 6000]
RULES = ["bola_u", "bola_o", "bolae", "bolapl", "dynamic", "dash_dynamic", "dash_throughput", "throughput_ibr"]


def make_ladder(rates_kbps=BIG_BUCK_BUNNY_KBPS, duration_s=3.0, segments=100):
    rates_bps = 1e3 * np.array(rates_kbps, dtype=float)
    sizes = np.round(np.outer(np.full(segments, duration_s), rates_bps) / 8)
    return Ladder(rates_bps, sizes, np.full(segments, duration_s))


def sample(rate_bps, begin_s=0.0, size_bytes=100_000, latency_s=0.0):
    """A transfer at a constant rate after a latency."""
    first_byte_s = begin_s + latency_s
    return ThroughputSample(size_bytes, begin_s, first_byte_s, first_byte_s + 8 * size_bytes / rate_bps)


def see(buffer_s, *, index=50, rate_bps=2e6, **extra):
    """An observation in the middle of the programme, after one transfer."""
    return Observation(100.0, index, buffer_s, 25.0, 0, (sample(rate_bps),), True, **extra)


def with_split(kind, ladder=None, **options):
    ladder = ladder or make_ladder()
    return kind(ladder, SplitEstimator(3.0), buffer_capacity_s=25.0, sizes="nominal", **options)


# Estimates


def test_one_transfer_is_its_own_mean():
    estimate = SplitEstimator(3.0).estimate([sample(2e6, latency_s=0.1)], 10.0)
    assert (estimate.rate_bps, estimate.rtt_s) == pytest.approx((2e6, 0.1))
    assert estimate.predict_transfer_s(250_000) == pytest.approx(1.1)


def test_two_means_by_hand_and_the_lower_counts():
    # 1 s at 1 Mbit/s, then 1 s at 4 Mbit/s. Half-life h: weight of the second 1 - 2^(-1/h) of 1 - 2^(-2/h).
    samples = [sample(1e6, 0.0, 125_000), sample(4e6, 2.0, 500_000)]
    means = []
    for half_life_s in (3.0, 8.0):
        keep = 0.5 ** (1 / half_life_s)
        means.append((keep * (1 - keep) * 1e6 + (1 - keep) * 4e6) / (1 - keep**2))
    assert SplitEstimator(3.0).estimate(samples, 3.0).rate_bps == pytest.approx(min(means))
    assert min(means) == means[1]


def test_a_transfer_counts_once_and_a_cut_one_not_at_all():
    estimator, one = SplitEstimator(3.0), sample(1e6)
    cut = ThroughputSample(10, 5.0, 5.0, 6.0, complete=False)
    assert estimator.estimate([cut], 6.0) is None
    first = estimator.estimate([cut, sample(1e6, 7.0)], 9.0).rate_bps
    assert estimator.estimate([cut, sample(1e6, 7.0)], 9.0).rate_bps == first == pytest.approx(1e6)
    assert one.complete


def test_the_sliding_mean_is_plain():
    samples = [sample(rate_bps, 10.0 * index) for index, rate_bps in enumerate([9e6, 1e6, 2e6, 3e6])]
    assert SplitEstimator(3.0, mean="sliding").estimate(samples, 50.0).rate_bps == pytest.approx(2e6)


def test_the_insufficient_buffer_rule_by_hand():
    # 4.1 s of buffer at 1 Mbit/s and 0.9 allow 3.7 Mbit at first, then 0.81, ... down to a half
    rule, sizes = InsufficientBuffer(), np.array([1.0, 2.0, 3.0, 4.0]) * 1e6 / 8
    estimate = SplitEstimator(3.0).estimate([sample(1e6)], 1.0)
    assert [rule.limit(3, sizes, estimate, 4.1) for _ in range(9)] == [2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert rule.limit(0, sizes, estimate, 0.0) == 0


# BOLA-U and BOLA-O


def test_finite_bola_aims_at_few_segments_at_the_ends():
    controller = with_split(FiniteBola, gp=5.0)
    best = math.log(6000 / 230)
    for index, top_s in ((1, 6.0), (8, 9.0), (50, 22.0), (95, 6.0), (92, 9.0)):
        controller.choose(see(0.0, index=index))
        assert controller.v_s == pytest.approx(top_s / (best + 5))


@pytest.mark.parametrize(("name", "choice"), [(True, 6), (False, 5)])
def test_steps_up_stop_near_what_the_link_sustains(name, choice):
    """2 Mbit/s sustains 1427 kbit/s (5): BOLA-U goes one above, BOLA-O there and waits."""
    controller = with_split(FiniteBola, gp=5.0, oscillates=name)
    decision = controller.choose(see(21.0))
    assert decision.representation == choice
    assert decision.wait_s == pytest.approx(0.0 if name else 21.0 - 18.175, abs=1e-3)


def test_above_the_sustainable_it_stays():
    controller = with_split(FiniteBola, gp=5.0)
    assert controller.choose(see(18.5, rate_bps=6e6)).representation == 8
    slow = (sample(6e6), sample(2e5, 101.0, 1_000_000))
    observation = Observation(200.0, 51, 21.5, 25.0, 8, slow, True)
    assert controller.choose(observation).representation == 8


# BOLA-E


def test_sabres_constants_of_bola_e():
    controller = with_split(BolaE)
    assert (controller.gp, controller.v_s) == pytest.approx((1.630718, 6.132269), rel=1e-6)
    switch_ms = [11048, 13284, 15527, 17770, 20007, 22244, 24483, 27150, 29441]
    levels_ms = [1000 * controller.min_level_s(index) for index in range(1, 10)]
    assert np.max(np.abs(np.array(levels_ms) - switch_ms)) <= 1.0


def test_bola_e_starts_at_what_the_link_sustains_and_remembers_why():
    controller = with_split(BolaE)
    decision = controller.choose(see(3.0, index=1))
    assert decision.representation == 5
    assert controller.placeholder_s == pytest.approx(controller.min_level_s(5) - 3.0)


def test_time_held_back_is_placeholder():
    controller = with_split(BolaE)
    controller.choose(see(3.0, index=1))
    before = controller.placeholder_s
    controller.choose(see(10.0, held_back_s=1.5))
    assert controller.placeholder_s <= before + 1.5
    assert controller.placeholder_s + 10.0 <= controller.max_level_s(9)


def test_an_abandonment_lowers_the_placeholder():
    controller = with_split(BolaE)
    controller.choose(see(3.0, index=1))
    controller.learn(Outcome(see(3.0), 5, 99.0, False, abandoned_for=2))
    assert controller.placeholder_s == pytest.approx(controller.min_level_s(2) - 3.0)
    controller.learn(Outcome(see(3.0), 5, 99.0, False, abandoned_for=0))
    assert controller.placeholder_s == pytest.approx(10.0 - 3.0)


def test_a_ladder_of_one():
    for name in RULES:
        controller = create_abr(name, make_ladder([500]), buffer_capacity_s=25.0)
        for buffer_s in (0.0, 5.0, 22.0):
            assert controller.choose(see(buffer_s)).representation == 0


# Abandonment


def progress(representation, received_share, elapsed_s, *, buffer_s=10.0, size_bytes=1_000_000):
    received = round(received_share * size_bytes)
    observation = Observation(100.0 + elapsed_s, 50, buffer_s, 25.0, representation, (sample(2e6),), True)
    return Progress(observation, representation, size_bytes, received, 100.0, 100.0)


def test_the_throughput_rule_gives_up_a_download_of_1_8_segments():
    ladder = make_ladder()
    rule = ThroughputRule(ladder, SplitEstimator(3.0), sizes="nominal")
    size = int(ladder.segment_bytes[50, 6])  # 771 kB; in 1 s so much that it takes 5.41 s, or 5.39 s, in all
    assert rule.abandon(progress(6, 1 / 5.41, 1.0, size_bytes=size)) is not None
    assert rule.abandon(progress(6, 1 / 5.39, 1.0, size_bytes=size)) is None
    assert rule.abandon(progress(6, 0.05, 0.49, size_bytes=size)) is None  # too early to tell
    assert rule.abandon(progress(0, 0.05, 1.0)) is None  # nothing below


def test_bola_gives_up_for_a_better_score_only():
    controller = with_split(FiniteBola, gp=5.0)
    controller.choose(see(10.0))
    assert controller.abandon(progress(8, 0.01, 1.0, buffer_s=5.0)) == 0
    assert controller.abandon(progress(8, 0.99, 1.0, buffer_s=5.0)) is None  # less is left than anything else takes
    assert controller.abandon(progress(8, 0.01, 1.0, buffer_s=24.0)) is None  # nothing scores


# DYNAMIC


def test_dynamic_changes_hands_at_ten_seconds():
    ladder = make_ladder()
    bola = with_split(FiniteBola, ladder, gp=5.0)
    controller = Dynamic(bola, ThroughputRule(ladder, SplitEstimator(3.0), sizes="nominal"))
    assert controller.choose(see(8.0)).representation == 5  # the throughput rule: 0.9 x 2 Mbit/s
    assert controller.choose(see(12.0)).representation == 5  # BOLA would be lower: not yet
    assert controller.choose(see(20.0)).representation == 6  # BOLA-U
    assert controller.choose(see(9.0)).representation == 5  # and back


def test_dash_dynamic_changes_hands_at_18_and_9_seconds():
    controller = create_abr("dash_dynamic", make_ladder(), buffer_capacity_s=30.0)
    reasons = [controller.choose(see(buffer_s)).reason for buffer_s in (17.9, 18.0, 9.1, 8.9, 17.9)]
    assert [reason.startswith("BOLA") for reason in reasons] == [False, True, True, False, False]


def test_dash_js_switches_early_in_a_small_buffer():
    assert DashDynamic(make_ladder(), buffer_capacity_s=12.0).switch_s == 9.0


def test_dash_js_protects_a_low_buffer():
    # 0.7 x 2 Mbit/s x 1.5 s / 3 s = 700 kbit/s: 688
    controller = create_abr("dash_throughput", make_ladder(), buffer_capacity_s=25.0)
    assert controller.choose(see(1.5)).representation == 3
    assert controller.choose(see(1.5, index=1)).representation == 5
    assert controller.choose(see(0.0)).representation == 0


def test_dash_js_avoids_what_was_left_often():
    history = SwitchHistory(3)
    for _ in range(7):
        history.note(2, 2)
    assert history.highest() == 2
    history.note(2, 1)
    assert history.highest() == 1


# Fast switching


@pytest.mark.parametrize(("side", "segment"), [("left", 12), ("right", 13)])
def test_lower_segments_are_replaced_if_they_play_late_enough(side, segment):
    ladder = make_ladder()
    controller = FastSwitching(Fixed(ladder, buffer_capacity_s=25.0, representation=4), segment_s=3.0, side=side)
    held = tuple(Buffered(10 + index, 2, 1.0 + 3.0 * index) for index in range(4))  # 1, 4, 7, 10 s
    observation = see(13.0, buffered=(*held[:1], Buffered(11, 2, 4.4), *held[2:]))
    assert controller.choose(observation).segment == segment
    better = tuple(Buffered(item.segment, 4, item.starts_in_s) for item in held)
    assert controller.choose(see(13.0, buffered=better)).segment is None


# All of them


@pytest.mark.parametrize("name", RULES)
def test_each_decision_is_explained(name, tmp_path, capsys):
    path = tmp_path / "observation.json"
    rates = [230_000, 477_000, 991_000]
    path.write_text(
        json.dumps(
            {
                "ladder": {
                    "bitrate_bps": rates,
                    "segment_bytes": [[rate // 4 for rate in rates]] * 20,
                    "segment_duration_s": [2.0] * 20,
                },
                "observation": {
                    "now_s": 9.0, "segment_index": 7, "buffer_s": 8.0, "buffer_capacity_s": 20.0,
                    "last_representation": 1, "playing": True,
                    "samples": [{"size_bytes": 100_000, "request_s": 1.0, "first_byte_s": 1.1, "finish_s": 1.9}],
                },
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    assert main(["explain", name, str(path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["representation"] in (0, 1, 2)
    assert answer["reason"]
    assert answer["estimate_bps"] > 0


@pytest.mark.parametrize("name", RULES)
def test_before_anything_is_known_it_is_the_lowest(name):
    controller = create_abr(name, make_ladder(), buffer_capacity_s=25.0)
    assert controller.choose(Observation(0.0, 0, 0.0, 25.0)).representation == 0


@pytest.mark.parametrize("options", [{"sizes": "typical"}, {"estimator": "magic"}])
def test_unknown_options_are_named(options):
    with pytest.raises(OptionError, match="known: "):
        create_abr("bolae", make_ladder(), buffer_capacity_s=25.0, **options)


@settings(max_examples=60)
@given(
    name=st.sampled_from(RULES),
    rates=st.lists(st.integers(1, 9000), min_size=1, max_size=7, unique=True),
    capacity_s=st.floats(0.5, 200),
    duration_s=st.floats(0.1, 12),
    steps=st.lists(st.tuples(st.floats(0, 1), st.floats(1e4, 1e8)), min_size=1, max_size=8),
)
def test_any_history_gives_a_possible_decision(name, rates, capacity_s, duration_s, steps):
    ladder = make_ladder(sorted(rates), duration_s, segments=30)
    controller = create_abr(name, ladder, buffer_capacity_s=capacity_s)
    samples = ()
    for index, (level, rate_bps) in enumerate(steps):
        samples = (*samples, sample(rate_bps, 100.0 * index, latency_s=0.02))
        now_s = samples[-1].finish_s
        decision = controller.choose(Observation(now_s, index, level * capacity_s, capacity_s, 0, samples, True))
        assert decision.representation in range(len(rates))
        assert 0 <= decision.wait_s <= capacity_s
