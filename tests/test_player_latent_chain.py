"""Chained streams against the published system's rule, written out once more here; and what they cannot do."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from player.bitstream import KeyPrompt, Segment, StreamInfo, read_init, segment_number, write_init, write_segment
from player.chain import Chain, unpack_chain
from player.decoder import PromptDecoder
from player.errors import BitstreamError, DecodeError, GeneratorMismatchError
from player.generator import load_generator
from player.one_step import seeded_noise
from player.pixels import to_pixels

RANK, INTERVAL, CARRY = 3, 4, 0.05


@pytest.fixture(scope="module")
def plain(plain_folder):
    return load_generator(str(plain_folder), device="cpu")


@pytest.fixture(scope="module")
def first_latent():
    return np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def codes():
    """Codes less zero point of four key prompts, and their scales."""
    source = np.random.default_rng(1)
    u = source.integers(-60, 60, (4, 77, RANK)).astype(np.int16)
    v = source.integers(-60, 60, (4, RANK, 24)).astype(np.int16)
    return u, v, np.float32([0.019, 0.02, 0.021, 0.018]), np.float32([0.1, 0.11, 0.09, 0.1])


def stream(plain, first_latent, carry=CARRY):
    chain = Chain.of(carry, first_latent) if carry else None
    return StreamInfo("sd-turbo", 77, 24, RANK, RANK, 64, 64, 64, 64, Fraction(30), chain=chain)


@pytest.fixture(scope="module")
def segments(plain, first_latent, codes):
    """Two segments: frames 0-7 with the key prompt of frame 8 to close it, and frames 8-12."""
    u, v, u_scale, v_scale = codes
    parts = []
    for first, last, frames in ((0, 2, 8), (2, 3, 5)):
        chosen = range(first, last + 1)
        keys = tuple(KeyPrompt((k - first) * INTERVAL, u[k], v[k]) for k in chosen)
        scales = (np.repeat(scale[list(chosen)][:, None], RANK, axis=1) for scale in (u_scale, v_scale))
        parts.append(Segment(frames, *scales, keys))
    info = stream(plain, first_latent)
    return [write_segment(info, part, sequence=n, start_frame=0) for n, part in enumerate(parts, start=1)]


@torch.no_grad()
def published(unet, decoder, u, v, first_latent):
    """DESIGN's facts, frame by frame: what the published system renders of key prompts U and V [K, ...].

    noise = numpy RandomState(88); input = 0.05 of the latent before and 0.95 noise, the latent being that of the last
    key frame; timestep 999; c_in = 0.0683 and c_out = -14.6146 to more digits; embedding = U V / sqrt(rank), both
    interpolated linearly; TAESD's pictures in [-1, 1].
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)[999]
    c_in, c_out = math.sqrt(kept), -math.sqrt((1 - kept) / kept)
    noise = torch.from_numpy(np.random.RandomState(88).randn(1, 4, 8, 8)).float()

    def frame(z, a, b):
        x = z
        clean = c_out * unet(x, 999, (a @ b / math.sqrt(RANK))[None]).sample + x / c_in
        return clean, decoder(clean)

    before = torch.from_numpy(first_latent)[None]
    before, picture = frame(0.05 * before + 0.95 * noise, u[0], v[0])
    pictures = [picture]
    for (u0, v0), (u1, v1) in pairwise(zip(u, v, strict=True)):
        z = 0.05 * before + 0.95 * noise
        for step in range(1, INTERVAL + 1):
            share = step / INTERVAL
            before, picture = frame(z, (1 - share) * u0 + share * u1, (1 - share) * v0 + share * v1)
            pictures.append(picture)
    return torch.cat(pictures)


def test_frames_are_the_published_ones(plain, first_latent, codes, segments):
    u, v, u_scale, v_scale = (torch.from_numpy(part) for part in codes)
    values = (u * u_scale[:, None, None], v * v_scale[:, None, None])
    expected = to_pixels(published(plain.unet, plain.decoder.decoder, *values, first_latent)).numpy()
    decoder = PromptDecoder(write_init(stream(plain, first_latent)), plain)
    shown = np.concatenate([decoder.decode(segment) for segment in segments])
    assert shown.shape == (13, 64, 64, 3)
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1
    alone = PromptDecoder(write_init(stream(plain, first_latent, carry=0)), plain)
    assert alone._chain is None
    other = Segment(
        *(getattr(_read(plain, first_latent, segments[0]), n) for n in ("frames", "u_scale", "v_scale", "keys"))
    )
    frames = alone.decode(write_segment(alone.info, other, sequence=1, start_frame=0))
    assert np.abs(frames.astype(int) - shown[:8].astype(int)).max() > 1  # the chain matters


def _read(plain, first_latent, data):
    from player.bitstream import read_segment

    return read_segment(stream(plain, first_latent), data)


def test_the_order_is_kept(plain, first_latent, segments):
    init = write_init(stream(plain, first_latent))
    decoder = PromptDecoder(init, plain)
    with pytest.raises(DecodeError, match=r"segment 2 of a chained stream was asked for without segment 1 before it"):
        decoder.decode(segments[1])
    first, second = decoder.decode(segments[0]), decoder.decode(segments[1])
    np.testing.assert_array_equal(decoder.decode(segments[1]), second)  # the same again
    np.testing.assert_array_equal(decoder.decode(segments[0]), first)  # from the start again, as a loop does
    np.testing.assert_array_equal(np.concatenate(list(decoder.decode_all(segments))), np.concatenate([first, second]))
    assert decoder.conceal(segments[1], 2).shape == (2, 64, 64, 3)
    with pytest.raises(DecodeError, match="not the one decoded last"):
        decoder.conceal(segments[0], 2)


def test_streams_that_stand_alone_decode_ahead(plain, first_latent, segments):
    info = stream(plain, first_latent, carry=0)
    parts = [_read(plain, first_latent, data) for data in segments]
    data = [write_segment(info, part, sequence=n, start_frame=0) for n, part in enumerate(parts, start=1)]
    decoder = PromptDecoder(write_init(info), plain)
    for ahead, one in zip(decoder.decode_all(data), data, strict=True):
        np.testing.assert_array_equal(ahead, decoder.decode(one))


def test_generators_that_cannot_chain_are_refused(plain, first_latent, tiny_generator):
    other = StreamInfo(
        "sd-turbo", 77, 24, RANK, RANK, 64, 64, 64, 64, Fraction(30), chain=Chain.of(0.05, first_latent[:3])
    )
    with pytest.raises(GeneratorMismatchError, match=r"latents \(3, 8, 8\), but the generator has \(4, 8, 8\)"):
        PromptDecoder(write_init(other), plain)


def test_the_init_segment_holds_the_chain(plain, first_latent, segments):
    info = stream(plain, first_latent)
    data = write_init(info)
    assert read_init(data) == info
    assert [segment_number(segment) for segment in segments] == [1, 2]
    for at in range(0, len(data), 97):
        with pytest.raises(BitstreamError):
            read_init(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert len(repr(info)) < 500


@pytest.mark.parametrize("data", [b"", bytes(10), Chain.of(0.5, np.zeros((1, 2, 2), np.float32)).pack()[:-1]])
def test_damaged_chains_are_refused(data):
    with pytest.raises(BitstreamError, match="chained stream"):
        unpack_chain(data)


def test_latents_must_be_numbers():
    with pytest.raises(BitstreamError, match="not finite"):
        Chain.of(0.5, np.full((1, 2, 2), np.nan, np.float32))


def test_published_streams_start_from_other_latents_than_the_noise(shared_data):
    from packager.import_prompts import read_latent

    latent = read_latent(shared_data / "promptus" / "sky")
    noise = seeded_noise(4, 64).numpy()
    assert latent.shape == noise.shape
    assert abs(np.corrcoef(latent.ravel(), noise.ravel())[0, 1]) < 0.05
