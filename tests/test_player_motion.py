"""Motion between key frames: where frames lie, which way things move, and that nothing moves where nothing is said."""

import numpy as np
import pytest
import torch

from player.motion import Between, frames_between, motion_anchors, motion_grid, warp


@pytest.fixture
def picture():
    """A smooth random picture [1, 3, 32, 64]."""
    noise = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=(32, 64), mode="bicubic")


def test_frames_lie_between_their_key_prompts():
    between = Between.of(np.array([0, 4, 6]), 7)
    assert between.left.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert between.share.tolist() == [0, 0.25, 0.5, 0.75, 0, 0.5, 1]
    assert between.right.tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert between[torch.tensor([5, 1])].left.tolist() == [1, 0]


def test_frames_beside_the_key_prompts_are_made_of_the_nearest_one():
    between = Between.of(np.array([2, 4]), 7, [0, 2, 4, 6])
    assert between.left.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert between.right.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert between.share.tolist() == [1, 1, 0, 0.5, 0, 0, 0]


def test_frames_are_made_within_their_scene():
    between = Between.of(np.array([1, 4, 7]), 9, [0, 1, 2, 3, 4, 7, 8], cuts=[3])
    assert between.left.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert between.right.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(between.share, [1, 0, 0, 1, 0, 1 / 3, 2 / 3, 0, 0], atol=1e-6)


@pytest.mark.parametrize("key", [0, 2, 4])
def test_one_key_frame_moves_both_ways(picture, key):
    """Content goes 2 pixels a frame to the right, and only one frame of it is known."""
    motion = torch.zeros(2, 2, 1, 2)
    motion[:, 0] = 4
    anchors = [0, 2, 4]
    shown = frames_between(picture.roll(2 * key, dims=3), motion, Between.of(np.array([key]), 5, anchors))
    for frame in range(5):
        expected = picture.roll(2 * frame, dims=3)[0]
        torch.testing.assert_close(shown[frame, ..., 16:48], expected[..., 16:48], atol=1e-5, rtol=0)


def test_nothing_of_one_scene_is_seen_in_another(picture):
    keys = torch.cat([picture, 1 - picture])
    shown = frames_between(keys, torch.zeros(5, 2, 1, 2), Between.of(np.array([1, 4]), 6, range(6), [3]))
    for frame in range(6):
        torch.testing.assert_close(shown[frame], keys[frame // 3], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width", "grid"), [(256, 256, (8, 8)), (512, 256, (16, 8)), (16, 16, (1, 1))])
def test_one_vector_for_32_pixels(height, width, grid):
    assert motion_grid(height, width) == grid


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (5, 4)])
def test_warp_reads_at_the_displaced_place(picture, dx, dy):
    displacement = torch.tensor([float(dx), float(dy)])[None, :, None, None].expand(1, 2, 32, 64)
    moved = warp(picture, displacement)
    rows, columns = torch.arange(8, 24), torch.arange(8, 56)
    expected = picture[:, :, rows + dy][..., columns + dx]
    torch.testing.assert_close(moved[:, :, rows][..., columns], expected, atol=1e-5, rtol=0)


def test_the_border_continues(picture):
    left = warp(picture, torch.tensor([-100.0, 0.0])[None, :, None, None].expand(1, 2, 32, 64))
    torch.testing.assert_close(left, picture[..., :1].expand_as(picture), atol=1e-5, rtol=0)


def test_key_frames_stay_what_they_are(picture):
    keys = torch.cat([picture, 1 - picture, picture.flip(3)])
    motion = torch.full((2, 2, 1, 2), 7.0)
    shown = frames_between(keys, motion, Between.of(np.array([0, 4, 6]), 7))
    torch.testing.assert_close(shown[[0, 4, 6]], keys, atol=1e-5, rtol=0)


def test_no_motion_is_a_fade(picture):
    keys = torch.cat([picture, 1 - picture])
    shown = frames_between(keys, torch.zeros(1, 2, 1, 2), Between.of(np.array([0, 4]), 5))
    torch.testing.assert_close(shown[1], 0.75 * keys[0] + 0.25 * keys[1], atol=1e-5, rtol=0)


def test_a_moving_picture_moves_instead_of_fading(picture):
    keys = torch.cat([picture, picture.roll(8, dims=3)])  # content moves 8 pixels to the right
    motion = torch.zeros(1, 2, 1, 2)
    motion[:, 0] = 8
    shown = frames_between(keys, motion, Between.of(np.array([0, 4]), 5))
    for frame in range(5):
        expected = picture.roll(2 * frame, dims=3)[0]
        torch.testing.assert_close(shown[frame, ..., 16:48], expected[..., 16:48], atol=1e-5, rtol=0)


def test_gradients_reach_key_frames_and_motion(picture):
    keys = torch.cat([picture, picture.roll(8, dims=3)]).requires_grad_(True)
    motion = torch.ones(1, 2, 1, 2).requires_grad_(True)
    frames_between(keys, motion, Between.of(np.array([0, 4]), 5)).square().sum().backward()
    assert keys.grad is not None
    assert keys.grad.abs().sum() > 0
    assert motion.grad is not None
    assert (motion.grad.abs() > 0).all()


def test_anchors_lie_evenly_between_key_frames():
    assert motion_anchors(np.array([0, 20, 39, 40]), 41, 5).tolist() == [0, 5, 10, 15, 20, 25, 30, 34, 39, 40]
    assert motion_anchors(np.array([0, 20, 39]), 40, 20).tolist() == [0, 20, 39]
    assert motion_anchors(np.array([9, 29]), 40, 20).tolist() == [0, 9, 29, 39]
    assert motion_anchors(np.array([2, 7]), 10, 20, cuts=[4]).tolist() == [0, 2, 3, 4, 7, 9]
    assert motion_anchors(np.array([0]), 1, 5).tolist() == [0]


def test_frames_lie_between_their_anchors():
    between = Between.of(np.array([0, 4, 6]), 7, [0, 2, 4, 6])
    assert between.left.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert between.field.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert between.part.tolist() == [0, 0.5, 0, 0.5, 0, 0.5, 1]
    assert [[x.tolist() for x in level] for level in between.route.levels] == [[[0, 4], [1, 6]]]
    assert between.route.order.tolist() == [0, 6, 1, 2, 3, 4, 7, 5]


def test_fields_are_followed_from_anchor_to_anchor(picture):
    """Content that stands for two frames and then goes 8 pixels to the right in two: no single field says that."""
    keys = torch.cat([picture, picture.roll(8, dims=3)])
    motion = torch.zeros(2, 2, 1, 2)
    motion[1, 0] = 8
    shown = frames_between(keys, motion, Between.of(np.array([0, 4]), 5, [0, 2, 4]))
    for frame, shift in enumerate([0, 0, 0, 4, 8]):
        expected = picture.roll(shift, dims=3)[0]
        torch.testing.assert_close(shown[frame, ..., 16:48], expected[..., 16:48], atol=1e-5, rtol=0)


def test_paths_read_each_field_where_the_content_has_come_to():
    """The left half goes 16 pixels to the right, then everything that is in the right half goes 8 pixels down."""
    left = torch.zeros(1, 1, 64, 128)
    left[..., 16:24, 40:48] = 1
    keys = torch.cat([left, left.roll((8, 32), dims=(2, 3))])
    motion = torch.zeros(2, 2, 2, 4)
    motion[0, 0] = 32  # everywhere: 40..48 comes to 72..80
    motion[1, 1, :, 2:] = 8  # and there it goes down
    shown = frames_between(keys, motion, Between.of(np.array([0, 2]), 3, [0, 1, 2]))[1, 0]
    assert shown[16:24, 72:80].mean() > 0.9
    assert shown[:, :64].abs().max() < 0.1
