"""A session as a film: what the viewer saw, at the video's own frame rate, as H.264 in an MP4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from player.manifest import Manifest
from player.viewer import Concealment, FrameSource, viewed_frames

FILM_CRF = 14
"""x264 quality: close to what was decoded."""
_BT601, _LIMITED = 6, 1  # ITU-T H.273 code points


def write_film(
    path: Path,
    segments: pd.DataFrame,
    frames_of: FrameSource,
    manifest: Manifest,
    *,
    concealment: Concealment | None = None,
) -> None:
    """Write startup, every frame, made-up ones and rebuffering; the file appears whole or not at all.

    Args:
        segments: the session's segment table.
        frames_of: decodes a segment.
        manifest: of the presentation; gives frame rate and size.
        concealment: what filled stops, if the session concealed them.
    """
    size = {"width": manifest.width, "height": manifest.height}
    screens = viewed_frames(segments, frames_of, fps=manifest.fps, **size, concealment=concealment)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(partial), "w", format="mp4", options=options) as container:
            stream: Any = container.add_stream("libx264", rate=manifest.fps)
            stream.width, stream.height = manifest.width + manifest.width % 2, manifest.height + manifest.height % 2
            stream.pix_fmt = "yuv420p"
            stream.time_base = stream.codec_context.time_base = 1 / manifest.fps
            stream.options = {"crf": str(FILM_CRF), "preset": "veryfast", "x264-params": "threads=2:sliced-threads=0"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT601
            context.color_range = _LIMITED
            for frame in _frames(screens, manifest):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _frames(screens: Iterator[np.ndarray], manifest: Manifest) -> Iterator[av.VideoFrame]:
    """Yield screens uint8 [H, W, 3] as frames for the encoder; 4:2:0 has even sides, so an odd one is repeated."""
    reformatter = VideoReformatter()
    for index, screen in enumerate(screens):
        even = np.pad(screen, ((0, screen.shape[0] % 2), (0, screen.shape[1] % 2), (0, 0)), mode="edge")
        source = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = reformatter.reformat(
            source,
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = index, 1 / manifest.fps
        yield frame
