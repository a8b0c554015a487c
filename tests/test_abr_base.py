"""Ladders and samples refuse what cannot be, in one line."""

import numpy as np
import pytest

from abr import Ladder, LadderError, ObservationError, ThroughputSample

GOOD = {"bitrate_bps": [1e5, 2e5], "segment_bytes": [[100, 200], [110, 190]], "segment_duration_s": [2.0, 1.5]}


def test_a_ladder_copies_its_arrays_and_makes_them_read_only():
    sizes = np.array(GOOD["segment_bytes"])
    ladder = Ladder(**{**GOOD, "segment_bytes": sizes})
    sizes[0, 0] = 7
    assert ladder.segment_bytes[0, 0] == 100
    assert ladder.segment_bytes.dtype == np.int64
    assert (ladder.segments, ladder.representations, ladder.names) == (2, 2, ("0", "1"))
    with pytest.raises(ValueError, match="read-only"):
        ladder.segment_bytes[0, 0] = 1


@pytest.mark.parametrize(
    ("rate_bps", "index"), [(0.0, 0), (1e5 - 1, 0), (1e5, 0), (2e5 - 1, 0), (2e5, 1), (float("inf"), 1)]
)
def test_highest_within(rate_bps, index):
    assert Ladder(**GOOD).highest_within(rate_bps) == index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitrate_bps": [2e5, 1e5]}, "ascending"),
        ({"bitrate_bps": [0.0, 1e5]}, "positive"),
        ({"bitrate_bps": [1e5, float("nan")]}, "positive"),
        ({"bitrate_bps": [[1e5]]}, "2 dimensions"),
        ({"bitrate_bps": []}, "at least one representation"),
        ({"segment_bytes": [[1, 2, 3], [1, 2, 3]]}, r"shape \(2, 3\), but \(2, 2\) expected"),
        ({"segment_bytes": [[1, 2], [0, 2]]}, "at least one byte"),
        ({"segment_bytes": [[1.5, 2], [1, 2]]}, "whole numbers"),
        ({"segment_bytes": [[1, 2], [1]]}, "not a regular array"),
        ({"segment_duration_s": [2.0, 0.0]}, "longer than 0 s"),
        ({"names": ("a",)}, "1 names for 2"),
        ({"quality": [[1.0, 2.0]]}, "quality: shape"),
        ({"init_bytes": [10]}, "init_bytes"),
    ],
)
def test_a_ladder_refuses(change, message):
    with pytest.raises(LadderError, match=message) as error:
        Ladder(**{**GOOD, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("times", [(1.0, 0.5, 2.0), (1.0, 2.0, 1.5), (0.0, 1.0, float("inf"))])
def test_a_sample_refuses_times_out_of_order(times):
    with pytest.raises(ObservationError):
        ThroughputSample(100, *times)


def test_a_sample_refuses_an_empty_transfer():
    with pytest.raises(ObservationError, match="bytes > 0"):
        ThroughputSample(0, 0.0, 1.0, 2.0)
