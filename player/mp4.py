"""ISO/IEC 14496-12 boxes for one timed-metadata track: writing, and reading that trusts nothing.

Only the boxes a prompt stream needs. Writers return bytes; readers check every length against the bytes at hand before
they allocate, and raise BitstreamError in one line. No I/O, no torch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from player.errors import BitstreamError

UNITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # 14496-12 section 8.2.2
DEFAULT_BASE_IS_MOOF = 0x020000  # tfhd flag, section 8.8.7
TRUN_FLAGS = 0x000301  # data offset, sample durations, sample sizes; section 8.8.8
SYNC_SAMPLE = 0x02000000  # sample_depends_on = 2: decodes alone; what every sample is
TRACK_ID = 1
_HEADER_BYTES = 8
_FULL_HEADER_BYTES = 12


@dataclass(frozen=True)
class Box:
    """Where one box lies in its bytes: data[start:end] is the box, data[body:end] its payload."""

    kind: bytes
    start: int
    body: int
    end: int


@dataclass(frozen=True)
class Fragment:
    """One movie fragment: `moof mdat` with the samples of one track."""

    sequence: int  # mfhd sequence_number
    base_time: int  # decode time of the first sample, in timescale units
    durations: tuple[int, ...]  # per sample, in timescale units
    sample_ranges: tuple[tuple[int, int], ...]  # (start, end) of each sample's bytes in the segment


def box(kind: bytes, *payload: bytes) -> bytes:
    """Return one box: 32-bit size, four-character type, payload."""
    body = b"".join(payload)
    return struct.pack(">I4s", _HEADER_BYTES + len(body), kind) + body


def full_box(kind: bytes, version: int, flags: int, *payload: bytes) -> bytes:
    """Return one FullBox: a box whose payload opens with an 8-bit version and 24-bit flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *payload)


def list_boxes(data: bytes, start: int = 0, end: int | None = None) -> list[Box]:
    """Return the boxes that fill data[start:end] exactly; raise BitstreamError if they do not."""
    end = len(data) if end is None else end
    boxes = []
    while start < end:
        if end - start < _HEADER_BYTES:
            raise BitstreamError(f"{end - start} stray bytes at offset {start}, expected a box header of 8 bytes")
        size, kind = struct.unpack_from(">I4s", data, start)
        if not _HEADER_BYTES <= size <= end - start:
            name = kind.decode("latin-1")
            raise BitstreamError(f"box {name!r} at offset {start}: size {size}, but {end - start} bytes are left")
        boxes.append(Box(kind, start, start + _HEADER_BYTES, start + size))
        start += size
    return boxes


def expect_boxes(data: bytes, kinds: Sequence[bytes], start: int = 0, end: int | None = None) -> list[Box]:
    """Return the boxes of data[start:end], which must have exactly these kinds in this order."""
    boxes = list_boxes(data, start, end)
    found = [b.kind for b in boxes]
    if found != list(kinds):
        raise BitstreamError(f"boxes {_names(found)} at offset {start}, expected {_names(kinds)}")
    return boxes


def full_box_payload(data: bytes, item: Box, version: int, flags: int) -> int:
    """Return the offset behind a FullBox's version and flags, which must have these values."""
    if item.end - item.start < _FULL_HEADER_BYTES:
        name = item.kind.decode("latin-1")
        raise BitstreamError(f"box {name!r} of {item.end - item.start} bytes, expected 12 or more")
    (found,) = struct.unpack_from(">I", data, item.body)
    if found != version << 24 | flags:
        raise BitstreamError(
            f"box {item.kind.decode('latin-1')!r}: version {found >> 24} flags {found & 0xFFFFFF:#08x}, "
            f"but this build reads version {version} flags {flags:#08x}"
        )
    return item.body + 4


def write_metadata_init(timescale: int, uri: str, data: bytes) -> bytes:
    """Return an init segment `ftyp moov` with one `urim` metadata track (section 12.3.3).

    Args:
        timescale: units per second of every time in the stream's segments.
        uri: names the scheme of the samples.
        data: payload of the scheme's `uriI` initialisation box; it ends the sample entry.
    """
    entry = box(
        b"urim",
        bytes(6) + struct.pack(">H", 1),  # reserved, data_reference_index
        full_box(b"uri ", 0, 0, uri.encode("ascii") + b"\0"),
        full_box(b"uriI", 0, 0, data),
    )
    stbl = box(
        b"stbl",
        full_box(b"stsd", 0, 0, struct.pack(">I", 1), entry),
        full_box(b"stts", 0, 0, bytes(4)),
        full_box(b"stsc", 0, 0, bytes(4)),
        full_box(b"stsz", 0, 0, bytes(8)),
        full_box(b"stco", 0, 0, bytes(4)),
    )
    dinf = box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1)))
    minf = box(b"minf", full_box(b"nmhd", 0, 0), dinf, stbl)
    mdia = box(
        b"mdia",
        full_box(b"mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, timescale, 0, 0x55C4, 0)),  # 0x55C4: language "und"
        full_box(b"hdlr", 0, 0, bytes(4) + b"meta" + bytes(12) + b"prompts\0"),
        minf,
    )
    tkhd = struct.pack(">IIIII8xhhhH", 0, 0, TRACK_ID, 0, 0, 0, 0, 0, 0) + UNITY_MATRIX + bytes(8)
    mvhd = struct.pack(">IIIIiH10x", 0, 0, timescale, 0, 0x10000, 0) + UNITY_MATRIX + bytes(24) + struct.pack(">I", 2)
    trex = struct.pack(">IIIII", TRACK_ID, 1, 0, 0, SYNC_SAMPLE)
    moov = box(
        b"moov",
        full_box(b"mvhd", 0, 0, mvhd),
        box(b"trak", full_box(b"tkhd", 0, 3, tkhd), mdia),  # flags 3: enabled, in movie
        box(b"mvex", full_box(b"trex", 0, 0, trex)),
    )
    return box(b"ftyp", b"iso6", bytes(4), b"iso6dash") + moov


def find_init_data(data: bytes, uri: str) -> Box:
    """Return the `uriI` box of an init segment written by write_metadata_init; its payload opens with 4 zero bytes."""
    moov = expect_boxes(data, [b"ftyp", b"moov"])[1]
    trak = expect_boxes(data, [b"mvhd", b"trak", b"mvex"], moov.body, moov.end)[1]
    mdia = expect_boxes(data, [b"tkhd", b"mdia"], trak.body, trak.end)[1]
    minf = expect_boxes(data, [b"mdhd", b"hdlr", b"minf"], mdia.body, mdia.end)[2]
    stbl = expect_boxes(data, [b"nmhd", b"dinf", b"stbl"], minf.body, minf.end)[2]
    stsd = expect_boxes(data, [b"stsd", b"stts", b"stsc", b"stsz", b"stco"], stbl.body, stbl.end)[0]
    entries = full_box_payload(data, stsd, 0, 0) + 4
    if entries > stsd.end:
        raise BitstreamError(f"box 'stsd' of {stsd.end - stsd.start} bytes, expected 16 or more")
    entry = expect_boxes(data, [b"urim"], entries, stsd.end)[0]
    if entry.end - entry.body < 8:
        raise BitstreamError(f"sample entry of {entry.end - entry.start} bytes, expected 16 or more")
    uri_box, init_box = expect_boxes(data, [b"uri ", b"uriI"], entry.body + 8, entry.end)
    found = data[full_box_payload(data, uri_box, 0, 0) : uri_box.end]
    if found != uri.encode("ascii") + b"\0":
        raise BitstreamError(f"metadata scheme {found.rstrip(bytes(1)).decode('latin-1')!r}, expected {uri!r}")
    full_box_payload(data, init_box, 0, 0)
    return init_box


def write_fragment_head(sequence: int, base_time: int, durations: Sequence[int], sizes: Sequence[int]) -> bytes:
    """Return everything of a media segment but its samples: `moof` and the header of `mdat`.

    Args:
        sequence: mfhd sequence number, 32 bits.
        base_time: decode time of the first sample, in timescale units, 64 bits.
        durations: per sample, in timescale units, 32 bits each.
        sizes: bytes of each sample.
    """
    rows = b"".join(struct.pack(">II", *row) for row in zip(durations, sizes, strict=True))
    wide = base_time >= 1 << 32
    moof = b""
    for _ in range(2):  # the data offset counts the moof it stands in, whose size does not depend on its value
        traf = box(
            b"traf",
            full_box(b"tfhd", 0, DEFAULT_BASE_IS_MOOF, struct.pack(">I", TRACK_ID)),
            full_box(b"tfdt", int(wide), 0, struct.pack(">Q" if wide else ">I", base_time)),
            full_box(b"trun", 0, TRUN_FLAGS, struct.pack(">Ii", len(sizes), len(moof) + _HEADER_BYTES), rows),
        )
        moof = box(b"moof", full_box(b"mfhd", 0, 0, struct.pack(">I", sequence)), traf)
    return moof + struct.pack(">I4s", _HEADER_BYTES + sum(sizes), b"mdat")


def read_fragment(data: bytes) -> Fragment:
    """Parse a media segment of exactly `moof mdat`; the samples fill the mdat without gaps."""
    moof, mdat = expect_boxes(data, [b"moof", b"mdat"])
    mfhd, traf = expect_boxes(data, [b"mfhd", b"traf"], moof.body, moof.end)
    tfhd, tfdt, trun = expect_boxes(data, [b"tfhd", b"tfdt", b"trun"], traf.body, traf.end)
    (sequence,) = _fields(data, mfhd, 0, 0, ">I")
    _fields(data, tfhd, 0, DEFAULT_BASE_IS_MOOF, ">I")
    wide = tfdt.end - tfdt.start > _FULL_HEADER_BYTES + 4
    (base_time,) = _fields(data, tfdt, int(wide), 0, ">Q" if wide else ">I")
    rows = full_box_payload(data, trun, 0, TRUN_FLAGS) + 8
    if rows > trun.end:
        raise BitstreamError(f"box 'trun' of {trun.end - trun.start} bytes, expected 20 or more")
    count, offset = struct.unpack_from(">Ii", data, rows - 8)
    if count < 1 or count * 8 != trun.end - rows:
        raise BitstreamError(f"box 'trun': {count} samples listed in {trun.end - rows} bytes, expected 8 bytes each")
    if moof.start + offset != mdat.body:
        raise BitstreamError(f"box 'trun': samples start at {moof.start + offset}, but the mdat opens at {mdat.body}")
    durations: list[int] = []
    ranges: list[tuple[int, int]] = []
    position = mdat.body
    for duration, size in struct.iter_unpack(">II", data[rows : trun.end]):
        if size > mdat.end - position:
            raise BitstreamError(f"sample {len(ranges)}: {size} bytes, but {mdat.end - position} are left in the mdat")
        durations.append(duration)
        ranges.append((position, position + size))
        position += size
    if position != mdat.end:
        raise BitstreamError(f"{mdat.end - position} bytes of the mdat belong to no sample")
    return Fragment(sequence, base_time, tuple(durations), tuple(ranges))


def split_segments(data: bytes, first: bytes) -> list[bytes]:
    """Return the segments of a concatenation, each beginning with a box of the kind `first`."""
    boxes = list_boxes(data)
    starts = [item.start for item in boxes if item.kind == first]
    if not starts or starts[0]:
        raise BitstreamError(f"boxes {_names([item.kind for item in boxes[:8]])}, expected {_names([first])} first")
    return [data[start:end] for start, end in pairwise([*starts, len(data)])]


def _fields(data: bytes, item: Box, version: int, flags: int, layout: str) -> tuple[int, ...]:
    """Return the fields of a FullBox whose payload is exactly this struct layout."""
    start = full_box_payload(data, item, version, flags)
    size = struct.calcsize(layout)
    if item.end - start != size:
        name = item.kind.decode("latin-1")
        raise BitstreamError(f"box {name!r} of {item.end - item.start} bytes, expected {_FULL_HEADER_BYTES + size}")
    return struct.unpack_from(layout, data, start)


def _names(kinds: Sequence[bytes]) -> str:
    return " ".join(repr(kind.decode("latin-1"))[1:-1] for kind in kinds) or "(none)"
