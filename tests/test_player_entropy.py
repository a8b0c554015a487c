"""The entropy coder: exact integers, round trips at every extreme, and sizes that prediction must bring."""

import bisect
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from player.entropy import CodesDecoder, CodesEncoder, Layout
from player.entropy_tables import (
    ESCAPE,
    LIMIT,
    PHASES,
    SCALES,
    SYMBOLS,
    TOTAL_BITS,
    code_lengths,
    counts,
    model,
    scale_lookup,
    scale_steps,
)
from player.errors import BitstreamError

TABLE_CHECKSUM = 214744265624


class ReferenceDecoder:
    """constriction's range decoder (64-bit state, 32-bit words, 24-bit models) in Python's whole numbers alone."""

    def __init__(self, words):
        self.words = [int(word) for word in words] + [0, 0]
        self.lower, self.range, self.position = 0, (1 << 64) - 1, 2
        self.point = self.words[0] << 32 | self.words[1]

    def decode(self, table):
        sums = [0, *np.cumsum(table).tolist()]
        edges = [total * ((1 << 24) - SYMBOLS) // (1 << TOTAL_BITS) + k for k, total in enumerate(sums)]
        edges[-1] = 1 << 24
        scale = self.range >> 24
        symbol = bisect.bisect_right(edges, (self.point - self.lower) % (1 << 64) // scale) - 1
        self.lower = (self.lower + scale * edges[symbol]) % (1 << 64)
        self.range = scale * (edges[symbol + 1] - edges[symbol])
        if self.range < 1 << 32:
            self.lower, self.range = (self.lower << 32) % (1 << 64), self.range << 32
            word = self.words[self.position] if self.position < len(self.words) else 0
            self.point = (self.point << 32 | word) % (1 << 64)
            self.position += 1
        return symbol


def smooth_maps(keys, rank, side, seed, noise=1.0):
    """Return U-like codes int16 [K, side * side, rank]: blurred noise that drifts slowly in time."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rank, side + 8, side + 8))
    for axis in (1, 2):
        base = np.apply_along_axis(np.convolve, axis, base, np.ones(5) / 2.2, "same")
    maps = [
        np.roll(base, k // 2, axis=2)[:, 4:-4, 4:-4] * 3 + rng.normal(size=(rank, side, side)) * noise
        for k in range(keys)
    ]
    return np.round(np.stack(maps)).astype(np.int16).reshape(keys, rank, -1).transpose(0, 2, 1)


def round_trip(layout, prompts):
    """Return the sizes of prompts that decode to themselves."""
    encoder, decoder = CodesEncoder(layout), CodesDecoder(layout)
    sizes = []
    for u, v in prompts:
        data = encoder.encode(u, v)
        found_u, found_v = decoder.decode(data)
        np.testing.assert_array_equal(found_u, u)
        np.testing.assert_array_equal(found_v, v)
        assert found_u.dtype == found_v.dtype == np.int16
        sizes.append(len(data))
    return sizes


def test_tables_are_whole_and_sum_up():
    for scale in range(0, SCALES, 3):
        for phase in range(PHASES):
            table = counts(scale, phase)
            assert table.shape == (SYMBOLS,)
            assert table.min() >= 1
            assert table.sum() == 1 << TOTAL_BITS
        np.testing.assert_allclose(counts(scale, 2)[:ESCAPE], counts(scale, 2)[:ESCAPE][::-1], atol=SYMBOLS)


def test_tables_follow_the_laplacian():
    for scale in (4, 16, 30):
        width = scale_steps()[scale] / 2**20
        assert width == pytest.approx(2 ** (scale / 4 - 4), rel=1e-5)
        values = np.arange(-LIMIT, LIMIT + 1) + 0.5  # phase 0: the mean is -1/2

        def below(x, width=width):
            return np.where(x < 0, np.exp(np.minimum(x, 0) / width) / 2, 1 - np.exp(-np.maximum(x, 0) / width) / 2)

        expected = below(values + 0.5) - below(values - 0.5)
        found = (counts(scale, 0)[:ESCAPE] - 1) / ((1 << TOTAL_BITS) - SYMBOLS)
        np.testing.assert_allclose(found, expected, atol=1.01 * SYMBOLS / (1 << TOTAL_BITS))


def test_table_checksum():
    """Any change of the tables is a new format version."""
    everything = np.array([[counts(s, p) for p in range(PHASES)] for s in range(SCALES)])
    weights = np.arange(everything.size, dtype=np.int64) % 65521
    assert int((everything.ravel() * weights).sum()) == TABLE_CHECKSUM


def test_whole_numbers_alone_decode_the_same_symbols():
    """What constriction does with a table is what integer arithmetic says, so no machine can disagree."""
    import constriction

    rng = np.random.default_rng(0)
    picks = [(int(rng.integers(SCALES)), int(rng.integers(PHASES))) for _ in range(1500)]
    symbols = [int(np.clip(rng.laplace() * 2 ** (s / 4 - 4) + LIMIT, 0, ESCAPE)) for s, _ in picks]
    encoder = constriction.stream.queue.RangeEncoder()
    for symbol, pick in zip(symbols, picks, strict=True):
        encoder.encode(symbol, model(*pick))
    reference = ReferenceDecoder(encoder.get_compressed())
    assert [reference.decode(counts(*pick)) for pick in picks] == symbols


def test_scale_lookup_is_monotone_and_starts_at_its_floor():
    for floor in range(SCALES):
        row = scale_lookup(floor, 3, 500)
        assert row[0] == floor
        assert (np.diff(row) >= 0).all()
        assert row[-1] < SCALES
    assert set(scale_lookup(7, 0, 50)) == {7}
    assert code_lengths().shape == (SCALES, PHASES, SYMBOLS)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip_of_random_shapes(data):
    tokens, width, rank = (data.draw(st.integers(1, n)) for n in (30, 9, 3))
    divisors = [(0, 0), *((d, tokens // d) for d in range(1, tokens + 1) if tokens % d == 0)]
    grid = data.draw(st.sampled_from(divisors))
    spread = data.draw(st.sampled_from([0, 1, 6, 127, 128, 129, 3000, 32767]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    prompts = [
        (
            rng.integers(-spread, spread + 1, (tokens, rank)).astype(np.int16),
            rng.integers(-spread, spread + 1, (rank, width)).astype(np.int16),
        )
        for _ in range(3)
    ]
    round_trip(Layout(tokens, width, rank, *grid), [*prompts, prompts[-1], prompts[0]])


@pytest.mark.parametrize("low", [-32768, 32767])
def test_ends_of_int16(low):
    layout = Layout(36, 5, 2, 6, 6)
    checks = np.indices((36, 2)).sum(axis=0) % 2
    u = np.where(checks, low, -32768 if low > 0 else 32767).astype(np.int16)
    v = np.full((2, 5), low, np.int16)
    round_trip(layout, [(u, v), (~u, v), (u, ~v)])


def test_zero_and_repeated_prompts_cost_next_to_nothing():
    layout = Layout(256, 128, 16, 16, 16)
    zero = (np.zeros((256, 16), np.int16), np.zeros((16, 128), np.int16))
    full = (smooth_maps(1, 16, 16, 0)[0], np.ones((16, 128), np.int16))
    sizes = round_trip(layout, [zero, zero, full, full, full])
    assert max(sizes[0], sizes[1], sizes[4]) <= 4
    assert sizes[3] <= 14


def test_codes_cost_less_than_their_parts_would():
    """Bytes of smooth maps: well under 8-bit codes and LZMA, and less where the previous key prompt helps."""
    maps = smooth_maps(4, 16, 16, 1)
    v = np.zeros((16, 128), np.int16)
    v[:, ::20] = 1
    sizes = round_trip(Layout(256, 128, 16, 16, 16), [(u, v) for u in maps])
    raw = maps[0].T.astype(np.int16).tobytes() + v.tobytes()
    assert sizes[0] < 0.75 * len(lzma.compress(raw))
    flat = round_trip(Layout(256, 128, 16), [(u, v) for u in maps])
    assert sizes[0] < 0.97 * flat[0]
    assert sizes[1] < 0.9 * sizes[0]


def coefficient_maps(image, shift):
    """Return 16 maps float64 [256, 16] of low block-DCT coefficients of a 256 x 256 crop, their means removed."""
    from scipy.fft import dctn

    crop = image[shift // 2 : shift // 2 + 256, shift : shift + 256].mean(axis=2)
    blocks = dctn(crop.reshape(16, 16, 16, 16).transpose(0, 2, 1, 3), axes=(2, 3), norm="ortho")
    order = sorted(((i, j) for i in range(6) for j in range(6)), key=lambda place: (sum(place), place))[:16]
    maps = np.stack([blocks[:, :, i, j].ravel() for i, j in order], axis=1)
    return maps - maps.mean(axis=0)


@pytest.mark.parametrize(("step", "first", "later"), [(40, 1262, 1106), (120, 633, 510)])
def test_documented_sizes(step, first, later):
    """The table in docs/format.md, on photographs that ship with scikit-image."""
    from skimage import data

    v = np.zeros((16, 128), np.int16)
    firsts, laters = [], []
    for image in (data.astronaut(), data.chelsea(), data.coffee()):
        prompts = [(np.round(coefficient_maps(image, 4 * k) / step).astype(np.int16), v) for k in range(4)]
        sizes = round_trip(Layout(256, 128, 16, 16, 16), prompts)
        firsts.append(sizes[0])
        laters += sizes[1:]
    assert np.mean(firsts) == pytest.approx(first, rel=0.01)
    assert np.mean(laters) == pytest.approx(later, rel=0.01)


def test_laplacian_noise_costs_its_entropy():
    """Codes without structure: within 3 % of their own empirical entropy."""
    rng = np.random.default_rng(5)
    codes = np.round(rng.laplace(scale=3, size=(1024, 4))).astype(np.int16)
    _, tally = np.unique(codes, return_counts=True)
    share = tally / tally.sum()
    entropy_bytes = -(share * np.log2(share)).sum() * codes.size / 8
    (size,) = round_trip(Layout(1024, 1, 4, 32, 32), [(codes, np.zeros((4, 1), np.int16))])
    assert size < 1.03 * entropy_bytes


def test_lower_rank_needs_a_prefix_only():
    """Components come in order: the first r of a longer prompt decode from the same bytes."""
    maps = smooth_maps(2, 5, 8, 2)
    v = np.arange(5 * 9, dtype=np.int16).reshape(5, 9) % 4
    encoder, decoder = CodesEncoder(Layout(64, 9, 5, 8, 8)), CodesDecoder(Layout(64, 9, 2, 8, 8))
    for u in maps:
        found_u, found_v = decoder.decode(encoder.encode(u, v))
        np.testing.assert_array_equal(found_u, u[:, :2])
        np.testing.assert_array_equal(found_v, v[:2])


def test_encoding_does_not_depend_on_memory_order():
    layout = Layout(64, 9, 3, 8, 8)
    u, v = smooth_maps(1, 3, 8, 3)[0], np.ones((3, 9), np.int16)
    turned = np.asfortranarray(u), np.asfortranarray(v)
    assert CodesEncoder(layout).encode(u, v) == CodesEncoder(layout).encode(*turned)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_refused_or_decode(data):
    decoder = CodesDecoder(Layout(16, 8, 2, 4, 4))
    try:
        u, v = decoder.decode(data)
    except BitstreamError:
        return
    assert (u.shape, v.shape) == ((16, 2), (2, 8))


def test_published_prompts(shared_data):
    """The published prompts of Promptus: dense 8-bit codes, little to predict; smaller than 8-bit codes and LZMA."""
    torch = pytest.importorskip("torch")
    prompts = []
    for path in sorted((shared_data / "promptus" / "sky").glob("*.prompt"))[:3]:
        content = torch.load(path, weights_only=True, map_location="cpu")
        factors = [content[f].numpy().astype(np.int16) - np.int16(content[f"{f}_zero_point"]) for f in "UV"]
        prompts.append(tuple(factors))
    sizes = round_trip(Layout(77, 1024, 8), prompts)
    assert max(sizes) < 0.9 * 8 * (77 + 1024)
