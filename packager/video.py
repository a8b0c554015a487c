"""Reading videos: any file PyAV opens, as square-pixel RGB frames of one size at a constant rate, segment by segment.

Memory is bounded by one segment: nothing here holds more than the frames it is about to hand over.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from packager.errors import VideoError

log = logging.getLogger(__name__)

FITS = ("crop", "pad")
"""How a frame of another shape is fitted: cut to the centre, or padded with black."""

_STANDARD_RATES = (
    *(Fraction(n) for n in (5, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)),
    *(Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 60, 120)),
)
_RATE_SLACK = 0.006  # a measured mean rate this close (relative) to a standard rate is taken for it
_MAX_FPS = 240
_MAX_GAP_S = 600.0  # a longer hole between two timestamps is a damaged file, not a still picture
_MAX_PIXELS = 1 << 26  # of a scaled frame before cropping: stops shapes such as 100000x2
_SCALER = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"

# AVColorSpace, AVColorRange and AVColorTransferCharacteristic, as numbered in FFmpeg's pixfmt.h (ITU-T H.273).
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_HD_LINES = 720  # untagged pictures of at least this height are BT.709 by convention, smaller ones BT.601

BT601, LIMITED_RANGE = 6, 1
"""Colour tags of everything this package encodes: SMPTE 170M matrix, primaries and transfer; 16..235 luma."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, as a viewer sees it: rotated upright, with square pixels."""

    path: Path
    codec: str
    width: int
    height: int
    fps: Fraction  # constant rate the frames are handed out at, unless another is asked for
    duration_s: float | None  # as declared by the file; None where it declares none
    rotation_deg: int  # counter-clockwise, applied by the reader


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Open a video, decode its first frame and describe it; raise VideoError (one line) if there is none."""
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream, Path(path)), None)
        if first is None:
            raise VideoError(f"{path}: holds no decodable picture")
        width, height, turns = _upright(first, stream)
        return VideoInfo(
            path=Path(path),
            codec=stream.codec_context.name,
            width=height if turns % 2 else width,
            height=width if turns % 2 else height,
            fps=_constant_fps(stream, Path(path)),
            duration_s=_declared_duration_s(container, stream),
            rotation_deg=90 * turns,
        )


def segment_frame_count(segment_s: float, fps: Fraction) -> int:
    """Frames of every full segment: `segment_s` to the nearest whole frame, at least one. The last may be shorter."""
    if not (math.isfinite(segment_s) and segment_s > 0):
        raise VideoError(f"segment duration {segment_s} s: expected a positive number of seconds")
    return max(1, math.floor(Fraction(segment_s) * fps + Fraction(1, 2)))


def iter_segments(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    fit: str = "crop",
    segment_s: float = 2.0,
    fps: Fraction | None = None,
) -> Iterator[np.ndarray]:
    """Yield the video's segments in order, each uint8 [T, height, width, 3], RGB.

    T is `segment_frame_count(segment_s, fps)` but for the last segment, which holds what is left (1..T frames).

    Args:
        path: any file PyAV opens with a video stream in it.
        width, height: of the frames handed out, pixels.
        fit: "crop" fills the frame and cuts the centre, "pad" shows everything on black.
        segment_s: segment duration in seconds, rounded to whole frames.
        fps: constant output rate; None takes the file's own (`probe(path).fps`).
    Raises:
        VideoError: unreadable or empty files, no video stream, a picture size that changes on the way.
    """
    rate = probe(path).fps if fps is None else fps
    count = segment_frame_count(segment_s, rate)
    return cut_segments(iter_frames(path, width=width, height=height, fit=fit, fps=rate), count)


def cut_segments(frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield frames stacked to segments of `count`, the last with what is left."""
    batch: list[np.ndarray] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == count:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def iter_frames(
    path: str | os.PathLike[str], *, width: int, height: int, fit: str = "crop", fps: Fraction | None = None
) -> Iterator[np.ndarray]:
    """Yield the video's frames at the constant rate `fps`, each uint8 [height, width, 3], RGB, upright.

    Frame k shows the picture that is on screen at k / fps after the first one: timestamps are rounded to the output
    grid, gaps repeat the picture before them, and where two pictures fall on one place the later is shown.
    """
    if fit not in FITS:
        raise VideoError(f"unknown fit {fit!r}; known: {', '.join(FITS)}")
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise VideoError(f"frame size {width}x{height}: expected 1 to 16384 pixels a side")
    with _opened(path) as (container, stream):
        rate = _constant_fps(stream, Path(path)) if fps is None else fps
        converter = _Converter(stream, width, height, fit, Path(path))
        shown: Any = None
        pixels = None
        for frame in _on_grid(_decoded(container, stream, Path(path)), rate, Path(path)):
            if frame is not shown:
                pixels, shown = converter.convert(frame), frame
            assert pixels is not None
            yield pixels
        if pixels is None:
            raise VideoError(f"{path}: holds no decodable picture")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Open a file and pick its video stream; turn every FFmpeg error into one line."""
    file = Path(path)
    if file.is_dir():
        raise VideoError(f"{file}: is a folder, not a video")
    if not file.exists():
        raise VideoError(f"{file}: no such file")
    if file.stat().st_size == 0:
        raise VideoError(f"{file}: is empty")
    try:
        # "file:" keeps a colon in a name from being read as a protocol; the whitelist keeps playlists off the network.
        container = av.open(f"file:{file}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{file}: not a readable video ({_reason(error)})") from error
    with container:
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            raise VideoError(f"{file}: is a still image, not a video")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"}))
            raise VideoError(f"{file}: has no video stream (found: {kinds or 'nothing'})")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{file}: no decoder in this build for its video stream")
        stream.thread_type = "AUTO"
        yield container, stream


def _is_cover(stream: Any) -> bool:
    """Whether a stream is an album cover, which FFmpeg also lists as video."""
    return "attached_pic" in (getattr(stream.disposition, "name", None) or str(stream.disposition)).lower()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().lower()


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """Yield decoded frames; damage that the decoder cannot hide is an error, damage that it hides a warning."""
    damaged, last_s = 0, 0.0
    try:
        for frame in container.decode(stream):
            damaged += bool(frame.is_corrupt)
            last_s = frame.time if frame.time is not None else last_s
            yield frame
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: damaged after {last_s:.2f} s ({_reason(error)})") from error
    if damaged:
        log.warning("%s: %d frames are damaged and were patched by the decoder", path, damaged)
    declared_s = _declared_duration_s(container, stream)
    if declared_s is not None and declared_s > 1.2 * last_s + 1.0:
        log.warning("%s: ends after %.2f s of the declared %.2f s; it may be cut off", path, last_s, declared_s)


def _declared_duration_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _constant_fps(stream: Any, path: Path) -> Fraction:
    """The stream's mean rate, taken for the standard rate it lies next to."""
    mean, guess = stream.average_rate, stream.guessed_rate
    if mean and guess and abs(guess - mean) <= mean * Fraction(2, 100):
        mean = guess  # nearly constant: the container's nominal rate is exact, the mean is not
    rate = Fraction(mean or guess or 0)
    if not 0 < rate <= _MAX_FPS:
        found = f"a frame rate of {float(rate):g}/s" if rate else "no frame rate"
        raise VideoError(f"{path}: declares {found}; expected up to {_MAX_FPS}/s (give one with --fps)")
    return as_frame_rate(rate)


def as_frame_rate(rate: float | Fraction) -> Fraction:
    """Return the standard rate that a measured or rounded rate (29.97) lies next to, or else a simple fraction."""
    exact = Fraction(rate)
    nearest = min(_STANDARD_RATES, key=lambda standard: abs(standard - exact))
    return (
        nearest if abs(nearest - exact) <= _RATE_SLACK * exact else max(exact.limit_denominator(100), Fraction(1, 100))
    )


def _on_grid(frames: Iterable[Any], fps: Fraction, path: Path) -> Iterator[Any]:
    """Repeat and drop frames so that one comes for every 1 / fps of time."""
    if fps <= 0:
        raise VideoError(f"frame rate {fps}: expected a positive number")
    pending: Any = None
    slot, origin_s, untimed = 0, Fraction(0), 0
    for frame in frames:
        if frame.pts is None or frame.time_base is None:
            at_s, untimed = origin_s + untimed / fps, untimed + 1
        else:
            at_s = frame.pts * Fraction(frame.time_base)
            untimed = math.floor((at_s - origin_s) * fps) + 1
        if pending is None:
            pending, origin_s, untimed = frame, at_s, 1
            continue
        place = math.floor((at_s - origin_s) * fps + Fraction(1, 2))
        if place < slot:
            continue  # a timestamp that runs backwards: its time has been shown already
        if place - slot > _MAX_GAP_S * fps:
            raise VideoError(f"{path}: timestamps jump by {float((place - slot) / fps):.0f} s; the file is damaged")
        for _ in range(slot, place):
            yield pending
        pending, slot = frame, place
    if pending is not None:
        for _ in range(max(1, _shown_frames(pending, fps))):
            yield pending


def _shown_frames(frame: Any, fps: Fraction) -> int:
    """Output frames that the video's last picture stays on screen for, by its declared duration."""
    ticks = getattr(frame, "duration", None) or 0
    shown_s = ticks * Fraction(frame.time_base) if frame.time_base is not None else Fraction(0)
    return math.floor(shown_s * fps + Fraction(1, 2)) if shown_s <= _MAX_GAP_S else 1


def _upright(frame: Any, stream: Any) -> tuple[int, int, int]:
    """(width, height, quarter turns counter-clockwise): the frame with square pixels, before it is turned."""
    aspect = Fraction(stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio or 1)
    if not Fraction(1, 8) <= aspect <= 8:
        aspect = Fraction(1)  # nonsense tag
    turns = round(frame.rotation / 90) % 4
    return max(1, round(frame.width * aspect)), frame.height, turns


class _Converter:
    """Turns decoded frames into RGB arrays of one size; refuses a source that changes its own size."""

    def __init__(self, stream: Any, width: int, height: int, fit: str, path: Path) -> None:
        self._stream, self._width, self._height, self._fit, self._path = stream, width, height, fit, path
        self._source: tuple[int, int] | None = None
        self._graph: _ScaleGraph | None = None
        self._key: tuple[Any, ...] = ()
        self._turns = 0

    def convert(self, frame: Any) -> np.ndarray:
        """Scale, turn and crop or pad a frame: uint8 [height, width, 3]."""
        if self._source is None:
            self._source = (frame.width, frame.height)
            self._announce(frame)
        if (frame.width, frame.height) != self._source:
            was, now = "{}x{}".format(*self._source), f"{frame.width}x{frame.height}"
            raise VideoError(f"{self._path}: picture size changes from {was} to {now} at {frame.time or 0.0:.2f} s")
        key = (frame.format.name, int(frame.colorspace), int(frame.color_range))
        if self._graph is None or key != self._key:
            self._graph, self._key = self._build(frame), key
        pixels = np.rot90(self._graph.run(frame).to_ndarray(), self._turns)
        return self._place(pixels)

    def _announce(self, frame: Any) -> None:
        transfer = _HDR_TRANSFERS.get(int(getattr(frame, "color_trc", 2)))
        if transfer is not None:
            log.warning("%s: high dynamic range (%s) is read without tone mapping", self._path, transfer)
        if frame.interlaced_frame:
            log.warning("%s: is interlaced and is read without deinterlacing", self._path)

    def _build(self, frame: Any) -> _ScaleGraph:
        width, height, self._turns = _upright(frame, self._stream)
        target = (self._height, self._width) if self._turns % 2 else (self._width, self._height)
        ratios = (target[0] / width, target[1] / height)
        scale = max(ratios) if self._fit == "crop" else min(ratios)
        scaled = (max(1, round(width * scale)), max(1, round(height * scale)))
        if scaled[0] * scaled[1] > _MAX_PIXELS:
            shape = f"{width}x{height}"
            raise VideoError(f"{self._path}: a {shape} picture is too elongated to fill {target[0]}x{target[1]}")
        return _ScaleGraph(
            (frame.width, frame.height), frame.format.name, scaled, "rgb24", colour=_source_colour(frame)
        )

    def _place(self, pixels: np.ndarray) -> np.ndarray:
        """Cut the centre of what is too large and pad what is too small with black."""
        for axis, size in enumerate((self._height, self._width)):
            excess = pixels.shape[axis] - size
            if excess > 0:
                pixels = pixels.take(range(excess // 2, excess // 2 + size), axis=axis)
            elif excess < 0:
                before = -excess // 2
                padding = [(0, 0)] * 3
                padding[axis] = (before, -excess - before)
                pixels = np.pad(pixels, padding)
        return np.ascontiguousarray(pixels)


def _source_colour(frame: Any) -> str:
    """Scale-filter options that state a decoded frame's YUV matrix and range; empty for RGB and grey."""
    name = frame.format.name
    if not name.startswith(("yuv", "nv", "p0", "p2", "p4", "y2", "uyvy", "vuy")):
        return ""
    matrix = _MATRICES.get(int(frame.colorspace), "bt709" if frame.height >= _HD_LINES else "smpte170m")
    full = int(frame.color_range) == _FULL_RANGE or name.startswith("yuvj")
    return f":in_color_matrix={matrix}:in_range={'full' if full else 'limited'}"


class _ScaleGraph:
    """FFmpeg's scaler with its rounding and colour options spelled out: source size and format -> target."""

    def __init__(
        self, size: tuple[int, int], pixel_format: str, out_size: tuple[int, int], out_format: str, *, colour: str
    ) -> None:
        self._graph = av.filter.Graph()
        source = self._graph.add(
            "buffer", video_size=f"{size[0]}x{size[1]}", pix_fmt=pixel_format, time_base="1/1000", pixel_aspect="1/1"
        )
        scale = self._graph.add("scale", f"{out_size[0]}:{out_size[1]}:flags={_SCALER}{colour}")
        form = self._graph.add("format", out_format)
        sink = self._graph.add("buffersink")
        for upstream, downstream in ((source, scale), (scale, form), (form, sink)):
            upstream.link_to(downstream)
        self._graph.configure()

    def run(self, frame: Any) -> Any:
        self._graph.push(frame)
        return self._graph.pull()


class YuvConverter:
    """Turns RGB arrays into the yuv420p frames that encoders take: BT.601 matrix, limited range, even sizes."""

    def __init__(self, width: int, height: int) -> None:
        if width % 2 or height % 2:
            raise VideoError(f"frame size {width}x{height}: 4:2:0 video needs even sides")
        colour = ":out_color_matrix=smpte170m:out_range=limited"
        self._graph = _ScaleGraph((width, height), "rgb24", (width, height), "yuv420p", colour=colour)

    def convert(self, pixels: np.ndarray, index: int, fps: Fraction) -> Any:
        """uint8 [height, width, 3] -> av.VideoFrame with timestamp `index` in units of 1 / fps."""
        source = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = self._graph.run(source)
        frame.pts, frame.time_base = index, 1 / fps
        return frame


def tag_colour(context: Any) -> None:
    """Write into an encoder's stream what `YuvConverter` made: BT.601, limited range."""
    context.colorspace = context.color_primaries = context.color_trc = BT601
    context.color_range = LIMITED_RANGE


def write_h264(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], *, fps: Fraction, width: int, height: int, crf: int
) -> None:
    """Encode RGB frames (uint8 [height, width, 3]) as an H.264 MP4 that appears at `path` whole or not at all.

    A fixed thread count and no version strings: the same frames and libraries give the same bytes.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    converter = YuvConverter(width, height)
    try:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(partial), "w", format="mp4", options=options) as container:
            stream: Any = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = stream.codec_context.time_base = 1 / fps
            stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "threads=2:sliced-threads=0"}
            tag_colour(stream.codec_context)
            for index, pixels in enumerate(frames):
                container.mux(stream.encode(converter.convert(pixels, index, fps)))
            container.mux(stream.encode(None))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
