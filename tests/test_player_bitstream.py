"""Prompt streams: round trips, exact container layout, and hostile bytes."""

import io
import itertools
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from player.bitstream import (
    KeyPrompt,
    Segment,
    StreamInfo,
    _pack_info,
    read_init,
    read_inits,
    read_layers,
    read_segment,
    write_init,
    write_layers,
    write_segment,
)
from player.errors import BitstreamError
from player.motion import motion_anchors
from player.mp4 import read_fragment, write_fragment_head

GOLDEN = Path(__file__).parent / "golden" / "prompt_stream.mp4"


def make_info(rank=3, tokens=12, width=8, fps=Fraction(30000, 1001), grid=(3, 4)):
    return StreamInfo("embedded/1", tokens, width, rank, 16, 256, 256, 256, 144, fps, *grid)


def make_segment(info, offsets=(0, 4, 9), seed=0, spread=9):
    rng = np.random.default_rng(seed)
    keys = tuple(
        KeyPrompt(
            offset,
            rng.integers(-spread, spread + 1, (info.tokens, info.rank)).astype(np.int16),
            rng.integers(-2, 3, (info.rank, info.width)).astype(np.int16),
        )
        for offset in offsets
    )
    scales = rng.random((2, info.rank)).astype(np.float32)
    return Segment(offsets[-1] + 1, scales[0], scales[1], keys)


def reseal(info, data):
    """Return a segment with its CRCs made right again, as an attacker would."""
    ((start, _),) = read_fragment(data).sample_ranges
    crc = zlib.crc32(data[:start] + data[start + 4 :], zlib.crc32(_pack_info(info)))
    return data[:start] + struct.pack(">I", crc) + data[start + 4 :]


def make_chain(ranks=(1, 3), **changes):
    """Return descriptions that build on each other."""
    return [replace(make_info(rank, **changes), base_rank=base) for base, rank in itertools.pairwise((0, *ranks))]


def test_round_trip():
    info = make_info()
    segment = make_segment(info)
    data = write_segment(info, segment, sequence=7, start_frame=1000)
    assert read_segment(info, data) == segment
    assert read_init(write_init(info)) == info
    assert write_segment(info, segment, sequence=7, start_frame=1000) == data


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_round_trip_of_random_shapes(data):
    tokens, width, rank = (data.draw(st.integers(1, n)) for n in (20, 20, 4))
    divisors = [(0, 0), *((d, tokens // d) for d in range(1, tokens + 1) if tokens % d == 0)]
    grid = data.draw(st.sampled_from(divisors))
    fps = Fraction(data.draw(st.integers(1, 120_000)), data.draw(st.integers(1, 1001)))
    info = make_info(rank, tokens, width, fps, grid)
    offsets = (0, *itertools.accumulate(data.draw(st.lists(st.integers(1, 50), max_size=4))))
    codes = st.sampled_from([0, 1, -1, 2, 5, -127, 127, 128, -128, 4000, 32767, -32768])
    keys = []
    for offset in offsets:
        rows = data.draw(st.lists(codes, min_size=rank * 4, max_size=rank * 4))
        u = np.resize(np.array(rows, np.int16), (tokens, rank))
        v = np.resize(np.array(rows[::-1], np.int16), (rank, width))
        keys.append(KeyPrompt(offset, u, v))
    segment = Segment(offsets[-1] + 1, np.ones(rank, np.float32), np.full(rank, -0.5, np.float32), tuple(keys))
    assert read_segment(info, write_segment(info, segment, sequence=1, start_frame=0)) == segment
    assert read_init(write_init(info)) == info


def test_one_frame_one_key():
    info = make_info(rank=1, tokens=1, width=1, grid=(0, 0))
    segment = make_segment(info, offsets=(0,))
    assert segment.frames == 1
    assert read_segment(info, write_segment(info, segment, sequence=1, start_frame=0)) == segment


@pytest.mark.parametrize(("motion", "anchors"), [(False, ()), (True, ()), (True, (2, 5, 8))])
def test_layers_compose_to_the_whole(motion, anchors):
    chain = make_chain((1, 2, 4))
    segment = make_segment(chain[-1])
    if motion:
        field = np.random.default_rng(1).integers(-3, 4, (2 + len(anchors), 2, 3, 5)).astype(np.int16)
        segment = replace(segment, motion=field, anchors=anchors)
    layers = write_layers(chain, segment, sequence=7, start_frame=10)
    assert read_inits(b"".join(write_init(info) for info in chain)) == chain
    for count, rank in ((1, 1), (2, 2), (3, 4)):
        assert read_layers(chain, b"".join(layers[:count])) == segment.truncate(rank)
    alone = replace(chain[-1], base_rank=0)
    assert read_segment(alone, write_segment(alone, segment, sequence=7, start_frame=10)) == segment


def make_anchored(info):
    """Return a segment of 11 frames with key prompts at 1, 4 and 9, anchors of motion at 0, 2, 6 and 10, and a cut at
    frame 3."""
    field = np.random.default_rng(1).integers(-3, 4, (6, 2, 3, 5)).astype(np.int16)
    segment = make_segment(info)
    keys = (replace(segment.keys[0], frame_offset=1), *segment.keys[1:])
    return Segment(11, segment.u_scale, segment.v_scale, keys, field, (0, 2, 6, 10), (3,))


def test_anchors_stand_beside_key_prompts():
    segment = make_anchored(make_info())
    assert segment.offsets.tolist() == [1, 4, 9]
    assert segment.all_anchors.tolist() == [0, 1, 2, 4, 6, 9, 10]
    for anchors in ((2,), (0, 2, 4, 10), (0, 6, 2, 10), (0, 2, 6, 12), (-1, 2, 6, 10), (2, 3, 6, 10), (0, 2, 6, 8)):
        with pytest.raises(BitstreamError, match=r"anchors|motion int16"):
            replace(segment, anchors=anchors)
    with pytest.raises(BitstreamError, match="anchors at frames"):
        replace(make_segment(make_info()), anchors=(2,))
    for step in (0.0, 0.3, 16.125, -1.0):
        with pytest.raises(BitstreamError, match=f"motion in steps of {step} pixels"):
            replace(segment, motion_step_px=step)


def test_scenes_have_key_prompts_of_their_own():
    segment = make_anchored(make_info())
    for cuts in ((2, 3), (0, 3), (3, 3), (5, 3), (3, 11), (10,)):
        with pytest.raises(BitstreamError, match="cuts at frames"):
            replace(segment, cuts=cuts)
    with pytest.raises(BitstreamError, match="and with motion"):
        replace(make_segment(make_info()), cuts=(3,))
    info = make_info()
    data = write_segment(info, segment, sequence=1, start_frame=0)
    assert read_segment(info, data) == segment
    assert read_segment(info, data).cuts == (3,)


def test_one_key_prompt_and_motion():
    info = make_info()
    many = make_anchored(info)
    one = replace(many, keys=many.keys[1:2], motion=many.motion[:2], anchors=(0, 10), cuts=())
    assert read_segment(info, write_segment(info, one, sequence=1, start_frame=0)) == one


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (1, b"\xc5", "anchors of motion, expected with motion"),  # no motion
        (4, b"\x01\x03\x03\x05\x05\x07\x03", "a list of anchors, expected"),  # every one a key prompt
        (4, b"\x00\x02\x02\x04\x04\x06\x02", "a list of anchors, expected"),  # none of them
        (5, b"\x01", "two anchors at one frame"),
        (4, b"\x02", "the first not at frame 0"),
        (3, b"\xff\x7f", "16383 anchors"),
        (13, b"\x00", "motion in steps of 0.0 pixels"),
        (14, b"\xff\x7f", "16383 cuts"),
        (15, b"\x0c", "cuts at frames \\[12\\] of 11"),
    ],
)
def test_hostile_anchors_are_refused(offset, value, message):
    info = make_info()
    data = write_segment(info, make_anchored(info), sequence=1, start_frame=0)
    at = read_fragment(data).sample_ranges[0][0] + 4
    gaps = [0, 1 << 1 | 1, 1 << 1, 2 << 1 | 1, 2 << 1, 3 << 1 | 1, 1 << 1]
    assert data[at + 1 : at + 16] == bytes([0xE5, 0, 7, *gaps, 3, 5, 8, 1, 3])
    other = bytearray(data)
    other[at + offset : at + offset + len(value)] = value
    with pytest.raises(BitstreamError, match=message):
        read_segment(info, reseal(info, bytes(other)))


def make_even(info):
    """Return a segment of 14 frames with key prompts at 4 and 9, a cut at frame 6, and anchors no more than 2 apart."""
    segment = make_segment(info, offsets=(0, 9))
    keys = (replace(segment.keys[0], frame_offset=4), segment.keys[1])
    field = np.random.default_rng(1).integers(-3, 4, (8, 2, 3, 5)).astype(np.int16)
    return Segment(14, segment.u_scale, segment.v_scale, keys, field, (0, 2, 5, 6, 8, 11, 13), (6,), 2.5)


def test_even_anchors_are_not_listed():
    info = make_info()
    segment = make_even(info)
    assert segment.all_anchors.tolist() == [0, 2, 4, 5, 6, 8, 9, 11, 13]
    data = write_segment(info, segment, sequence=1, start_frame=0)
    at = read_fragment(data).sample_ranges[0][0] + 4
    assert data[at + 1] & 0xF0 == 0xE0
    assert data[at + 2 : at + 11] == bytes([2, 2, 4, 5, 3, 5, 20, 1, 6])
    assert read_segment(info, data) == segment
    for interval in (1, 3, 50):  # the last is written as the largest gap that it leaves
        places = motion_anchors(segment.offsets, 14, interval, (6,))
        anchors = tuple(np.setdiff1d(places, segment.offsets).tolist())
        other = replace(segment, motion=np.zeros((len(places) - 1, 2, 3, 5), np.int16), anchors=anchors)
        assert read_segment(info, write_segment(info, other, sequence=1, start_frame=0)) == other


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (1, b"\xcf", "anchors of motion, expected with motion"),
        (3, b"\x03\x04\x05\x05\x03\x05", r"key prompts at frames \(4, 9, 14\)"),
        (5, b"\x7f", r"\(4, 131\), cuts at \(6,\), of 14 frames"),
        (10, b"\x0e", r"cuts at \(14,\), of 14 frames"),
        (5, b"\x00", "two key prompts at one frame"),
    ],
)
def test_hostile_even_anchors_are_refused(offset, value, message):
    info = make_info()
    data = write_segment(info, make_even(info), sequence=1, start_frame=0)
    at = read_fragment(data).sample_ranges[0][0] + 4
    other = bytearray(data)
    other[at + offset : at + offset + len(value)] = value
    with pytest.raises(BitstreamError, match=message):
        read_segment(info, reseal(info, bytes(other)))


def test_a_bomb_of_anchors_is_refused():
    """A field of one cell costs a decoder as much to stretch over the picture as any other."""
    info = make_info(rank=1, tokens=1, width=1, grid=(0, 0))
    keys = make_segment(info, offsets=(0, 2999)).keys
    field = np.zeros((2999, 2, 1, 1), np.int16)
    ones = np.ones(1, np.float32)
    with pytest.raises(BitstreamError, match=r"2 key prompts of rank 1: 6141956 codes, at most 4194304"):
        write_segment(info, Segment(3000, ones, ones, keys, field, tuple(range(1, 2999))), sequence=1, start_frame=0)
    with pytest.raises(BitstreamError, match="segment of 70000 frames, at most 65536"):
        read_segment(info, write_segment(info, make_segment(info, offsets=(0, 69_999)), sequence=1, start_frame=0))


def test_an_upper_layer_has_no_flags_of_the_first():
    chain = make_chain((1, 3))
    layers = write_layers(chain, make_segment(chain[-1]), sequence=1, start_frame=0)
    ((start, _),) = read_fragment(layers[1]).sample_ranges
    for flag in (1 << 4, 1 << 5, 1 << 6):
        other = bytearray(layers[1])
        other[start + 5] |= flag
        below = struct.unpack(">I", layers[0][start : start + 4])[0]
        crc = zlib.crc32(other[:start] + other[start + 4 :], zlib.crc32(_pack_info(chain[1]), below))
        other[start : start + 4] = struct.pack(">I", crc)
        with pytest.raises(BitstreamError, match=f"flags {flag:#04x} in a layer above the first"):
            read_layers(chain, layers[0] + bytes(other))


def test_layers_belong_to_their_base():
    chain = make_chain()
    one, other = (write_layers(chain, make_segment(chain[-1], seed=s), sequence=1, start_frame=0) for s in (0, 1))
    for bad in (one[0] + other[1], one[1], one[1] + one[0], one[0] + one[0], one[0] + one[1] + one[1]):
        with pytest.raises(BitstreamError):
            read_layers(chain, bad)
    for index in range(len(one[0]), len(one[0] + one[1])):
        bad = bytearray(one[0] + one[1])
        bad[index] ^= 0x10
        with pytest.raises(BitstreamError):
            read_layers(chain, bytes(bad))
    with pytest.raises(BitstreamError, match="components 1 to 3 on top of rank 0"):
        read_layers(chain[1:], one[1])
    with pytest.raises(BitstreamError, match="layers of different streams"):
        read_inits(write_init(chain[0]) + write_init(replace(chain[1], generator_id="other/1")))


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("per_component", [False, True])
def test_scales_of_every_kind(per_key, per_component):
    """Only scales that differ are written; 0 or 1 of a K x r table's sides may be constant."""
    info = make_info()
    segment = make_segment(info)
    table = np.random.default_rng(2).random((3 if per_key else 1, 3 if per_component else 1)).astype(np.float32)
    scale = np.broadcast_to(table, (3, 3)).copy()
    one = replace(segment, u_scale=np.ones(3, np.float32), v_scale=np.ones(3, np.float32))
    data = write_segment(info, replace(one, u_scale=scale), sequence=1, start_frame=0)
    assert read_segment(info, data) == replace(one, u_scale=scale)
    plain = write_segment(info, one, sequence=1, start_frame=0)
    assert len(data) - len(plain) == 4 * (table.size - 1)


def test_the_last_key_prompt_may_close_the_segment():
    """It stands at the first frame behind it, and serves interpolation only."""
    info = make_info()
    segment = replace(make_segment(info), frames=9)
    assert segment.keys[-1].frame_offset == 9
    assert read_segment(info, write_segment(info, segment, sequence=1, start_frame=0)) == segment


def test_rank_prefix_is_the_truncated_segment():
    full, part = make_info(rank=3), make_info(rank=2)
    segment = make_segment(full)
    short = segment.truncate(2)
    assert short.rank == 2
    whole = read_segment(full, write_segment(full, segment, sequence=1, start_frame=0))
    assert read_segment(part, write_segment(part, short, sequence=1, start_frame=0)) == whole.truncate(2)
    assert segment.truncate(3) == segment


def test_libavformat_lists_one_data_stream_with_right_times():
    info = make_info()
    first, second = make_segment(info, (0, 10, 59)), make_segment(info, (0, 29), seed=1)
    data = write_init(info) + write_segment(info, first, sequence=1, start_frame=0)
    data += write_segment(info, second, sequence=2, start_frame=60)
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.type, stream.time_base) == ("data", Fraction(1, 30000))
    assert [packet.pts for packet in packets] == [0, 1001 * 60]
    assert [packet.duration for packet in packets] == [1001 * 60, 1001 * 30]


def test_samples_in_the_container_decode_to_what_was_written():
    info = make_info()
    segment = make_segment(info)
    data = write_segment(info, segment, sequence=1, start_frame=0)
    with av.open(io.BytesIO(write_init(info) + data)) as container:
        samples = [bytes(packet) for packet in container.demux() if packet.size]
    assert samples == [data[-len(samples[0]) :]]


def formula_segment(info, offsets, spread):
    """Return a segment whose codes need no random generator: smooth maps that change slowly."""
    keys = []
    for k, offset in enumerate(offsets):
        token, component = np.meshgrid(np.arange(info.tokens), np.arange(info.rank), indexing="ij")
        u = (token * (component + 3) * 7 + k * token) % (2 * spread + 1) - spread
        column = np.arange(info.width)
        v = (np.arange(info.rank)[:, None] * 5 + column * 3 + k) % 11 // 8
        keys.append(KeyPrompt(offset, u.astype(np.int16), v.astype(np.int16)))
    scales = np.arange(1, info.rank + 1, dtype=np.float32) / 8
    return Segment(offsets[-1] + 1, scales, -scales, tuple(keys))


def test_golden_bytes():
    """Any change of these bytes is a new format version; PROMPTDASH_REMAKE_GOLDEN=1 writes them anew."""
    info = make_info()
    anchored = formula_segment(info, (0, 4, 9), 6)
    motion = (np.arange(4 * 2 * 3 * 5) % 7 // 3).astype(np.int16).reshape(4, 2, 3, 5)
    anchored = replace(anchored, frames=11, keys=anchored.keys[1:], motion=motion, anchors=(0, 2, 10), cuts=(6,))
    segments = [formula_segment(info, (0, 4, 9), 6), formula_segment(info, (0, 5), 3000), anchored]
    data = [write_segment(info, s, sequence=n, start_frame=10 * (n - 1)) for n, s in enumerate(segments, 1)]
    if os.environ.get("PROMPTDASH_REMAKE_GOLDEN"):
        GOLDEN.write_bytes(write_init(info) + b"".join(data))
    golden = GOLDEN.read_bytes()
    ends = [0, *itertools.accumulate(map(len, [write_init(info), *data]))]
    init, *stored = (golden[a:b] for a, b in itertools.pairwise(ends))
    assert read_init(init) == info
    assert [read_segment(info, part) for part in stored] == segments
    assert write_init(info) + b"".join(data) == golden


def test_every_byte_is_counted_once():
    info = make_info()
    segment = make_segment(info)
    data = write_segment(info, segment, sequence=1, start_frame=0)
    samples = read_fragment(data).sample_ranges
    boxes = 8 + 16 + 8 + 16 + 16 + 28 + 8  # moof, mfhd, traf, tfhd, tfdt, trun, mdat
    assert samples[0][0] == boxes
    assert samples[-1][1] == len(data)


def test_truncated_at_every_byte():
    info = make_info()
    segment = write_segment(info, make_segment(info), sequence=1, start_frame=0)
    init = write_init(info)
    for cut in range(len(segment)):
        with pytest.raises(BitstreamError):
            read_segment(info, segment[:cut])
    for cut in range(len(init)):
        with pytest.raises(BitstreamError):
            read_init(init[:cut])


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(change):
    info = make_info()
    segment = write_segment(info, make_segment(info), sequence=1, start_frame=3)
    init = write_init(info)
    for data, read in ((segment, lambda d: read_segment(info, d)), (init, read_init)):
        for index in range(len(data)):
            bad = bytearray(data)
            bad[index] ^= change
            with pytest.raises(BitstreamError):
                read(bytes(bad))


def test_extra_bytes_and_other_boxes():
    info = make_info()
    segment = write_segment(info, make_segment(info), sequence=1, start_frame=0)
    free = struct.pack(">I4s", 8, b"free")
    for bad in (segment + b"\0", segment + free, free + segment, segment + segment, b"", write_init(info)):
        with pytest.raises(BitstreamError):
            read_segment(info, bad)
    for bad in (write_init(info) + b"\0", write_init(info) + free, b"", segment):
        with pytest.raises(BitstreamError):
            read_init(bad)


def test_another_streams_init_is_noticed():
    info = make_info()
    data = write_segment(info, make_segment(info), sequence=1, start_frame=0)
    with pytest.raises(BitstreamError, match="another stream"):
        read_segment(replace(info, generator_id="embedded/2"), data)


def test_messages_say_what_was_found():
    info = make_info()
    data = write_segment(info, make_segment(info), sequence=1, start_frame=0)
    at = read_fragment(data).sample_ranges[0][0] + 4
    for offset, value, message in (
        (0, b"\x09", "segment: version 9, but this build reads version 4"),
        (2, b"\x00", "0 key prompts"),
        (2, b"\xff\x7f", "16383 key prompts"),
        (3, b"\x00", "two key prompts at one frame"),
        (3, b"\x07", "key prompts from frame 0 to 12, expected from 0 to 9 or 10"),
        (3, b"\xff\xff\xff\xff\xff", "more than 5 bytes"),
        (5, struct.pack(">f", float("nan")), "not finite"),
    ):
        other = bytearray(data)
        other[at + offset : at + offset + len(value)] = value
        with pytest.raises(BitstreamError, match=message):
            read_segment(info, reseal(info, bytes(other)))


@pytest.mark.parametrize("make", [make_segment, make_anchored, make_even])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_resealed_nonsense_is_refused_or_decodes(make, data):
    """An attacker can make the CRCs right: then the coder itself must not fall over."""
    info = make_info()
    good = write_segment(info, make(info), sequence=1, start_frame=0)
    first = read_fragment(good).sample_ranges[0][0]
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 20))):
        bad[data.draw(st.integers(first, len(bad) - 1))] = data.draw(st.integers(0, 255))
    try:
        segment = read_segment(info, reseal(info, bytes(bad)))
    except BitstreamError:
        return
    assert segment.keys[0].u.shape == (info.tokens, info.rank)


def test_huge_lengths_do_not_allocate():
    info = make_info()
    data = write_segment(info, make_segment(info), sequence=1, start_frame=0)
    trun = data.index(b"trun") + 8
    for where, value in ((trun, 0xFFFFFFFF), (trun + 16, 0x7FFFFFFF), (0, 0xFFFFFFFF), (0, 0), (0, 1)):
        bad = bytearray(data)
        bad[where : where + 4] = struct.pack(">I", value)
        with pytest.raises(BitstreamError):
            read_segment(info, bytes(bad))
    with pytest.raises(BitstreamError, match="codes a key prompt"):
        make_info(rank=4096, tokens=1 << 20, grid=(1024, 1024))


def test_a_bomb_of_key_prompts_is_refused():
    info = make_info(rank=1024, tokens=1024, width=1024, grid=(0, 0))
    sample = bytes([4, 0, 20, *[1] * 19]) + bytes(8)
    data = write_fragment_head(1, 0, [20 * 1001], [4 + len(sample)]) + bytes(4) + sample
    with pytest.raises(BitstreamError, match="20 key prompts of rank 1024: 41943040 codes, at most 4194304"):
        read_segment(info, reseal(info, data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"tokens": 2.0}, "tokens 2.0"),
        ({"display_width": 300}, "300x144 shown"),
        ({"fps": 30.0}, "frame rate"),
        ({"fps": Fraction(-1)}, "frame rate"),
        ({"grid_height": 5}, "5 x 4 grid"),
        ({"grid_height": 0}, "0 x 4 grid"),
        ({"generator_id": ""}, "generator id"),
        ({"generator_id": "x" * 256}, "generator id"),
        ({"base_rank": 3}, "base rank 3, expected 0 to 2"),
    ],
)
def test_stream_description_is_checked(change, message):
    with pytest.raises(BitstreamError, match=message):
        replace(make_info(), **change)


def test_segment_is_checked():
    info = make_info()
    good = make_segment(info)
    key = good.keys[0]
    for change, message in (
        ({"keys": ()}, "without key prompts"),
        ({"frames": 12}, "from frame 0 to 9, expected from 0 to 11 or 12"),
        ({"keys": good.keys[::-1]}, "expected to rise"),
        ({"u_scale": good.u_scale.astype(np.float64)}, "u_scale: float64"),
        ({"v_scale": np.full(3, np.inf, np.float32)}, "v_scale"),
        ({"u_scale": good.u_scale[:2]}, "expected finite float32"),
        ({"keys": (KeyPrompt(0, key.u.astype(np.int32), key.v), *good.keys[1:])}, "int32"),
        ({"keys": (KeyPrompt(0, key.u[:5], key.v), *good.keys[1:])}, "expected int16"),
        ({"motion": np.zeros((3, 2, 4, 4), np.int16)}, "motion int16"),
    ):
        with pytest.raises(BitstreamError, match=message):
            replace(good, **change)
    with pytest.raises(BitstreamError, match="rank 4 of a segment of rank 3"):
        good.truncate(4)
    with pytest.raises(BitstreamError, match="the stream has rank 2"):
        write_segment(make_info(rank=2), good, sequence=1, start_frame=0)
    for numbers in ({"sequence": -1, "start_frame": 0}, {"sequence": 0, "start_frame": -1}):
        with pytest.raises(BitstreamError, match="out of range"):
            write_segment(info, good, **numbers)


def test_light_half_imports_without_torch():
    code = "import sys, player.bitstream, player.presentation; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
