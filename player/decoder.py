"""Segment bytes to frames: one protocol for prompts and for pixel codecs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Protocol

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from player.bitstream import Segment, StreamInfo, read_inits, read_layers
from player.codecs import CODECS, PROMPT, VAE, plugin_decoder
from player.conceal import drift_frames, extend_picture, extend_prompts, last_interval
from player.errors import DecodeError, GeneratorMismatchError
from player.generator import Generator, load_generator
from player.latents import Autoencoder, LatentStreamDecoder, load_autoencoder
from player.motion import MOTION_STEP_PX, Between, frames_between
from player.pixels import from_pixels as from_pixels
from player.pixels import to_pixels
from player.prompt import dequantize, interpolate, interpolation_matrix

# A large batch is fastest on a GPU; on a CPU it only costs memory.
_CPU_BATCH, _GPU_BATCH = 16, 64


class Decoder(Protocol):
    """What the player needs of a codec: a segment's bytes in, its frames out, nothing carried between segments."""

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] (RGB) of a whole media segment."""
        ...


def _key_factors(segment: Segment, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return u [K, L, r] and v [K, r, D] of the key prompts on the generator's device."""
    device = generator.device
    u_scale, v_scale = (torch.from_numpy(scale.copy()).to(device) for scale in (segment.u_scales, segment.v_scales))
    u = torch.from_numpy(np.stack([key.u for key in segment.keys])).to(device)
    v = torch.from_numpy(np.stack([key.v for key in segment.keys])).to(device)
    return dequantize(u, u_scale), dequantize(v, v_scale)


@torch.no_grad()
def render_segment(segment: Segment, norm_rank: int, generator: Generator) -> np.ndarray:
    """Return the frames uint8 [T, H, W, 3] of a prompt segment at the generator's size.

    With motion the key frames are rendered, and the frames between are warped and blended from them; without it every
    frame is rendered from its interpolated prompt.

    Raises:
        DecodeError: the generator made values that are no numbers.
    """
    u, v = _key_factors(segment, generator)
    offsets = np.array([key.frame_offset for key in segment.keys])
    if segment.motion is None:
        weights = interpolation_matrix(offsets, segment.frames).to(generator.device)
        embeddings = generator.space.compose(interpolate(u, weights), interpolate(v, weights), norm_rank)
        return torch.cat([to_pixels(frames) for frames in _render(embeddings, generator)]).cpu().numpy()
    keys = torch.cat(list(_render(generator.space.compose(u, v, norm_rank), generator)))
    codes = torch.from_numpy(segment.motion).to(generator.device)
    motion = dequantize(codes, torch.tensor(MOTION_STEP_PX, device=generator.device))
    between = Between.of(offsets, segment.frames).to(generator.device)
    places = torch.arange(segment.frames, device=generator.device).split(_batch(generator))
    return torch.cat([to_pixels(frames_between(keys, motion, between[part])) for part in places]).cpu().numpy()


@torch.no_grad()
def render_beyond(segment: Segment, count: int, fps: float, norm_rank: int, generator: Generator) -> np.ndarray:
    """Return `count` frames uint8 [n, H, W, 3] made up to follow a segment whose successor is late (player.conceal)."""
    u, v = _key_factors(segment, generator)
    interval = last_interval(segment)
    drift = drift_frames(count, fps, gap=segment.frames - 1 - segment.keys[-1].frame_offset)
    if segment.motion is not None:
        key = torch.cat(list(_render(generator.space.compose(u[-1:], v[-1:], norm_rank), generator)))
        return extend_picture(key, segment.motion[-1], interval, drift)
    u, v = (extend_prompts(factors, interval, drift) for factors in (u, v))
    embeddings = generator.space.compose(u, v, norm_rank)
    return torch.cat([to_pixels(frames) for frames in _render(embeddings, generator)]).cpu().numpy()


def _batch(generator: Generator) -> int:
    return _CPU_BATCH if generator.device.type == "cpu" else _GPU_BATCH


def _render(embeddings: Tensor, generator: Generator) -> Iterator[Tensor]:
    """Yield the frames float32 [n, 3, H, W] of embeddings [T, L, D], batch by batch."""
    for chunk in embeddings.split(_batch(generator)):
        frames = generator.generate(chunk).float()
        if not torch.isfinite(frames).all():
            raise DecodeError(f"generator {generator.id} rendered values that are not finite")
        yield frames


class PromptDecoder:
    """Decodes prompt segments with a generator."""

    def __init__(self, init: bytes, generator: Generator) -> None:
        """Read the init segment; raise GeneratorMismatchError if its prompts were fitted to another generator.

        For a layered representation `init` is the init segments of those that it depends on, lowest first, and its own;
        `decode` then takes the media segments of the lower layers, or of all, in the same order.
        """
        self._layers = read_inits(init)
        self.info: StreamInfo = self._layers[-1]
        self.generator = generator
        if generator.id != self.info.generator_id and not generator.id.startswith(f"{self.info.generator_id}-"):
            raise GeneratorMismatchError(
                f"segments were fitted to generator {self.info.generator_id}, but {generator.id} is loaded"
            )
        if generator.settings.grid[0]:
            self.generator = generator = generator.at_size(self.info.frame_height, self.info.frame_width)
        shape = (self.info.tokens, self.info.width, self.info.frame_height, self.info.frame_width)
        expected = (generator.tokens, generator.width, *generator.native_size)
        if shape != expected or self.info.rank > generator.max_rank:
            raise GeneratorMismatchError(
                f"stream of {shape} (tokens, width, height, width in pixels) at rank {self.info.rank}, "
                f"but the generator makes {expected} up to rank {generator.max_rank}"
            )

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment, cropped to the display size."""
        return self._crop(render_segment(read_layers(self._layers, segment), self.info.norm_rank, self.generator))

    def conceal(self, segment: bytes, count: int) -> np.ndarray:
        """Return `count` made-up frames uint8 [n, H, W, 3] that follow a segment, for when the next one is late."""
        read = read_layers(self._layers, segment)
        return self._crop(render_beyond(read, count, float(self.info.fps), self.info.norm_rank, self.generator))

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        info = self.info
        top, left = (info.frame_height - info.display_height) // 2, (info.frame_width - info.display_width) // 2
        return frames[:, top : top + info.display_height, left : left + info.display_width]


class VideoDecoder:
    """Decodes CMAF segments of pixel codecs with libavcodec."""

    def __init__(self, init: bytes) -> None:
        self.init = init

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment; raise DecodeError if it does not decode."""
        frames = []
        reformatter = VideoReformatter()  # one scaler for all frames; making one costs more than using it
        try:
            with av.open(io.BytesIO(self.init + segment)) as container:
                if not container.streams.video:
                    raise DecodeError("segment holds no video stream")
                for frame in container.decode(container.streams.video[0]):
                    frames.append(_to_rgb(frame, reformatter))
        except (av.FFmpegError, EOFError) as error:
            raise DecodeError(f"segment of {len(segment)} bytes does not decode: {error}") from error
        if not frames:
            raise DecodeError(f"segment of {len(segment)} bytes holds no frame")
        return np.stack(frames)


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame as uint8 [H, W, 3], by its own matrix and range; untagged means BT.601, as swscale assumes."""
    matrix = Colorspace.ITU709 if frame.colorspace == Colorspace.ITU709.value else Colorspace.ITU601
    full_range = frame.color_range == ColorRange.JPEG.value
    return reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=matrix,
        src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()


def load_model(codec: str, spec: str, *, device: str = "auto") -> Generator | Autoencoder | None:
    """Return what a codec's decoders need loaded, for `create_decoder`: a generator, an autoencoder, or nothing.

    Args:
        codec: as in manifests.
        spec: `embedded`, a folder in diffusers layout or a hub id, as for `player.generator.load_generator`.
        device: auto, cpu, cuda or cuda:N.
    """
    if codec == PROMPT:
        return load_generator(spec, device=device)
    return load_autoencoder(spec, device=device) if codec == VAE else None


def create_decoder(codec: str, init: bytes, *, generator: Generator | Autoencoder | None = None) -> Decoder:
    """Return the decoder of a representation; `generator` is what `load_model` gives for the codec.

    Raises:
        DecodeError: no model, or not the codec's.
        PluginError: the codec of another package is broken, or not installed.
    """
    if codec == PROMPT:
        if not isinstance(generator, Generator):
            raise DecodeError("a prompt stream needs a generator to be decoded")
        return PromptDecoder(init, generator)
    if codec == VAE:
        if not isinstance(generator, Autoencoder):
            raise DecodeError("a latent stream needs an autoencoder to be decoded")
        return LatentStreamDecoder(init, generator)
    return VideoDecoder(init) if codec in CODECS else plugin_decoder(codec, init)
