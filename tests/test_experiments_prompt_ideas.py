"""Studies of layers, concealment and loss: their parts by hand."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from experiments.clips import layer_sizes
from experiments.errors import ExperimentError
from experiments.intervals import bootstrap_mean
from experiments.layers import trace_names
from experiments.loss import BURST_PACKETS, cut, first_damage, gilbert_elliott, packets_of, sampled
from packager.package import build_prompts
from packager.settings import BuildConfig
from packager.video import write_h264


def test_an_interval_holds_the_mean_and_narrows():
    draw = np.random.default_rng(1).normal(3.0, 1.0, 400)
    few, many = bootstrap_mean(draw[:20]), bootstrap_mean(draw)
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    assert many == bootstrap_mean(draw)
    assert many.text(1, 10).startswith(f"{10 * draw.mean():.1f} [")


def test_constant_values_have_no_spread():
    assert bootstrap_mean([2.0, 2.0]).text(1) == "2.0 [2.0, 2.0]"


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.2])
def test_the_channel_loses_as_much_as_asked_in_bursts(loss):
    lost = gilbert_elliott(200_000, loss, np.random.default_rng(0))
    assert lost.mean() == pytest.approx(loss, rel=0.1)
    if loss:
        bursts = np.count_nonzero(np.diff(lost.astype(int)) == 1)
        assert lost.sum() / bursts == pytest.approx(BURST_PACKETS, rel=0.1)


def test_bytes_fill_packets():
    assert [packets_of(size) for size in (1, 1200, 1201)] == [1, 1, 2]
    assert cut(np.array([False, False, True, True])) == 2400
    assert cut(np.zeros(3, bool)) is None


def test_a_segment_shorter_than_the_step_is_measured_at_its_last_frame():
    assert sampled(60, 20).tolist() == [19, 39, 59]
    assert sampled(45, 20).tolist() == [19, 39]
    assert sampled(7, 20).tolist() == [6]


def test_traces_are_spread_over_families():
    names = trace_names(2)
    assert {"fcc-01", "fcc-20", "5g-13"} <= set(names)
    assert len(trace_names(0)) > 90


def test_pictures_are_lost_from_the_first_damaged_one_on(clip, tmp_path):
    """Sixteen pictures coded out of order: none without a byte, all with all, and more the more bytes there are."""
    from packager.baselines import encode_video
    from packager.video_encoders import H265, VideoStream

    frames = np.concatenate([clip, clip[::-1]])
    stream = VideoStream(64, 64, Fraction(10), 16)
    encode_video(H265, lambda: iter(frames), stream, bitrate_bps=60_000, folder=tmp_path / "video")
    segment = (tmp_path / "video" / "seg-00001.m4s").read_bytes()
    whole = first_damage(segment)
    assert (whole(0), whole(len(segment))) == (0, 16)
    counts = [whole(byte) for byte in range(len(segment) + 1)]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3


def test_layers_are_made_of_representations_with_a_rank_each(clip, tiny_folder, tmp_path):
    video = tmp_path / "clip.mp4"
    write_h264(video, clip, fps=Fraction(10), width=64, height=64, crf=10)
    config = BuildConfig(
        segment_s=0.8, metrics=["psnr_db"], device="cpu", ranks=[1, 4], generator=str(tiny_folder), iterations=1
    )
    alone, layered = (
        build_prompts(video, tmp_path / name, replace(config, interval=8, top_intervals=[], layered=name == "layered"))
        for name in ("alone", "layered")
    )
    sizes, inits = layer_sizes(alone.presentation)
    np.testing.assert_array_equal(sizes, layered.presentation.layer_bytes)
    np.testing.assert_array_equal(inits, layered.presentation.init_bytes)
    dense = build_prompts(video, tmp_path / "dense", replace(config, interval=8, top_intervals=[4]))
    with pytest.raises(ExperimentError, match=r"r01, r04, r04k4: expected a rank each .*--top-intervals 0"):
        layer_sizes(dense.presentation)
