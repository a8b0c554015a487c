"""Integer frequency tables of the entropy coder: discretised Laplacians, made and used without floating point.

A table gives each residual -127..127 and the escape symbol a whole count; the counts sum to 2**16. Tables differ in
scale (SCALES of them, a quarter octave apart) and in phase: the mean of the residual is -1/2, -1/4, 0 or 1/4, because
predictions are kept to a quarter of a code.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import constriction
import numpy as np

LIMIT = 127  # residuals -LIMIT..LIMIT have symbols of their own
ESCAPE = 2 * LIMIT + 1  # symbol of every other residual
SYMBOLS = ESCAPE + 1
SCALES = 40  # mean absolute residuals from 1/16 to 2**(39/4 - 4), about 54
PHASES = 4
TOTAL_BITS = 16
BITS_UNIT = 4096  # code lengths are counted in 1/4096 bit
_FIX = 1 << 62  # fixed-point one of the exponentials below
_QUARTER_OCTAVES = (_FIX, 5484249825272419511, 6521908912666391106, 7755900482342532474)  # floor(2**(62 + i/4))


@cache
def scale_steps() -> np.ndarray:
    """Return the Laplacian scale of each table, [SCALES] int64 in units of 2**-20 codes."""
    return np.array([_scale_fixed(i) >> 42 for i in range(SCALES)], np.int64)


@cache
def counts(scale: int, phase: int) -> np.ndarray:
    """Return the counts of one table, [SYMBOLS] int64, each 1 or more, summing to 2**TOTAL_BITS."""
    ratio = _exp_negative(_FIX * _FIX // (4 * _scale_fixed(scale)))  # weight lost in a quarter of a code
    tails = [_FIX // 2]  # tails[k]: the Laplacian's mass beyond k quarters on one side
    for _ in range(4 * LIMIT + 4):
        tails.append(tails[-1] * ratio >> 62)
    # Cumulative masses at the 2 * LIMIT + 2 boundaries residual - 1/2 - mean, all multiples of a quarter.
    quarters = [4 * k - 2 - (phase - 2) for k in range(-LIMIT, LIMIT + 2)]
    below = [tails[-q] if q < 0 else _FIX - tails[q] for q in quarters]
    masses = [high - low for low, high in pairwise(below)]
    masses.append(_FIX - sum(masses))  # the escape symbol takes both tails
    free = (1 << TOTAL_BITS) - SYMBOLS
    table = np.array([1 + (mass * free >> 62) for mass in masses], np.int64)
    table[int(np.argmax(table))] += (1 << TOTAL_BITS) - int(table.sum())  # what rounding down left over
    return table


@cache
def model(scale: int, phase: int) -> constriction.stream.model.Categorical:
    """Return the range coder's model of one table.

    constriction maps a cumulative count n to floor(n (2**24 - SYMBOLS) / 2**16) + symbol. It computes that in float64,
    where it is exact: 16-bit counts times a 24-bit constant fit the 53-bit significand and the divisor is a power of
    two. The tests decode with integers alone and get the same symbols.
    """
    return constriction.stream.model.Categorical(counts(scale, phase).astype(np.float64), perfect=False)


@cache
def code_lengths() -> np.ndarray:
    """Return the cost of each symbol in each table, [SCALES, PHASES, SYMBOLS] int32 in 1/BITS_UNIT bit.

    For the encoder's choices only: decoding does not depend on it. An escape's 20 raw bits are included.
    """
    rows = [[counts(scale, phase) for phase in range(PHASES)] for scale in range(SCALES)]
    bits = TOTAL_BITS - np.log2(np.array(rows, np.float64))
    bits[:, :, ESCAPE] += 20
    return np.round(bits * BITS_UNIT).astype(np.int32)


@cache
def scale_lookup(floor: int, slope: int, contexts: int) -> np.ndarray:
    """Return the table of each context 0..contexts - 1, [contexts] int64: the nearest to scale floor + slope context.

    Args:
        floor: index of the table of context 0.
        slope: growth of the scale per unit of context, in 1/256 code.
        contexts: how many contexts there are.
    """
    steps = scale_steps()
    wanted = steps[floor] + slope * (1 << 12) * np.arange(contexts, dtype=np.int64)
    return np.searchsorted((steps[1:] + steps[:-1]) // 2, wanted, side="right")


def _scale_fixed(index: int) -> int:
    """Return 2**(index / 4 - 4) in units of 2**-62."""
    return _QUARTER_OCTAVES[index % 4] << (index // 4) >> 4


def _exp_negative(x: int) -> int:
    """Return exp(-x) for x >= 0, both in units of 2**-62: Taylor series at x / 2**k, squared k times."""
    halvings = max(x.bit_length() - 59, 0)
    reduced = x >> halvings
    term, total = _FIX, _FIX
    for n in range(1, 24):  # reduced < 1/8, so the terms vanish well before
        term = -(term * reduced >> 62) // n
        total += term
    for _ in range(halvings):
        total = total * total >> 62
    return total
