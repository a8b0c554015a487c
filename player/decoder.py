"""Segment bytes to frames: one protocol for prompts and for pixel codecs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from player.bitstream import Segment, StreamInfo, read_inits, read_layers, segment_number
from player.codecs import CODECS, PROMPT, VAE, plugin_decoder
from player.conceal import drift_frames, extend_picture, extend_prompts, last_interval
from player.engine import Pending, RenderOptions, engine_of, upload
from player.errors import DecodeError, GeneratorMismatchError
from player.generator import Generator, load_generator
from player.latent_chain import LatentChain
from player.latents import Autoencoder, LatentStreamDecoder, load_autoencoder
from player.motion import Between, frames_between, motion_fields
from player.pixels import from_pixels as from_pixels
from player.pixels import to_pixels
from player.prompt import dequantize, interpolate, interpolation_matrix


class Decoder(Protocol):
    """What the player needs of a codec: a segment's bytes in, its frames out, nothing carried between segments."""

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] (RGB) of a whole media segment."""
        ...


def _key_factors(segment: Segment, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return u [K, L, r] and v [K, r, D] of the key prompts on the generator's device."""
    device = generator.device
    u_scale, v_scale = (upload(scale.copy(), device) for scale in (segment.u_scales, segment.v_scales))
    u_scale = u_scale * generator.step_scale[: segment.rank]
    u = upload(np.stack([key.u for key in segment.keys]), device)
    v = upload(np.stack([key.v for key in segment.keys]), device)
    return dequantize(u, u_scale), dequantize(v, v_scale)


def render_segment(segment: Segment, norm_rank: int, generator: Generator) -> np.ndarray:
    """Return the frames uint8 [T, H, W, 3] of a prompt segment at the generator's size.

    With motion the key frames are rendered, and the frames between are warped and blended from them; without it every
    frame is rendered from its interpolated prompt.

    Raises:
        DecodeError: the generator made values that are no numbers, or its frames do not fit the device's memory.
    """
    if segment.motion is None:
        return _start_rendering(segment, norm_rank, generator).result()
    with torch.no_grad():
        u, v = _key_factors(segment, generator)
        keys = engine_of(generator).generate(generator.space.compose(u, v, norm_rank))
        motion = motion_fields(segment, generator.device)
        between = Between.of(segment.offsets, segment.frames, segment.all_anchors, segment.cuts).to(generator.device)
        places = torch.arange(segment.frames, device=generator.device).split(engine_of(generator).batch)
        return torch.cat([to_pixels(frames_between(keys, motion, between[part])) for part in places]).cpu().numpy()


@torch.no_grad()
def _start_rendering(segment: Segment, norm_rank: int, generator: Generator) -> Pending:
    """Put a segment without motion on its way through the generator."""
    return engine_of(generator).submit(_embeddings(segment, norm_rank, generator))


def _embeddings(segment: Segment, norm_rank: int, generator: Generator) -> Tensor:
    """Return the embeddings [T, L, D] of all frames, from prompts interpolated between the key prompts."""
    u, v = _key_factors(segment, generator)
    weights = upload(interpolation_matrix(segment.offsets, segment.frames), generator.device)
    return generator.space.compose(interpolate(u, weights), interpolate(v, weights), norm_rank)


@torch.no_grad()
def render_chained(
    segment: Segment, number: int, norm_rank: int, chain: LatentChain, generator: Generator
) -> np.ndarray:
    """Return the frames uint8 [T, H, W, 3] of segment `number` of a chained stream; errors as of `render_segment`.

    Raises:
        DecodeError: the segment before was not decoded, or it has motion, which such streams do not.
    """
    if segment.motion is not None:
        raise DecodeError(f"segment {number} of a chained stream has motion, expected interpolated prompts alone")
    embeddings = _embeddings(segment, norm_rank, generator)
    batch = engine_of(generator).most_frames(embeddings)
    shown = []
    for latents in chain.latents(number, embeddings, segment.offsets, batch=batch):
        frames = generator.decode_latents(latents)
        if not torch.isfinite(frames).all():
            raise DecodeError(f"generator {generator.id} rendered values that are not finite")
        shown.append(to_pixels(frames))
    return torch.cat(shown).cpu().numpy()


@torch.no_grad()
def render_beyond(
    segment: Segment, count: int, fps: float, norm_rank: int, generator: Generator, start: Tensor | None = None
) -> np.ndarray:
    """Return `count` frames uint8 [n, H, W, 3] made up to follow a segment whose successor is late (player.conceal).

    Args:
        start: what the frames start from [C, h, w], in a chained stream.
    """
    u, v = _key_factors(segment, generator)
    interval = last_interval(segment)
    engine = engine_of(generator)
    if segment.motion is not None:
        last = Between.of(segment.offsets, segment.frames, segment.all_anchors, segment.cuts)[torch.tensor([-1])]
        last = last.to(generator.device)
        first = int(last.left)  # key frames before it are not needed
        keys = engine.generate(generator.space.compose(u[first:], v[first:], norm_rank))
        motion = motion_fields(segment, generator.device)
        picture = frames_between(keys, motion, replace(last, left=last.left - first, right=last.right - first))
        return extend_picture(picture, motion[-1], interval, drift_frames(count, fps, gap=0))
    drift = drift_frames(count, fps, gap=segment.frames - 1 - segment.keys[-1].frame_offset)
    u, v = (extend_prompts(factors, interval, drift) for factors in (u, v))
    embeddings = generator.space.compose(u, v, norm_rank)
    if start is None:
        return engine.render(embeddings)
    parts = embeddings.split(engine.most_frames(embeddings))
    return torch.cat([to_pixels(generator.generate(part, start)) for part in parts]).cpu().numpy()


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
        if not _is_same(generator.id, self.info.generator_id):
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

        self._chain = LatentChain(self.info.chain, generator) if self.info.chain else None

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment, cropped to the display size."""
        read = read_layers(self._layers, segment)
        if self._chain is None:
            return self._crop(render_segment(read, self.info.norm_rank, self.generator))
        number = segment_number(segment)
        return self._crop(render_chained(read, number, self.info.norm_rank, self._chain, self.generator))

    def decode_all(self, segments: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the frames of segments one after the other, as `decode` does, one segment ahead.

        While the device renders a segment, the next one's bytes are read and uploaded.
        """
        ahead: Pending | None = None
        for segment in segments:
            read = None if self._chain else read_layers(self._layers, segment)
            if read is None or read.motion is not None:
                shown, following = self.decode(segment), None
            else:
                shown, following = None, _start_rendering(read, self.info.norm_rank, self.generator)
            if ahead is not None:
                yield self._crop(ahead.result())
            if shown is not None:
                yield shown
            ahead = following
        if ahead is not None:
            yield self._crop(ahead.result())

    def conceal(self, segment: bytes, count: int) -> np.ndarray:
        """Return `count` made-up frames uint8 [n, H, W, 3] that follow a segment, for when the next one is late."""
        read = read_layers(self._layers, segment)
        start = self._chain.after(segment_number(segment)) if self._chain else None
        return self._crop(render_beyond(read, count, float(self.info.fps), self.info.norm_rank, self.generator, start))

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        info = self.info
        top, left = (info.frame_height - info.display_height) // 2, (info.frame_width - info.display_width) // 2
        return frames[:, top : top + info.display_height, left : left + info.display_width]


def decode_in_order(decoder: Decoder, segments: Iterable[bytes]) -> Iterator[np.ndarray]:
    """Yield the frames of consecutive segments, as `decode` does; those of prompts are rendered one segment ahead."""
    if isinstance(decoder, PromptDecoder):
        return decoder.decode_all(segments)
    return map(decoder.decode, segments)


def _is_same(loaded: str, wanted: str) -> bool:
    """Whether an id is the wanted one, or, where that has no digest, of that hub id or of a folder called like it."""
    return loaded == wanted or loaded.rpartition("-")[0] in (wanted, wanted.rpartition("/")[2])


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


def load_model(
    codec: str,
    spec: str,
    *,
    decoder: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    options: RenderOptions | None = None,
) -> Generator | Autoencoder | None:
    """Return what a codec's decoders need loaded, for `create_decoder`: a generator, an autoencoder, or nothing.

    Args:
        codec: as in manifests.
        spec: `embedded`, a folder in diffusers layout or a hub id; this and the next three as for
            `player.generator.load_generator`.
        options: how a generator renders.
    """
    if codec == PROMPT:
        generator = load_generator(spec, decoder=decoder or None, device=device, dtype=dtype)
        generator.options = options
        return generator
    return load_autoencoder(decoder or spec, device=device) if codec == VAE else None


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
