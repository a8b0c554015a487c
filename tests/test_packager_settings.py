"""Build settings: what is in range, and one line for what is not."""

import pytest

from packager.errors import BuildError
from packager.settings import BuildConfig, parse_bitrate, parse_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_s": 0}, "segment_s=0: expected 0.01 to 60"),
        ({"segment_s": float("nan")}, "segment_s=nan"),
        ({"fit": "squeeze"}, "fit=squeeze: expected crop or pad"),
        ({"fps": -1}, "fps=-1"),
        ({"interval": -1}, "interval=-1: expected 0 or more"),
        ({"iterations": -1}, "iterations=-1"),
        ({"ranks": []}, r"ranks=\(none\)"),
        ({"ranks": [2, 2]}, "ranks=2,2: each can be given once"),
        ({"ranks": [0, 4]}, "ranks=0,4: expected"),
        ({"bitrates_bps": [0]}, "bitrates_bps=0"),
        ({"metrics": []}, "metrics: expected"),
        ({"size": "256x"}, "size=256x: expected"),
        ({"size": "4"}, "size=4: expected"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(BuildError, match=message):
        BuildConfig(**change)


def test_sizes():
    assert [parse_size(text) for text in ("auto", "256", "256x144")] == [None, (256, 256), (256, 144)]


@pytest.mark.parametrize(("text", "bps"), [("20k", 20_000), ("1.5M", 1_500_000), ("800", 800), (" 64 k", 64_000)])
def test_bitrates(text, bps):
    assert parse_bitrate(text) == bps


@pytest.mark.parametrize("text", ["", "k", "-5k", "10K", "1e4", "٣k"])
def test_strange_bitrates_are_refused(text):
    with pytest.raises(BuildError, match="expected bit/s"):
        parse_bitrate(text)
