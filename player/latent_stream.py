"""Byte layout of latent streams: an autoencoder's quantized latents, frame by frame. No I/O and no torch.

The boxes are those of prompt streams (player.mp4), under another scheme: the init segment carries LatentInfo; a media
segment holds one sample with the codes of all its frames. Both are covered by CRC-32s, the segment's seeded with the
description, so that it cannot be read with another stream's init. Layout tables are in docs/format.md.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import astuple, dataclass, fields
from fractions import Fraction

import numpy as np

from player.errors import BitstreamError
from player.latent_codes import decode_codes, encode_codes
from player.mp4 import read_fragment, write_fragment_head
from player.sealed import CRC, read_sealed_init, write_sealed_init

SCHEME_URI = "tag:promptdash,2026:latent:1"
FORMAT_VERSION = 1
MAX_SEGMENT_CODES = 1 << 25  # what a hostile segment can make a reader allocate: 256 MB of int64
_INFO = struct.Struct(">BxHHHHHHHIIf")  # version, the numbers of LatentInfo in order, step; the id follows
_SAMPLE_HEADER = struct.Struct(">Bx")  # version


@dataclass(frozen=True)
class LatentInfo:
    """What every segment of one representation shares; latent = step * code."""

    channels: int  # C
    grid_height: int  # h
    grid_width: int  # w
    picture_width: int  # pixels that count of a decoded picture, from its top left; scaled to the display size
    picture_height: int
    display_width: int  # pixels shown
    display_height: int
    fps: Fraction  # frames per second; the timescale is its numerator, a frame lasts its denominator
    step: float  # quantization step, a float32
    autoencoder_id: str  # the autoencoder that the latents belong to

    def __post_init__(self) -> None:
        _check_info(self)


def write_init(info: LatentInfo) -> bytes:
    """Return the init segment that describes a stream."""
    return write_sealed_init(info.fps.numerator, SCHEME_URI, _pack_info(info))


def read_init(data: bytes) -> LatentInfo:
    """Parse an init segment; raise BitstreamError if it is cut, corrupt, of another version or another scheme."""
    info = _unpack_info(read_sealed_init(data, SCHEME_URI, version=FORMAT_VERSION, least_bytes=_INFO.size))
    if write_init(info) != data:
        raise BitstreamError("init segment: boxes differ from the layout of this version")
    return info


def write_segment(info: LatentInfo, codes: np.ndarray, *, sequence: int, start_frame: int) -> bytes:
    """Return the media segment of codes int16 [T, C, h, w].

    Args:
        info: the stream's description; its shapes must be those of the codes.
        codes: of all frames of the segment.
        sequence: number of the segment in its stream, 0 to 2**32 - 1.
        start_frame: the segment's first frame on the stream's time line.
    """
    shape = (info.channels, info.grid_height, info.grid_width)
    if codes.dtype != np.int16 or codes.ndim != 4 or codes.shape[1:] != shape or not len(codes):
        raise BitstreamError(f"latent codes {codes.dtype} {list(codes.shape)}, expected int16 [T, {shape}]")
    duration = len(codes) * info.fps.denominator
    if codes.size > MAX_SEGMENT_CODES or duration >= 1 << 32:
        raise BitstreamError(f"a segment of {len(codes)} frames and {codes.size} codes, at most {MAX_SEGMENT_CODES}")
    sample = _SAMPLE_HEADER.pack(FORMAT_VERSION) + encode_codes(codes)
    base_time = start_frame * info.fps.denominator
    head = write_fragment_head(sequence, base_time, [duration], [CRC.size + len(sample)])
    crc = zlib.crc32(head + sample, zlib.crc32(_pack_info(info)))
    return head + CRC.pack(crc) + sample


def read_segment(info: LatentInfo, data: bytes) -> np.ndarray:
    """Return the codes int16 [T, C, h, w]; raise BitstreamError if cut, corrupt, or of another stream."""
    fragment = read_fragment(data)
    if len(fragment.sample_ranges) != 1:
        raise BitstreamError(f"latent segment of {len(fragment.sample_ranges)} samples, expected 1")
    ((start, end),) = fragment.sample_ranges
    if end - start < CRC.size + _SAMPLE_HEADER.size:
        raise BitstreamError(f"latent sample of {end - start} bytes is shorter than its CRC and header")
    (stored,) = CRC.unpack_from(data, start)
    sample = data[start + CRC.size : end]
    found = zlib.crc32(data[:start] + sample, zlib.crc32(_pack_info(info)))
    if stored != found:
        raise BitstreamError(f"latent sample: CRC {found:#010x}, expected {stored:#010x} (corrupt, or another init)")
    if sample[0] != FORMAT_VERSION:
        raise BitstreamError(f"latent segment: version {sample[0]}, but this build reads version {FORMAT_VERSION}")
    frames, rest = divmod(fragment.durations[0], info.fps.denominator)
    shape = (frames, info.channels, info.grid_height, info.grid_width)
    if rest or not frames or math.prod(shape) > MAX_SEGMENT_CODES:
        raise BitstreamError(
            f"latent segment lasts {fragment.durations[0]} units: {math.prod(shape)} codes, at most 2**25"
        )
    return decode_codes(sample[_SAMPLE_HEADER.size :], shape)


def _pack_info(info: LatentInfo) -> bytes:
    sizes = astuple(info)[:7]
    numbers = _INFO.pack(FORMAT_VERSION, *sizes, info.fps.numerator, info.fps.denominator, info.step)
    return numbers + info.autoencoder_id.encode()


def _unpack_info(data: bytes) -> LatentInfo:
    _, *sizes, numerator, denominator, step = _INFO.unpack_from(data)
    if not denominator:
        raise BitstreamError(f"frame rate {numerator}/0")
    try:
        name = data[_INFO.size :].decode()
    except UnicodeDecodeError as error:
        raise BitstreamError(f"autoencoder id is no UTF-8: {error}") from error
    named = dict(zip((field.name for field in fields(LatentInfo)), sizes, strict=False))
    return LatentInfo(**named, fps=Fraction(numerator, denominator), step=step, autoencoder_id=name)


def _check_info(info: LatentInfo) -> None:
    for field in fields(info)[:7]:
        value = getattr(info, field.name)
        if not isinstance(value, int) or not 1 <= value <= 0xFFFF:
            raise BitstreamError(f"latent stream: {field.name} {value!r}, expected a whole number from 1 to 65535")
    if info.channels * info.grid_height * info.grid_width > MAX_SEGMENT_CODES:
        raise BitstreamError(f"latent stream: {info.channels} x {info.grid_height} x {info.grid_width} codes a frame")
    fps = info.fps
    if not isinstance(fps, Fraction) or fps <= 0 or max(fps.numerator, fps.denominator) >= 1 << 32:
        raise BitstreamError(f"latent stream: frame rate {fps!r}, expected a positive Fraction of 32-bit numbers")
    if not (math.isfinite(info.step) and info.step > 0 and float(np.float32(info.step)) == info.step):
        raise BitstreamError(f"latent stream: step {info.step!r}, expected a positive float32")
    if not isinstance(info.autoencoder_id, str) or not 1 <= len(info.autoencoder_id.encode()) <= 255:
        raise BitstreamError(f"latent stream: autoencoder id {info.autoencoder_id!r}, expected 1 to 255 bytes")
