"""The pixel baselines: a video at a target bitrate, cut into CMAF segments that each decode alone.

The target counts every byte of the representation (boxes and init segment too), as bitrates do everywhere in this
project. x264 and x265 run in two passes: what the container costs is taken off before the encoder gets its share, and
the second pass is repeated with a corrected share while the result is off by more than 3 %. SVT-AV1 and libvpx run at
the constant quality whose file comes nearest to the target, found by search. Single segments are not capped (no VBV).

Single-threaded on purpose: x265's bytes depend on its thread pool, and the same input must give the same bytes.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from packager.cmaf import MOVFLAGS, STYP, Cutter, MediaFragment, codecs_parameter
from packager.errors import EncodeError
from packager.rate_search import TOLERANCE, nearest_setting
from packager.video import YuvConverter
from packager.video_encoders import Pass, Quality, VideoEncoder, VideoStream, add_encoder

log = logging.getLogger(__name__)

INIT_NAME = "init.mp4"
SEGMENT_PATTERN = "seg-{:05d}.m4s"

_WARN_FROM = 0.1  # a result further off is said in a warning
_SECOND_PASSES = 3  # at most
_HIGHEST_START_BPS = 50_000_000  # no encoder is asked for more than twice this on account of headers
_NEVER_REORDERED = 2  # frames: a clip this short has no B picture between two others
_LOWEST_BPS = 1000  # x264 and x265 take whole kbit/s
_CRF_STRIDE = 12  # the search brackets the target on qualities this far apart, which all targets of a video share

_TOO_LOW = (av.error.InvalidDataError, av.error.ExternalError)  # how x265 and x264 refuse a bitrate

OpenFrames = Callable[[], Iterable[np.ndarray]]
"""Starts the video from its first frame: uint8 [H, W, 3] each."""

KnownSizes = dict[float, int]
"""Bytes of the whole representation by CRF, as far as one video at one frame size has been tried."""


@dataclass
class EncodeProgress:
    """Turns counted frames into a share of the work, taking it that two runs over the video are enough."""

    expected_frames: int | None
    report: Callable[[float], None]
    done: int = 0

    def __call__(self, frames: int) -> None:
        self.done += frames
        if self.expected_frames:
            self.report(min(1.0, self.done / (2 * self.expected_frames)))


@dataclass(frozen=True)
class EncodedStream:
    """One finished representation on disk."""

    folder: Path  # holds init.mp4, seg-00001.m4s ...
    segments: int
    frames: int
    size_bytes: int  # init and all segments
    bitrate_bps: float
    codecs: str  # RFC 6381, for the manifest


def encode_video(
    encoder: VideoEncoder,
    open_frames: OpenFrames,
    stream: VideoStream,
    *,
    bitrate_bps: int,
    folder: Path,
    known: KnownSizes | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedStream:
    """Encode a video at a target bitrate into `folder` (made here), as init.mp4 and numbered segments.

    Args:
        encoder: one of `packager.video_encoders`.
        open_frames: called once per run of the encoder, two to about six times.
        stream: size, rate and segment length; sides must be even.
        bitrate_bps: target over the whole clip, all bytes counted. What comes out is in the result; an encoder may be
            unable to go as low as asked, which is logged as a warning.
        folder: where the files go; only `EncodedStream` returned means that they are whole.
        known: sizes tried for other targets of the same video, read and added to. They save time, and change nothing.
        progress: called with 1 for every frame of every run.
    Raises:
        EncodeError: PyAV lacks the encoder, or its output is not cut as asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = _Runs(encoder, open_frames, stream, progress)
    totals = _two_pass(runs, bitrate_bps, folder) if encoder.two_pass else _search(runs, bitrate_bps, folder, known)
    return _describe(totals, encoder, stream, bitrate_bps, folder)


def _two_pass(runs: _Runs, bitrate_bps: int, folder: Path) -> _Totals:
    """Encode in two passes, the second again with a corrected share while its result is off."""
    with tempfile.TemporaryDirectory(prefix="promptdash-") as scratch:
        stats = str(Path(scratch, "stats"))
        first = runs.run(Pass(1, bitrate_bps, stats), None)
        fps = float(runs.stream.fps)
        overhead_bytes = first.total_bytes - first.video_bytes
        wanted_bytes = max(1.0, bitrate_bps * first.frames / fps / 8 - overhead_bytes)
        video_bps = _whole_kbps(wanted_bytes * 8 * fps / first.frames)
        tried: dict[int, _Totals] = {}
        for _ in range(_SECOND_PASSES):
            video_bps, totals = _second_pass(runs, Pass(2, video_bps, stats), folder)
            tried[video_bps] = totals
            share = totals.video_bytes / wanted_bytes
            correction = _whole_kbps(video_bps / share)
            if abs(share - 1) <= TOLERANCE or correction in tried:
                break
            video_bps = correction
        best = min(tried, key=lambda bps: (abs(tried[bps].video_bytes - wanted_bytes), bps))
        if best != next(reversed(tried)):
            runs.run(Pass(2, best, stats), folder)
    return tried[best]


def _second_pass(runs: _Runs, control: Pass, folder: Path) -> tuple[int, _Totals]:
    """Run the second pass at a bitrate, or at the first doubling of it that x265 takes; return which, and what came.

    x265 refuses to start where the headers that it counted in the first pass are more than the whole target, on clips
    of a few frames, whose target is a few bytes; x264 where it reckons that its worst quality takes more.
    """
    while True:
        try:
            return control.bitrate_bps, runs.run(control, folder)
        except EncodeError as error:
            if not isinstance(error.__cause__, _TOO_LOW) or control.bitrate_bps > _HIGHEST_START_BPS:
                raise
            control = Pass(control.number, 2 * control.bitrate_bps, control.stats)


def _search(runs: _Runs, bitrate_bps: int, folder: Path, known: KnownSizes | None) -> _Totals:
    """Encode at the constant quality whose bytes come nearest to the target, taking it that bytes fall with the CRF."""
    sizes = {} if known is None else known
    steps = runs.encoder.crf_steps
    best, worst = (limit * steps for limit in runs.encoder.crf_range)
    last: tuple[float, _Totals] | None = None

    def excess(step: int) -> float:
        nonlocal last
        crf = step / steps
        if crf not in sizes:
            last = crf, runs.run(Quality(crf), folder)
            sizes[crf] = last[1].total_bytes
        return math.log(sizes[crf] * 8 / (bitrate_bps * runs.duration_s))

    if runs.frames is None:  # the duration is known once the video has been read
        runs.count_frames()
    chosen = nearest_setting(excess, best=best, worst=worst, stride=_CRF_STRIDE * steps) / steps
    if last is None or last[0] != chosen:
        return runs.run(Quality(chosen), folder)
    return last[1]


def _with_decoding_times(packets: list[Any], frames: int) -> list[Any]:
    """Return the last packets; x265 leaves decoding times undefined where there are too few frames to reorder."""
    if frames <= _NEVER_REORDERED:
        for packet in packets:
            packet.dts = packet.pts
    return packets


def _whole_kbps(bps: float) -> int:
    return max(_LOWEST_BPS, round(bps / 1000) * 1000)


def _describe(
    totals: _Totals, encoder: VideoEncoder, stream: VideoStream, asked_bps: int, folder: Path
) -> EncodedStream:
    bitrate_bps = totals.total_bytes * 8 * float(stream.fps) / totals.frames
    if abs(bitrate_bps / asked_bps - 1) > _WARN_FROM:
        found, asked = f"{bitrate_bps / 1000:.1f}", f"{asked_bps / 1000:.1f}"
        log.warning("%s gave %s kbit/s where %s were asked for (all bytes counted)", encoder.library, found, asked)
    codecs = codecs_parameter((folder / INIT_NAME).read_bytes())
    return EncodedStream(folder, totals.segments, totals.frames, totals.total_bytes, bitrate_bps, codecs)


@dataclass
class _Totals:
    """What one run put out."""

    frames: int = 0
    segments: int = 0
    total_bytes: int = 0
    video_bytes: int = 0  # of `total_bytes`, the encoder's own


@dataclass
class _Runs:
    """Runs one encoder over the video, as often as asked."""

    encoder: VideoEncoder
    open_frames: OpenFrames
    stream: VideoStream
    progress: Callable[[int], None] | None
    frames: int | None = field(default=None, init=False)  # of the video, once known

    @property
    def duration_s(self) -> float:
        """Of the video; its frames must have been counted."""
        if self.frames is None:
            raise RuntimeError("the video's frames have not been counted")
        return self.frames / float(self.stream.fps)

    def count_frames(self) -> None:
        """Read the video once to know how long it is."""
        self.frames = sum(1 for _ in self.open_frames())
        if not self.frames:
            raise EncodeError("there is no frame to encode")

    def run(self, control: Pass | Quality, folder: Path | None) -> _Totals:
        """Encode everything once; write the pieces into `folder` unless it is None."""
        totals = _Totals()
        for name, data, video_bytes in self._pieces(control, totals):
            totals.total_bytes += len(data)
            totals.video_bytes += video_bytes
            if folder is not None:
                (folder / name).write_bytes(data)
        if not totals.frames:
            raise EncodeError("there is no frame to encode")
        expected = -(-totals.frames // self.stream.segment_frames)
        if totals.segments != expected:
            raise EncodeError(f"{self.encoder.library} gave {totals.segments} segments, expected {expected}")
        self.frames = totals.frames
        return totals

    def _pieces(self, control: Pass | Quality, totals: _Totals) -> Iterator[tuple[str, bytes, int]]:
        """Yield (file name, bytes, bytes of video in them) of the init segment, then of each media segment."""
        cutter = Cutter()
        converter = YuvConverter(self.stream.width, self.stream.height)  # first: it says what is wrong with a size
        try:
            with av.open(cutter, "w", format="mp4", options=self._muxer_options()) as container:
                encoder = add_encoder(container, self.encoder, self.stream, control)
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
            raise EncodeError(f"{self.encoder.library} at {control}: {error.strerror or error}") from error

    def _muxer_options(self) -> dict[str, str]:
        # bitexact leaves version strings out; the timescale makes a frame last exactly fps.denominator units.
        return {
            "movflags": MOVFLAGS,
            "fflags": "+bitexact",
            "video_track_timescale": str(self.stream.fps.numerator),
        }

    def _named(self, cutter: Cutter, totals: _Totals, *, last: bool = False) -> Iterator[tuple[str, bytes, int]]:
        for kind, data in cutter.pop():
            if kind == "init":
                yield INIT_NAME, data, 0
                continue
            totals.segments += 1
            fragment = MediaFragment(data)
            full = totals.segments * self.stream.segment_frames <= totals.frames
            left = totals.frames - (totals.segments - 1) * self.stream.segment_frames
            expected = self.stream.segment_frames if full else left
            if fragment.samples != expected:
                raise EncodeError(f"segment {totals.segments} holds {fragment.samples} frames, expected {expected}")
            yield SEGMENT_PATTERN.format(totals.segments), STYP + fragment.from_zero(), fragment.video_bytes
        if last and cutter.rest:
            raise EncodeError(f"{cutter.rest} bytes after the last segment")
