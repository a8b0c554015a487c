"""Rendering in a session: its queue, its cost, upgrades of what is not begun, render modes."""

import numpy as np
import pytest

from abr import Decision, Ladder, LadderError, Rendering
from emulator import LinkConfig, create_transport
from experiments.simulate import RenderServer, simulate
from player.config import PlayerConfig
from player.errors import SessionError
from player.session import Session
from traces.synthetic import constant

S, R = 6, 2
MODES = ("full", "half")


def make_rendering(passes_per_s: float = 20.0, full: float = 60.0) -> Rendering:
    """Segments of 2 s: `full` passes for every frame, half of them for half the frames."""
    passes = np.broadcast_to(np.array([full, full / 2]), (S, R, 2))
    rates = np.broadcast_to(np.array([30.0, 15.0]), (S, R, 2))
    return Rendering(passes_per_s, MODES, passes, rates)


def make_ladder(rendering: Rendering | None, *, layered: bool = False) -> Ladder:
    sizes = np.tile([[4000, 9000]], (S, 1))
    layers = np.tile([[4000, 5000]], (S, 1)) if layered else None
    rates = sizes.sum(axis=0) * 8 / (2.0 * S)
    return Ladder(rates, sizes, np.full(S, 2.0), layer_bytes=layers, rendering=rendering)


class Fixed:
    def __init__(self, mode: int) -> None:
        self.mode, self.seen = mode, []

    def choose(self, observation):
        self.seen.append(observation)
        return Decision(0, mode=self.mode)


def play(controller, ladder: Ladder) -> Session:
    session = Session(ladder, controller, PlayerConfig(buffer_s=8.0))
    transport = create_transport(constant(1e6), LinkConfig())
    simulate(session, transport, segment_frames=[60] * ladder.segments)
    return session


@pytest.mark.parametrize(("mode", "rendered_s", "stalls"), [(0, 3.0, True), (1, 1.5, False)])
def test_a_device_too_slow_for_every_frame_keeps_up_with_half(mode, rendered_s, stalls):
    """20 passes a second: 60 take 3 s for 2 s of media, 30 take 1.5 s."""
    log = play(Fixed(mode), make_ladder(make_rendering())).log()
    assert [row["render_s"] for row in log.segments] == pytest.approx([rendered_s] * S)
    assert {row["render_mode"] for row in log.segments} == {MODES[mode]}
    assert (log.summary["rebuffered_s"] > 0) is stalls


def test_a_controller_sees_the_devices_speed_and_what_it_owes():
    controller = Fixed(0)
    play(controller, make_ladder(make_rendering()))
    first, second = controller.seen[:2]
    assert (first.passes_per_s, first.render_queue_s) == (20.0, 0.0)
    assert second.render_queue_s == pytest.approx(3.0)
    assert all(seen.passes_per_s == pytest.approx(20.0) for seen in controller.seen)
    assert controller.seen[-1].render_speed == pytest.approx(2 / 3)


def test_without_rendering_nothing_is_owed():
    controller = Fixed(0)
    log = play(controller, make_ladder(None)).log()
    assert {(seen.passes_per_s, seen.render_queue_s, seen.render_speed) for seen in controller.seen} == {
        (None, 0.0, None)
    }
    assert {row["render_mode"] for row in log.segments} == {None}


def test_a_mode_that_is_not_there_is_refused():
    from abr import AbrError

    with pytest.raises(AbrError, match=r"chose render mode 2; there are 0\.\.1"):
        play(Fixed(2), make_ladder(make_rendering()))


def test_an_upgrade_replaces_what_was_not_begun_and_repeats_what_was():
    server = RenderServer()
    server.submit(0, 3.0, 0.0)
    server.submit(1, 3.0, 0.5)
    server.submit(2, 3.0, 0.6)
    server.submit(1, 4.0, 0.7)  # not begun: takes its place
    server.submit(0, 5.0, 0.8)  # begun: again, and before what plays later
    done = []
    while server.next_s < 100:
        time_s = server.next_s
        done.append((time_s, *server.finish()))
    assert done == [(3.0, 0, 1), (8.0, 0, 1), (12.0, 1, 2), (15.0, 2, 1)]


class Upgrader(Fixed):
    """Raises every buffered segment as soon as the link is idle."""

    def upgrade(self, observation):
        held = next((item for item in observation.buffered if item.representation == 0), None)
        return None if held is None else Decision(1, segment=held.segment)


def test_upgraded_segments_are_rendered_once_if_they_had_not_been_begun():
    session = play(Upgrader(0), make_ladder(make_rendering(passes_per_s=45.0), layered=True))
    rows = [row for row in session.log().segments if row["upgrades"]]
    assert rows
    assert 1 in {row["renders"] for row in rows}
    for row in rows:
        assert row["render_s"] == pytest.approx(row["renders"] * 60 / 45)


def test_segments_are_rendered_in_order():
    session = Session(make_ladder(make_rendering()), Fixed(0), PlayerConfig())
    session.next_action(0.0)
    with pytest.raises(SessionError, match="segment 1 rendered, but none is waiting"):
        session.on_rendered(0.1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passes_per_s": 0.0}, "passes_per_s must be positive"),
        ({"passes_per_s": float("nan")}, "passes_per_s must be positive"),
        ({"modes": ("full", "full")}, "different modes"),
        ({"modes": ("full",)}, "shape"),
        ({"passes": np.zeros((S, R, 2))}, "must be positive"),
        ({"passes": np.full((S, R, 2), [1.0, 2.0])}, "must cost most"),
        ({"quality": np.full((S, R, 2), np.nan)}, "not finite"),
        ({"quality": np.ones((S, R + 1, 2))}, "same shape"),
    ],
)
def test_impossible_costs_are_refused(change, message):
    held = make_rendering()
    fields = {"passes_per_s": 20.0, "modes": held.modes, "passes": held.passes, "frame_rate": held.frame_rate}
    with pytest.raises(LadderError, match=message):
        Rendering(**{**fields, **change})


def test_costs_must_be_of_the_ladders_segments():
    rendering = make_rendering()
    with pytest.raises(LadderError, match="rendering: for"):
        Ladder([1e4, 2e4], [[10, 20]], [2.0], rendering=rendering)
