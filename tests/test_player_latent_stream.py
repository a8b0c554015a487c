"""Latent streams: codes survive, damage is noticed, and hostile bytes end in one kind of error."""

import struct
import zlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from player import latent_stream as stream
from player.errors import BitstreamError, PlayerError
from player.latent_codes import decode_codes, encode_codes
from player.latent_stream import LatentInfo, read_init, read_segment, write_init, write_segment

INFO = LatentInfo(3, 4, 5, 80, 60, 160, 120, Fraction(30000, 1001), 0.5, "tiny-vae-0123456789ab")


def codes_of(seed=0, frames=6, spread=2.0):
    """A first frame and small sparse changes after it."""
    random = np.random.default_rng(seed)
    steps = random.laplace(0, spread, (frames, 3, 4, 5))
    steps[1:] *= random.random((frames - 1, 3, 4, 5)) < 0.2
    return np.cumsum(np.rint(steps), axis=0).astype(np.int16)


def segment_of(codes):
    return write_segment(INFO, codes, sequence=7, start_frame=60)


@pytest.mark.parametrize("seed", range(6))
def test_codes_survive(seed):
    codes = codes_of(seed, frames=1 + 3 * seed, spread=4.0**seed / 8)
    np.testing.assert_array_equal(read_segment(INFO, segment_of(codes)), codes)


def test_the_whole_range_of_codes_survives():
    codes = np.random.default_rng(0).choice(
        np.array([-(1 << 15), (1 << 15) - 1, 0, 31, 32, -32], np.int16), (3, 2, 4, 5)
    )
    np.testing.assert_array_equal(decode_codes(encode_codes(codes), codes.shape), codes)


def test_still_frames_cost_next_to_nothing():
    still = np.repeat(codes_of(frames=1), 60, axis=0)
    assert len(segment_of(still)) < len(segment_of(still[:1])) + 40
    assert len(encode_codes(np.zeros((60, 16, 16, 16), np.int16))) < 100


def test_small_changes_cost_less_than_frames_of_their_own():
    codes = codes_of(frames=30)
    alone = sum(len(encode_codes(frame[None])) for frame in codes)
    assert len(encode_codes(codes)) < 0.6 * alone


def test_the_bytes_are_pinned():
    data = write_init(INFO) + segment_of(codes_of())
    assert (len(write_init(INFO)), zlib.crc32(encode_codes(codes_of(frames=20)))) == (630, 3854427114)
    assert data == write_init(INFO) + segment_of(codes_of())


def test_descriptions_survive_and_are_checked():
    assert read_init(write_init(INFO)) == INFO
    for change in ({"step": 0.0}, {"step": float("nan")}, {"step": 0.1}, {"channels": 0}, {"autoencoder_id": ""},
                   {"fps": Fraction(-1)}, {"grid_height": 65535, "grid_width": 65535}):  # fmt: skip
        with pytest.raises(BitstreamError):
            replace(INFO, **change)


def test_every_flipped_byte_and_every_cut_is_noticed():
    init, segment = write_init(INFO), segment_of(codes_of())
    for at in range(len(init)):
        with pytest.raises(BitstreamError):
            read_init(init[:at] + bytes([init[at] ^ 0x10]) + init[at + 1 :])
        with pytest.raises(BitstreamError):
            read_init(init[:at])
    for at in range(len(segment)):
        with pytest.raises(BitstreamError):
            read_segment(INFO, segment[:at] + bytes([segment[at] ^ 0x10]) + segment[at + 1 :])
        with pytest.raises(BitstreamError):
            read_segment(INFO, segment[:at])
    with pytest.raises(BitstreamError):
        read_segment(INFO, segment + b"\0")


def test_another_streams_init_does_not_fit():
    with pytest.raises(BitstreamError, match="another init"):
        read_segment(replace(INFO, step=0.25), segment_of(codes_of()))


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_under_a_good_crc_decode_or_are_refused(seed):
    segment = segment_of(codes_of())
    start = segment.index(b"mdat") + 4
    sample = segment[start + 4 : start + 6] + np.random.default_rng(seed).bytes(len(segment) - start - 6)
    crc = zlib.crc32(segment[:start] + sample, zlib.crc32(stream._pack_info(INFO)))
    try:
        codes = read_segment(INFO, segment[:start] + struct.pack(">I", crc) + sample)
    except PlayerError:
        return
    assert codes.shape == (6, 3, 4, 5)


def test_a_segment_too_long_to_allocate_is_refused(monkeypatch):
    monkeypatch.setattr(stream, "MAX_SEGMENT_CODES", 300)
    with pytest.raises(BitstreamError, match="at most"):
        read_segment(INFO, write_segment_unchecked(codes_of()))


def write_segment_unchecked(codes):
    limit, stream.MAX_SEGMENT_CODES = stream.MAX_SEGMENT_CODES, 1 << 25
    try:
        return segment_of(codes)
    finally:
        stream.MAX_SEGMENT_CODES = limit
