"""Init segments whose last four bytes of description are a CRC over the whole file.

A description opens with the version of its format; `uriI` carries it behind four zero bytes (`player.mp4`).
"""

from __future__ import annotations

import struct
import zlib

from player.errors import BitstreamError
from player.mp4 import find_init_data, write_metadata_init

CRC = struct.Struct(">I")


def write_sealed_init(timescale: int, uri: str, description: bytes) -> bytes:
    """Return the init segment of a timed-metadata track that carries `description` and a CRC over the whole segment."""
    data = write_metadata_init(timescale, uri, description + bytes(CRC.size))
    end = find_init_data(data, uri).end
    return data[: end - CRC.size] + CRC.pack(zlib.crc32(data)) + data[end:]


def read_sealed_init(data: bytes, uri: str, *, version: int, least_bytes: int) -> bytes:
    """Return the description that an init segment carries.

    Raises:
        BitstreamError: cut, corrupt, of another scheme or version, or a description of fewer than `least_bytes`.
    """
    item = find_init_data(data, uri)
    start, end = item.body + 4, item.end - CRC.size
    if end - start < least_bytes:
        raise BitstreamError(f"stream description of {max(end - start, 0)} bytes, expected {least_bytes} or more")
    if data[start] != version:
        raise BitstreamError(f"init segment: version {data[start]}, but this build reads version {version}")
    (stored,) = CRC.unpack_from(data, end)
    found = zlib.crc32(data[item.end :], zlib.crc32(bytes(CRC.size), zlib.crc32(data[:end])))
    if stored != found:
        raise BitstreamError(f"init segment: CRC {found:#010x}, expected {stored:#010x}")
    return data[start:end]
