"""What session.mp4 shows at every tick: black, frames, frozen frames; each frame once at the video's own rate."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from player.viewer import mark_waiting, viewed_frames


def _frames_of(segment: int, representation: int) -> np.ndarray:
    """Ten frames of one grey level each: 100 * segment + index, plus 50 for representation 1."""
    levels = 10 + 100 * segment + np.arange(10) + 50 * representation
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (10, 64, 64, 3))


def _show(starts: list[float], fps: Fraction) -> list[np.ndarray]:
    segments = pd.DataFrame(
        {"play_start_s": starts, "duration_s": 1.0, "clip_segment": [0, 1], "representation": [0, 1]}
    )
    return list(viewed_frames(segments, _frames_of, fps=fps, width=64, height=64))


def _levels(screens: list[np.ndarray]) -> list[int]:
    return [int(screen[0, 0, 0]) for screen in screens]  # the corner is outside the waiting mark


@pytest.mark.parametrize("start_s", [0.5, 0.1 + 0.2 + 0.2, 0.5000000001])
def test_every_frame_is_shown_once_and_stalls_freeze(start_s: float) -> None:
    levels = _levels(_show([start_s, start_s + 1.7], Fraction(10)))
    assert levels == [0] * 5 + list(range(10, 20)) + [19] * 7 + list(range(160, 170))


def test_half_the_rate_shows_every_other_frame() -> None:
    assert _levels(_show([0.0, 1.0], Fraction(5))) == [10, 12, 14, 16, 18, 160, 162, 164, 166, 168]


def test_rates_that_are_no_whole_number() -> None:
    screens = _show([0.25, 1.25], Fraction(30000, 1001))
    assert len(screens) == 68  # ticks before 2.25 s: 0 .. 67.43


def test_waiting_is_marked_and_turns() -> None:
    screen = np.full((64, 64, 3), 90, dtype=np.uint8)
    first, later = mark_waiting(screen, 0.0, "rebuffering"), mark_waiting(screen, 0.3, "rebuffering")
    assert np.all(screen == 90)
    assert first.shape == screen.shape
    assert np.any(first != screen)
    assert np.any(first != later)


def test_segments_never_played_are_skipped() -> None:
    segments = pd.DataFrame(
        {"play_start_s": [0.0, np.nan], "duration_s": 1.0, "clip_segment": [0, 1], "representation": [0, 0]}
    )
    screens = list(viewed_frames(segments, _frames_of, fps=Fraction(10), width=64, height=64))
    assert _levels(screens) == list(range(10, 20))
