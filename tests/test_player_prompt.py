"""Composition, interpolation and quantization of prompts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from player.prompt import PromptSpace, dequantize, interpolate, interpolation_matrix, quantize, quantize_ste


def test_compose_is_the_papers_form_without_base_and_dictionary():
    torch.manual_seed(0)
    u, v = torch.randn(7, 3), torch.randn(3, 5)
    space = PromptSpace(torch.zeros(7, 5), torch.zeros(4, 5))
    torch.testing.assert_close(space.compose(u, v, 3), u @ v / 3**0.5)


def test_a_prefix_is_the_sum_of_its_components():
    torch.manual_seed(1)
    u, v = torch.randn(7, 4), torch.randn(4, 5)
    space = PromptSpace(torch.randn(7, 5), torch.randn(4, 5))
    masked = u * torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(space.compose(u[:, :2], v[:2], 4), space.compose(masked, v, 4))


def test_interpolation_by_hand():
    weights = interpolation_matrix(np.array([0, 4, 6]), 7)
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.5, 0], [0.25, 0.75, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    np.testing.assert_array_equal(weights.numpy(), np.array(expected, np.float32))


def test_interpolation_of_one_frame():
    np.testing.assert_array_equal(interpolation_matrix(np.array([0]), 1).numpy(), [[1.0]])


def test_interpolate_leaves_key_prompts_alone():
    keys = torch.randn(3, 4, 2)
    frames = interpolate(keys, interpolation_matrix(np.array([0, 4, 6]), 7))
    torch.testing.assert_close(frames[[0, 4, 6]], keys)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_weights_sum_to_one(gaps):
    offsets = np.concatenate([[0], np.cumsum(gaps)])
    weights = interpolation_matrix(offsets, int(offsets[-1]) + 1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
    assert (weights >= 0).all()


def test_quantization_rounds_to_nearest_and_clamps():
    codes = quantize(torch.tensor([0.0, 0.12, 0.13, -0.4, 1e9, -1e9]), torch.tensor(0.25))
    assert codes.tolist() == [0, 0, 1, -2, 32767, -32767]


def test_straight_through_forward_is_rounding_and_gradient_is_one():
    values = torch.linspace(-2, 2, 41, requires_grad=True)
    scale = torch.tensor(0.3)
    out = quantize_ste(values, scale)
    torch.testing.assert_close(out, dequantize(quantize(values, scale), scale))
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.ones(41))


@pytest.mark.parametrize("norm_rank", [1, 16])
def test_scale_of_components_depends_on_the_norm_rank_only(norm_rank):
    u, v = torch.ones(2, 1), torch.ones(1, 3)
    space = PromptSpace(torch.zeros(2, 3), torch.zeros(1, 3))
    assert space.compose(u, v, norm_rank)[0, 0].item() == pytest.approx(norm_rank**-0.5)
