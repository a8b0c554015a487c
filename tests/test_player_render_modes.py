"""Which frames each render mode makes, what they cost, and that a device's study uses them."""

import numpy as np
import pytest

from abr import Ladder, Rendering
from player.bitstream import KeyPrompt, Segment
from player.render_modes import MODES, count_work, key_frames, shown_frames, with_rendering


def make_segment(frames=12, offsets=(0, 5, 11), *, motion=True):
    keys = tuple(KeyPrompt(at, np.zeros((4, 1), np.int16), np.zeros((1, 3), np.int16)) for at in offsets)
    scale = np.ones(1, np.float32)
    field = np.zeros((len(offsets) - 1, 2, 2, 2), np.int16) if motion else None
    return Segment(frames, scale, scale, keys, field)


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("full", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("half", [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]),
        ("third", [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]),
        ("keys", [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 11]),
    ],
)
def test_what_stands_on_the_screen(mode, shown):
    assert shown_frames(make_segment(), mode).tolist() == shown


@pytest.mark.parametrize(
    ("motion", "work"),
    [
        (True, {"full": (3, 12), "half": (3, 6), "third": (3, 4), "keys": (3, 0)}),
        (False, {"full": (12, 0), "half": (6, 0), "third": (4, 0), "keys": (3, 0)}),
    ],
)
def test_with_motion_only_key_frames_pass_the_generator(motion, work):
    segment = make_segment(motion=motion)
    assert {mode: count_work(segment, mode) for mode in MODES} == work


def test_a_key_behind_the_end_is_never_shown_but_made_for_what_leads_to_it():
    segment = make_segment(10, (0, 5, 10))
    assert key_frames(segment).tolist() == [0, 5]
    assert shown_frames(segment, "keys").max() == 5
    assert count_work(segment, "full") == (3, 10)
    assert count_work(segment, "keys") == (2, 0)


def test_a_clips_costs_repeat_as_the_clip_does():
    passes = np.arange(1.0, 3.0).reshape(2, 1, 1)
    rendering = Rendering(10.0, ("full",), passes, np.full((2, 1, 1), 30.0))
    ladder = Ladder([1e4], np.full((5, 1), 100), np.full(5, 2.0))
    assert with_rendering(ladder, rendering).rendering.passes.ravel().tolist() == [1, 2, 1, 2, 1]
