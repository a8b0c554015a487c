"""The entropy coder: exact integers, round trips at every extreme, and sizes that prediction must bring."""

import bisect
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from player.entropy import CodesDecoder, CodesEncoder, Layout, _Factor, _window_model
from player.entropy_tables import (
    GAUSSIAN,
    LAPLACIAN,
    PHASES,
    REACH,
    SCALES,
    TOTAL_BITS,
    distributions,
    scale_bounds,
)
from player.errors import BitstreamError

TABLE_CHECKSUM = 1056108333594027


class ReferenceDecoder:
    """constriction's range decoder (64-bit state, 32-bit words, 24-bit models) in Python's whole numbers alone."""

    def __init__(self, words):
        self.words = [int(word) for word in words] + [0, 0]
        self.lower, self.range, self.position = 0, (1 << 64) - 1, 2
        self.point = self.words[0] << 32 | self.words[1]

    def decode(self, counts):
        sums = [0, *np.cumsum(counts).tolist()]
        edges = [total * ((1 << 24) - len(counts)) // (1 << TOTAL_BITS) + k for k, total in enumerate(sums)]
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


def round_trip(grid, u, v):
    """Return the size of prompts u [K, L, r], v [K or 1, r, D] that decode to themselves."""
    layout = Layout(len(u), len(v), grid, v.shape[2])
    data = CodesEncoder(layout).encode(u, v)
    found = CodesDecoder(layout).decode(data, u.shape[2])
    np.testing.assert_array_equal(found.u, u)
    np.testing.assert_array_equal(found.v, v)
    assert found.u.dtype == found.v.dtype == np.int16
    return len(data)


def no_v(rank, width=1):
    return np.zeros((1, rank, width), np.int16)


def test_distributions_are_whole_and_symmetric():
    table = distributions()
    assert table.shape == (2 * SCALES, 2 * PHASES * REACH + 1)
    assert (np.diff(table, axis=1) >= 0).all()
    assert (table[:, 0] == 0).all()
    assert (table + table[:, ::-1] == 1 << TOTAL_BITS).all()


@pytest.mark.parametrize("scale", [12, 20, 30])
def test_distributions_follow_their_formulas(scale):
    from scipy.stats import laplace, norm

    width = 2 ** (scale / 4 - 4)
    points = np.arange(-PHASES * REACH, PHASES * REACH + 1) / PHASES
    for row, expected in ((LAPLACIAN, laplace(scale=width)), (GAUSSIAN, norm(scale=width * np.sqrt(np.pi / 2)))):
        found = distributions()[row + scale] / (1 << TOTAL_BITS)
        np.testing.assert_allclose(found, expected.cdf(points), atol=0.004)
    assert scale_bounds()[scale - 1] < width * 2**20 < scale_bounds()[scale]


def test_table_checksum():
    """Any change of the tables is a new format version."""
    table = distributions()
    weights = np.arange(table.size, dtype=np.int64) % 65521
    assert int((table.ravel() * weights).sum()) == TABLE_CHECKSUM


def test_whole_numbers_alone_decode_the_same_symbols():
    """What constriction does with counts is what integer arithmetic says, so no machine can disagree."""
    import constriction

    rng = np.random.default_rng(0)
    encoder = constriction.stream.queue.RangeEncoder()
    batches = []
    for symbols in rng.integers(18, 900, 60):
        counts = rng.integers(1, 2 + (1 << TOTAL_BITS) // (2 * int(symbols)), (8, int(symbols)))
        counts[:, symbols // 2] += (1 << TOTAL_BITS) - counts.sum(axis=1)
        chosen = np.array([rng.choice(len(row), p=row / row.sum()) for row in counts], np.int32)
        encoder.encode(chosen, _window_model(), counts.astype(np.float64))
        batches.append((counts, chosen))
    reference = ReferenceDecoder(encoder.get_compressed())
    for counts, chosen in batches:
        assert [reference.decode(row) for row in counts] == chosen.tolist()


def test_the_model_speaks_in_whole_numbers_only():
    """Nothing that decides a code's distribution is floating point but the counts, and those are whole."""
    factor = _Factor(3, 4, 4, ((3, 3, -1, *[0] * 7), (1, 1, 0, 0, 6, *[0] * 5)))
    rng = np.random.default_rng(1)
    for step in factor.extend(2):
        prediction = factor.predict(step)
        counts = prediction.counts
        assert (counts >= 1).all()
        assert (counts == np.floor(counts)).all()
        assert (counts.sum(axis=1) == 1 << TOTAL_BITS).all()
        factor.learn(step, prediction, rng.integers(-9, 10, len(counts)))
    state = {name: value for name, value in vars(factor).items() if isinstance(value, np.ndarray)}
    assert {value.dtype for value in state.values()} == {np.dtype(np.int64)}


def test_a_step_uses_nothing_that_is_not_yet_decoded():
    """Codes of one step may be changed without a change in any prediction up to that step."""

    def predictions(codes, steps):
        factor = _Factor(3, 5, 4, ((3, 3, -1, *[0] * 7), (1, 1, 0, 0, 6, *[0] * 5)))
        found = []
        for _, step in zip(range(steps), factor.extend(2), strict=False):
            prediction = factor.predict(step)
            found.append(prediction.counts)
            factor.learn(step, prediction, codes[step.component, step.key, step.position])
        return found, step

    codes = np.random.default_rng(2).integers(-5, 6, (2, 3, 20))
    for steps in (4, 9, 17, 26):
        before, step = predictions(codes, steps)
        changed = codes.copy()
        changed[step.component, step.key, step.position] += 3
        for one, other in zip(before, predictions(changed, steps)[0], strict=True):
            np.testing.assert_array_equal(one, other)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_round_trip_of_random_shapes(data):
    tokens, width, rank, keys = (data.draw(st.integers(1, n)) for n in (30, 9, 3, 4))
    rows = data.draw(st.sampled_from([d for d in range(1, tokens + 1) if tokens % d == 0]))
    spread = data.draw(st.sampled_from([0, 1, 6, 127, 128, 3000, 32767]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    u = rng.integers(-spread, spread + 1, (keys, tokens, rank)).astype(np.int16)
    v = rng.integers(-spread, spread + 1, (data.draw(st.sampled_from([1, keys])), rank, width)).astype(np.int16)
    round_trip((rows, tokens // rows), u, v)


@pytest.mark.parametrize("low", [-32768, 32767])
def test_ends_of_int16(low):
    checks = np.indices((3, 36, 2)).sum(axis=0) % 2
    u = np.where(checks, low, -32768 if low > 0 else 32767).astype(np.int16)
    round_trip((6, 6), u, np.full((3, 2, 5), low, np.int16))


def test_zero_and_repeated_prompts_cost_next_to_nothing():
    zero = np.zeros((6, 256, 16), np.int16)
    assert round_trip((16, 16), zero, np.zeros((1, 16, 128), np.int16)) <= 70
    full = smooth_maps(1, 16, 16, 0)
    once = round_trip((16, 16), full, no_v(16))
    assert round_trip((16, 16), np.repeat(full, 6, axis=0), no_v(16)) < once + 5 * 30


def test_codes_cost_less_than_their_parts_would():
    """Bytes of smooth maps: well under 8-bit codes and LZMA, and less where the previous key prompt helps."""
    maps = smooth_maps(4, 16, 16, 1)
    size = round_trip((16, 16), maps, no_v(16))
    first = round_trip((16, 16), maps[:1], no_v(16))
    assert first < 0.75 * len(lzma.compress(maps[0].T.astype(np.int16).tobytes()))
    assert first < 0.97 * round_trip((1, 256), maps[:1], no_v(16))
    assert size < 4 * 0.92 * first


def coefficient_maps(image, shift):
    """Return 16 maps float64 [256, 16] of low block-DCT coefficients of a 256 x 256 crop, their means removed."""
    from scipy.fft import dctn

    crop = image[shift // 2 : shift // 2 + 256, shift : shift + 256].mean(axis=2)
    blocks = dctn(crop.reshape(16, 16, 16, 16).transpose(0, 2, 1, 3), axes=(2, 3), norm="ortho")
    order = sorted(((i, j) for i in range(6) for j in range(6)), key=lambda place: (sum(place), place))[:16]
    maps = np.stack([blocks[:, :, i, j].ravel() for i, j in order], axis=1)
    return maps - maps.mean(axis=0)


@pytest.mark.parametrize(("step", "first", "four"), [(40, 1281, 4463), (120, 673, 2184)])
def test_documented_sizes(step, first, four):
    """The table in docs/format.md, on photographs that ship with scikit-image."""
    from skimage import data

    sizes = []
    for image in (data.astronaut(), data.chelsea(), data.coffee()):
        u = np.stack([np.round(coefficient_maps(image, 4 * k) / step).astype(np.int16) for k in range(4)])
        sizes.append([round_trip((16, 16), u[:count], no_v(16)) for count in (1, 4)])
    assert np.mean(sizes, axis=0).tolist() == pytest.approx([first, four], rel=0.01)


@pytest.mark.parametrize("shape", ["laplace", "normal"])
def test_noise_costs_its_entropy(shape):
    """Codes without structure: within 3 % of their own empirical entropy."""
    rng = np.random.default_rng(5)
    codes = np.round(getattr(rng, shape)(scale=3, size=(1, 1024, 4))).astype(np.int16)
    _, tally = np.unique(codes, return_counts=True)
    share = tally / tally.sum()
    entropy_bytes = -(share * np.log2(share)).sum() * codes.size / 8
    assert round_trip((32, 32), codes, no_v(4)) < 1.03 * entropy_bytes


def test_layers_continue_each_other():
    """A layer is coded behind those below it; the first ones decode without those that follow."""
    maps = smooth_maps(2, 5, 8, 2)
    v = (np.arange(2 * 5 * 9, dtype=np.int16) % 4).reshape(2, 5, 9)
    layout = Layout(2, 2, (8, 8), 9)
    encoder, decoder = CodesEncoder(layout), CodesDecoder(layout)
    for part in (slice(0, 1), slice(1, 3), slice(3, 5)):
        data = encoder.encode(maps[:, :, part], v[:, part])
        found = decoder.decode(data, part.stop - part.start)
        np.testing.assert_array_equal(found.u, maps[:, :, part])
        np.testing.assert_array_equal(found.v, v[:, part])


def test_encoding_does_not_depend_on_memory_order():
    layout = Layout(1, 1, (8, 8), 9)
    u, v = smooth_maps(1, 3, 8, 3), np.ones((1, 3, 9), np.int16)
    turned = np.asfortranarray(u), np.asfortranarray(v)
    assert CodesEncoder(layout).encode(u, v) == CodesEncoder(layout).encode(*turned)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_refused_or_decode(data):
    decoder = CodesDecoder(Layout(2, 2, (4, 4), 8, (2, 3), 1))
    try:
        u, v, motion = decoder.decode(data, 2)
    except BitstreamError:
        return
    assert (u.shape, v.shape, motion.shape) == ((2, 16, 2), (2, 2, 8), (1, 2, 2, 3))


def test_published_prompts(shared_data):
    """The published prompts of Promptus: dense 8-bit codes, of which little can be predicted."""
    torch = pytest.importorskip("torch")
    prompts = []
    for path in sorted((shared_data / "promptus" / "sky").glob("*.prompt"))[:3]:
        content = torch.load(path, weights_only=True, map_location="cpu")
        factors = [content[f].numpy().astype(np.int16) - np.int16(content[f"{f}_zero_point"]) for f in "UV"]
        prompts.append(tuple(factors))
    u, v = (np.stack(factor) for factor in zip(*prompts, strict=True))
    assert round_trip((1, 77), u, v) < 0.87 * 3 * 8 * (77 + 1024)
