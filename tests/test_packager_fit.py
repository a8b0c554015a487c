"""Fitting: the schedule, what it promises, and that what is written is what was fitted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from packager import fit as fit_module
from packager.errors import BuildError
from packager.fit import FAST, PRESETS, FitConfig, fit_preset, fit_segment, key_offsets, rank_of_step, scene_cuts
from packager.fit_state import FitState
from packager.losses import frame_loss, rate_estimate, sequence_rate, structural_similarity
from player.decoder import render_segment, to_pixels
from player.entropy import CodesEncoder, Layout


@pytest.fixture(scope="module")
def frames(clip):
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1


def quick(**changes):
    few = {"iterations": 12, "frames_per_step": 8, "interval": 4, "motion_interval": 2, "still_error": 1e-3}
    return fit_preset("fast", **{**few, **changes})


def loss_of(segment, generator, frames):
    shown = (
        torch.from_numpy(render_segment(segment, generator.norm_rank(segment.rank), generator))
        .permute(0, 3, 1, 2)
        .float()
        / 127.5
        - 1
    )
    return frame_loss(shown, frames).mean().item()


@pytest.mark.parametrize(
    ("frames", "interval", "expected"),
    [(1, 10, [0]), (2, 10, [0, 1]), (11, 10, [0, 10]), (12, 10, [0, 6, 11]), (61, 10, [0, 10, 20, 30, 40, 50, 60])],
)
def test_key_prompts_open_and_close_the_segment(frames, interval, expected):
    assert key_offsets(frames, interval).tolist() == expected


@pytest.mark.parametrize("frames", range(1, 70))
def test_no_interval_is_longer_than_asked(frames):
    gaps = np.diff(key_offsets(frames, 10))
    assert np.all(gaps >= 1)
    assert np.all(gaps <= 10)


def test_every_scene_opens_and_closes_with_a_key_prompt():
    assert key_offsets(30, 10, [12, 13]).tolist() == [0, 6, 11, 12, 13, 21, 29]


def test_cuts_are_found_and_motion_is_not(clip, tiny_generator):
    scene = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert scene_cuts(scene) == []
    assert scene_cuts(torch.cat([scene, -scene, scene[:1]])) == [8, 16]
    assert scene_cuts(scene[:1]) == []
    segment = fit_segment(torch.cat([scene, -scene]), tiny_generator, None, quick(iterations=1), ranks=[1])[1]
    assert [k.frame_offset for k in segment.keys] == [1, 5, 9, 13]
    assert segment.cuts == (8,)


def test_more_steps_lower_the_loss(frames, tiny_generator, tiny_encoder):
    config = quick(rate_weight=0.0, motion=False)  # whose step is coarse for frames of 64 pixels
    few = fit_segment(frames, tiny_generator, tiny_encoder, replace(config, iterations=1), ranks=[1, 4])[4]
    many = fit_segment(frames, tiny_generator, tiny_encoder, replace(config, iterations=60), ranks=[1, 4])[4]
    assert loss_of(many, tiny_generator, frames) < loss_of(few, tiny_generator, frames)


def test_segment_has_the_ladders_largest_rank(frames, tiny_generator, tiny_encoder):
    segment = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=1), ranks=[1, 3])[3]
    assert segment.rank == 3
    assert [k.frame_offset for k in segment.keys] == [1, 5]
    assert segment.anchors == (0, 3, 7)
    assert segment.u_scale.tolist() == pytest.approx([FAST.u_step] * 3)


def test_same_seed_same_codes(frames, tiny_generator, tiny_encoder):
    one, two = (fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=4), ranks=[2, 4]) for _ in range(2))
    assert one == two


def test_a_short_ladder_keeps_the_scale_the_generator_was_trained_with(frames, tiny_generator, tiny_encoder):
    segment = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=1), ranks=[2])[2]
    scale = tiny_generator.norm_rank(4)
    assert tiny_generator.norm_rank(2) == scale
    shown = torch.from_numpy(render_segment(segment, scale, tiny_generator)).float().permute(0, 3, 1, 2) / 127.5 - 1
    u, v = tiny_encoder(frames)
    direct = tiny_generator.generate(tiny_generator.space.compose(u[..., :2], v[:, :2], scale)).clamp(-1, 1)
    assert (shown[[1, 5]] - direct[[1, 5]]).abs().mean() < 0.05


def test_shared_v_repeats(frames, tiny_generator, tiny_encoder):
    segment = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=3, share_v=True), ranks=[4])[4]
    for key in segment.keys[1:]:
        np.testing.assert_array_equal(key.v, segment.keys[0].v)


def test_motion_fills_the_gaps_between_key_frames(frames, tiny_generator, tiny_encoder):
    segment = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=2), ranks=[2])[2]
    assert segment.motion is not None
    assert segment.motion.shape == (4, 2, 2, 2)
    assert segment.motion.dtype == np.int16
    assert render_segment(segment, tiny_generator.norm_rank(2), tiny_generator).shape == (len(frames), 64, 64, 3)
    faded = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=2, motion=False), ranks=[2])[2]
    assert faded.motion is None


@pytest.mark.parametrize("motion", [True, False])
def test_what_decodes_is_bit_for_bit_what_was_fitted(frames, tiny_generator, tiny_encoder, monkeypatch, motion):
    monkeypatch.setitem(tiny_generator._buffers, "step_scale", torch.tensor([1.0, 1.7, 3.1, 0.3]))
    fits = []
    to_segment = FitState.segment
    monkeypatch.setattr(FitState, "segment", lambda fit, rank: fits.append(fit) or to_segment(fit, rank))
    ladder = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=5, motion=motion), ranks=[2, 4])
    everything = torch.arange(len(frames))
    for rank, segment in ladder.items():
        with torch.no_grad():
            fitted = fits[0].shown(tiny_generator.generate(fits[0].prompts(everything, rank)), everything)
        decoded = render_segment(segment, tiny_generator.norm_rank(4), tiny_generator)
        np.testing.assert_array_equal(decoded, to_pixels(fitted).numpy())


@pytest.mark.parametrize("rank_v", [True, False])
def test_lower_ranks_share_u_and_motion_and_may_have_a_v_of_their_own(
    frames, tiny_generator, tiny_encoder, monkeypatch, rank_v
):
    monkeypatch.setattr(fit_module._Descent, "_objective", lambda descent: 0.0)  # so few steps need not be a gain
    config = quick(iterations=6, rank_v=rank_v, v_step=0.001)
    ladder = fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[2, 3, 4])
    assert list(ladder) == [2, 3, 4]
    for rank in (2, 3):
        prefix = ladder[4].truncate(rank)
        own = replace(
            ladder[rank], keys=tuple(replace(k, v=p.v) for k, p in zip(ladder[rank].keys, prefix.keys, strict=True))
        )
        assert own == prefix
        assert (ladder[rank] == prefix) == (not rank_v)


def test_only_steps_at_a_rank_change_its_v(frames, tiny_generator, tiny_encoder, monkeypatch):
    """Two steps: at rank 4, then at rank 2; rank 3 has had none."""
    monkeypatch.setattr(fit_module._Descent, "_objective", lambda descent: 0.0)  # likewise
    config = quick(iterations=2, rank_v=True, v_step=0.001)
    ladder = fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[2, 3, 4])
    assert ladder[3] == ladder[4].truncate(3)
    assert ladder[2] != ladder[4].truncate(2)


def test_ranks_take_turns_and_no_fewer_than_every_third_step_is_at_the_full_one():
    assert [rank_of_step([4, 8, 16], step) for step in range(6)] == [16, 4, 8, 16, 4, 8]
    assert [rank_of_step([2, 4, 8, 16], step) for step in range(9)] == [16, 2, 4, 16, 8, 2, 16, 4, 8]
    assert [rank_of_step([4, 16], step) for step in range(4)] == [16, 4, 16, 4]
    assert [rank_of_step([8], step) for step in range(3)] == [8, 8, 8]


def test_what_is_kept_is_the_running_average_of_the_steps(frames, tiny_generator, tiny_encoder, monkeypatch):
    """With 0.6: the first is taken, the second counts half, the third and all others 0.4; a tie keeps the fit."""
    monkeypatch.setattr(fit_module._Descent, "_objective", lambda descent: 0.0)
    seen, states = [], []
    take = fit_module._Descent.step

    def step(descent, losses):
        take(descent, losses)
        seen.append(descent.state.u.detach().clone())
        states.append(descent.state)

    monkeypatch.setattr(fit_module._Descent, "step", step)
    observed = []
    config = quick(iterations=4, average=0.6)
    ladder = fit_segment(
        frames,
        tiny_generator,
        tiny_encoder,
        config,
        ranks=[2, 4],
        observe=lambda _, segment: observed.append(segment(4)),
    )
    expected = seen[0]
    for weight, u in zip([0.5, 0.4, 0.4], seen[1:], strict=True):
        expected = (1 - weight) * expected + weight * u
    torch.testing.assert_close(states[-1].u.detach(), expected)
    assert not torch.equal(states[-1].u, seen[-1])
    assert observed[-1] == ladder[4]

    seen.clear()
    fit_segment(frames, tiny_generator, tiny_encoder, replace(config, average=0.0), ranks=[2, 4])
    assert torch.equal(states[-1].u, seen[-1])


def test_the_frames_that_are_drawn_as_the_worst_are_those_with_the_greatest_loss_of_pixels(
    tiny_generator, tiny_encoder, monkeypatch
):
    rng = np.random.default_rng(0)
    flat = torch.zeros(12, 3, 64, 64)
    flat[5] = torch.from_numpy(rng.uniform(-1, 1, (3, 64, 64)))  # no prompt makes this one
    seen = []
    step = fit_module._Descent.step

    def watched(descent, losses):
        seen.append((descent.rank, descent.state.losses.clone(), descent.chosen.tolist()))
        step(descent, losses)

    monkeypatch.setattr(fit_module._Descent, "step", watched)
    fit_segment(flat, tiny_generator, tiny_encoder, quick(iterations=8, frames_per_step=12), ranks=[1, 4])
    _, after_full, chosen = seen[0]
    assert seen[0][0] == 4
    assert after_full[chosen].isfinite().all()
    rank, after_lower, _ = seen[1]
    assert rank == 1
    torch.testing.assert_close(after_lower, after_full)  # lower ranks and features say nothing of the worst
    assert int(seen[-1][1][: len(flat)].nan_to_num(posinf=-1).argmax()) == 5


@pytest.mark.parametrize("ranks", [[4], [2, 4], [1, 2, 4], [1, 2, 3, 4]])
def test_at_every_rank_the_features_of_every_frame_of_a_step_take_their_turn(
    ranks, frames, tiny_generator, tiny_encoder, monkeypatch
):
    drawn = []
    draw = fit_module._Descent.draw

    def watched(descent, step):
        draw(descent, step)
        drawn.append((descent.rank, descent._first))

    monkeypatch.setattr(fit_module._Descent, "draw", watched)
    fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=16), ranks=ranks)
    for rank in ranks:
        assert {first for drawn_rank, first in drawn if drawn_rank == rank} == {0, 1}


def test_codes_repeat_those_before_where_that_is_near(frames, tiny_generator, tiny_encoder, monkeypatch):
    fits = []
    to_segment = FitState.segment
    monkeypatch.setattr(FitState, "segment", lambda fit, rank: fits.append(fit) or to_segment(fit, rank))
    segment = fit_segment(frames, tiny_generator, tiny_encoder, quick(iterations=1, interval=3), ranks=[2, 4])[4]
    fit = fits[0]
    assert len(fit.u) == len(segment.keys) > 1
    values = torch.tensor([0.2, 0.59, 0.61, 1.2, -0.59, 40_000.0])
    for share, expected in ((0.1, [0, 0, 1, 1, 0, 2**15 - 1]), (0.0, [0, 1, 1, 1, -1, 2**15 - 1])):
        fit.config = replace(fit.config, repeat=share)
        with torch.no_grad():
            fit.u.zero_()
            fit.u[1:, : len(values), 1] = values * fit.config.u_step
        assert fit.u_codes(4)[1, : len(values), 1].tolist() == expected
        assert fit.u_codes(2).equal(fit.u_codes(4)[..., :2])
        torch.testing.assert_close(fit.quantized(4)[0], fit.u_codes(4) * fit.u_steps)
    with torch.no_grad():  # drift is followed once it is too far
        fit.u[:, 0, 0] = torch.tensor([0.0, 0.55, 0.65, 0.45][: len(fit.u)]) * fit.config.u_step
    fit.config = replace(fit.config, repeat=0.1)
    assert fit.u_codes(4)[:, 0, 0].tolist() == [0, 0, 1, 1][: len(fit.u)]
    with pytest.raises(BuildError, match=r"fit.repeat is 2, expected 0 to 1"):
        fit_preset("fast", repeat=2)


def test_each_component_has_the_step_the_generator_names(frames, tiny_generator, tiny_encoder, monkeypatch):
    config = quick(iterations=1)
    monkeypatch.setattr(fit_module._Descent, "_objective", lambda descent: 0.0)  # what it comes to is no matter here
    plain = fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[2, 3])[3]
    monkeypatch.setitem(tiny_generator._buffers, "step_scale", torch.tensor([1.0, 2.0, 4.0, 8.0]))
    scaled = fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[2, 3])[3]
    assert plain.u_scale.tolist() == scaled.u_scale.tolist() == pytest.approx([FAST.u_step] * 3)
    sums = [
        np.abs(np.stack([key.u for key in segment.keys]).astype(int)).sum(axis=(0, 1)) for segment in (plain, scaled)
    ]
    assert (sums[1][1:] < sums[0][1:]).all()


def test_key_prompts_lie_as_far_apart_as_the_way_between_asks_for():
    assert fit_preset("fast").key_interval == 30
    assert fit_preset("fast", motion=False).key_interval == fit_preset("paper").key_interval == 10
    assert fit_preset("fast", interval=7).key_interval == fit_preset("paper", interval=7).key_interval == 7
    for name in ("interval", "motion_interval"):
        with pytest.raises(BuildError, match=f"fit.{name} is -1"):
            fit_preset("fast", **{name: -1})


def test_random_start_without_an_encoder(frames, tiny_generator):
    config = fit_preset("paper", iterations=3, interval=4)
    segment = fit_segment(frames, tiny_generator, None, config, ranks=[2, 4])[4]
    assert segment.rank == 4


def test_progress_is_told(frames, tiny_generator, tiny_encoder):
    seen = []
    fit_segment(
        frames, tiny_generator, tiny_encoder, quick(iterations=3), ranks=[4], progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_one_frame_segment(frames, tiny_generator, tiny_encoder):
    segment = fit_segment(frames[:1], tiny_generator, tiny_encoder, quick(iterations=2), ranks=[4])[4]
    assert [k.frame_offset for k in segment.keys] == [0]


def test_plateau_ends_the_fit(frames, tiny_generator, tiny_encoder):
    seen = []
    config = quick(iterations=500, learning_rate=1e-9, schedule="plateau", min_learning_rate=4e-10, patience=2)
    fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[4], progress=lambda at, _: seen.append(at))
    assert len(seen) < 50


def test_ranks_the_generator_lacks_are_refused(frames, tiny_generator):
    with pytest.raises(BuildError, match="ranks 1 to 4"):
        fit_segment(frames, tiny_generator, None, quick(), ranks=[2, 8])


def test_frames_of_another_size_are_refused(frames, tiny_generator):
    with pytest.raises(BuildError, match="expected"):
        fit_segment(frames[..., :32], tiny_generator, None, quick(), ranks=[2])


@pytest.mark.parametrize(
    "changes",
    [{"iterations": 0}, {"learning_rate": 0.0}, {"worst_share": 1.0}, {"average": 1.0}, {"schedule": "linear"}],
)
def test_settings_are_checked(changes):
    with pytest.raises(BuildError, match=next(iter(changes))):
        FitConfig(**changes)


def test_unknown_preset_lists_the_known():
    with pytest.raises(BuildError, match="fast, paper"):
        fit_preset("slow")
    assert set(PRESETS) == {"fast", "paper"}


def test_structural_similarity_of_equal_and_unequal_frames():
    torch.manual_seed(0)
    plane = torch.rand(2, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(structural_similarity(plane, plane), torch.ones(2))
    assert (structural_similarity(plane, -plane) < -0.5).all()


def test_frame_loss_is_zero_only_for_equal_frames(frames):
    assert frame_loss(frames, frames).abs().max() < 1e-6
    assert (frame_loss(frames + 0.05, frames) > 0.04).all()


def test_sequence_rate_rewards_smooth_and_repeated_key_prompts():
    torch.manual_seed(0)
    noise = torch.randn(3, 256, 2)
    ramp = torch.linspace(-3, 3, 16).repeat(16).view(1, 256, 1).expand(3, 256, 2)
    assert sequence_rate(noise[:1].expand(3, -1, -1), (16, 16), 0.25) < 0.5 * sequence_rate(noise, (16, 16), 0.25)
    assert sequence_rate(ramp, (16, 16), 0.25) < sequence_rate(ramp, (0, 0), 0.25)
    assert sequence_rate(torch.zeros(1, 256, 2), (16, 16), 0.25).item() == 0


def test_the_rate_term_saves_bytes(frames, tiny_generator, tiny_encoder):
    def size(rate_weight):
        config = quick(iterations=30, rate_weight=rate_weight)
        segment = fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[4])[4]
        u, v = (np.stack([getattr(key, name) for key in segment.keys]) for name in "uv")
        return len(CodesEncoder(Layout(len(u), len(v), (4, 4), tiny_generator.width)).encode(u, v))

    assert size(0.2) < 0.95 * size(0.0)


def test_rate_estimate_sees_smoothness_and_scale():
    torch.manual_seed(0)
    noise = torch.randn(1, 256, 2)
    ramp = torch.linspace(-3, 3, 16).repeat(16).view(1, 256, 1).expand(1, 256, 2)
    assert rate_estimate(ramp, (16, 16), 0.25) < rate_estimate(ramp, (0, 0), 0.25)
    assert rate_estimate(noise, (16, 16), 0.25) > rate_estimate(noise, (16, 16), 0.5)
    assert rate_estimate(torch.zeros(1, 256, 2), (16, 16), 0.25).item() == 0
