"""Rendering in a process of its own, so that neither decoding nor the interpreter's lock holds up the client."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from player.client import Media
from player.config import PlayerConfig
from player.errors import DecodeError
from player.presentation import Presentation

if TYPE_CHECKING:
    from player.decoder import Decoder
    from player.generator import Generator
    from player.latents import Autoencoder
    from player.renderer import Renderer


class WorkerRenderer:
    """Renders every segment that arrives, in order; use as `async with`.

    Frames are kept once for each (segment of the clip, representation), so a looping session's film needs no more disk
    than the clip.
    """

    def __init__(
        self,
        presentation: Presentation,
        *,
        generator: str,
        device: str,
        folder: Path,
        decoder: str = "",
        dtype: str = "auto",
        compile_mode: str = "off",
        batch: int = 0,
        config: PlayerConfig | None = None,
    ) -> None:
        """
        Args:
            generator: of prompt streams: `embedded`, a folder or a hub id.
            device: auto, cpu, cuda or cuda:N.
            folder: takes the frames.
            decoder: another latent decoder than the generator's own, likewise.
            dtype: auto, float32, float16 or bfloat16.
            compile_mode, batch: as of `player.engine.RenderOptions`.
            config: of the player; says which renderer.
        """
        self._presentation, self._folder = presentation, folder
        codec, config = presentation.manifest.codec, config or PlayerConfig()
        self._options = (codec, generator, decoder, device, dtype, compile_mode, batch, config)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            1, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        self.frames = 0
        """Rendered so far."""
        self.busy_s = 0.0
        """Seconds spent on them."""

    async def __aenter__(self) -> WorkerRenderer:
        """Load the decoder; its errors come up here, before anything is played."""
        await self._run(_open, *self._options)
        return self

    async def __aexit__(self, *unused: object) -> None:
        """Let the segment under way finish and end the process."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    async def render(self, media: Media) -> None:
        """Return when the segment's frames are there."""
        path = self.path(media.segment % self._presentation.segments, media.representation)
        target = None if path.exists() else path
        frames, taken_s = await self._run(_render, media.representation, media.init, media.data, target)
        self.frames += frames
        self.busy_s += taken_s

    async def _run(self, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except BrokenProcessPool as error:
            raise DecodeError("the rendering process died; it may have run out of memory") from error

    def path(self, clip_segment: int, representation: int) -> Path:
        """Return where a segment's frames are kept, uint8 [T, H, W, 3]."""
        return self._folder / f"{clip_segment}-{representation}.npy"

    def load(self, clip_segment: int, representation: int) -> np.ndarray:
        """Return a rendered segment's frames, mapped from disk."""
        return np.load(self.path(clip_segment, representation), mmap_mode="r")


# ---- in the process ------------------------------------------------------------------------------------------------


class _Worker:
    """What the process keeps between segments."""

    codec: str
    generator: Generator | Autoencoder | None
    renderer: Renderer
    decoders: dict[int, Decoder]


def _open(
    codec: str,
    generator: str,
    decoder: str,
    device: str,
    dtype: str,
    compile_mode: str,
    batch: int,
    config: PlayerConfig,
) -> None:
    from player.decoder import load_model
    from player.engine import RenderOptions, Shortcut
    from player.renderer import Renderer

    _Worker.codec = codec
    options = RenderOptions(compile=compile_mode, batch=batch, shortcut=Shortcut.of(config))
    _Worker.generator = load_model(codec, generator, decoder=decoder, device=device, dtype=dtype, options=options)
    _Worker.renderer = Renderer()
    _Worker.decoders = {}


def _render(representation: int, init: bytes, data: bytes, target: Path | None) -> tuple[int, float]:
    """Return how many frames a segment has and the seconds they took; write them to `target`."""
    from player.decoder import create_decoder

    if representation not in _Worker.decoders:
        decoder = create_decoder(_Worker.codec, init, generator=_Worker.generator)
        _Worker.decoders[representation] = decoder
    rendered = _Worker.renderer.render(_Worker.decoders[representation], data)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, rendered.frames)
    return len(rendered.frames), rendered.render_s
