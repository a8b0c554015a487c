"""Reading videos: constant rate, upright, right colours, exact segment lengths, and one line for what is no video."""

import io
import struct
import wave
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from packager.errors import VideoError
from packager.video import YuvConverter, iter_frames, iter_segments, probe, segment_frame_count, write_h264

RATE = Fraction(30)


def picture(index, width=64, height=48):
    """A flat picture whose red tells its index, with a white square in the upper left and a blue one lower right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 8 * index
    pixels[: height // 3, : width // 3] = 255
    pixels[-(height // 3) :, -(width // 3) :] = (0, 0, 255)
    return pixels


def index_of(pixels):
    """The index that `picture` wrote, read from the centre."""
    height, width = pixels.shape[:2]
    return round(float(pixels[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2, 0].mean()) / 8)


def write(path, frames, *, codec="libx264rgb", pts=None, rate=RATE, fmt="rgb24", time_base=None, options=None):
    """Write frames with explicit timestamps through PyAV."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        height, width = frames[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, fmt
        stream.codec_context.time_base = time_base or 1 / rate
        stream.options = {"crf": "1"} if options is None else options
        for position, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if fmt != "rgb24":
                frame = frame.reformat(format=fmt)
            frame.pts = position if pts is None else pts[position]
            frame.time_base = stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_h264(path, [picture(k) for k in range(25)], fps=RATE, width=64, height=48, crf=1)
    return path


def test_probe_and_frames_of_a_plain_clip(clip):
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.rotation_deg, info.codec) == (64, 48, RATE, 0, "h264")
    assert info.duration_s == pytest.approx(25 / 30, abs=0.001)
    frames = list(iter_frames(clip, width=64, height=48))
    assert [index_of(frame) for frame in frames] == list(range(25))
    assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)


@pytest.mark.parametrize(
    ("segment_s", "fps", "count"),
    [(2.0, Fraction(30), 60), (2.0, Fraction(30000, 1001), 60), (0.5, Fraction(25), 13), (0.001, Fraction(24), 1)],
)
def test_segment_frame_count_rounds_to_whole_frames(segment_s, fps, count):
    assert segment_frame_count(segment_s, fps) == count


@pytest.mark.parametrize("segment_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_segment_durations_are_refused(segment_s):
    with pytest.raises(VideoError, match="segment duration"):
        segment_frame_count(segment_s, RATE)


@pytest.mark.parametrize(("segment_s", "lengths"), [(0.4, [12, 12, 1]), (10.0, [25]), (1 / 30, [1] * 25)])
def test_segments_are_exact_and_the_last_may_be_one_frame(clip, segment_s, lengths):
    segments = list(iter_segments(clip, width=32, height=32, segment_s=segment_s))
    assert [len(segment) for segment in segments] == lengths
    assert segments[0].shape[1:] == (32, 32, 3)
    assert [index_of(frame) for segment in segments for frame in segment] == list(range(25))


def test_crop_cuts_the_centre_and_pad_keeps_everything(clip):
    crop = next(iter_frames(clip, width=48, height=48, fit="crop"))
    pad = next(iter_frames(clip, width=64, height=64, fit="pad"))
    assert crop[2:10, 2:10].min() > 240  # the white square, less 8 columns at its left
    assert crop[4, 18].max() < 30
    assert pad[:8].max() == 0
    assert pad[-8:].max() == 0
    assert pad[12, 4].min() > 240
    with pytest.raises(VideoError, match="unknown fit 'squeeze'; known: crop, pad"):
        next(iter_frames(clip, width=8, height=8, fit="squeeze"))


def test_variable_frame_rate_is_resampled_by_timestamps(tmp_path):
    # Shown from: 0 ms, 100, 133, 400; asked for at 10 frames/s: frame 2 comes at 200 ms and still shows picture 2.
    pts = [0, 100, 133, 400]
    path = write(tmp_path / "vfr.mkv", [picture(k) for k in range(4)], pts=pts, time_base=Fraction(1, 1000))
    frames = list(iter_frames(path, width=64, height=48, fps=Fraction(10)))
    assert [index_of(frame) for frame in frames[:5]] == [0, 2, 2, 2, 3]


def test_millisecond_timestamps_neither_drop_nor_repeat(tmp_path):
    stamps = [round(k * 1000 / 30) for k in range(20)]
    path = write(tmp_path / "ms.mkv", [picture(k) for k in range(20)], pts=stamps, time_base=Fraction(1, 1000))
    assert [index_of(frame) for frame in iter_frames(path, width=64, height=48, fps=RATE)][:20] == list(range(20))


@pytest.mark.parametrize("offset", [0, 5000])
def test_streams_may_start_late(tmp_path, offset):
    stamps = [offset + k * 40 for k in range(5)]
    path = write(tmp_path / "late.mkv", [picture(k) for k in range(5)], pts=stamps, time_base=Fraction(1, 1000))
    assert [index_of(frame) for frame in iter_frames(path, width=64, height=48, fps=Fraction(25))] == list(range(5))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(7)])
def test_common_rates_are_recognised_exactly(tmp_path, rate):
    for name in ("rate.mp4", "rate.mkv"):
        path = write(tmp_path / name, [picture(k) for k in range(12)], rate=rate)
        assert probe(path).fps == rate


def turn(path, degrees):
    """Write a rotation into an MP4's track header, as phones do (the matrix sits in its last 44..8 bytes)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") - 4
    size = struct.unpack_from(">I", data, at)[0]
    unit = 0x10000
    cos, sin = {90: (0, unit), 180: (-unit, 0), 270: (0, -unit)}[degrees]
    struct.pack_into(">9i", data, at + size - 44, cos, sin, 0, -sin, cos, 0, 0, 0, 0x40000000)
    path.write_bytes(data)


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotation_in_the_header_is_applied(clip, degrees, corner):
    turn(clip, degrees)
    info = probe(clip)
    assert (info.width, info.height) == ((48, 64) if degrees != 180 else (64, 48))
    upright = next(iter_frames(clip, width=info.width, height=info.height))
    assert upright.shape[:2] == (info.height, info.width)
    assert upright[corner].min() > 200  # the white square was turned clockwise into this corner


def test_odd_sizes_and_ten_bit_sources(tmp_path):
    odd = write(tmp_path / "odd.mkv", [picture(k, 65, 49) for k in range(3)])
    assert probe(odd).width == 65
    assert next(iter_frames(odd, width=65, height=49)).shape == (49, 65, 3)
    assert next(iter_frames(odd, width=31, height=17, fit="pad")).shape == (17, 31, 3)
    quiet = {"x265-params": "log-level=none"}
    deep = write(
        tmp_path / "deep.mp4", [picture(k) for k in range(3)], codec="libx265", fmt="yuv420p10le", options=quiet
    )
    assert [index_of(frame) for frame in iter_frames(deep, width=64, height=48)] == [0, 1, 2]


def test_wide_pixels_are_made_square(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24").reformat(format="yuv420p")
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height) == (128, 48)


@pytest.mark.parametrize(("matrix", "full"), [("bt709", False), ("smpte170m", False), ("bt709", True)])
def test_colour_matrix_and_range_are_honoured(tmp_path, matrix, full):
    colours = [(230, 30, 30), (30, 200, 40), (20, 40, 220), (200, 200, 200)]
    path = tmp_path / "colour.mp4"
    spaces = {"bt709": 1, "smpte170m": 5}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"crf": "1"}
        context = stream.codec_context
        context.colorspace, context.color_range = {"bt709": 1, "smpte170m": 6}[matrix], 2 if full else 1
        for k, colour in enumerate(colours):
            flat = np.full((32, 32, 3), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(flat, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=spaces[matrix], src_color_range=2, dst_color_range=2 if full else 1
            )
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for frame, colour in zip(iter_frames(path, width=32, height=32), colours, strict=True):
        assert np.abs(frame[16, 16].astype(int) - colour).max() <= 3


def test_yuv_converter_round_trips_and_needs_even_sides():
    frame = YuvConverter(32, 32).convert(np.full((32, 32, 3), (40, 180, 90), np.uint8), 7, Fraction(30000, 1001))
    assert (frame.pts, frame.format.name) == (7, "yuv420p")
    assert frame.time == pytest.approx(7 * 1001 / 30000)
    with pytest.raises(VideoError, match="even"):
        YuvConverter(33, 32)


def test_files_that_are_no_video_are_refused_in_one_line(tmp_path):
    names = ("tone.wav", "empty.mp4", "noise.mp4", "still.png", "sub")
    audio, empty, noise, still, folder = (tmp_path / name for name in names)
    with wave.open(str(audio), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\1" * 8000)
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    folder.mkdir()
    Image.fromarray(picture(3)).save(still)
    for path, message in [
        (tmp_path / "missing.mp4", "no such file"),
        (audio, r"has no video stream \(found: audio\)"),
        (empty, "is empty"),
        (noise, "not a readable video"),
        (still, "is a still image"),
        (folder, "is a folder"),
    ]:
        with pytest.raises(VideoError, match=message) as caught:
            probe(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_an_album_cover_is_no_video(tmp_path):
    song, cover = tmp_path / "song.mp3", io.BytesIO()
    with av.open(str(song), "w") as out:
        stream = out.add_stream("libmp3lame", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 11520), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 44100
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            out.mux(packet)
    Image.fromarray(picture(3)).save(cover, "PNG")
    # An ID3v2.3 tag with one attached picture (APIC), https://id3.org/id3v2.3.0 sections 3.1 and 4.15.
    body = b"\0image/png\0\3\0" + cover.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    song.write_bytes(b"ID3\3\0\0" + size + frame + song.read_bytes())
    with av.open(str(song)) as container:
        assert container.streams.video  # FFmpeg does list the cover
    with pytest.raises(VideoError, match=r"has no video stream \(found: audio\)"):
        probe(song)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_give_fewer_frames_or_one_line(clip, share):
    data = clip.read_bytes()
    clip.write_bytes(data[: int(share * len(data))])
    message, count = "", 0
    try:
        count = sum(1 for _ in iter_frames(clip, width=64, height=48))
    except VideoError as error:
        message = str(error)
    assert bool(message) != bool(count)
    assert count <= 25
    assert "\n" not in message


def test_a_name_with_a_colon_is_a_file(clip):
    odd = clip.with_name("a:b.mp4")
    clip.rename(odd)
    assert probe(odd).width == 64


def test_a_picture_size_that_changes_is_refused(tmp_path):
    # Two H.264 elementary streams joined: the second carries its own parameter sets and another size.
    parts = []
    for width in (64, 80):
        frames = [picture(k, width) for k in range(4)]
        parts.append(write(tmp_path / f"{width}.h264", frames, codec="libx264", fmt="yuv420p").read_bytes())
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match="picture size changes from 64x48 to 80x48"):
        list(iter_frames(joined, width=64, height=48, fps=RATE))


def test_written_files_are_whole_or_absent(tmp_path):
    def breaking():
        yield picture(0)
        raise RuntimeError("camera fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        write_h264(tmp_path / "out.mp4", breaking(), fps=RATE, width=64, height=48, crf=20)
    assert list(tmp_path.iterdir()) == []


def test_timestamps_never_run_backwards_in_real_clips(shared_data):
    for name in ("davis_bear.mp4", "sam2_lineart60.mp4"):
        path = shared_data / "clips" / name
        info = probe(path)
        lengths = [len(segment) for segment in iter_segments(path, width=64, height=64, segment_s=1.0)]
        assert all(a == segment_frame_count(1.0, info.fps) for a, _ in pairwise(lengths))
        assert sum(lengths) == pytest.approx(info.duration_s * float(info.fps), abs=1.5)
