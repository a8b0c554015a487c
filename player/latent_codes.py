"""Entropy coder of quantized latents: codes [T, C, h, w] of a segment to bytes and back, in whole numbers only.

A frame's code is predicted by the code of the frame before at the same place; in the first frame by nothing, or by the
code above, as a flag of each channel says. The residual is coded under adaptive counts, chosen by the magnitudes of the
residuals around it: in the frame before (in the first frame: in the row above) and in the channel before. Whole planes
(in the first frame: rows) are coded at a time, so a context knows nothing of its own row, and numpy does the work.

Counts are whole numbers scaled to sum to 2**16, and range coding is constriction's, which maps a cumulative count n to
floor(n (2**24 - symbols) / 2**16) + symbol: exact in double precision. No other floating-point number takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import constriction
import numpy as np

from player.errors import BitstreamError

_LIMIT = 31  # residuals -_LIMIT.._LIMIT have symbols of their own
_ESCAPE = 2 * _LIMIT + 1  # symbol of every other residual, which follows as two raw halves
_SYMBOLS = _ESCAPE + 1
_RAW_BITS = 10  # of each half; residuals of 16-bit codes stay under 2**17
_RAW_OFFSET = 1 << (2 * _RAW_BITS - 1)
_BAND_EDGES = np.array([1, 2, 3, 5, 8, 14, 24, 48])  # sums of magnitudes from which on the next band counts
_BANDS = len(_BAND_EDGES) + 1
_TOTAL = 1 << 16
_INCREMENT = 32  # what one symbol adds to its count
_MOST = 1 << 20  # a sum of counts beyond it is halved
_CODE_RANGE = (-(1 << 15), (1 << 15) - 1)


class _Coder(Protocol):
    """Either direction of the range coder: turns the residuals of some places into bits, or bits into residuals."""

    def code(self, residuals: np.ndarray, model: Any) -> np.ndarray:
        """Return the residuals [n] int64, given to the encoder, ignored by the decoder."""
        ...

    def flag(self, value: bool) -> bool:
        """Return one raw bit likewise."""
        ...


class _Encoder:
    def __init__(self) -> None:
        self.coder = constriction.stream.queue.RangeEncoder()

    def code(self, residuals: np.ndarray, model: Any) -> np.ndarray:
        escaped = np.abs(residuals) > _LIMIT
        symbols = np.where(escaped, _ESCAPE, residuals + _LIMIT)
        self.coder.encode(symbols.astype(np.int32), model)
        raw = residuals[escaped] + _RAW_OFFSET
        for half in (raw >> _RAW_BITS, raw & (1 << _RAW_BITS) - 1):
            self.coder.encode(half.astype(np.int32), _raw(_RAW_BITS))
        return residuals

    def flag(self, value: bool) -> bool:
        self.coder.encode(int(value), _raw(1))
        return value


class _Decoder:
    def __init__(self, data: bytes) -> None:
        padded = data + bytes(8 + -len(data) % 4)
        self.coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def code(self, residuals: np.ndarray, model: Any) -> np.ndarray:
        symbols = self.coder.decode(model, len(residuals)).astype(np.int64)
        escaped = symbols == _ESCAPE
        found = symbols - _LIMIT
        count = int(escaped.sum())
        high, low = (self.coder.decode(_raw(_RAW_BITS), count).astype(np.int64) for _ in range(2))
        found[escaped] = (high << _RAW_BITS | low) - _RAW_OFFSET
        return found

    def flag(self, value: bool) -> bool:
        return bool(self.coder.decode(_raw(1)))


@dataclass
class _Counts:
    """Adaptive counts of each symbol in each context, and the models made of them."""

    counts: np.ndarray = field(default_factory=lambda: _first_counts())  # [contexts, _SYMBOLS] int64
    models: dict[int, Any] = field(default_factory=dict)

    def code(self, coder: _Coder, residuals: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """Code residuals [n] in contexts [n], context by context."""
        found = residuals.copy()
        for context in np.unique(contexts).tolist():
            places = np.flatnonzero(contexts == context)
            found[places] = coder.code(residuals[places], self._model(context))
        return found

    def learn(self, residuals: np.ndarray, contexts: np.ndarray) -> None:
        """Count residuals [n] that both sides know by now."""
        symbols = np.where(np.abs(residuals) > _LIMIT, _ESCAPE, residuals + _LIMIT)
        np.add.at(self.counts, (contexts, symbols), _INCREMENT)
        for context in np.unique(contexts).tolist():
            if self.counts[context].sum() > _MOST:
                self.counts[context] = (self.counts[context] + 1) >> 1
            self.models.pop(context, None)

    def _model(self, context: int) -> Any:
        if context not in self.models:
            counts = self.counts[context]
            table = 1 + counts * (_TOTAL - _SYMBOLS) // counts.sum()
            table[int(np.argmax(table))] += _TOTAL - int(table.sum())  # what rounding down left over
            self.models[context] = constriction.stream.model.Categorical(table.astype(np.float64), perfect=False)
        return self.models[context]


def encode_codes(codes: np.ndarray) -> bytes:
    """Return the bytes of a segment's codes int16 [T, C, h, w]."""
    coder = _Encoder()
    _run(coder, codes.astype(np.int64))
    return coder.coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


def decode_codes(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return the codes int16 [T, C, h, w] of a segment; raise BitstreamError for bytes that nothing encodes to."""
    codes = np.zeros(shape, np.int64)
    try:
        _run(_Decoder(data), codes)
    except AssertionError as error:  # how constriction reports data that no encoder writes
        raise BitstreamError(f"latent codes: {error}") from error
    return codes.astype(np.int16)


def _run(coder: _Coder, codes: np.ndarray) -> None:
    """Code [T, C, h, w] in place: an encoder reads the codes, a decoder fills them in."""
    first, later = _Counts(), _Counts()
    sizes = np.zeros(codes.shape[1:], np.int64)  # magnitudes of the residuals of the frame before
    for t, frame in enumerate(codes):
        if not t:
            for channel in range(len(frame)):
                _code_first(coder, first, frame, sizes, channel)
            continue
        before = _around(sizes)
        for channel, (plane, past) in enumerate(zip(frame, codes[t - 1], strict=True)):
            beside = _around(sizes[channel - 1]) if channel else np.zeros_like(plane)
            contexts = (_band(before[channel]) * _BANDS + _band(beside)).ravel()
            residuals = later.code(coder, (plane - past).ravel(), contexts)
            plane[:] = past + residuals.reshape(plane.shape)
            sizes[channel] = np.abs(residuals).reshape(plane.shape)
            later.learn(residuals, contexts)
        _check_range(frame)


def _code_first(coder: _Coder, counts: _Counts, frame: np.ndarray, sizes: np.ndarray, channel: int) -> None:
    """Code one channel of the first frame row by row, each predicted from the row above or from nothing."""
    plane = frame[channel]
    above = np.concatenate([np.zeros_like(plane[:1]), plane[:-1]])
    from_above = coder.flag(bool(np.abs(plane - above).sum() < np.abs(plane).sum()))
    beside = _around(sizes[channel - 1]) if channel else np.zeros_like(plane)
    empty = np.zeros_like(plane[0])
    learnt = []
    for row in range(len(plane)):
        near = _along(np.abs(plane[row - 1])) if row else empty
        contexts = _band(near) * _BANDS + _band(beside[row])
        predicted = plane[row - 1] if row and from_above else empty
        residuals = counts.code(coder, plane[row] - predicted, contexts)
        plane[row] = predicted + residuals
        sizes[channel, row] = np.abs(residuals)
        learnt.append((residuals, contexts))
    _check_range(plane)
    counts.learn(*(np.concatenate(parts) for parts in zip(*learnt, strict=True)))


def _around(sizes: np.ndarray) -> np.ndarray:
    """Return four times each magnitude [..., h, w] plus its four neighbours, twice each."""
    padded = np.pad(sizes, [(0, 0)] * (sizes.ndim - 2) + [(1, 1), (1, 1)])
    sides = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return (4 * sizes + 2 * sides) >> 1


def _along(sizes: np.ndarray) -> np.ndarray:
    """Return twice each magnitude [w] plus its neighbours."""
    padded = np.pad(sizes, 1)
    return 2 * sizes + padded[:-2] + padded[2:]


def _band(sums: np.ndarray) -> np.ndarray:
    return np.searchsorted(_BAND_EDGES, sums, side="right")


def _check_range(codes: np.ndarray) -> None:
    if codes.min() < _CODE_RANGE[0] or codes.max() > _CODE_RANGE[1]:
        raise BitstreamError("latent codes: one is no 16-bit number")


def _first_counts() -> np.ndarray:
    """Return the counts to start from, falling by half with so many residuals as the context's two bands say."""
    magnitudes = np.abs(np.arange(_SYMBOLS) - _LIMIT)
    rows = [1 + (256 >> np.minimum(6 * magnitudes // (1 + sum(divmod(c, _BANDS))), 9)) for c in range(_BANDS**2)]
    return np.array(rows, np.int64)


def _raw(bits: int) -> Any:
    return constriction.stream.model.Uniform(1 << bits)
