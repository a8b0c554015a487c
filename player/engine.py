"""The engine: a generator's fastest way from the embeddings of a segment to pixels in host memory.

All frames of a segment are rendered in as few batches as the memory allows, without a Python step per frame: what does
not depend on the prompt is computed once for good, keys and values of all cross-attention layers come from one product,
and on CUDA each batch is one captured graph, compiled if wanted, whose pixels are copied to pinned memory once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from player.config import PlayerConfig
from player.device_memory import MOST_FRAMES, most_frames
from player.engine_parts import constant_modules, merge_keys_and_values, replace_modules, shared_copy
from player.errors import DecodeError, GeneratorError
from player.generator import Generator
from player.pixels import to_pixels

log = logging.getLogger(__name__)

COMPILE_MODES = ("off", "default", "max-autotune")
Result = TypeVar("Result")
_CPU_BATCH = 16  # a larger one only costs memory there
_WARM_UP_RUNS = 3  # before a capture, as PyTorch's guide to CUDA graphs asks


@dataclass(frozen=True)
class Shortcut:
    """What the renderer `cached` leaves out: deep features of the UNet are shared between frames (player.shortcuts)."""

    cache_depth: int = 0
    """Blocks of the UNet, from the outside, that every frame passes; 0: frames share its output."""
    cache_threshold: float = 0.3
    """How far a prompt may be from that of the frame in front that was evaluated in full, relative to its size."""

    @classmethod
    def of(cls, config: PlayerConfig) -> Shortcut | None:
        """Return what a player's settings leave out; None: nothing."""
        if config.renderer == "full":
            return None
        return cls(config.cache_depth, config.cache_threshold)


@dataclass(frozen=True)
class RenderOptions:
    """How a generator renders."""

    batch: int = 0
    """Most frames at a time; 0: as many as fit."""
    reuse: bool = True
    """Compute once what does not depend on the prompt, the layers before the first cross-attention."""
    merge_keys: bool = True
    """Compute keys and values of all cross-attention layers in one product for all frames of a segment."""
    compile: str = "off"
    """off, default, or max-autotune: torch.compile takes minutes once, then less from its cache."""
    cuda_graphs: bool = True
    """On CUDA: replay each batch as one captured graph."""
    shortcut: Shortcut | None = None
    """What is left out, if the frames need not be the generator's own; not compiled, no graphs."""

    def __post_init__(self) -> None:
        if self.compile not in COMPILE_MODES:
            raise GeneratorError(f"compile {self.compile!r} is not known: expected one of {', '.join(COMPILE_MODES)}")
        if self.batch < 0:
            raise GeneratorError(f"batch {self.batch}: expected 1 or more frames, or 0 for as many as fit")


class Pending:
    """Frames on their way from the device."""

    def __init__(self, pixels: Tensor, finite: Tensor, identity: str) -> None:
        """Start the copy of uint8 [T, H, W, 3] to the host; `finite` [batches] says which batches were numbers."""
        self._identity, self._event = identity, None
        self._pixels, self._finite = pixels, finite
        if pixels.is_cuda:  # to pinned memory: a copy to any other would hold up the host
            self._pixels, self._finite = (
                torch.empty(given.shape, dtype=given.dtype, pin_memory=True).copy_(given, non_blocking=True)
                for given in (pixels, finite)
            )
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> np.ndarray:
        """Wait for the frames uint8 [T, H, W, 3]; raise DecodeError if some were made of values that are no numbers."""
        if self._event is not None:
            self._event.synchronize()
        if not bool(self._finite.all()):
            raise DecodeError(f"generator {self._identity} rendered values that are not finite")
        return self._pixels.numpy()


class Engine:
    """Renders embeddings with a generator; made once, used for every segment. Its weights must stay as they are."""

    def __init__(self, generator: Generator, options: RenderOptions | None = None) -> None:
        self.generator, self.options = generator, options or RenderOptions()
        self.batch = self.options.batch or (_CPU_BATCH if generator.device.type == "cpu" else MOST_FRAMES)
        self._measured = bool(self.options.batch) or generator.device.type == "cpu"
        self._halved = False
        self._unet = shared_copy(generator.unet)
        self.reused: tuple[str, ...] = ()
        """Names of the modules of the UNet that are computed once."""
        if self.options.reuse:
            constants = constant_modules(generator, self._unet)
            replace_modules(self._unet, constants)
            self.reused = tuple(constants)
        self._keys: Tensor | None = merge_keys_and_values(self._unet) if self.options.merge_keys else None
        self._step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = compiled(
            self._frames, self.options.compile, dynamic=False, fullgraph=True
        )
        self._graphs: dict[int, _Graph] = {}

    def render(self, embeddings: Tensor) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of embeddings [T, L, D]; errors as of `submit` and `Pending.result`."""
        return self.submit(embeddings).result()

    def submit(self, embeddings: Tensor) -> Pending:
        """Start rendering embeddings [T, L, D]; on CUDA this returns at once, with everything in the device's queue.

        Raises:
            DecodeError: the frames of one batch do not fit the device's memory.
        """
        return self._within_memory(self._submit, embeddings)

    def generate(self, embeddings: Tensor) -> Tensor:
        """Return the frames float32 [T, 3, H, W] of embeddings [T, L, D] on the device, by the generator itself.

        Raises:
            DecodeError: as of `submit`, or the generator made values that are no numbers.
        """
        return self._within_memory(self._generate, embeddings)

    @torch.no_grad()
    def most_frames(self, embeddings: Tensor) -> int:
        """Return how many frames at a time fit the device's memory; embeddings [T, L, D] are any to try with."""
        if not self._measured:
            with self._current_device():
                self.batch, self._measured = self._fitting_batch(embeddings), True
        return self.batch

    def _current_device(self) -> AbstractContextManager[object]:
        """Make the generator's device the one that streams and events belong to."""
        device = self.generator.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    @torch.no_grad()
    def _within_memory(self, work: Callable[[Tensor], Result], embeddings: Tensor) -> Result:
        """Do work on embeddings in batches of `self.batch`; once, if they do not fit, in batches of half of it."""
        self.most_frames(embeddings)
        with self._current_device():
            while True:
                try:
                    return work(embeddings)
                except torch.OutOfMemoryError as error:
                    self._shrink(error)

    def _generate(self, embeddings: Tensor) -> Tensor:
        frames = torch.cat([self.generator.generate(part).float() for part in embeddings.split(self.batch)])
        if not torch.isfinite(frames).all():
            raise DecodeError(f"generator {self.generator.id} rendered values that are not finite")
        return frames

    def _submit(self, embeddings: Tensor) -> Pending:
        generator, count = self.generator, len(embeddings)
        embeddings = embeddings.to(generator.dtype)
        latents = generator.start(embeddings)
        conditions = embeddings if self._keys is None else embeddings @ self._keys
        size = math.ceil(count / math.ceil(count / self.batch))  # batches of one size, the last a little smaller
        pixels, finite = [], []
        for part, condition in zip(latents.split(size), conditions.split(size), strict=True):
            missing = size - len(part) if self._fixed_size else 0
            if missing:  # a graph and compiled code know one size
                part, condition = (torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in (part, condition))
            shown, numbers = self._run(part, condition)
            pixels.append(shown[: size - missing])
            finite.append(numbers)
        return Pending(torch.cat(pixels), torch.stack(finite), generator.id)

    @property
    def _fixed_size(self) -> bool:
        return self.options.compile != "off" or self._captures

    @property
    def _captures(self) -> bool:
        return self.options.cuda_graphs and self.generator.device.type == "cuda"

    def _run(self, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels uint8 [n, H, W, 3] and whether all were numbers."""
        if not self._captures:
            return self._step(latents, conditions)
        count = len(latents)
        if count not in self._graphs:
            self._graphs.clear()  # one size at a time: each graph keeps its own memory
            self._graphs[count] = _Graph(self._step, latents, conditions)
        return self._graphs[count].replay(latents, conditions)

    def _frames(self, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        generator = self.generator
        clean = generator.combine(latents, generator.predict(latents, conditions, self._unet))
        frames = generator.decode_latents(clean)
        return to_pixels(frames), torch.isfinite(frames).all()

    def _fitting_batch(self, embeddings: Tensor) -> int:
        """Return how many frames at a time fit the device, from the peaks of batches of one and two."""
        device = self.generator.device
        probe = Engine.__new__(Engine)
        probe.__dict__.update(self.__dict__, _step=self._frames, batch=2, _measured=True)
        probe.options = RenderOptions(batch=2, cuda_graphs=False)
        try:
            found = most_frames(device, lambda count: probe._submit(embeddings[:1].expand(count, -1, -1)).result())
        except torch.OutOfMemoryError as error:
            self.batch = 1
            self._shrink(error)  # raises: less than one frame cannot be rendered
            raise
        log.info("%s: %d frames at a time", device, found)
        return found

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        """Halve the batch, once; raise DecodeError the second time."""
        generator = self.generator
        if self._halved or self.batch == 1:
            wide = "; float16 needs half of it (--dtype float16)" if generator.dtype.itemsize > 2 else ""
            frames = "one frame does" if self.batch == 1 else f"{self.batch} frames at a time do"
            raise DecodeError(
                f"generator {generator.id}: {frames} not fit the memory that {generator.device} has free{wide}"
            ) from error
        self._halved, self.batch = True, self.batch // 2
        self._graphs.clear()
        if generator.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s ran out of memory; rendering %d frames at a time from now on", generator.device, self.batch)


def compiled(work: Callable[..., Result], mode: str, **options: Any) -> Callable[..., Result]:
    """Return work compiled in one of `COMPILE_MODES`, without CUDA graphs of torch's own; itself for `off`."""
    if mode == "off":
        return work
    own = {"max-autotune": "max-autotune-no-cudagraphs"}.get(mode)
    return torch.compile(work, mode=own, **options)


def upload(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to CUDA by way of pinned memory, so that the host need not wait for the device."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _Graph:
    """One batch size as a CUDA graph."""

    def __init__(
        self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], latents: Tensor, conditions: Tensor
    ) -> None:
        """Capture a step for inputs of these shapes."""
        self._inputs = latents.clone(), conditions.clone()
        stream = torch.cuda.Stream(latents.device)
        stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                step(*self._inputs)
        torch.cuda.current_stream(latents.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # other threads may use CUDA
            self._outputs = step(*self._inputs)

    def replay(self, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the outputs for other inputs of the same shapes."""
        for own, given in zip(self._inputs, (latents, conditions), strict=True):
            own.copy_(given)
        self._graph.replay()
        pixels, finite = self._outputs
        return pixels.clone(), finite.clone()


def engine_of(generator: Generator) -> Engine:
    """Return the generator's engine, made on first use with the generator's `options`."""
    if generator.engine is None:
        options = generator.options or RenderOptions()
        if options.shortcut is None:
            generator.engine = Engine(generator, options)
        else:
            from player.shortcuts import ShortcutEngine  # which is an Engine

            generator.engine = ShortcutEngine(generator, options)
    return generator.engine
