"""Controllers that upgrade buffered segments: what they weigh, by hand, and whole sessions on both kinds of ladder."""

import math

import numpy as np
import pytest

from abr import Ladder, Observation, ThroughputSample, create_abr
from abr.base import Buffered
from abr.errors import LadderError
from emulator import LinkConfig, create_transport
from experiments.simulate import simulate
from player.config import PlayerConfig
from player.session import Session
from traces import TraceConfig, load_trace

NAMES = ["layered_bola", "layered_mpc"]
LAYERS = [10_000, 10_000, 20_000]


def make_ladder(segments=30, *, layered=True):
    sizes = np.tile(np.cumsum(LAYERS), (segments, 1))
    layers = np.tile(LAYERS, (segments, 1)) if layered else None
    return Ladder([40e3, 80e3, 160e3], sizes, np.full(segments, 2.0), layer_bytes=layers)


def see(buffer_s, *held, rate_bps=400e3, index=10):
    """A link of `rate_bps` without latency; `held`: (segment, representation, starts_in_s)."""
    size = 50_000
    samples = (ThroughputSample(size, 0.0, 0.0, 8 * size / rate_bps),)
    buffered = tuple(Buffered(*item) for item in held)
    return Observation(50.0, index, buffer_s, 20.0, 1, samples, True, buffered=buffered)


def create(name, ladder, **options):
    return create_abr(name, ladder, buffer_capacity_s=20.0, estimator="naive", **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_idle_link_takes_the_gain_that_is_cheapest(name):
    """80 kbit for the second layer, 160 kbit for the third: both add as much to log utility."""
    options = {"utility": "log", "switching": 0.0} if name == "layered_mpc" else {}
    controller = create(name, make_ladder(), **options)
    decision = controller.upgrade(see(18.0, (8, 1, 6.0), (9, 0, 8.0)))
    assert (decision.segment, decision.representation) == (9, 1)
    assert controller.upgrade(see(18.0, (8, 2, 6.0), (9, 2, 8.0))) is None
    assert controller.upgrade(see(18.0)) is None


@pytest.mark.parametrize("name", NAMES)
def test_an_upgrade_that_would_come_late_is_not_tried(name):
    controller = create(name, make_ladder())
    assert controller.upgrade(see(18.0, (8, 0, 0.21))) is None  # 10 kB take 0.2 s; 0.9 x 0.21 s are less
    assert controller.upgrade(see(18.0, (8, 0, 0.23))).segment == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_low_buffer_is_filled_first(name):
    """At 35 kbit/s even bases take 2.29 s for 2 s; the upgrade would be in time, and a stop would follow."""
    controller = create(name, make_ladder())
    assert controller.choose(see(3.9, (9, 0, 3.4), rate_bps=35e3)).segment is None
    assert controller.upgrade(see(3.9, (9, 0, 3.4), rate_bps=35e3)).segment == 9


def test_bola_weighs_gain_per_time_by_hand():
    controller = create("layered_bola", make_ladder())
    v_s, gp = controller.v_s, controller.gp
    for buffer_s in (2.0, 6.0, 10.0, 14.0):
        new = max((v_s * (u + gp) - buffer_s) / t for u, t in zip(controller.utilities, (0.2, 0.4, 0.8), strict=True))
        upgrade = v_s * math.log(2) / 0.2
        decision = controller.choose(see(buffer_s, (9, 0, buffer_s - 1)))
        assert (decision.segment == 9) == (upgrade > new)


def test_an_independent_ladder_pays_for_the_whole_segment():
    """From 0 to 1 it costs 0.4 s instead of 0.2 s."""
    controller = create("layered_bola", make_ladder(layered=False))
    assert "takes 0.400 s" in controller.upgrade(see(18.0, (9, 0, 5.0))).reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layered", [True, False])
def test_a_session_upgrades_and_keeps_its_books(name, layered):
    ladder = make_ladder(layered=layered)
    trace = load_trace(TraceConfig("umts", share=12))
    session = Session(ladder, create(name, ladder), PlayerConfig(timeout_s=60.0))
    simulate(session, create_transport(trace, LinkConfig()), segment_frames=[60] * ladder.segments)
    log, summary = session.log(), session.log().summary
    assert summary["ended"] == 1
    assert summary["upgrades"] > 0 or not layered  # whole segments are rarely worth fetching twice
    assert summary["upgrades"] == sum(event["event"] == "upgrade" for event in log.events)
    total_s = summary["startup_delay_s"] + summary["played_s"] + summary["rebuffered_s"]
    assert total_s == pytest.approx(summary["elapsed_s"], abs=1e-9)
    for row in log.segments:
        assert row["size_bytes"] == ladder.segment_bytes[row["segment"], row["representation"]]
        assert row["upgraded_s"] is None or row["upgraded_s"] <= row["play_start_s"]
    late = any(row["abandonments"] for row in log.segments)
    assert late or (summary["wasted_bytes"] > 0) == (summary["upgrades"] > 0 and not layered)


def test_layers_must_add_up():
    with pytest.raises(LadderError, match="sums of the layers"):
        Ladder([1e3, 2e3], [[10, 20]], [1.0], layer_bytes=[[10, 11]])
    with pytest.raises(LadderError, match="positive size"):
        Ladder([1e3, 2e3], [[10, 20]], [1.0], layer_bytes=[[10, 0]])
    ladder = Ladder([1e3, 2e3], [[10, 25]], [1.0], layer_bytes=[[10, 15]])
    assert [ladder.upgrade_bytes(0, 1, held) for held in (None, 0)] == [25, 15]
