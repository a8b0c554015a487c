"""H.265 ladders: segments that decode alone, on time, at the bitrate asked for, and the same every time."""

import io
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from packager.baselines import encode_video
from packager.cmaf import codecs_parameter
from packager.errors import EncodeError
from packager.video_encoders import VIDEO_ENCODERS, VideoStream

STREAM = VideoStream(64, 48, Fraction(30), 8)


def moving_frames(count, width=64, height=48):
    """A textured picture that slides and gets brighter by 6 a frame, so that order can be checked."""
    texture = np.random.default_rng(1).integers(0, 60, (height, width * 2, 3)).astype(np.uint8)
    return [texture[:, k % width : k % width + width] + np.uint8(6 * (k % 30)) for k in range(count)]


def encode(folder, frames, bitrate_bps=60_000, stream=STREAM, codec="h265", **options):
    return encode_video(
        VIDEO_ENCODERS[codec], lambda: iter(frames), stream, bitrate_bps=bitrate_bps, folder=folder, **options
    )


def decode(folder, number):
    data = (folder / "init.mp4").read_bytes() + (folder / f"seg-{number:05d}.m4s").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


def base_time(segment):
    return struct.unpack_from(">Q", segment, segment.index(b"tfdt") + 8)[0]


def shown_at(segment, duration=1):
    """Composition times in order, from tfdt and trun alone (FFmpeg's reader shifts signed offsets by their minimum)."""
    at = segment.index(b"trun") + 4
    flags, count = struct.unpack_from(">II", segment, at)
    assert flags & 0x01000E05 == 0x01000A05  # version 1; sizes and signed offsets for every sample
    stride = 8 + 4 * bool(flags & 0x100)
    offsets = [struct.unpack_from(">i", segment, at + 16 + k * stride + stride - 4)[0] for k in range(count)]
    return sorted(base_time(segment) + k * duration + offset for k, offset in enumerate(offsets))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("h265"), moving_frames(21))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_clips_of_a_few_frames_are_encoded_as_low_as_can_be(tmp_path, count):
    result = encode(tmp_path, moving_frames(count), bitrate_bps=20_000)
    assert (result.segments, result.frames) == (1, count)
    shown = decode(tmp_path, 1)
    assert [frame.pts - shown[0].pts for frame in shown] == list(range(count))


def test_segments_decode_alone_with_exact_frames_and_times(encoded):
    assert (encoded.segments, encoded.frames) == (3, 21)
    frames = moving_frames(21)
    for number, (start, count) in enumerate([(0, 8), (8, 8), (16, 5)], start=1):
        shown = decode(encoded.folder, number)
        assert len(shown) == count
        assert [frame.pts - shown[0].pts for frame in shown] == list(range(count))
        assert shown[0].key_frame
        assert not any(frame.key_frame for frame in shown[1:])
        assert shown[0].time_base == Fraction(1, 30)
        for frame, original in zip(shown, frames[start : start + count], strict=True):
            assert abs(frame.to_ndarray(format="rgb24").mean() - original.mean()) < 3
        segment = (encoded.folder / f"seg-{number:05d}.m4s").read_bytes()
        assert base_time(segment) == start
        assert shown_at(segment) == list(range(start, start + count))


def test_last_segment_may_be_one_frame_and_time_units_follow_the_rate(tmp_path):
    stream = VideoStream(64, 48, Fraction(30000, 1001), 8)
    encoded = encode(tmp_path, moving_frames(9), stream=stream)
    assert encoded.segments == 2
    assert len(decode(tmp_path, 2)) == 1
    assert shown_at((tmp_path / "seg-00001.m4s").read_bytes(), 1001) == [k * 1001 for k in range(8)]
    assert base_time((tmp_path / "seg-00002.m4s").read_bytes()) == 8 * 1001


def test_boxes_are_cmaf(encoded):
    init = (encoded.folder / "init.mp4").read_bytes()
    segment = (encoded.folder / "seg-00001.m4s").read_bytes()
    assert init[4:8] == b"ftyp"
    assert b"hvc1" in init
    assert (b"mfra" in segment, b"Lavf" in init) == (False, False)
    kinds, at = [], 0
    while at < len(segment):
        size, kind = struct.unpack_from(">I4s", segment, at)
        kinds.append(kind)
        at += size
    assert (kinds, at) == ([b"styp", b"moof", b"mdat"], len(segment))


@pytest.fixture(scope="module", params=["h264", "av1", "vp9"])
def other(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, encode(folder, moving_frames(21), codec=request.param)


def test_every_codec_cuts_segments_that_decode_alone(other):
    _codec, encoded = other
    assert (encoded.segments, encoded.frames) == (3, 21)
    frames = moving_frames(21)
    for number, (start, count) in enumerate([(0, 8), (8, 8), (16, 5)], start=1):
        shown = decode(encoded.folder, number)
        assert [frame.pts - shown[0].pts for frame in shown] == list(range(count))
        assert [frame.key_frame for frame in shown] == [True] + [False] * (count - 1)
        for frame, original in zip(shown, frames[start : start + count], strict=True):
            assert abs(frame.to_ndarray(format="rgb24").mean() - original.mean()) < 3
        segment = (encoded.folder / f"seg-{number:05d}.m4s").read_bytes()
        assert base_time(segment) == start
        if struct.unpack_from(">I", segment, segment.index(b"trun") + 4)[0] & 0x800:  # composition offsets
            assert shown_at(segment) == list(range(start, start + count))
    assert sum(path.stat().st_size for path in encoded.folder.iterdir()) == encoded.size_bytes


def test_every_codec_names_itself_and_no_version(other):
    codec, encoded = other
    expected = {"h264": "avc1.64000A", "av1": "av01.0.00M.08", "vp9": "vp09.00.10.08"}
    assert encoded.codecs == expected[codec]
    assert VIDEO_ENCODERS[codec].tag.encode() in (encoded.folder / "init.mp4").read_bytes()
    assert b"Lavf" not in (encoded.folder / "init.mp4").read_bytes()


def test_every_codec_gives_the_same_bytes_again(other, tmp_path):
    codec, encoded = other
    known = {} if codec == "h264" else {66.0: 10**9}  # a lie about another quality must not be believed unasked
    encode(tmp_path, moving_frames(21), codec=codec, known=known)
    for path in encoded.folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("codec", ["h264", "av1", "vp9"])
def test_every_codec_meets_its_bitrate(tmp_path, codec):
    stream = VideoStream(64, 48, Fraction(30), 30)
    encoded = encode(tmp_path, moving_frames(60), 90_000, stream, codec)
    assert encoded.bitrate_bps == pytest.approx(90_000, rel=0.08)


def test_a_search_for_one_bitrate_leaves_what_it_tried_to_the_next(tmp_path):
    known, seen = {}, []
    frames = moving_frames(16)
    first = encode(tmp_path / "a", frames, codec="av1", known=known)
    tried = dict(known)
    again = encode(tmp_path / "b", frames, codec="av1", known=known, progress=seen.append)
    assert first.size_bytes in tried.values()
    assert (known, again.size_bytes) == (tried, first.size_bytes)
    assert sum(seen) == 16  # one run, to write the files


def test_every_byte_is_counted(encoded):
    on_disk = sum(path.stat().st_size for path in encoded.folder.iterdir())
    assert encoded.size_bytes == on_disk
    assert encoded.bitrate_bps == pytest.approx(on_disk * 8 * 30 / 21)


@pytest.mark.parametrize("bitrate_bps", [60_000, 150_000])
def test_bitrate_is_met_with_the_container_included(tmp_path, bitrate_bps):
    encoded = encode(tmp_path, moving_frames(60), bitrate_bps, VideoStream(64, 48, Fraction(30), 30))
    assert encoded.bitrate_bps == pytest.approx(bitrate_bps, rel=0.06)


def test_a_bitrate_out_of_reach_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        encoded = encode(tmp_path, moving_frames(16), 2_000)
    assert encoded.bitrate_bps > 4_000
    assert "2.0 were asked for" in caplog.text


def test_same_input_gives_the_same_bytes(encoded, tmp_path):
    again = encode(tmp_path, moving_frames(21))
    for path in encoded.folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes()


def test_colours_survive_and_are_tagged(tmp_path):
    flat = [np.full((48, 64, 3), (200, 60, 30), np.uint8)] * 8
    encode(tmp_path, flat, 200_000)
    frame = decode(tmp_path, 1)[3]
    assert (frame.colorspace, frame.color_range) == (6, 1)
    assert np.abs(frame.to_ndarray(format="rgb24")[20, 20].astype(int) - (200, 60, 30)).max() <= 3


def test_codecs_parameter_is_rfc_6381(encoded):
    assert encoded.codecs == "hvc1.1.6.L30.90"
    with pytest.raises(EncodeError, match="no avcC, hvcC"):
        codecs_parameter(b"\0" * 40)


def test_progress_counts_frames_of_every_pass(tmp_path):
    seen = []
    encode(tmp_path, moving_frames(8), progress=seen.append)
    assert sum(seen) in (16, 24, 32)


def test_an_empty_video_is_refused(tmp_path):
    with pytest.raises(EncodeError, match="no frame"):
        encode(tmp_path, [])


def test_x264_gives_the_least_it_can_where_it_refuses_a_bitrate(tmp_path, caplog):
    noise = list(np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8))
    encoded = encode(tmp_path, noise, bitrate_bps=8_000, codec="h264")
    assert encoded.bitrate_bps > 9_000
    assert "libx264 gave" in caplog.text


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="scheduling policies are Linux's")
@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_an_encoder_does_not_make_threads_real_time(tmp_path, codec):
    """Run by root, SVT-AV1 would; an ordinary user may not, so for him nothing can go wrong here."""
    usual, seen = os.sched_getscheduler(0), set()

    def look(_frames):
        seen.update(os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir())

    encode(tmp_path, moving_frames(8), codec=codec, progress=look)
    assert seen == {usual}
    assert os.sched_getscheduler(0) == usual
