"""Entropy coder of key prompts: codes to bytes and back, in whole numbers only, so that every machine decodes alike.

Component c of a key prompt is two planes of codes: column c of U laid out on the token grid (one row if the tokens have
no layout) and row c of V (one row). Planes are coded in the order U0 V0 U1 V1 ..., so a lower rank needs a prefix only.
Each plane is all zero, a copy of the previous key prompt's, or coded code by code in raster order:

    prediction  a W + b N - (a b) NW  +  c (P - prediction of P by its own neighbours)
    residual    code minus the prediction, under a Laplacian whose mean is what rounding to whole codes left over
    scale       floor + slope * context, the context a weighted sum of the residuals' magnitudes nearby: W, N, NW, NE in
                the plane, and the places around it in the plane of component c - 1 and in the previous key prompt

with W, N, NW, NE the neighbours already decoded and P the previous key prompt's code at the same place; a, b, c, floor
and slope are the plane's parameters, coded as differences to the parameters used before. A separable autoregression
needs two numbers for three neighbours. Range coding by constriction; see player.entropy_tables for its exactness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import constriction
import numpy as np

from player.entropy_tables import (
    BITS_UNIT,
    ESCAPE,
    LIMIT,
    PHASES,
    SCALES,
    code_lengths,
    model,
    scale_lookup,
)
from player.errors import BitstreamError

_ZERO, _COPY, _CODED = range(3)  # modes of a plane, coded as the difference to the mode before
_WEIGHT = 8  # a, b, c are eighths, 0 to 1
_SLOPES = (0, 1, 2, 3, 4, 6, 8, 12)  # growth of the scale per unit of context, in 1/256 code
_CONTEXTS = 2048  # contexts are clipped to this
_MAGNITUDE = 255  # magnitudes that enter a context are clipped to this
_PARAMETER_TABLE = (14, 2)  # scale and phase of the table that codes parameter differences: mean magnitude 0.7
_MODE_TABLE = (10, 2)
_RAW_BITS = 10  # an escaped residual is two raw symbols of this many bits; residuals stay under 2**18
_RAW_OFFSET = 1 << (2 * _RAW_BITS - 1)
_CODE_RANGE = (-(1 << 15), (1 << 15) - 1)


class Layout(NamedTuple):
    """Shapes that the coder needs and that the init segment gives."""

    tokens: int  # L
    width: int  # D
    rank: int  # r
    grid_height: int = 0  # rows of the token grid; 0: tokens have no layout
    grid_width: int = 0


class Parameters(NamedTuple):
    """What a coded plane says about itself: weights of the prediction in eighths, and its table choice."""

    west: int = 0
    north: int = 0
    past: int = 0
    floor: int = 16  # index of the table of context 0
    slope: int = 2  # index into _SLOPES


_PARAMETER_LIMITS = Parameters(_WEIGHT + 1, _WEIGHT + 1, _WEIGHT + 1, SCALES, len(_SLOPES))


@dataclass
class _Plane:
    """One plane as the coder remembers it."""

    mode: int
    parameters: Parameters
    codes: np.ndarray  # [h, w] int64
    magnitudes: np.ndarray  # [h, w] int64, of the residuals, clipped


class _Coder:
    """What encoder and decoder share: shapes, and the planes of the previous key prompt."""

    def __init__(self, layout: Layout) -> None:
        grid = (layout.grid_height, layout.grid_width) if layout.grid_height else (1, layout.tokens)
        self._layout = layout
        self._shapes = (grid, (1, layout.width))
        self._past: list[_Plane] = []

    def _blank(self, factor: int) -> _Plane:
        zeros = np.zeros(self._shapes[factor], np.int64)
        return _Plane(_CODED, Parameters(), zeros, zeros)


class CodesEncoder(_Coder):
    """Encodes the key prompts of one segment in order."""

    def encode(self, u: np.ndarray, v: np.ndarray) -> bytes:
        """Return the bytes of the next key prompt, u [L, r] and v [r, D] int16."""
        coder = constriction.stream.queue.RangeEncoder()
        planes: list[_Plane] = []
        for index in range(2 * self._layout.rank):
            component, factor = divmod(index, 2)
            values = (v[component] if factor else u[:, component]).astype(np.int64).reshape(self._shapes[factor])
            past = self._past[index] if self._past else None
            beside = planes[index - 2] if component else self._blank(factor)
            planes.append(_encode_plane(coder, values, past, beside))
        self._past = planes
        return _shortest(coder)


class CodesDecoder(_Coder):
    """Decodes the key prompts of one segment in order."""

    def decode(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return u [L, r] and v [r, D] int16 of the next key prompt; raise BitstreamError if nothing encodes to it."""
        padded = data + bytes(8 + -len(data) % 4)
        coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))
        planes: list[_Plane] = []
        for index in range(2 * self._layout.rank):
            component, factor = divmod(index, 2)
            past = self._past[index] if self._past else None
            beside = planes[index - 2] if component else self._blank(factor)
            try:
                planes.append(_decode_plane(coder, past, beside))
            except AssertionError as error:  # how constriction reports data that no encoder writes
                raise BitstreamError(f"{'uv'[factor]} component {component}: {error}") from error
        self._past = planes
        u = np.stack([plane.codes.ravel() for plane in planes[0::2]], axis=1).astype(np.int16)
        v = np.stack([plane.codes.ravel() for plane in planes[1::2]]).astype(np.int16)
        return u, v


def _encode_plane(coder: Any, values: np.ndarray, past: _Plane | None, beside: _Plane) -> _Plane:
    """Write one plane [h, w] and return it as the decoder will remember it."""
    before = past or beside
    if not values.any():
        mode = _ZERO
    elif past is not None and np.array_equal(values, past.codes):
        mode = _COPY
    else:
        mode = _CODED
    _encode_symbol(coder, mode - before.mode, _MODE_TABLE)
    if mode != _CODED:
        return _Plane(mode, before.parameters, values, np.zeros_like(values))
    parameters, plane = _choose(values, past, beside, before.parameters)
    for value, reference in zip(parameters, before.parameters, strict=True):
        _encode_symbol(coder, value - reference, _PARAMETER_TABLE)
    residuals, phases, scales = plane
    for residual, phase, scale in zip(residuals.tolist(), phases.tolist(), scales.tolist(), strict=True):
        if -LIMIT <= residual <= LIMIT:
            coder.encode(residual + LIMIT, model(scale, phase))
        else:
            coder.encode(ESCAPE, model(scale, phase))
            _encode_raw(coder, residual + _RAW_OFFSET)
    magnitudes = np.minimum(np.abs(residuals), _MAGNITUDE).reshape(values.shape)
    return _Plane(mode, parameters, values, magnitudes)


def _decode_plane(coder: Any, past: _Plane | None, beside: _Plane) -> _Plane:
    """Read one plane; the mirror of _encode_plane."""
    before = past or beside
    mode = _decode_symbol(coder, _MODE_TABLE) + before.mode
    if mode not in (_ZERO, _COPY, _CODED):
        raise BitstreamError(f"plane mode {mode}, expected 0 to 2")
    if mode == _ZERO:
        zeros = np.zeros_like(before.codes)
        return _Plane(mode, before.parameters, zeros, zeros)
    if mode == _COPY:
        if past is None:
            raise BitstreamError("a plane of the first key prompt copies a previous one")
        return _Plane(mode, before.parameters, past.codes, np.zeros_like(past.codes))
    parameters = Parameters(*(_decode_symbol(coder, _PARAMETER_TABLE) + value for value in before.parameters))
    if not all(0 <= value < limit for value, limit in zip(parameters, _PARAMETER_LIMITS, strict=True)):
        raise BitstreamError(f"plane parameters {tuple(parameters)}, expected under {tuple(_PARAMETER_LIMITS)}")
    offsets = _past_prediction(past, parameters, before.codes.shape)
    nearby = _outer_context(past, beside)
    codes, magnitudes = _decode_codes(coder, parameters, offsets, nearby)
    return _Plane(mode, parameters, codes, magnitudes)


def _decode_codes(
    coder: Any, parameters: Parameters, offsets: np.ndarray, nearby: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and magnitudes [h, w] of a coded plane, decoded one by one.

    Rows carry a zero on their left and right, so that the neighbours of the border need no test.
    """
    width = offsets.shape[1]
    west, north = _WEIGHT * _WEIGHT * parameters.west, _WEIGHT * _WEIGHT * parameters.north
    corner = _WEIGHT * parameters.west * parameters.north
    lookup = scale_lookup(parameters.floor, _SLOPES[parameters.slope], _CONTEXTS).tolist()
    models = [[model(scale, phase) for phase in range(PHASES)] for scale in range(lookup[-1] + 1)]
    decode, top = coder.decode, _CONTEXTS - 1
    above, above_sizes = [0] * (width + 2), [0] * (width + 2)
    codes, magnitudes = [], []
    for row_offsets, row_nearby in zip(offsets.tolist(), nearby.tolist(), strict=True):
        row, sizes = [0] * (width + 2), [0] * (width + 2)
        last = last_size = 0
        for x in range(1, width + 1):
            quarter = (west * last + north * above[x] - corner * above[x - 1] + row_offsets[x - 1] + 64) >> 7
            centre = (quarter + 2) >> 2
            context = (
                4 * (last_size + above_sizes[x]) + 2 * (above_sizes[x - 1] + above_sizes[x + 1]) + row_nearby[x - 1]
            )
            scale = lookup[context if context < top else top]
            residual = decode(models[scale][quarter + 2 - 4 * centre]) - LIMIT
            if residual > LIMIT:
                residual = _decode_raw(coder) - _RAW_OFFSET
            row[x] = last = centre + residual
            sizes[x] = last_size = min(abs(residual), _MAGNITUDE)
        codes.append(row[1:-1])
        magnitudes.append(sizes[1:-1])
        if min(row) < _CODE_RANGE[0] or max(row) > _CODE_RANGE[1]:
            raise BitstreamError("a code that is no 16-bit number")
        above, above_sizes = row, sizes
    return np.array(codes, np.int64), np.array(magnitudes, np.int64)


def _choose(
    values: np.ndarray, past: _Plane | None, beside: _Plane, before: Parameters
) -> tuple[Parameters, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the parameters that code a plane in the fewest bits found, and its residuals, phases and scales [h w]."""
    weights = _choose_weights(values, past, before)
    west, north, past_weight = weights
    prediction = _own_prediction(values, west, north) + _past_prediction(past, Parameters(*weights), values.shape)
    quarters = (prediction + 64) >> 7
    centres = (quarters + 2) >> 2
    residuals = values - centres
    phases = (quarters + 2 - 4 * centres).ravel()
    sizes = np.minimum(np.abs(residuals), _MAGNITUDE)
    W, N, NW, NE = _neighbours(sizes)
    contexts = np.minimum(4 * (W + N) + 2 * (NW + NE) + _outer_context(past, beside), _CONTEXTS - 1).ravel()
    residuals = residuals.ravel()
    symbols = np.where(np.abs(residuals) > LIMIT, ESCAPE, residuals + LIMIT)
    bits = code_lengths()[:, phases, symbols]  # [SCALES, h w]
    scales = _all_lookups()[:, :, contexts]  # [SCALES, slopes, h w]
    totals = np.take_along_axis(bits[:, None, :], scales, axis=0).sum(axis=2, dtype=np.int64)
    totals += _parameter_bits(np.arange(SCALES) - before.floor)[:, None]
    totals += _parameter_bits(np.arange(len(_SLOPES)) - before.slope)
    floor, slope = divmod(int(np.argmin(totals)), len(_SLOPES))
    return Parameters(west, north, past_weight, floor, slope), (residuals, phases, scales[floor, slope])


def _choose_weights(values: np.ndarray, past: _Plane | None, before: Parameters) -> tuple[int, int, int]:
    """Return the weights (west, north, past) of least estimated bits, the past's by least squares for each pair."""
    steps = np.arange(_WEIGHT + 1)
    norths = steps if values.shape[0] > 1 else steps[:1]
    a, b = steps[:, None, None, None], norths[None, :, None, None]
    error = 512 * values - _own_prediction(values, a, b)  # [a, b, h, w]
    c = np.zeros(error.shape[:2], np.int64)
    if past is not None and past.codes.any():
        innovation = 64 * past.codes - _own_prediction(past.codes, a, b) // 8
        energy = np.maximum((innovation * innovation).sum(axis=(2, 3)), 1)
        c = np.clip(((error * innovation).sum(axis=(2, 3)) * 2 + energy) // (2 * energy), 0, _WEIGHT)
        error = error - c[:, :, None, None] * innovation
    mean = np.abs(error).sum(axis=(2, 3)) / (512 * values.size)
    bits = values.size * np.log2(mean + 0.1) * BITS_UNIT  # a Laplacian's entropy grows with the log of its scale
    bits += _parameter_bits(steps - before.west)[:, None] + _parameter_bits(norths - before.north)
    bits += _parameter_bits(c - before.past)
    west, north = divmod(int(np.argmin(bits)), len(norths))
    return west, north, int(c[west, north])


def _own_prediction(codes: np.ndarray, west: Any, north: Any) -> np.ndarray:
    """Return the prediction of every code by its neighbours, in 1/512 code; the weights broadcast."""
    W, N, NW, _ = _neighbours(codes)
    return 64 * (west * W + north * N) - 8 * (west * north) * NW


def _past_prediction(past: _Plane | None, parameters: Parameters, shape: tuple[int, ...]) -> np.ndarray:
    """Return what the previous key prompt adds to the prediction, [h, w] in 1/512 code."""
    if past is None or not parameters.past:
        return np.zeros(shape, np.int64)
    own = _own_prediction(past.codes, parameters.west, parameters.north)  # a multiple of 8
    return parameters.past * (64 * past.codes - own // 8)


def _outer_context(past: _Plane | None, beside: _Plane) -> np.ndarray:
    """Return the part of the context that is known before the plane is: [h, w] int64."""
    context = 2 * _around(beside.magnitudes)
    return context if past is None else context + _around(past.magnitudes)


def _around(sizes: np.ndarray) -> np.ndarray:
    """Return twice each magnitude plus its four neighbours; six times itself where columns have no order."""
    if len(sizes) == 1:
        return 6 * sizes
    padded = np.pad(sizes, 1)
    return 2 * sizes + padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]


def _neighbours(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return W, N, NW, NE of every place of a plane [h, w], zero outside it."""
    padded = np.pad(plane, ((1, 0), (1, 1)))
    return padded[1:, :-2], padded[:-1, 1:-1], padded[:-1, :-2], padded[:-1, 2:]


@cache
def _all_lookups() -> np.ndarray:
    """Return scale_lookup of every floor and slope, [SCALES, slopes, _CONTEXTS] int8."""
    rows = [[scale_lookup(floor, slope, _CONTEXTS) for slope in _SLOPES] for floor in range(SCALES)]
    return np.array(rows, np.int8)


def _parameter_bits(differences: np.ndarray) -> np.ndarray:
    """Return the cost of parameter differences in 1/BITS_UNIT bit."""
    return code_lengths()[_PARAMETER_TABLE][differences + LIMIT]


def _encode_symbol(coder: Any, value: int, table: tuple[int, int]) -> None:
    coder.encode(value + LIMIT, model(*table))


def _decode_symbol(coder: Any, table: tuple[int, int]) -> int:
    return coder.decode(model(*table)) - LIMIT


def _encode_raw(coder: Any, value: int) -> None:
    for part in (value >> _RAW_BITS, value & ((1 << _RAW_BITS) - 1)):
        coder.encode(part, _raw_model())


def _decode_raw(coder: Any) -> int:
    high, low = (coder.decode(_raw_model()) for _ in range(2))
    return high << _RAW_BITS | low


@cache
def _raw_model() -> Any:
    return constriction.stream.model.Uniform(1 << _RAW_BITS)


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
