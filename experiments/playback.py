"""Frames of what a session played: rendered by the player's renderer, timed, and written as the viewer saw them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from player.decoder import PROMPT, Decoder, PromptDecoder, create_decoder
from player.film import write_film
from player.generator import Generator
from player.latents import Autoencoder
from player.presentation import Presentation
from player.renderer import Renderer
from player.viewer import Concealment

log = logging.getLogger(__name__)

_WARM_UP_SEGMENTS = 1
"""Segments rendered before the speed is measured: the first pays for allocation and kernel selection."""


@dataclass
class FrameStore:
    """Decodes each (segment, representation) once and keeps the frames on disk while it is open.

    The clip loops, so a session of minutes shows a few seconds of distinct frames; memory holds one segment.
    """

    presentation: Presentation
    generator: Generator | Autoencoder | None  # what player.decoder.load_model gives for the codec
    folder: Path
    renderer: Renderer = field(default_factory=Renderer)
    _decoders: dict[int, Decoder] = field(default_factory=dict)

    def frames(self, segment: int, representation: int) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment, mapped from disk after the first time."""
        path = self.folder / f"{segment}-{representation}.npy"
        if not path.exists():
            np.save(path, self.render(segment, representation))
        return np.load(path, mmap_mode="r")

    def render(self, segment: int, representation: int) -> np.ndarray:
        """Decode a segment now, whether or not it is kept, and time it."""
        data = self.presentation.read_segment(segment, representation)
        return self.renderer.render(self._decoder(representation), data).frames

    def frames_after(self, segment: int, representation: int, count: int) -> np.ndarray:
        """Return `count` frames uint8 [n, H, W, 3] made up to follow a prompt segment."""
        decoder = self._decoder(representation)
        if not isinstance(decoder, PromptDecoder):
            raise TypeError(f"only prompts are concealed, not {self.presentation.manifest.codec}")
        return decoder.conceal(self.presentation.read_segment(segment, representation), count)

    def _decoder(self, representation: int) -> Decoder:
        if representation not in self._decoders:
            init = self.presentation.read_init(representation)
            codec = self.presentation.manifest.codec
            self._decoders[representation] = create_decoder(codec, init, generator=self.generator)
        return self._decoders[representation]


@contextmanager
def open_store(presentation: Presentation, generator: Generator | Autoencoder | None) -> Iterator[FrameStore]:
    """Give a store whose files are gone afterwards."""
    with TemporaryDirectory(prefix="promptdash-frames-") as folder:
        yield FrameStore(presentation, generator, Path(folder))


def played_pairs(segments: pd.DataFrame) -> list[tuple[int, int]]:
    """Return every distinct (segment of the clip, representation) that was shown, in order of first appearance."""
    shown = segments.dropna(subset=["play_start_s"]).drop_duplicates(["clip_segment", "representation"])
    return [(int(row.clip_segment), int(row.representation)) for row in shown.itertuples()]


def render_played(
    store: FrameStore, segments: pd.DataFrame, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Render every distinct segment that was played and return the measured speed, as ``render.json`` holds it."""
    pairs = played_pairs(segments)
    if pairs:
        for _ in range(_WARM_UP_SEGMENTS):
            store.render(*pairs[0])
        store.renderer = Renderer()
    for done, pair in enumerate(pairs, start=1):
        store.frames(*pair)
        if progress is not None:
            progress(done, len(pairs))
    renderer = store.renderer
    fps = float(store.presentation.manifest.fps)
    speed = renderer.frames_per_s
    return {
        "segments": len(pairs),
        "frames": renderer.frames,
        "busy_s": renderer.busy_s,
        "frames_per_s": speed,
        "playback_fps": fps,
        "real_time": speed is not None and speed >= fps,
        "device": str(store.generator.device) if store.generator is not None else "cpu",
        "segment_times_s": list(renderer.times_s),
    }


def write_session(path: Path, store: FrameStore, segments: pd.DataFrame, *, conceal_s: float = 0.0) -> None:
    """Write what the viewer saw as H.264 at the video's own frame rate: startup, every frame, rebuffering.

    Stops of prompt sessions are concealed for up to `conceal_s` each.
    """
    concealed = conceal_s > 0 and store.presentation.manifest.codec == PROMPT
    concealment = Concealment(conceal_s, store.frames_after) if concealed else None
    write_film(path, segments, store.frames, store.presentation.manifest, concealment=concealment)
