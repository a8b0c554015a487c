"""Entropy coder of the prompts of one segment: codes to bytes and back, in whole numbers only, alike on every machine.

The codes of all key prompts are coded together, component after component, so a lower rank is coded alone and a layer
of further components continues it. A factor (U as maps on the token grid, V as rows) is a stack of planes [C, K, h, w],
visited as a wavefront: a plane's code comes a few places after those that it is predicted from. Each code is coded
under a mixture of four distributions (player.entropy_tables), whose means, scales and weights follow what was decoded:

    mean     a Gaussian and a Laplacian around the least-squares prediction from neighbours in the plane and in the
             previous key prompts; Laplacians around the previous key prompt's code and around zero
    scale    of each by the residuals' magnitudes nearby: the average deviation wherever they were alike before
    weight   of each by how many codes nearby differ from the previous key prompt's, as often as it was right there

Encoder and decoder run the same model and send nothing but codes. Range coding by constriction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import constriction
import numpy as np

from player.entropy_tables import GAUSSIAN, LAPLACIAN, PHASES, REACH, TOTAL_BITS, distributions, scale_bounds
from player.errors import BitstreamError

# Inputs of the prediction, as (components back, key prompts back, rows, columns): four neighbours, five places of the
# key prompt before, one of that before it.
_INPUTS = (
    (0, 0, 0, -1), (0, 0, -1, 0), (0, 0, -1, -1), (0, 0, -1, 1),
    (0, 1, 0, 0), (0, 1, 0, -1), (0, 1, -1, 0), (0, 1, 0, 1), (0, 1, 1, 0), (0, 2, 0, 0),
)  # fmt: skip
_PREVIOUS = 4  # the input that is the previous key prompt's code at the same place
# Where nearby residuals are looked at, likewise, and their weights.
_NEARBY = {
    (0, 0, 0, -1): 4, (0, 0, -1, 0): 4, (0, 0, -1, -1): 2, (0, 0, -1, 1): 2,
    (1, 0, 0, 0): 2, (1, 0, 0, -1): 1, (1, 0, -1, 0): 1, (1, 0, 0, 1): 1,
    (0, 1, 0, 0): 3, (0, 1, 0, -1): 1, (0, 1, -1, 0): 1, (0, 1, 0, 1): 1, (0, 1, 1, 0): 1,
}  # fmt: skip
# Places whose difference from the previous key prompt chooses the weights of the mixture, weighted.
_CHANGES = {
    (0, 0, 0, -1): 2, (0, 0, -1, 0): 2, (0, 0, -1, -1): 1, (0, 0, -1, 1): 1, (1, 0, 0, 0): 2, (0, 1, 0, 0): 2,
}  # fmt: skip
_CHANGE_CONTEXTS = sum(_CHANGES.values()) + 1
_OWN_WEIGHT, _BESIDE_WEIGHT, _PAST_WEIGHT = 12, 5, 7  # sums of _NEARBY's weights by where they look
_AVERAGE_WEIGHT = 8  # of the plane's running average among them
_AVERAGE_SHIFT = 4  # the running average moves by 1/16 of the difference
_LAG = 2  # a plane of the next component follows this many places behind
_WEIGHT_BITS = 12  # fixed point of the prediction's weights
_RIDGE = 30  # how much the weights that the fit starts from count, in squared codes
_CLIP = 1023  # codes and magnitudes that the model learns from are clipped to this
_BANDS = 32  # classes of nearby magnitudes, half an octave each from 1/16 code
_TRUST = 4  # what a band's scale starts from counts as so many codes
_SHARE_BITS = 16  # fixed point of the mixture's weights
_SHARE_RATE = 30  # a weight moves by 1/n to the newest code, n growing to this
_LEAST_SHARE = 1 << 8
_RESPONSIBILITY_BITS = 12
_MEMORY = 1024  # codes; beyond them a scale forgets half
# Weights of the prediction that the fit starts from, in eighths: without and with a previous key prompt.
_U_START = ((4, 3, -1, 1, 0, 0, 0, 0, 0, 0), (3, 3, -1, 1, 3, -1, -1, 0, 0, 0))
_V_START = ((0,) * 10, (0, 0, 0, 0, 4, 0, 0, 0, 0, 0))
_ROWS = np.array([GAUSSIAN, LAPLACIAN, LAPLACIAN, LAPLACIAN])
_WINDOW = 12  # half-width of the coded window in units of the largest scale
_WIDEST = 36  # windows do not grow beyond that of this scale, 32 codes
_RAW_OFFSET = 1 << 15  # a code outside it is written as 16 bits
_PAD = 2  # cells around a plane that read as zero


class Layout(NamedTuple):
    """Shapes that the coder needs."""

    keys: int  # K, key prompts of the segment
    v_keys: int  # K, or 1 if all key prompts have the same V
    grid: tuple[int, int]  # rows and columns that the tokens are laid out in; one row without a layout
    width: int  # D
    motion_grid: tuple[int, int] = (0, 0)  # rows and columns of the motion field; (0, 0): none
    fields: int = 0  # A - 1, motion fields of the segment


class Codes(NamedTuple):
    """What one layer holds."""

    u: np.ndarray  # [K, L, r] int16
    v: np.ndarray  # [K or 1, r, D] int16
    motion: np.ndarray | None  # [A - 1, 2, rows, columns] int16


class _Prediction(NamedTuple):
    """What the model says of the codes of one step, and what it learns from once they are known."""

    base: np.ndarray  # [n] the code in the middle of the window
    half: int  # codes on either side of it; others are escaped
    counts: np.ndarray  # [n, 2 half + 2] float64 whole numbers that sum to 2**TOTAL_BITS; the last is the escape
    means: np.ndarray  # [n, 4] of the distributions, in 1/PHASES code
    masses: np.ndarray  # [n, 4, 2 half + 2] below each symbol of the window and above it
    shares: np.ndarray  # [n, 4]
    inputs: np.ndarray  # [n, 10]
    band: np.ndarray  # [n] row of the scales
    cell: np.ndarray  # [n] row of the shares


class _Step(NamedTuple):
    """Codes that are coded at once; arrays [n]."""

    place: np.ndarray  # in the padded planes, flattened
    component: np.ndarray
    key: np.ndarray
    position: np.ndarray  # in the plane, in raster order


class _Factor:
    """Model of the planes of one factor, growing by layers of components."""

    def __init__(self, keys: int, height: int, width: int, start: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        """Start without components; `start` holds the first weights of the prediction, in eighths, without and with a
        previous key prompt."""
        self.keys = keys
        self.components = 0
        self._size = (height, width)
        padded = (1, keys + 2, height + 2 * _PAD, width + 2 * _PAD)  # a component and two key prompts of zeros before
        self._codes, self._errors, self._changed = (np.zeros(padded, np.int64) for _ in range(3))
        self._average = np.zeros((0, keys), np.int64)
        self._inputs_at, self._nearby_at, self._changes_at = map(self._offsets, (_INPUTS, _NEARBY, _CHANGES))
        inputs = len(_INPUTS)
        self._start = np.array(start, np.int64) << _WEIGHT_BITS - 3
        self._normal = np.zeros((0, 2, inputs, inputs), np.int64)
        self._target = np.zeros((0, 2, inputs), np.int64)
        self._weights = np.zeros((0, 2, inputs), np.int64)
        experts = len(_ROWS)
        trust = _TRUST << _RESPONSIBILITY_BITS
        self._trusted = np.full((2 * _BANDS, experts), trust, np.int64)
        first = np.append(_band_edges(), 2 * _band_edges()[-1]) * trust >> _AVERAGE_SHIFT
        self._deviations = np.tile(first[:, None], (2, experts))
        self._shares = np.full((2 * _CHANGE_CONTEXTS, experts), (1 << _SHARE_BITS) // experts, np.int64)
        self._seen = np.full(2 * _CHANGE_CONTEXTS, 4, np.int64)

    def extend(self, count: int) -> Iterator[_Step]:
        """Add components and return the order in which their codes are coded."""
        first, self.components = self.components, self.components + count

        def more(array: np.ndarray, fill: Any = 0) -> np.ndarray:
            return np.concatenate([array, np.broadcast_to(fill, (count, *array.shape[1:])).astype(np.int64)])

        self._codes, self._errors, self._changed = map(more, (self._codes, self._errors, self._changed))
        self._average = more(self._average, PHASES << _AVERAGE_SHIFT)
        inputs = len(_INPUTS)
        self._normal = more(self._normal, _RIDGE * np.eye(inputs, dtype=np.int64))
        self._target = more(self._target, _RIDGE * self._start >> _WEIGHT_BITS)
        self._weights = more(self._weights, self._start)
        return self._steps(first, count)

    def codes(self, first: int) -> np.ndarray:
        """Return the codes [c, K, h, w] of the components from `first` on."""
        return self._codes[first + 1 :, 2:, _PAD:-_PAD, _PAD:-_PAD]

    def _steps(self, first: int, count: int) -> Iterator[_Step]:
        keys, (height, width) = self.keys, self._size
        lag = width + 2 if height > 1 else 2  # the previous key prompt is known one row and one column ahead
        c, k, y, x = np.indices((count, keys, height, width)).reshape(4, -1)
        time = y * width + x + _LAG * c + lag * k
        order = np.argsort(time, kind="stable")
        c, k, y, x = c[order] + first, k[order], y[order], x[order]
        _, _, rows, columns = self._codes.shape
        place = (((c + 1) * (keys + 2) + k + 2) * rows + y + _PAD) * columns + x + _PAD
        edges = np.flatnonzero(np.diff(time[order])) + 1
        for step in zip(*(np.split(array, edges) for array in (place, c, k, y * width + x)), strict=True):
            yield _Step(*step)

    def _offsets(self, places: Iterable[tuple[int, ...]]) -> np.ndarray:
        """Return the distances in the flattened planes of places (components back, key prompts back, rows, columns)."""
        _, keys, rows, columns = self._codes.shape
        return np.array([((-c * keys - k) * rows + y) * columns + x for c, k, y, x in places])

    def predict(self, step: _Step) -> _Prediction:
        """Return the distribution of each code of a step."""
        place, late = step.place, np.minimum(step.key, 1)
        near = self._codes.ravel()[place[:, None] + self._inputs_at]
        inputs = near.clip(-_CLIP, _CLIP)
        weights = self._weights[step.component, late]
        mean = (weights * inputs).sum(axis=1) + (1 << _WEIGHT_BITS - 4) >> _WEIGHT_BITS - 3
        zero = np.zeros_like(mean)
        means = np.stack([mean, mean, PHASES * near[:, _PREVIOUS], zero], axis=1)
        band = late * _BANDS + self._band(step, late)
        deviation = (self._deviations[band] << 20 - 3) // self._trusted[band]
        scales = np.searchsorted(scale_bounds(), deviation, side="right")
        changes = self._changed.ravel()[place[:, None] + self._changes_at]
        cell = late * _CHANGE_CONTEXTS + changes @ np.array(list(_CHANGES.values()))
        shares = self._shares[cell]
        base = mean + PHASES // 2 >> 3
        half = (_WINDOW * int(scale_bounds()[min(scales.max(), _WIDEST)]) >> 20) + 8
        points = PHASES * np.arange(-half, half + 2) - PHASES // 2
        at = (PHASES * base[:, None] - means)[:, :, None] + points + PHASES * REACH
        table = distributions()
        masses = table.ravel()[(_ROWS + scales)[:, :, None] * table.shape[1] + at.clip(0, table.shape[1] - 1)]
        mixed = (shares[:, :, None] * masses).sum(axis=1) // shares.sum(axis=1)[:, None]
        symbols = 2 * half + 2
        counts = np.empty((len(base), symbols))
        counts[:, :-1] = np.diff(mixed * ((1 << TOTAL_BITS) - symbols) >> TOTAL_BITS, axis=1) + 1
        counts[:, -1] = (1 << TOTAL_BITS) - counts[:, :-1].sum(axis=1)
        return _Prediction(base, half, counts, means, masses, shares, inputs, band, cell)

    def _band(self, step: _Step, late: np.ndarray) -> np.ndarray:
        """Return the class [n] of the residuals' mean magnitude around each place."""
        errors = self._errors.ravel()[step.place[:, None] + self._nearby_at]
        total = (errors @ np.array(list(_NEARBY.values()))) << _AVERAGE_SHIFT
        total += _AVERAGE_WEIGHT * self._average[step.component, step.key]
        weight = _OWN_WEIGHT + _AVERAGE_WEIGHT + _BESIDE_WEIGHT * (step.component > 0) + _PAST_WEIGHT * late
        return np.searchsorted(_band_edges(), total // weight, side="right")

    def learn(self, step: _Step, prediction: _Prediction, codes: np.ndarray) -> None:
        """Take in the codes [n] of a step."""
        place = step.place
        error = np.abs(PHASES * codes[:, None] - prediction.means).clip(0, PHASES * _CLIP)  # [n, 4]
        self._codes.ravel()[place] = codes
        self._errors.ravel()[place] = error[:, 0]
        self._changed.ravel()[place] = error[:, 2] != 0
        average = self._average[step.component, step.key]
        self._average[step.component, step.key] = average + error[:, 0] - (average >> _AVERAGE_SHIFT)
        self._learn_mixture(prediction, codes, error)
        self._learn_weights(step, prediction.inputs, codes.clip(-_CLIP, _CLIP))

    def _learn_mixture(self, prediction: _Prediction, codes: np.ndarray, error: np.ndarray) -> None:
        """Move scales and weights of the mixture towards what each distribution contributed."""
        symbol = (codes - prediction.base + prediction.half).clip(0, 2 * prediction.half)
        n = np.arange(len(codes))
        likelihood = prediction.masses[n, :, symbol + 1] - prediction.masses[n, :, symbol] + 1
        joint = prediction.shares * likelihood
        responsibility = (joint << _RESPONSIBILITY_BITS) // joint.sum(axis=1)[:, None]
        np.add.at(self._trusted, prediction.band, responsibility)
        np.add.at(self._deviations, prediction.band, responsibility * error)
        old = self._trusted > _MEMORY << _RESPONSIBILITY_BITS
        self._trusted[old] >>= 1
        self._deviations[old] >>= 1
        cell = prediction.cell
        count = np.bincount(cell, minlength=len(self._seen))
        self._seen += count
        pace = np.maximum(np.minimum(self._seen, _SHARE_RATE), 2 * count)[cell]
        target = responsibility << _SHARE_BITS - _RESPONSIBILITY_BITS
        np.add.at(self._shares, cell, (target - prediction.shares) // pace[:, None])
        np.maximum(self._shares, _LEAST_SHARE, out=self._shares)

    def _learn_weights(self, step: _Step, inputs: np.ndarray, codes: np.ndarray) -> None:
        """Add to the normal equations of each component's prediction and improve its weights one by one."""
        cells = 2 * step.component + np.minimum(step.key, 1)  # ascending
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        cells = cells[starts]
        size = len(_INPUTS)
        normal, target, weights = (a.reshape(-1, *a.shape[2:]) for a in (self._normal, self._target, self._weights))
        normal[cells] += np.add.reduceat(inputs[:, :, None] * inputs[:, None, :], starts)
        target[cells] += np.add.reduceat(inputs * codes[:, None], starts)
        left, right, w = normal[cells], target[cells] << _WEIGHT_BITS, weights[cells]
        for i in range(size):
            w[:, i] += (right[:, i] - (left[:, i] * w).sum(axis=1)) // left[:, i, i]
        weights[cells] = w.clip(-4 << _WEIGHT_BITS, 4 << _WEIGHT_BITS)


class _Coder:
    """What encoder and decoder share: a model of each factor, and of the motion between anchors."""

    def __init__(self, layout: Layout) -> None:
        self._u = _Factor(layout.keys, *layout.grid, _U_START)
        self._v = _Factor(layout.v_keys, 1, layout.width, _V_START)
        self._motion = _Factor(layout.fields, *layout.motion_grid, _U_START) if any(layout.motion_grid) else None


class CodesEncoder(_Coder):
    """Encodes the key prompts of one segment, layer by layer."""

    def encode(self, u: np.ndarray, v: np.ndarray, motion: np.ndarray | None = None) -> bytes:
        """Return the bytes of the next components, u [K, L, r] and v [K or 1, r, D] int16.

        `motion` int16 [A - 1, 2, rows, columns] goes with the first layer, if the layout has it.
        """
        coder = constriction.stream.queue.RangeEncoder()
        _encode(coder, self._u, u.transpose(2, 0, 1))
        _encode(coder, self._v, v.transpose(1, 0, 2))
        if self._motion is not None and motion is not None:
            _encode(coder, self._motion, motion.transpose(1, 0, 2, 3))
        return _shortest(coder)


class CodesDecoder(_Coder):
    """Decodes the key prompts of one segment, layer by layer."""

    def decode(self, data: bytes, rank: int) -> Codes:
        """Return the next `rank` components, and the motion with the first; raise BitstreamError if nothing encodes to
        these bytes."""
        padded = data + bytes(8 + -len(data) % 4)
        coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))
        first = not self._u.components
        u = _decode(coder, self._u, rank).reshape(rank, self._u.keys, -1).transpose(1, 2, 0)
        v = _decode(coder, self._v, rank)[:, :, 0].transpose(1, 0, 2)
        motion = None
        if self._motion is not None and first:
            motion = np.ascontiguousarray(_decode(coder, self._motion, 2).transpose(1, 0, 2, 3))
        return Codes(np.ascontiguousarray(u), np.ascontiguousarray(v), motion)


def _encode(coder: Any, factor: _Factor, codes: np.ndarray) -> None:
    """Write further components [c, K, ...] of a factor."""
    flat = codes.reshape(len(codes), factor.keys, -1).astype(np.int64)
    first = factor.components
    for step in factor.extend(len(codes)):
        values = flat[step.component - first, step.key, step.position]
        prediction = factor.predict(step)
        _encode_step(coder, prediction, values)
        factor.learn(step, prediction, values)


def _decode(coder: Any, factor: _Factor, count: int) -> np.ndarray:
    """Read `count` further components of a factor: int16 [count, K, h, w]."""
    first = factor.components
    for step in factor.extend(count):
        prediction = factor.predict(step)
        factor.learn(step, prediction, _decode_step(coder, prediction))
    return factor.codes(first).astype(np.int16)


def _encode_step(coder: Any, prediction: _Prediction, codes: np.ndarray) -> None:
    residuals = codes - prediction.base
    escaped = np.abs(residuals) > prediction.half
    symbols = np.where(escaped, 2 * prediction.half + 1, residuals + prediction.half)
    coder.encode(symbols.astype(np.int32), _window_model(), prediction.counts)
    if escaped.any():
        coder.encode((codes[escaped] + _RAW_OFFSET).astype(np.int32), _raw_model())


def _decode_step(coder: Any, prediction: _Prediction) -> np.ndarray:
    try:
        symbols = coder.decode(_window_model(), prediction.counts).astype(np.int64)
        codes = prediction.base - prediction.half + symbols
        escaped = symbols > 2 * prediction.half
        if escaped.any():
            codes[escaped] = coder.decode(_raw_model(), int(escaped.sum())).astype(np.int64) - _RAW_OFFSET
    except AssertionError as error:  # how constriction reports data that no encoder writes
        raise BitstreamError(f"codes that no encoder writes: {error}") from error
    if codes.min() < -_RAW_OFFSET or codes.max() >= _RAW_OFFSET:
        raise BitstreamError("a code that is no 16-bit number")
    return codes


@cache
def _window_model() -> Any:
    """Return the range coder's family of models, given by whole counts as float64.

    constriction maps a cumulative count n to floor(n (2**24 - symbols) / 2**16) + symbol. It computes that in float64,
    where it is exact: 16-bit counts times a 24-bit constant fit the 53-bit significand and the divisor is a power of
    two. The tests decode with integers alone and get the same symbols.
    """
    return constriction.stream.model.Categorical(perfect=False)


@cache
def _raw_model() -> Any:
    return constriction.stream.model.Uniform(2 * _RAW_OFFSET)


@cache
def _band_edges() -> np.ndarray:
    """Return the magnitudes between bands, [_BANDS - 1] int64 in 1/128 code: 1/16 code, then half an octave each."""
    return np.array([(8 << band // 2) * (181 if band % 2 else 128) // 128 for band in range(_BANDS - 1)], np.int64)


def _shortest(coder: Any) -> bytes:
    """Return the fewest bytes that decode to what was encoded; the decoder reads zeros behind them.

    The coder's final state is an interval of numbers; any of them decodes alike, so the roundest one is taken.
    """
    words = coder.get_compressed()
    position, (lower, width) = coder.pos()
    total = position + 2
    sealed = int.from_bytes(words.astype(">u4").tobytes(), "big") << 32 * (total - len(words))
    low = sealed - (sealed - lower & (1 << 64) - 1)
    zeros = 0
    while (low >> 8 * (zeros + 1)) + 1 << 8 * (zeros + 1) < low + width:
        zeros += 1
    point = (low >> 8 * zeros) + 1 << 8 * zeros
    return point.to_bytes(4 * total, "big").rstrip(b"\0")
