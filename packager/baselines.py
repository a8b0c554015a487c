"""The H.265 baseline: x265 at a target bitrate, cut into CMAF segments that each decode alone.

Two-pass x265 at preset medium, 8-bit 4:2:0, one IDR picture at the start of every segment and nowhere else, closed
groups of pictures. The target counts every byte of the representation (boxes and init segment too), as bitrates do
everywhere in this project: what the container costs is taken off before x265 gets its share, and the second pass is
repeated with a corrected share while the result is off. Single segments are not capped (no VBV).

Single-threaded on purpose: x265's bytes depend on its thread pool, and the same input must give the same bytes.
"""

from __future__ import annotations

import logging
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from packager.errors import EncodeError
from packager.video import YuvConverter, tag_colour

log = logging.getLogger(__name__)

INIT_NAME = "init.mp4"
SEGMENT_PATTERN = "seg-{:05d}.m4s"

_TOLERANCE = 0.03  # a bitrate this close (relative) to the target is not corrected further
_SECOND_PASSES = 3  # at most
_HIGHEST_START_BPS = 50_000_000  # x265 is not asked for more than twice this on account of headers
_NEVER_REORDERED = 2  # frames: a clip this short has no B picture between two others
_LOWEST_BPS = 1000  # x265 takes whole kbit/s
_MOVFLAGS = "cmaf+frag_keyframe+empty_moov+default_base_moof+skip_trailer"
_STYP = struct.pack(">I4s4sI4s4s", 24, b"styp", b"cmfs", 0, b"cmfs", b"msdh")

# ISO/IEC 14496-12, 8.8.8 (trun): flag -> the field it announces, in the order they are stored.
_TRUN_DATA_OFFSET, _TRUN_FIRST_FLAGS = 0x1, 0x4
_TRUN_SAMPLE_FIELDS = (0x100, 0x200, 0x400, 0x800)  # duration, size, flags, composition time offset
_TRUN_COMPOSITION = 0x800

OpenFrames = Callable[[], Iterable[np.ndarray]]
"""Starts the video from its first frame: uint8 [H, W, 3] each."""


@dataclass
class EncodeProgress:
    """Turns counted frames into a share of the work, taking it that one second pass is enough."""

    expected_frames: int | None
    report: Callable[[float], None]
    done: int = 0

    def __call__(self, frames: int) -> None:
        self.done += frames
        if self.expected_frames:
            self.report(min(1.0, self.done / (2 * self.expected_frames)))


@dataclass(frozen=True)
class VideoStream:
    """What is encoded: frame size in pixels, frames a second, and frames of every full segment."""

    width: int
    height: int
    fps: Fraction
    segment_frames: int


@dataclass(frozen=True)
class EncodedStream:
    """One finished representation on disk."""

    folder: Path  # holds init.mp4, seg-00001.m4s ...
    segments: int
    frames: int
    size_bytes: int  # init and all segments
    bitrate_bps: float
    codecs: str  # RFC 6381, for the manifest


def encode_h265(
    open_frames: OpenFrames,
    stream: VideoStream,
    *,
    bitrate_bps: int,
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> EncodedStream:
    """Encode a video at a target bitrate into `folder` (made here), as init.mp4 and numbered segments.

    Args:
        open_frames: called once per pass, two to four times.
        stream: size, rate and segment length; sides must be even.
        bitrate_bps: target over the whole clip, all bytes counted. What comes out is in the result; x265 may be unable
            to go as low as asked, which is logged as a warning.
        folder: where the files go; only `EncodedStream` returned means that they are whole.
        progress: called with 1 for every frame of every pass.
    Raises:
        EncodeError: no libx265 in this PyAV, or output that is not cut as asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="x265-") as scratch:
        passes = _Passes(open_frames, stream, str(Path(scratch, "stats")), progress)
        first = passes.run(1, bitrate_bps, None)
        overhead_bytes = first.total_bytes - first.video_bytes
        wanted_bytes = max(1.0, bitrate_bps * first.frames / float(stream.fps) / 8 - overhead_bytes)
        video_bps = _whole_kbps(wanted_bytes * 8 * float(stream.fps) / first.frames)
        tried: dict[int, _Totals] = {}
        for _ in range(_SECOND_PASSES):
            video_bps, totals = _second_pass(passes, video_bps, folder)
            tried[video_bps] = totals
            share = tried[video_bps].video_bytes / wanted_bytes
            correction = _whole_kbps(video_bps / share)
            if abs(share - 1) <= _TOLERANCE or correction in tried:
                break
            video_bps = correction
        best = min(tried, key=lambda bps: (abs(tried[bps].video_bytes - wanted_bytes), bps))
        if best != next(reversed(tried)):
            passes.run(2, best, folder)
    return _describe(tried[best], stream, bitrate_bps, folder)


def _second_pass(passes: _Passes, video_bps: int, folder: Path) -> tuple[int, _Totals]:
    """Run the second pass at a bitrate, or at the first doubling of it that x265 takes; return which, and what came.

    x265 refuses to start where the headers that it counted in the first pass are more than the whole target: on clips
    of a few frames, whose target is a few bytes.
    """
    while True:
        try:
            return video_bps, passes.run(2, video_bps, folder)
        except EncodeError as error:
            if not isinstance(error.__cause__, av.error.InvalidDataError) or video_bps > _HIGHEST_START_BPS:
                raise
            video_bps *= 2


def _with_decoding_times(packets: list[Any], frames: int) -> list[Any]:
    """Return the last packets; x265 leaves decoding times undefined where there are too few frames to reorder."""
    if frames <= _NEVER_REORDERED:
        for packet in packets:
            packet.dts = packet.pts
    return packets


def _whole_kbps(bps: float) -> int:
    return max(_LOWEST_BPS, round(bps / 1000) * 1000)


def _describe(totals: _Totals, stream: VideoStream, asked_bps: int, folder: Path) -> EncodedStream:
    bitrate_bps = totals.total_bytes * 8 * float(stream.fps) / totals.frames
    if abs(bitrate_bps / asked_bps - 1) > 0.1:
        found, asked = f"{bitrate_bps / 1000:.1f}", f"{asked_bps / 1000:.1f}"
        log.warning("x265 gave %s kbit/s where %s were asked for (all bytes counted)", found, asked)
    codecs = codecs_parameter((folder / INIT_NAME).read_bytes())
    return EncodedStream(folder, totals.segments, totals.frames, totals.total_bytes, bitrate_bps, codecs)


@dataclass
class _Totals:
    """What one pass put out."""

    frames: int = 0
    segments: int = 0
    total_bytes: int = 0
    video_bytes: int = 0  # of `total_bytes`, x265's own


@dataclass
class _Passes:
    """Runs x265 over the video; passes share one statistics file."""

    open_frames: OpenFrames
    stream: VideoStream
    stats: str
    progress: Callable[[int], None] | None

    def run(self, number: int, bitrate_bps: int, folder: Path | None) -> _Totals:
        """Encode everything once; write the pieces into `folder` unless it is None."""
        totals = _Totals()
        for name, data, video_bytes in self._pieces(number, bitrate_bps, totals):
            totals.total_bytes += len(data)
            totals.video_bytes += video_bytes
            if folder is not None:
                (folder / name).write_bytes(data)
        if not totals.frames:
            raise EncodeError("there is no frame to encode")
        expected = -(-totals.frames // self.stream.segment_frames)
        if totals.segments != expected:
            raise EncodeError(f"x265 gave {totals.segments} segments, expected {expected}")
        return totals

    def _pieces(self, number: int, bitrate_bps: int, totals: _Totals) -> Iterator[tuple[str, bytes, int]]:
        """Yield (file name, bytes, bytes of video in them) of the init segment, then of each media segment."""
        cutter = _Cutter()
        try:
            with av.open(cutter, "w", format="mp4", options=self._muxer_options()) as container:
                encoder = self._add_encoder(container, number, bitrate_bps)
                converter = YuvConverter(self.stream.width, self.stream.height)
                for pixels in self.open_frames():
                    frame = converter.convert(pixels, totals.frames, self.stream.fps)
                    totals.frames += 1
                    container.mux(encoder.encode(frame))
                    if self.progress is not None:
                        self.progress(1)
                    yield from self._named(cutter, totals)
                container.mux(_with_decoding_times(encoder.encode(None), totals.frames))
            yield from self._named(cutter, totals, last=True)
        except av.error.FFmpegError as error:
            raise EncodeError(f"libx265 at {bitrate_bps} bit/s: {error.strerror or error}") from error

    def _muxer_options(self) -> dict[str, str]:
        # bitexact leaves version strings out; the timescale makes a frame last exactly fps.denominator units.
        return {
            "movflags": _MOVFLAGS,
            "fflags": "+bitexact",
            "video_track_timescale": str(self.stream.fps.numerator),
        }

    def _add_encoder(self, container: Any, number: int, bitrate_bps: int) -> Any:
        try:
            encoder = container.add_stream("libx265", rate=self.stream.fps)
        except ValueError as error:
            raise EncodeError("this PyAV build has no libx265 encoder") from error
        count = self.stream.segment_frames
        # Units as wide as the frame come out differently from run to run (seen with x265 4.2), so they stay narrower.
        units = next((side for side in (64, 32) if side < self.stream.width), 16)
        settings = {
            "ctu": units,
            "keyint": count, "min-keyint": count, "scenecut": 0, "open-gop": 0, "repeat-headers": 0, "info": 0,
            "pools": "none", "frame-threads": 1, "log-level": "none",
            "pass": number, "stats": self.stats.replace("\\", "\\\\").replace(":", "\\:"),
        }  # fmt: skip
        encoder.options = {"preset": "medium", "x265-params": ":".join(f"{k}={v}" for k, v in settings.items())}
        encoder.width, encoder.height, encoder.pix_fmt = self.stream.width, self.stream.height, "yuv420p"
        encoder.time_base = encoder.codec_context.time_base = 1 / self.stream.fps
        encoder.bit_rate = bitrate_bps
        encoder.codec_context.codec_tag = "hvc1"  # parameter sets in the init segment only
        tag_colour(encoder.codec_context)
        return encoder

    def _named(self, cutter: _Cutter, totals: _Totals, *, last: bool = False) -> Iterator[tuple[str, bytes, int]]:
        for kind, data in cutter.pop():
            if kind == "init":
                yield INIT_NAME, data, 0
                continue
            totals.segments += 1
            fragment = _Fragment(data)
            full = totals.segments * self.stream.segment_frames <= totals.frames
            left = totals.frames - (totals.segments - 1) * self.stream.segment_frames
            expected = self.stream.segment_frames if full else left
            if fragment.samples != expected:
                raise EncodeError(f"segment {totals.segments} holds {fragment.samples} frames, expected {expected}")
            yield SEGMENT_PATTERN.format(totals.segments), _STYP + fragment.from_zero(), fragment.video_bytes
        if last and cutter.rest:
            raise EncodeError(f"{cutter.rest} bytes after the last segment")


class _Cutter:
    """A write-only file that PyAV muxes into, and that hands out whole pieces: ftyp + moov, then moof + mdat each."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = True

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    @property
    def rest(self) -> int:
        """Bytes that are not part of a whole piece."""
        return len(self._buffer)

    def pop(self) -> Iterator[tuple[str, bytes]]:
        """Yield the pieces that are whole by now, as ("init" | "media", bytes)."""
        while True:
            end = 0
            for last in ("moov", "mdat"):
                if (last == "moov") == self._start:
                    end = self._end_of(last)
            if not end:
                return
            piece, self._buffer = bytes(self._buffer[:end]), self._buffer[end:]
            yield "init" if self._start else "media", piece
            self._start = False

    def _end_of(self, last: str) -> int:
        """End of the first whole box of kind `last`, or 0."""
        at = 0
        while at + 8 <= len(self._buffer):
            size, kind = struct.unpack_from(">I4s", self._buffer, at)
            if size < 8 or at + size > len(self._buffer):
                return 0
            at += size
            if kind == last.encode():
                return at
        return 0


class _Fragment:
    """A moof + mdat pair: how many samples, and their composition times moved to start with the segment.

    FFmpeg shifts all composition times by x265's reordering delay, which would start every segment a few frames late;
    CMAF (ISO/IEC 23000-19, 7.5.17) has signed offsets in version 1 of trun for this.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)
        at = _find_box(data, (b"moof", b"traf", b"trun"))
        version_flags, self.samples = struct.unpack_from(">II", data, at + 8)
        flags = version_flags & 0xFFFFFF
        self._reordered = bool(flags & _TRUN_COMPOSITION)
        if self._reordered and version_flags >> 24 != 1:
            raise EncodeError(f"fragment with trun version and flags {version_flags:#x}, expected signed offsets")
        self._first = at + 16 + 4 * bool(flags & _TRUN_DATA_OFFSET) + 4 * bool(flags & _TRUN_FIRST_FLAGS)
        self._stride = 4 * sum(bool(flags & field) for field in _TRUN_SAMPLE_FIELDS)
        mdat = _find_box(data, (b"mdat",))
        self.video_bytes = struct.unpack_from(">I", data, mdat)[0] - 8

    def from_zero(self) -> bytes:
        """The fragment with its first picture shown at the segment's start (tfdt)."""
        if not self._reordered:
            return bytes(self._data)
        places = [self._first + k * self._stride + self._stride - 4 for k in range(self.samples)]
        shift = struct.unpack_from(">i", self._data, places[0])[0]
        for place in places:
            struct.pack_into(">i", self._data, place, struct.unpack_from(">i", self._data, place)[0] - shift)
        return bytes(self._data)


def _find_box(data: bytes, path: tuple[bytes, ...], start: int = 0, end: int | None = None) -> int:
    """Offset of the box at the end of `path`; raise EncodeError if it is not there."""
    at, end = start, len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            break
        if kind == path[0]:
            return at if len(path) == 1 else _find_box(data, path[1:], at + 8, at + size)
        at += size
    raise EncodeError(f"the muxer wrote no {path[0].decode()} box")


def codecs_parameter(init: bytes) -> str:
    """RFC 6381 codecs string of an H.265 init segment, such as hvc1.1.6.L60.90 (ISO/IEC 14496-15, annex E)."""
    at = init.find(b"hvcC")
    if at < 0 or at + 17 > len(init):
        raise EncodeError("the init segment holds no hvcC box")
    profile, compatible, constraints, level = struct.unpack_from(">xBI6sB", init, at + 4)
    space = ("", "A", "B", "C")[profile >> 6]
    reversed_bits = int(f"{compatible:032b}"[::-1], 2)
    tail = "".join(f".{byte:X}" for byte in constraints.rstrip(b"\0"))
    return f"hvc1.{space}{profile & 31}.{reversed_bits:X}.{'H' if profile & 32 else 'L'}{level}{tail}"
