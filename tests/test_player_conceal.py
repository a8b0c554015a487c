"""Made-up frames: how far they drift, what they are for a prompt, how the film and the tables show them."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from abr import Decision
from player.bitstream import KeyPrompt, Segment
from player.conceal import DRIFT_S, drift_frames, extend_prompts
from player.decoder import render_beyond, render_segment
from player.viewer import REJOIN_S, Concealment, viewed_frames


class Lowest:
    def choose(self, observation):
        return Decision(0)


@dataclass
class Done:
    request_s: float
    first_byte_s: float
    finish_s: float
    size_bytes: int


def make_segment(generator, motion, frames=6):
    draw = np.random.default_rng(0)
    shape_u, shape_v = (generator.tokens, 2), (2, generator.width)
    keys = tuple(
        KeyPrompt(at, *(draw.integers(-9, 9, shape).astype(np.int16) for shape in (shape_u, shape_v)))
        for at in (0, frames - 1)
    )
    scale = np.full(2, 0.1, np.float32)
    return Segment(frames, scale, scale, keys, motion)


def test_the_drift_slows_down_and_is_bounded():
    drift = drift_frames(300, 30.0, gap=0)
    steps = torch.diff(drift, prepend=torch.zeros(1))
    assert steps[0] == pytest.approx(1.0, abs=0.1)
    assert bool((torch.diff(steps) <= 1e-6).all())
    assert float(drift[-1]) == pytest.approx(DRIFT_S * 30, rel=1e-3)
    assert drift_frames(1, 30.0, gap=-1) == 0  # the frame that the last key prompt already shows


def test_prompts_go_on_as_they_went():
    factors = torch.tensor([[[0.0]], [[2.0]]])
    assert extend_prompts(factors, 4, torch.tensor([1.0, 2.0])).flatten().tolist() == [2.5, 3.0]
    assert extend_prompts(factors[:1], 1, torch.tensor([1.0])).flatten().tolist() == [0.0]


def test_without_motion_the_picture_is_held(tiny_generator):
    still = np.zeros((1, 2, 2, 2), np.int16)
    segment = make_segment(tiny_generator, still)
    frames = render_beyond(segment, 3, 30.0, tiny_generator.norm_rank(2), tiny_generator)
    last = render_segment(segment, tiny_generator.norm_rank(2), tiny_generator)[-1]
    assert frames.shape == (3, *last.shape)
    assert np.abs(frames.astype(int) - last).max() <= 1


@pytest.mark.parametrize("moving", [True, False])
def test_made_up_frames_go_on_and_come_to_rest(tiny_generator, moving):
    segment = make_segment(tiny_generator, np.full((1, 2, 2, 2), 8, np.int16) if moving else None)
    frames = render_beyond(segment, 90, 30.0, tiny_generator.norm_rank(2), tiny_generator).astype(int)
    assert np.abs(frames[10] - frames[0]).mean() > np.abs(frames[-1] - frames[-11]).mean()


def grey(levels):
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 64, 64, 3))


def show(limit_s):
    segments = pd.DataFrame(
        {"play_start_s": [0.0, 1.5], "duration_s": 1.0, "clip_segment": [0, 1], "representation": [0, 0]}
    )
    concealment = Concealment(limit_s, lambda segment, representation, count: grey([100] * count))
    screens = list(
        viewed_frames(
            segments,
            lambda s, r: grey([10 + 100 * s] * 10),
            fps=Fraction(10),
            width=64,
            height=64,
            concealment=concealment,
        )
    )
    return [int(screen[0, 0, 0]) for screen in screens], [int(screen.max()) for screen in screens]


def test_the_film_fills_a_stop_and_comes_back_smoothly():
    levels, brightest = show(9.0)
    assert levels == [10] * 10 + [100] * 5 + [105] + [110] * 9  # back within REJOIN_S, two frames
    assert brightest == levels  # nothing is marked
    assert REJOIN_S == 0.2


def test_the_film_freezes_when_the_limit_is_reached():
    levels, brightest = show(0.3)
    assert levels == [10] * 10 + [100] * 5 + [105] + [110] * 9
    assert [b > a for a, b in zip(levels, brightest, strict=True)] == [False] * 13 + [True] * 2 + [False] * 10


def test_the_frame_table_marks_what_was_made_up(box_package):
    from player.config import PlayerConfig
    from player.presentation import Presentation
    from player.programme import build_programme
    from player.record import default_rule, make_record
    from player.session import Session

    programme = build_programme(Presentation.load(box_package), 0.8)
    session = Session(programme.ladder, Lowest(), PlayerConfig(startup_s=0.2, rebuffer_s=0.2, conceal_s=0.25))
    now_s = 0.0
    for took_s in (0.1, 0.55, 0.1, 0.1):
        request = session.next_action(now_s)
        session.on_complete(now_s + took_s, Done(now_s, now_s, now_s + took_s, request.size_bytes))
        now_s += took_s
        session.on_rendered(now_s, request.segment)
    session.next_action(9.0)
    record = make_record(session.log(), programme, default_rule(("psnr_db",)))
    made_up = record.frames[record.frames["concealed"] == 1]
    assert made_up["wall_time_s"].tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert made_up["frame"].tolist() == [2, 3, 4]
    assert made_up["psnr_db"].isna().all()
    assert record.summary["concealed_frames"] == 3
    assert record.frames["concealed"].tolist() == pytest.approx([0, 0, 1, 1, 1, 0.5, 0, 0, 0, 0, 0], abs=1e-4)
    assert record.summary["frames"] == 8
    assert record.summary["quality"]["psnr_db"] == 25.0
