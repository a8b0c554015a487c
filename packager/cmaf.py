"""CMAF pieces of what FFmpeg's muxer writes: cut into init and media segments, put on time, and named by RFC 6381.

Works on bytes alone: no I/O, no encoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from packager.errors import EncodeError

MOVFLAGS = "cmaf+frag_keyframe+empty_moov+default_base_moof+skip_trailer"
STYP = struct.pack(">I4s4sI4s4s", 24, b"styp", b"cmfs", 0, b"cmfs", b"msdh")

# ISO/IEC 14496-12, 8.8.8 (trun): flag -> the field it announces, in the order they are stored.
_TRUN_DATA_OFFSET, _TRUN_FIRST_FLAGS = 0x1, 0x4
_TRUN_SAMPLE_FIELDS = (0x100, 0x200, 0x400, 0x800)  # duration, size, flags, composition time offset
_TRUN_COMPOSITION = 0x800


class Cutter:
    """A write-only file that PyAV muxes into, and that hands out whole pieces: ftyp + moov, then moof + mdat each."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = True

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    @property
    def rest(self) -> int:
        """Bytes that are not part of a whole piece."""
        return len(self._buffer)

    def pop(self) -> Iterator[tuple[str, bytes]]:
        """Yield the pieces that are whole by now, as ("init" | "media", bytes)."""
        while True:
            end = 0
            for last in ("moov", "mdat"):
                if (last == "moov") == self._start:
                    end = self._end_of(last)
            if not end:
                return
            piece, self._buffer = bytes(self._buffer[:end]), self._buffer[end:]
            yield "init" if self._start else "media", piece
            self._start = False

    def _end_of(self, last: str) -> int:
        """End of the first whole box of kind `last`, or 0."""
        at = 0
        while at + 8 <= len(self._buffer):
            size, kind = struct.unpack_from(">I4s", self._buffer, at)
            if size < 8 or at + size > len(self._buffer):
                return 0
            at += size
            if kind == last.encode():
                return at
        return 0


class MediaFragment:
    """A moof + mdat pair: how many samples, and their composition times moved to start with the segment.

    FFmpeg shifts all composition times by x265's reordering delay, which would start every segment a few frames late;
    CMAF (ISO/IEC 23000-19, 7.5.17) has signed offsets in version 1 of trun for this.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)
        at = find_box(data, (b"moof", b"traf", b"trun"))
        version_flags, self.samples = struct.unpack_from(">II", data, at + 8)
        flags = version_flags & 0xFFFFFF
        self._reordered = bool(flags & _TRUN_COMPOSITION)
        if self._reordered and version_flags >> 24 != 1:
            raise EncodeError(f"fragment with trun version and flags {version_flags:#x}, expected signed offsets")
        self._first = at + 16 + 4 * bool(flags & _TRUN_DATA_OFFSET) + 4 * bool(flags & _TRUN_FIRST_FLAGS)
        self._stride = 4 * sum(bool(flags & field) for field in _TRUN_SAMPLE_FIELDS)
        mdat = find_box(data, (b"mdat",))
        self.video_bytes = struct.unpack_from(">I", data, mdat)[0] - 8

    def from_zero(self) -> bytes:
        """The fragment with its first picture shown at the segment's start (tfdt)."""
        if not self._reordered:
            return bytes(self._data)
        places = [self._first + k * self._stride + self._stride - 4 for k in range(self.samples)]
        shift = struct.unpack_from(">i", self._data, places[0])[0]
        for place in places:
            struct.pack_into(">i", self._data, place, struct.unpack_from(">i", self._data, place)[0] - shift)
        return bytes(self._data)


def find_box(data: bytes, path: tuple[bytes, ...], start: int = 0, end: int | None = None) -> int:
    """Offset of the box at the end of `path`; raise EncodeError if it is not there."""
    at, end = start, len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            break
        if kind == path[0]:
            return at if len(path) == 1 else find_box(data, path[1:], at + 8, at + size)
        at += size
    raise EncodeError(f"the muxer wrote no {path[0].decode()} box")


def codecs_parameter(init: bytes) -> str:
    """RFC 6381 codecs string of a video's init segment, by its decoder configuration box.

    Such as avc1.64000D (ISO/IEC 14496-15, section 5.4.1 and RFC 6381, 3.3), hvc1.1.6.L60.90 (14496-15, annex E),
    av01.0.00M.08 (AV1 in ISOBMFF, section 5), vp09.00.10.08 (VP9 in ISOBMFF, codecs parameter string).
    """
    for kind, describe in _DESCRIBERS.items():
        at = init.find(kind)
        if at >= 0 and at + 4 + _LONGEST_FIXED <= len(init):
            return describe(init[at + 4 :])
    known = ", ".join(kind.decode() for kind in _DESCRIBERS)
    raise EncodeError(f"the init segment holds no {known} box")


def _describe_avc(configuration: bytes) -> str:
    return f"avc1.{configuration[1:4].hex().upper()}"  # profile, constraints, level


def _describe_hevc(configuration: bytes) -> str:
    profile, compatible, constraints, level = struct.unpack_from(">xBI6sB", configuration)
    space = ("", "A", "B", "C")[profile >> 6]
    reversed_bits = int(f"{compatible:032b}"[::-1], 2)
    tail = "".join(f".{byte:X}" for byte in constraints.rstrip(b"\0"))
    return f"hvc1.{space}{profile & 31}.{reversed_bits:X}.{'H' if profile & 32 else 'L'}{level}{tail}"


def _describe_av1(configuration: bytes) -> str:
    profile_level, flags = configuration[1:3]
    tier = "H" if flags & 0x80 else "M"
    depth = 8 + 2 * bool(flags & 0x40) + 2 * bool(flags & 0x20)
    return f"av01.{profile_level >> 5}.{profile_level & 31:02d}{tier}.{depth:02d}"


def _describe_vp9(configuration: bytes) -> str:
    profile, level, depth = struct.unpack_from(">4xBBB", configuration)
    return f"vp09.{profile:02d}.{level:02d}.{depth >> 4:02d}"


_DESCRIBERS: dict[bytes, Callable[[bytes], str]] = {
    b"avcC": _describe_avc, b"hvcC": _describe_hevc, b"av1C": _describe_av1, b"vpcC": _describe_vp9,
}  # fmt: skip
_LONGEST_FIXED = 13  # bytes of a configuration that are read here
