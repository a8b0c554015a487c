"""Segments at a target size."""

from dataclasses import replace

import numpy as np
import pytest

from packager.requantize import coarsen, meet_bytes
from player.bitstream import KeyPrompt, Segment


@pytest.fixture
def segment():
    rng = np.random.default_rng(0)
    keys = tuple(
        KeyPrompt(k, rng.integers(-40, 41, (16, 4)).astype(np.int16), rng.integers(-4, 5, (4, 8)).astype(np.int16))
        for k in range(2)
    )
    ones = np.ones(4, np.float32)
    return Segment(2, ones, ones, keys)


def weigh(segment):
    """A stand-in for the entropy coder: magnitudes in bytes."""
    return bytes(sum(int(np.abs(key.u).sum() + np.abs(key.v).sum()) for key in segment.keys))


def test_coarsened_values_are_near_and_dropped_components_zero(segment):
    coarse = coarsen(segment, 3, 2.5)
    for before, after in zip(segment.keys, coarse.keys, strict=True):
        assert np.abs(after.u[:, :3] * 2.5 - before.u[:, :3]).max() <= 1.25
        assert not after.u[:, 3].any()
        assert not after.v[3].any()
        np.testing.assert_array_equal(after.v[:3], before.v[:3])
    assert coarse.u_scale.tolist() == [2.5] * 4
    assert coarsen(segment, 4, 1.0) == segment


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.6, 0.97])
def test_targets_are_met_from_below(segment, share):
    allowed = share * len(weigh(segment))
    assert 0.95 * allowed <= len(meet_bytes(segment, allowed, weigh)) <= allowed


def test_beyond_the_range_the_ends_are_taken(segment):
    assert meet_bytes(segment, 1e9, weigh) == weigh(segment)
    small = replace(segment, keys=coarsen(segment, 1, 16.0).keys)
    assert meet_bytes(segment, 0, weigh) == weigh(small)
