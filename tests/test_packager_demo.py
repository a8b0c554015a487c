"""The demo clip: made from files inside the installed scikit-image, the same every time, moving, and cut."""

from itertools import islice

import numpy as np
import pytest

from packager import demo
from packager.demo import make_demo_clip, render_demo_frames
from packager.errors import PackagerError, VideoError
from packager.video import iter_frames, probe


def test_clip_has_the_asked_length_rate_and_size(tmp_path):
    path = make_demo_clip(tmp_path / "deep" / "demo.mp4", seconds=0.8, fps=10, size=64)
    info = probe(path)
    frames = np.stack(list(iter_frames(path, width=64, height=64)))
    assert (info.width, info.height, info.fps, frames.shape) == (64, 64, 10, (8, 64, 64, 3))


def test_same_call_gives_the_same_bytes_and_an_existing_file_is_kept(tmp_path):
    first = make_demo_clip(tmp_path / "a.mp4", seconds=0.5, fps=8, size=64)
    second = make_demo_clip(tmp_path / "b.mp4", seconds=0.5, fps=8, size=64)
    assert first.read_bytes() == second.read_bytes()
    first.write_bytes(b"mine")
    assert make_demo_clip(first, seconds=0.5, fps=8, size=64).read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_shots_move_smoothly_and_are_cut_hard():
    frames = np.stack(list(render_demo_frames(240, fps=30, size=32))).astype(float)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    cuts = np.flatnonzero(steps > 25) + 1
    assert cuts.tolist() == [70, 132, 187]  # three cuts, four shots
    within = np.delete(steps, cuts - 1)
    assert within.min() > 0.2  # the camera never stands still
    assert within.max() < 15


def test_progress_reaches_the_total(tmp_path):
    seen = []
    make_demo_clip(tmp_path / "demo.mp4", seconds=0.4, fps=10, size=32, progress=lambda *state: seen.append(state))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_another_photograph_is_refused(monkeypatch):
    monkeypatch.setitem(demo._PHOTOGRAPHS, "rocket.jpg", "000000000000")
    with pytest.raises(PackagerError, match=r"another data/rocket\.jpg"):
        list(islice(render_demo_frames(10, size=32), 1))


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"fps": 0}, {"size": 65}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(VideoError, match="demo clip of"):
        make_demo_clip(tmp_path / "demo.mp4", **{"seconds": 1, "fps": 5, "size": 64, **wrong})
    assert not list(tmp_path.iterdir())
