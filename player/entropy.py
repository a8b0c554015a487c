"""Entropy coder of key prompts: codes in, bytes out, and back. Integers only, so every machine decodes alike."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from player.errors import BitstreamError


class Codes(NamedTuple):
    """Quantized factors of one key prompt."""

    u: np.ndarray  # [L, r] int16
    v: np.ndarray  # [r, D] int16


class Layout(NamedTuple):
    """Shapes that the coder needs and that the init segment gives."""

    tokens: int  # L
    width: int  # D
    rank: int  # r
    grid_height: int = 0  # rows of the token grid; 0: tokens have no layout
    grid_width: int = 0


def encode_codes(codes: Codes, layout: Layout, previous: Codes | None) -> bytes:
    """Return the entropy-coded bytes of one key prompt, predicted from `previous` where that helps."""
    flat = np.concatenate([codes.u.T.ravel(), codes.v.ravel()]).astype("<i2")
    if previous is not None:
        flat = flat - np.concatenate([previous.u.T.ravel(), previous.v.ravel()]).astype("<i2")
    return zlib.compress(flat.astype("<i2").tobytes(), 9)


def decode_codes(data: bytes, layout: Layout, previous: Codes | None) -> Codes:
    """Return what encode_codes was given; raise BitstreamError for bytes it cannot have written."""
    count = layout.rank * (layout.tokens + layout.width)
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, count * 2)
    except zlib.error as error:
        raise BitstreamError(f"key prompt does not inflate: {error}") from error
    if len(raw) != count * 2 or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"key prompt of {len(data)} bytes does not inflate to {count} codes")
    flat = np.frombuffer(raw, "<i2").astype(np.int16)
    if previous is not None:
        flat = flat + np.concatenate([previous.u.T.ravel(), previous.v.ravel()])
    split = layout.rank * layout.tokens
    u = np.ascontiguousarray(flat[:split].reshape(layout.rank, layout.tokens).T)
    return Codes(u, flat[split:].reshape(layout.rank, layout.width))
