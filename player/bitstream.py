"""Byte layout of prompt streams: init and media segments to dataclasses and back. No I/O and no torch.

An init segment carries StreamInfo; a media segment is one sample with all components of a Segment, or a layer of them
that continues another representation's. Tables are in docs/format.md. Every byte of both is covered by a CRC-32, the
media segment's seeded with the stream's description and the layer below, so that neither is read with another's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from player.chain import unpack_chain
from player.entropy import CodesDecoder, CodesEncoder, Layout
from player.errors import BitstreamError
from player.mp4 import (
    read_fragment,
    split_segments,
    write_fragment_head,
)
from player.prompt_stream import MAX_RANK as MAX_RANK
from player.prompt_stream import MAX_SEGMENT_CODES as MAX_SEGMENT_CODES
from player.prompt_stream import MAX_SEGMENT_FRAMES as MAX_SEGMENT_FRAMES
from player.prompt_stream import KeyPrompt as KeyPrompt
from player.prompt_stream import Segment as Segment
from player.prompt_stream import StreamInfo as StreamInfo
from player.prompt_stream import motion_anchors
from player.sample import FORMAT_VERSION, V_SHARED, BaseHeader, HeaderReader, write_header
from player.sealed import CRC, read_sealed_init, write_sealed_init

SCHEME_URI = "tag:promptdash,2026:prompt:1"
_INFO = struct.Struct(">BBHHHIIHHHHIIHHB")  # docs/format.md, "StreamInfo"
_CHAINED = 1  # flag: latents are carried from segment to segment
_LEAST_CELLS = 1024  # that a motion field counts as: rendering stretches it, however coarse


def write_init(info: StreamInfo) -> bytes:
    """Return the init segment that describes a stream."""
    return write_sealed_init(info.fps.numerator, SCHEME_URI, _pack_info(info))


def read_init(data: bytes) -> StreamInfo:
    """Parse an init segment; raise BitstreamError if it is cut, corrupt, of another version or another scheme."""
    info = _unpack_info(read_sealed_init(data, SCHEME_URI, version=FORMAT_VERSION, least_bytes=_INFO.size))
    if write_init(info) != data:
        raise BitstreamError("init segment: boxes differ from the layout of this version")
    return info


def read_inits(data: bytes) -> list[StreamInfo]:
    """Parse the init segments of representations that build on each other, one after the other, lowest first."""
    infos = [read_init(part) for part in split_segments(data, b"ftyp")]
    _check_chain(infos)
    return infos


def write_segment(info: StreamInfo, segment: Segment, *, sequence: int, start_frame: int) -> bytes:
    """Return the media segment of `segment` in a representation that stands alone; arguments as in `write_layers`."""
    return write_layers([info], segment, sequence=sequence, start_frame=start_frame)[0]


def write_layers(infos: Sequence[StreamInfo], segment: Segment, *, sequence: int, start_frame: int) -> list[bytes]:
    """Return the media segments of representations that build on each other, each with its own components only.

    Args:
        infos: descriptions, from the one that stands alone to the one of the segment's rank.
        segment: what to write; its shapes must be those of the last description.
        sequence: number of the segment in its stream, 0 to 2**32 - 1.
        start_frame: the segment's first frame on the stream's time line.
    """
    _check_chain(infos)
    _check_shapes(infos[-1], segment)
    units = infos[-1].fps.denominator
    base_time, duration = start_frame * units, segment.frames * units
    if not 0 <= sequence < 1 << 32 or not 0 <= base_time < 1 << 64 or duration >= 1 << 32:
        raise BitstreamError(f"sequence {sequence}, start frame {start_frame}, {segment.frames} frames: out of range")
    u, v = (np.stack([getattr(key, name) for key in segment.keys]) for name in "uv")
    shared = bool((v == v[0]).all())
    grid = (0, 0) if segment.motion is None else segment.motion.shape[2:]
    places = tuple(segment.offsets.tolist()), grid, segment.anchors, segment.cuts
    base = BaseHeader(*places, round(8 * segment.motion_step_px), _even_interval(segment))
    encoder = CodesEncoder(_layout(infos[-1], base, shared))
    parts, crc = [], 0
    for info in infos:
        own = slice(info.base_rank, info.rank)
        scales = segment.u_scales[:, 0, own], segment.v_scales[:, own, 0]
        sample = write_header(*scales, v_shared=shared, base=None if info.base_rank else base)
        motion = None if info.base_rank else segment.motion
        sample += encoder.encode(u[:, :, own], v[: 1 if shared else None, own], motion)
        head = write_fragment_head(sequence, base_time, [duration], [CRC.size + len(sample)])
        crc = zlib.crc32(head + sample, zlib.crc32(_pack_info(info), crc))
        parts.append(head + CRC.pack(crc) + sample)
    return parts


def read_segment(info: StreamInfo, data: bytes) -> Segment:
    """Parse a media segment of a stream that stands alone; errors as in `read_layers`."""
    return read_layers([info], data)


def read_layers(infos: Sequence[StreamInfo], data: bytes) -> Segment:
    """Compose a segment from the media segments of representations that build on each other.

    Args:
        infos: descriptions, from the one that stands alone upwards.
        data: the media segments of the first of them, or of all, one after the other.

    Raises:
        BitstreamError: one is cut, corrupt, or of another stream or segment than the one below it.
    """
    frames, samples = _open_layers(infos, data)
    infos = infos[: len(samples)]
    opened = [HeaderReader(sample) for sample in samples]
    base = _with_anchors(opened[0].base(), frames)
    keys = len(base.offsets)
    layout = _layout(infos[-1], base, bool(opened[0].flags & V_SHARED))
    decoder = CodesDecoder(layout)
    scales, codes = [], []
    for reader in opened[1:]:
        reader.refuse_base()
    for info, reader in zip(infos, opened, strict=True):
        rank = info.rank - info.base_rank
        scales.append(reader.scales(keys, rank))
        codes.append(decoder.decode(reader.rest(), rank))
    u = np.concatenate([part.u for part in codes], axis=2)
    v = np.concatenate([part.v for part in codes], axis=1)
    prompts = tuple(KeyPrompt(at, u[k], v[k % len(v)]) for k, at in enumerate(base.offsets))
    u_scale, v_scale = (_join(layers) for layers in zip(*scales, strict=True))
    step_px = base.motion_step / 8 if codes[0].motion is not None else 1.0
    return Segment(frames, u_scale, v_scale, prompts, codes[0].motion, base.anchors, base.cuts, step_px)


def segment_number(data: bytes) -> int:
    """Return the number of a media segment (of its lowest layer) in its stream, as its boxes say it."""
    return read_fragment(split_segments(data, b"moof")[0]).sequence


def check_segment(infos: Sequence[StreamInfo], data: bytes) -> None:
    """Check the CRCs of what `read_layers` takes, without decoding any of it; errors as there."""
    _open_layers(infos, data)


def _open_layers(infos: Sequence[StreamInfo], data: bytes) -> tuple[int, list[bytes]]:
    """Return the frames of a segment and the sample of each layer; every CRC must be right."""
    layers = split_segments(data, b"moof")
    if len(layers) > len(infos):
        raise BitstreamError(f"segment of {len(layers)} layers, but {len(infos)} init segments")
    infos = infos[: len(layers)]
    _check_chain(infos)
    frames, crc, samples = 0, 0, []
    for info, layer in zip(infos, layers, strict=True):
        frames, sample, crc = _open_sample(info, layer, crc)
        samples.append(sample)
    return frames, samples


def _open_sample(info: StreamInfo, data: bytes, crc_below: int) -> tuple[int, bytes, int]:
    """Return the frames, the sample behind its CRC, and the CRC of a media segment, which must be right.

    The CRC covers the CRC of the layer below, the stream's description and every byte but its own four.
    """
    fragment = read_fragment(data)
    frames, rest = divmod(fragment.durations[0], info.fps.denominator)
    if len(fragment.durations) != 1 or rest or not frames:
        raise BitstreamError(f"samples of {fragment.durations[:8]} units, expected one of whole frames")
    if frames > MAX_SEGMENT_FRAMES:
        raise BitstreamError(f"segment of {frames} frames, at most {MAX_SEGMENT_FRAMES}")
    ((start, end),) = fragment.sample_ranges
    if end - start < CRC.size:
        raise BitstreamError(f"sample of {end - start} bytes is shorter than its CRC")
    (stored,) = CRC.unpack_from(data, start)
    sample = data[start + CRC.size : end]
    crc = zlib.crc32(sample, zlib.crc32(data[:start], zlib.crc32(_pack_info(info), crc_below)))
    if stored != crc:
        raise BitstreamError(f"segment: CRC {crc:#010x}, expected {stored:#010x} (corrupt, or of another stream)")
    return frames, sample, crc


def _even_interval(segment: Segment) -> int:
    """Return the frames that anchors lie apart, at most, if they lie evenly and need not be listed; else 0."""
    if not segment.anchors:
        return 0
    places = segment.all_anchors
    interval = int(np.diff(places).max())
    evenly = motion_anchors(segment.offsets, segment.frames, interval, segment.cuts)
    return interval if np.array_equal(evenly, places) else 0


def _with_anchors(base: BaseHeader, frames: int) -> BaseHeader:
    """Return a header of a segment of so many frames with the anchors that it does not list."""
    if not base.interval:
        return base
    if max(*base.offsets, *base.cuts, 0) >= frames:
        raise BitstreamError(f"key prompts at frames {base.offsets[:8]}, cuts at {base.cuts[:8]}, of {frames} frames")
    places = motion_anchors(np.array(base.offsets), frames, base.interval, base.cuts)
    return replace(base, anchors=tuple(np.setdiff1d(places, base.offsets).tolist()))


def _join(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the scales of all components: [r], or [K, r] if those of any layer differ between key prompts."""
    keys = max((len(scales) for scales in layers if scales.ndim == 2), default=0)
    rows = [np.broadcast_to(scales, (keys, scales.shape[-1])) if keys else scales for scales in layers]
    return np.concatenate(rows, axis=-1)


def _layout(info: StreamInfo, base: BaseHeader, v_shared: bool) -> Layout:
    """Return the shapes that the entropy coder needs; refuse more codes than a segment may have."""
    keys = len(base.offsets)
    fields = keys + len(base.anchors) - 1
    cells = base.motion_grid[0] * base.motion_grid[1]
    motion_codes = 2 * fields * max(cells, _LEAST_CELLS) if cells else 0
    codes = info.rank * keys * (info.tokens + info.width) + motion_codes
    if codes > MAX_SEGMENT_CODES:
        raise BitstreamError(f"{keys} key prompts of rank {info.rank}: {codes} codes, at most {MAX_SEGMENT_CODES}")
    grid = (info.grid_height, info.grid_width) if info.grid_height else (1, info.tokens)
    return Layout(keys, 1 if v_shared else keys, grid, info.width, base.motion_grid, fields)


def _pack_info(info: StreamInfo) -> bytes:
    name = info.generator_id.encode()
    fields = (info.rank, info.base_rank, info.norm_rank, info.tokens, info.width, info.frame_width, info.frame_height)
    more = (info.display_width, info.display_height, info.fps.numerator, info.fps.denominator)
    flags, chain = (_CHAINED, info.chain.pack()) if info.chain else (0, b"")
    return (
        _INFO.pack(FORMAT_VERSION, flags, *fields, *more, info.grid_height, info.grid_width, len(name)) + name + chain
    )


def _unpack_info(data: bytes) -> StreamInfo:
    fields = _INFO.unpack_from(data)
    flags, rank, base_rank, norm_rank, tokens, width, frame_width, frame_height = fields[1:9]
    display_width, display_height, numerator, denominator, grid_height, grid_width, length = fields[9:]
    end = _INFO.size + length
    if flags not in (0, _CHAINED):
        raise BitstreamError(f"stream description: flags {flags:#04x}, but this build knows {_CHAINED:#04x} only")
    if len(data) < end or (len(data) > end and not flags):
        raise BitstreamError(f"stream description of {len(data)} bytes, expected {end}")
    try:
        name = data[_INFO.size : end].decode()
    except UnicodeDecodeError as error:
        raise BitstreamError(f"generator id is no UTF-8: {error}") from error
    if not denominator:
        raise BitstreamError(f"frame rate {numerator}/0")
    return StreamInfo(
        generator_id=name,
        tokens=tokens,
        width=width,
        rank=rank,
        norm_rank=norm_rank,
        frame_width=frame_width,
        frame_height=frame_height,
        display_width=display_width,
        display_height=display_height,
        fps=Fraction(numerator, denominator),
        grid_height=grid_height,
        grid_width=grid_width,
        base_rank=base_rank,
        chain=unpack_chain(data[end:]) if flags else None,
    )


def _check_chain(infos: Sequence[StreamInfo]) -> None:
    """Refuse descriptions that do not build on each other: all alike but for the rank, each going on from the last."""
    rank = 0
    for info in infos:
        if info.base_rank != rank:
            raise BitstreamError(f"a layer of components {info.base_rank} to {info.rank} on top of rank {rank}")
        if replace(info, rank=1, base_rank=0) != replace(infos[0], rank=1, base_rank=0):
            raise BitstreamError(f"layers of different streams: {info} on top of {infos[0]}")
        rank = info.rank


def _check_shapes(info: StreamInfo, segment: Segment) -> None:
    L, D = segment.keys[0].u.shape[0], segment.keys[0].v.shape[1]
    if (segment.rank, L, D) != (info.rank, info.tokens, info.width):
        raise BitstreamError(
            f"segment of rank {segment.rank}, {L} tokens, width {D}; the stream has rank {info.rank}, "
            f"{info.tokens} tokens, width {info.width}"
        )
