"""The pixel codecs' encoders as this project runs them: library, preset, threads, groups of pictures, rate control.

One IDR or key picture at the start of every segment and nowhere else, closed groups of pictures, 8-bit 4:2:0, one
thread. x264 and x265 take a bitrate in two passes; SVT-AV1 and libvpx offer no second pass through PyAV, so they are
run at a constant quality (CRF) that `packager.baselines` searches for the bitrate.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from packager.errors import EncodeError
from packager.video import tag_colour


@dataclass(frozen=True)
class VideoStream:
    """What is encoded: frame size in pixels, frames a second, and frames of every full segment."""

    width: int
    height: int
    fps: Fraction
    segment_frames: int


@dataclass(frozen=True)
class Pass:
    """One run of a two-pass encoder over the video."""

    number: int  # 1 or 2
    bitrate_bps: int
    stats: str  # path of the statistics file that both passes share

    def __str__(self) -> str:
        return f"{self.bitrate_bps} bit/s, pass {self.number}"


@dataclass(frozen=True)
class Quality:
    """One run at constant quality."""

    crf: float

    def __str__(self) -> str:
        return f"CRF {self.crf:g}"


@dataclass(frozen=True)
class VideoEncoder:
    """An encoder of PyAV's FFmpeg, and how it is run."""

    codec: str  # as in manifests: h264, h265, av1, vp9
    library: str
    tag: str  # sample entry; parameter sets are in the init segment only
    preset: str
    crf_steps: int = 0  # constant quality is asked for in 1 / crf_steps; 0: this encoder takes bitrates, in two passes
    crf_range: tuple[int, int] = (0, 0)  # best to worst

    @property
    def two_pass(self) -> bool:
        """Whether the encoder takes a bitrate and two passes, not a quality."""
        return not self.crf_steps

    @property
    def description(self) -> str:
        """Encoder, preset and rate control in words."""
        return f"{self.library} {self.preset}, {'two-pass' if self.two_pass else 'CRF search'}"


H264 = VideoEncoder("h264", "libx264", "avc1", "medium")
H265 = VideoEncoder("h265", "libx265", "hvc1", "medium")
AV1 = VideoEncoder("av1", "libsvtav1", "av01", "preset 4", crf_steps=4, crf_range=(1, 70))
VP9 = VideoEncoder("vp9", "libvpx-vp9", "vp09", "good, cpu-used 1", crf_steps=1, crf_range=(4, 63))
VIDEO_ENCODERS: Mapping[str, VideoEncoder] = {encoder.codec: encoder for encoder in (H264, H265, AV1, VP9)}


def add_encoder(container: Any, encoder: VideoEncoder, stream: VideoStream, control: Pass | Quality) -> Any:
    """Add a stream to a PyAV container, opened for one run of an encoder.

    Raises:
        EncodeError: this PyAV build lacks the encoder.
    """
    try:
        added = container.add_stream(encoder.library, rate=stream.fps)
    except ValueError as error:
        raise EncodeError(f"this PyAV build has no {encoder.library} encoder") from error
    added.options = _OPTIONS[encoder.codec](stream, control)
    added.width, added.height, added.pix_fmt = stream.width, stream.height, "yuv420p"
    added.time_base = added.codec_context.time_base = 1 / stream.fps
    added.codec_context.gop_size = stream.segment_frames
    added.codec_context.thread_count = 1
    if isinstance(control, Pass):
        added.bit_rate = control.bitrate_bps
    added.codec_context.codec_tag = encoder.tag
    tag_colour(added.codec_context)
    with own_scheduling():
        added.codec_context.open(strict=False)
    return added


@contextmanager
def own_scheduling() -> Iterator[None]:
    """Give the process its threads' scheduling back after an encoder was opened.

    Run by root, SVT-AV1 makes the thread that opens it SCHED_FIFO 99, as it does its own, and never takes that back:
    what follows in the process, and every thread that it starts, would keep other programs from the processor.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    before = _scheduling()
    yield
    usual = before[threading.get_native_id()]
    for thread, found in _scheduling().items():
        wanted = before.get(thread, usual)
        if found != wanted:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, wanted[0], os.sched_param(wanted[1]))


def _scheduling() -> dict[int, tuple[int, int]]:
    """Return policy and priority of every thread of this process."""
    found = {}
    for thread in (int(path.name) for path in Path("/proc/self/task").iterdir()):
        with suppress(ProcessLookupError):
            found[thread] = os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    return found


def _x265_options(stream: VideoStream, control: Any) -> dict[str, str]:
    # Units as wide as the frame come out differently from run to run (seen with x265 4.2), so they stay narrower.
    units = next((side for side in (64, 32) if side < stream.width), 16)
    own = {"ctu": units, "repeat-headers": 0, "info": 0, "pools": "none", "frame-threads": 1, "log-level": "none"}
    return {"preset": H265.preset, "x265-params": _joined({**own, **_two_pass(stream, control), "open-gop": 0})}


def _x264_options(stream: VideoStream, control: Any) -> dict[str, str]:
    own = {"threads": 1, "sliced-threads": 0, "open-gop": 0}
    return {"preset": H264.preset, "x264-params": _joined({**own, **_two_pass(stream, control)})}


def _two_pass(stream: VideoStream, control: Pass) -> dict[str, object]:
    count = stream.segment_frames
    stats = control.stats.replace("\\", "\\\\").replace(":", "\\:")
    return {"keyint": count, "min-keyint": count, "scenecut": 0, "pass": control.number, "stats": stats}


def _svt_av1_options(stream: VideoStream, control: Any) -> dict[str, str]:
    os.environ.setdefault("SVT_LOG", "1")  # errors only: it writes to stderr by itself, past FFmpeg's log
    # irefresh-type 2: key frames, closed groups; lp 1: one thread; scd 0: no key frames of its own
    own = {"crf": f"{control.crf:g}", "keyint": stream.segment_frames, "irefresh-type": 2, "scd": 0, "lp": 1}
    return {"preset": AV1.preset.removeprefix("preset "), "svtav1-params": _joined(own)}


def _vp9_options(stream: VideoStream, control: Any) -> dict[str, str]:
    # b 0 makes crf alone decide; 25 frames of lookahead with hidden reference frames as libvpx recommends for files
    return {
        "deadline": "good", "cpu-used": "1", "row-mt": "0", "b": "0", "crf": f"{control.crf:g}",
        "lag-in-frames": "25", "auto-alt-ref": "1", "keyint_min": str(stream.segment_frames),
    }  # fmt: skip


_OPTIONS = {"h264": _x264_options, "h265": _x265_options, "av1": _svt_av1_options, "vp9": _vp9_options}


def _joined(settings: Mapping[str, object]) -> str:
    return ":".join(f"{key}={value}" for key, value in settings.items())
