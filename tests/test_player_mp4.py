"""ISO base media boxes: exact layout and refusal of what is not laid out so."""

import struct

import pytest

from player.errors import BitstreamError
from player.mp4 import (
    box,
    expect_boxes,
    find_init_data,
    full_box,
    full_box_payload,
    list_boxes,
    read_fragment,
    write_fragment_head,
    write_metadata_init,
)

URI = "tag:example.org,2026:test"


def tree(data, start=0, end=None):
    """Return the box types of a file as nested lists."""
    containers = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"mvex", b"moof", b"traf")
    return [
        (b.kind.decode(), tree(data, b.body, b.end)) if b.kind in containers else b.kind.decode()
        for b in list_boxes(data, start, end)
    ]


def test_box_layout():
    assert box(b"free", b"ab", b"c") == b"\0\0\0\x0bfreeabc"
    assert full_box(b"url ", 0, 1) == b"\0\0\0\x0curl \0\0\0\x01"
    (found,) = list_boxes(b"\0\0\0\x0bfreeabc")
    assert (found.kind, found.start, found.body, found.end) == (b"free", 0, 8, 11)


def test_init_layout():
    data = write_metadata_init(30000, URI, b"payload")
    stbl = ("stbl", ["stsd", "stts", "stsc", "stsz", "stco"])
    minf = ("minf", ["nmhd", ("dinf", ["dref"]), stbl])
    trak = ("trak", ["tkhd", ("mdia", ["mdhd", "hdlr", minf])])
    assert tree(data) == ["ftyp", ("moov", ["mvhd", trak, ("mvex", ["trex"])])]
    sizes = {b"mvhd": 108, b"tkhd": 92, b"mdhd": 32, b"nmhd": 12, b"trex": 32, b"stsz": 20}  # fixed by the standard
    for kind, size in sizes.items():
        at = data.index(kind) - 4
        assert struct.unpack_from(">I", data, at)[0] == size, kind
    assert data[data.index(b"hdlr") + 12 :][:4] == b"meta"
    assert struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0] == 30000
    item = find_init_data(data, URI)
    assert data[item.body + 4 : item.end] == b"payload"


def test_fragment_layout():
    head = write_fragment_head(7, 1 << 40, [10, 20], [3, 5])
    data = head + b"aaabbbbb"
    assert tree(data) == [("moof", ["mfhd", ("traf", ["tfhd", "tfdt", "trun"])]), "mdat"]
    fragment = read_fragment(data)
    assert (fragment.sequence, fragment.base_time, fragment.durations) == (7, 1 << 40, (10, 20))
    assert [data[a:b] for a, b in fragment.sample_ranges] == [b"aaa", b"bbbbb"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0", "3 stray bytes at offset 0"),
        (b"\0\0\0\x07free", "size 7, but 8 bytes are left"),
        (b"\0\0\0\x09free", "size 9, but 8 bytes are left"),
        (b"\0\0\0\x00free", "size 0"),
        (b"\xff\xff\xff\xfffree", "size 4294967295"),
        (b"\0\0\0\x01free" + bytes(8), "size 1"),
    ],
)
def test_bad_boxes(data, message):
    with pytest.raises(BitstreamError, match=message):
        list_boxes(data)


def test_wrong_boxes_are_named():
    with pytest.raises(BitstreamError, match="boxes free skip at offset 0, expected free"):
        expect_boxes(box(b"free") + box(b"skip"), [b"free"])
    (short,) = list_boxes(box(b"tfhd"))
    with pytest.raises(BitstreamError, match="'tfhd' of 8 bytes, expected 12 or more"):
        full_box_payload(box(b"tfhd"), short, 0, 0)
    data = full_box(b"tfhd", 1, 2)
    (item,) = list_boxes(data)
    with pytest.raises(BitstreamError, match="version 1 flags 0x000002, but this build reads version 0 flags 0x020000"):
        full_box_payload(data, item, 0, 0x020000)


def change(data, kind, offset, value):
    """Return data with 4 bytes replaced at an offset behind a box's type."""
    at = data.index(kind) + 4 + offset
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


@pytest.mark.parametrize(
    ("kind", "offset", "value", "message"),
    [
        (b"trun", 4, 3, "3 samples listed in 16 bytes"),
        (b"trun", 4, 0, "0 samples"),
        (b"trun", 4, 0x20000002, "samples listed in 16 bytes"),
        (b"trun", 8, 5, "but the mdat opens at"),
        (b"trun", 16, 2, "1 bytes of the mdat belong to no sample"),
        (b"trun", 16, 9, "sample 0: 9 bytes, but 8 are left"),
        (b"tfdt", 0, 1 << 24, "version 1"),
        (b"tfhd", 0, 0, "flags 0x000000"),
    ],
)
def test_contradicting_fragments(kind, offset, value, message):
    data = write_fragment_head(1, 0, [10, 20], [3, 5]) + b"aaabbbbb"
    with pytest.raises(BitstreamError, match=message):
        read_fragment(change(data, kind, offset, value))


def test_another_scheme_is_named():
    data = write_metadata_init(1, URI, b"")
    with pytest.raises(BitstreamError, match=r"metadata scheme 'tag:example\.org,2026:test', expected 'tag:other'"):
        find_init_data(data, "tag:other")
