"""Byte layout of prompt streams: init and media segments to dataclasses and back. No I/O and no torch.

An init segment carries StreamInfo; a media segment carries one Segment, one sample per key prompt. Layout tables are in
docs/format.md. Every byte of both is covered by a CRC-32, the media segment's seeded with the stream's description, so
that a segment cannot be read with another stream's init.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from player.entropy import CodesDecoder, CodesEncoder, Layout
from player.errors import BitstreamError
from player.mp4 import find_init_data, read_fragment, write_fragment_head, write_metadata_init

SCHEME_URI = "tag:promptdash,2026:prompt:1"
FORMAT_VERSION = 1
MAX_RANK = 4096
MAX_KEY_CODES = 1 << 24  # codes of one key prompt, r (L + D)
MAX_SEGMENT_CODES = 1 << 27  # codes of one segment: 256 MB of int16, what a hostile segment can make a reader allocate
_INFO = struct.Struct(">BxHHIIHHHHIIHHB")  # docs/format.md, "StreamInfo"
_CRC = struct.Struct(">I")
_SEGMENT_HEADER = struct.Struct(">BxH")  # version, reserved, rank; opens the first sample behind its CRC


@dataclass(frozen=True)
class StreamInfo:
    """What every segment of one representation shares; carried by the init segment.

    The prompt of a key frame is u = u_scale * u_codes [L, r], v = v_scale * v_codes [r, D]; its embedding is the
    generator's base plus u v / sqrt(norm_rank).
    """

    generator_id: str  # the generator that the prompts were fitted to
    tokens: int  # L, rows of the embedding
    width: int  # D, columns of the embedding
    rank: int  # r of this representation
    norm_rank: int  # rank of the whole nested fit, the same in every prefix of it
    frame_width: int  # pixels of a generated frame
    frame_height: int
    display_width: int  # pixels shown: the centred crop of the generated frame
    display_height: int
    fps: Fraction  # frames per second; the timescale is its numerator, a frame lasts its denominator
    grid_height: int = 0  # the tokens' layout in rows, grid_height * grid_width == tokens; 0, 0: no layout
    grid_width: int = 0

    def __post_init__(self) -> None:
        _check_info(self)

    @property
    def layout(self) -> Layout:
        """The shapes that the entropy coder needs."""
        return Layout(self.tokens, self.width, self.rank, self.grid_height, self.grid_width)


@dataclass(frozen=True, eq=False)
class KeyPrompt:
    """A quantized prompt at one frame of a segment; value = scale of the component * code."""

    frame_offset: int  # frame of the segment, 0-based
    u: np.ndarray  # [L, r] int16
    v: np.ndarray  # [r, D] int16

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyPrompt):
            return NotImplemented
        same = self.frame_offset == other.frame_offset
        return same and np.array_equal(self.u, other.u) and np.array_equal(self.v, other.v)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Segment:
    """The key prompts of one segment; the first stands at frame 0, the last at frame T - 1."""

    frames: int  # T
    u_scale: np.ndarray  # [r] float32, finite
    v_scale: np.ndarray  # [r] float32, finite
    keys: tuple[KeyPrompt, ...]

    def __post_init__(self) -> None:
        _check_segment(self)

    @property
    def rank(self) -> int:
        """r, the number of components of every key prompt."""
        return len(self.u_scale)

    def truncate(self, rank: int) -> Segment:
        """Return the segment of the first `rank` components, the lower rank of a nested fit."""
        if not 1 <= rank <= self.rank:
            raise BitstreamError(f"rank {rank} of a segment of rank {self.rank}, expected 1 to {self.rank}")
        keys = tuple(
            KeyPrompt(k.frame_offset, np.ascontiguousarray(k.u[:, :rank]), np.ascontiguousarray(k.v[:rank]))
            for k in self.keys
        )
        return Segment(self.frames, self.u_scale[:rank].copy(), self.v_scale[:rank].copy(), keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return (
            self.frames == other.frames
            and self.keys == other.keys
            and np.array_equal(self.u_scale, other.u_scale)
            and np.array_equal(self.v_scale, other.v_scale)
        )

    __hash__ = None  # type: ignore[assignment]


def write_init(info: StreamInfo) -> bytes:
    """Return the init segment that describes a stream."""
    crc_at = -_CRC.size
    data = write_metadata_init(info.fps.numerator, SCHEME_URI, _pack_info(info) + bytes(_CRC.size))
    end = find_init_data(data, SCHEME_URI).end
    return data[: end + crc_at] + _CRC.pack(zlib.crc32(data)) + data[end:]


def read_init(data: bytes) -> StreamInfo:
    """Parse an init segment; raise BitstreamError if it is cut, corrupt, of another version or another scheme."""
    item = find_init_data(data, SCHEME_URI)
    start, end = item.body + 4, item.end - _CRC.size
    if end - start < _INFO.size:
        raise BitstreamError(f"stream description of {max(end - start, 0)} bytes, expected {_INFO.size} or more")
    if data[start] != FORMAT_VERSION:
        raise BitstreamError(f"init segment: version {data[start]}, but this build reads version {FORMAT_VERSION}")
    (stored,) = _CRC.unpack_from(data, end)
    found = zlib.crc32(data[item.end :], zlib.crc32(bytes(_CRC.size), zlib.crc32(data[:end])))
    if stored != found:
        raise BitstreamError(f"init segment: CRC {found:#010x}, expected {stored:#010x}")
    info = _unpack_info(data[start:end])
    if write_init(info) != data:
        raise BitstreamError("init segment: boxes differ from the layout of this version")
    return info


def write_segment(info: StreamInfo, segment: Segment, *, sequence: int, start_frame: int) -> bytes:
    """Return the media segment of `segment`.

    Args:
        info: the stream's description; its shapes must be the segment's.
        segment: what to write.
        sequence: number of the segment in its stream, 0 to 2**32 - 1.
        start_frame: the segment's first frame on the stream's time line.
    """
    _check_shapes(info, segment)
    base_time = start_frame * info.fps.denominator
    if not 0 <= sequence < 1 << 32 or not 0 <= base_time < 1 << 64:
        raise BitstreamError(f"sequence {sequence}, start frame {start_frame}: out of range")
    offsets = [key.frame_offset for key in segment.keys]
    durations = [n * info.fps.denominator for n in np.diff([*offsets, segment.frames]).tolist()]
    if max(durations) >= 1 << 32:
        raise BitstreamError(f"a key prompt of {max(durations)} time units, expected fewer than 2**32")
    encoder = CodesEncoder(info.layout)
    samples = [encoder.encode(key.u, key.v) for key in segment.keys]
    samples[0] = _segment_header(segment) + samples[0]
    sizes = [_CRC.size + len(sample) for sample in samples]
    parts = [write_fragment_head(sequence, base_time, durations, sizes)]
    crc = zlib.crc32(parts[0], _info_crc(info))
    for sample in samples:
        crc = zlib.crc32(sample, crc)
        parts += [_CRC.pack(crc), sample]
    return b"".join(parts)


def read_segment(info: StreamInfo, data: bytes) -> Segment:
    """Parse a media segment of the stream `info`; raise BitstreamError if it is cut, corrupt, or of another stream."""
    fragment = read_fragment(data)
    frames = _frame_counts(fragment.durations, info.fps.denominator)
    samples = _check_samples(info, data, fragment.sample_ranges)
    codes_each = info.rank * (info.tokens + info.width)
    if codes_each * len(samples) > MAX_SEGMENT_CODES:
        raise BitstreamError(f"{len(samples)} key prompts of {codes_each} codes exceed {MAX_SEGMENT_CODES} a segment")
    header_bytes = _SEGMENT_HEADER.size + 8 * info.rank
    if len(samples[0]) < header_bytes:
        raise BitstreamError(f"first sample of {len(samples[0])} bytes is shorter than its {header_bytes}-byte header")
    version, rank = _SEGMENT_HEADER.unpack_from(samples[0])
    if version != FORMAT_VERSION:
        raise BitstreamError(f"segment: version {version}, but this build reads version {FORMAT_VERSION}")
    if rank != info.rank:
        raise BitstreamError(f"segment: rank {rank}, but the init segment says {info.rank}")
    scales = np.frombuffer(samples[0], ">f4", 2 * rank, _SEGMENT_HEADER.size).astype(np.float32)
    samples[0] = samples[0][header_bytes:]
    keys: list[KeyPrompt] = []
    decoder = CodesDecoder(info.layout)
    offset = 0
    for count, sample in zip(frames, samples, strict=True):
        keys.append(KeyPrompt(offset, *decoder.decode(sample)))
        offset += count
    return Segment(offset, scales[:rank], scales[rank:], tuple(keys))


def _segment_header(segment: Segment) -> bytes:
    scales = np.concatenate([segment.u_scale, segment.v_scale]).astype(">f4")
    return _SEGMENT_HEADER.pack(FORMAT_VERSION, segment.rank) + scales.tobytes()


def _check_samples(info: StreamInfo, data: bytes, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the samples without their CRCs; each CRC covers the stream's description and all bytes so far but CRCs."""
    crc = zlib.crc32(data[: ranges[0][0]], _info_crc(info))
    samples = []
    for index, (start, end) in enumerate(ranges):
        if end - start < _CRC.size:
            raise BitstreamError(f"sample {index} of {end - start} bytes is shorter than its CRC")
        (stored,) = _CRC.unpack_from(data, start)
        sample = data[start + _CRC.size : end]
        crc = zlib.crc32(sample, crc)
        if crc != stored:
            raise BitstreamError(f"sample {index}: CRC {crc:#010x}, expected {stored:#010x} (corrupt, or another init)")
        samples.append(sample)
    return samples


def _frame_counts(durations: Sequence[int], units: int) -> list[int]:
    """Return sample durations in frames; the last must be one frame."""
    counts = []
    for index, duration in enumerate(durations):
        count, rest = divmod(duration, units)
        if rest or not count:
            raise BitstreamError(f"sample {index}: duration {duration} is no multiple of the frame's {units} units")
        counts.append(count)
    if counts[-1] != 1:
        raise BitstreamError(f"last sample lasts {counts[-1]} frames, expected 1")
    return counts


def _pack_info(info: StreamInfo) -> bytes:
    name = info.generator_id.encode()
    fields = (info.rank, info.norm_rank, info.tokens, info.width, info.frame_width, info.frame_height)
    more = (info.display_width, info.display_height, info.fps.numerator, info.fps.denominator)
    return _INFO.pack(FORMAT_VERSION, *fields, *more, info.grid_height, info.grid_width, len(name)) + name


def _unpack_info(data: bytes) -> StreamInfo:
    fields = _INFO.unpack_from(data)
    _, rank, norm_rank, tokens, width, frame_width, frame_height, display_width, display_height = fields[:9]
    numerator, denominator, grid_height, grid_width, length = fields[9:]
    if len(data) != _INFO.size + length:
        raise BitstreamError(f"stream description of {len(data)} bytes, expected {_INFO.size + length}")
    try:
        name = data[_INFO.size :].decode()
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
    )


def _info_crc(info: StreamInfo) -> int:
    return zlib.crc32(_pack_info(info))


def _check_info(info: StreamInfo) -> None:
    limits = {"tokens": 1 << 20, "width": 1 << 20, "rank": MAX_RANK, "norm_rank": MAX_RANK}
    limits |= dict.fromkeys(("frame_width", "frame_height", "display_width", "display_height"), 0xFFFF)
    for name, limit in limits.items():
        value = getattr(info, name)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise BitstreamError(f"stream description: {name} {value!r}, expected a whole number from 1 to {limit}")
    if info.rank * (info.tokens + info.width) > MAX_KEY_CODES:
        raise BitstreamError(f"stream description: {info.rank} x ({info.tokens} + {info.width}) codes a key prompt")
    if info.display_width > info.frame_width or info.display_height > info.frame_height:
        raise BitstreamError(
            f"stream description: {info.display_width}x{info.display_height} shown of a frame of "
            f"{info.frame_width}x{info.frame_height}"
        )
    fps = info.fps
    if not isinstance(fps, Fraction) or fps <= 0 or max(fps.numerator, fps.denominator) >= 1 << 32:
        raise BitstreamError(f"stream description: frame rate {fps!r}, expected a positive Fraction of 32-bit numbers")
    rows, columns = info.grid_height, info.grid_width
    if (rows, columns) != (0, 0) and (min(rows, columns) < 1 or rows * columns != info.tokens):
        raise BitstreamError(f"stream description: a {rows} x {columns} grid of {info.tokens} tokens")
    if max(rows, columns) > 0xFFFF:
        raise BitstreamError(f"stream description: a {rows} x {columns} grid, expected sides under 65536")
    if not isinstance(info.generator_id, str) or not 1 <= len(info.generator_id.encode()) <= 255:
        raise BitstreamError(f"stream description: generator id {info.generator_id!r}, expected 1 to 255 bytes")


def _check_segment(segment: Segment) -> None:
    rank = len(segment.u_scale)
    for name, scale in (("u_scale", segment.u_scale), ("v_scale", segment.v_scale)):
        if scale.shape != (rank,) or scale.dtype != np.float32 or not np.isfinite(scale).all():
            raise BitstreamError(f"{name}: {scale.dtype} {list(scale.shape)}, expected finite float32 [{rank}]")
    if not segment.keys:
        raise BitstreamError("a segment without key prompts")
    offsets = [key.frame_offset for key in segment.keys]
    rising = all(a < b for a, b in pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] != segment.frames - 1 or not rising:
        raise BitstreamError(f"key prompts at frames {offsets[:8]}, expected to rise from 0 to {segment.frames - 1}")
    L, D = len(segment.keys[0].u), segment.keys[0].v.shape[-1]
    for key in segment.keys:
        if key.u.shape != (L, rank) or key.v.shape != (rank, D) or {key.u.dtype, key.v.dtype} != {np.dtype(np.int16)}:
            raise BitstreamError(
                f"key prompt at frame {key.frame_offset}: u {key.u.dtype} {list(key.u.shape)}, v {key.v.dtype} "
                f"{list(key.v.shape)}, expected int16 [{L}, {rank}] and [{rank}, {D}]"
            )


def _check_shapes(info: StreamInfo, segment: Segment) -> None:
    L, D = segment.keys[0].u.shape[0], segment.keys[0].v.shape[1]
    if (segment.rank, L, D) != (info.rank, info.tokens, info.width):
        raise BitstreamError(
            f"segment of rank {segment.rank}, {L} tokens, width {D}; the stream has rank {info.rank}, "
            f"{info.tokens} tokens, width {info.width}"
        )
