"""Estimated motion: translations are found, cuts and stills have none."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from packager.motion import TrueMotion


def panning(dx, dy, frames=11, size=128):
    """Return frames [T, 3, size, size] of a random landscape that moves by (dx, dy) pixels a frame."""
    noise = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    wide = functional.interpolate(noise, size=(320, 320), mode="bicubic")[0] * 2 - 1
    corner = 96
    return torch.stack(
        [wide[:, corner - dy * t :, corner - dx * t :][:, :size, :size] for t in range(frames)]
    ).contiguous()


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 2), (-2, 1)])
def test_finds_a_pan(dx, dy):
    motion = TrueMotion(panning(dx, dy)).estimate(np.array([0, 5, 10]))
    assert motion.shape == (2, 2, 4, 4)
    inner = motion[..., 1:3, 1:3].mean(dim=(0, 2, 3))
    np.testing.assert_allclose(inner.numpy(), [5 * dx, 5 * dy], atol=0.7)


def test_a_still_scene_does_not_move():
    still = panning(0, 0)
    assert TrueMotion(still).estimate(np.array([0, 10])).abs().max() < 0.25


def test_nothing_moves_across_a_cut():
    frames = torch.cat([panning(1, 0, frames=5), -panning(0, 1, frames=5)])
    motion = TrueMotion(frames).estimate(np.array([0, 4, 5, 9]))
    assert (motion[1] == 0).all()


def test_one_frame_has_no_motion():
    assert TrueMotion(panning(0, 0, frames=1)).estimate(np.array([0])).shape[0] == 0


def test_fields_across_a_cut_are_zero_beside_key_frames_in_the_middle():
    frames = torch.cat([panning(1, 0, frames=5), -panning(0, 1, frames=5)])
    motion = TrueMotion(frames).estimate(np.array([2, 7]), np.array([0, 2, 4, 5, 7, 9]), (5,))
    assert (motion[2] == 0).all()
    np.testing.assert_allclose(motion[0, :, 1:3, 1:3].mean(dim=(1, 2)), [2, 0], atol=0.7)
    np.testing.assert_allclose(motion[4, :, 1:3, 1:3].mean(dim=(1, 2)), [0, 2], atol=0.7)


def test_a_still_scene_needs_one_key_frame_only():
    assert TrueMotion(panning(0, 0)).merge_still(np.array([0, 2, 4, 6, 8, 11]), (), 1e-3, 4).tolist() == [0, 11]


def test_what_motion_cannot_fill_keeps_its_key_frames():
    noise = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert TrueMotion(noise).merge_still(np.array([0, 4, 9]), (), 1e-3, 4).tolist() == [0, 4, 9]


def test_only_the_still_half_is_merged_and_never_across_a_cut():
    frames = torch.cat([panning(0, 0, frames=9), torch.rand(9, 3, 128, 128)])
    edges = np.array([0, 4, 9, 13, 18])
    assert TrueMotion(frames).merge_still(edges, (9,), 1e-3, 4).tolist() == [0, 9, 13, 18]
    still = torch.cat([panning(0, 0, frames=9), -panning(0, 0, frames=9)])
    assert TrueMotion(still).merge_still(edges, (9,), 1e-3, 4).tolist() == [0, 9, 18]
