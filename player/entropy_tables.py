"""Integer distribution functions of the entropy coder: Laplacians and Gaussians, made and used without floating point.

A row gives the mass, in 2**-16, below every eighth of a code from -REACH to REACH codes around a mean of zero. Rows
differ in shape and in scale, a quarter octave apart. Shifted by a mean in eighths of a code, and mixed with whole
weights, they are the distributions that codes are coded under (player.entropy).
"""

from __future__ import annotations

from functools import cache

import numpy as np

TOTAL_BITS = 16  # masses are counted in 2**-16
PHASES = 8  # means are kept to 1/PHASES of a code
REACH = 640  # codes on either side of the mean; what lies beyond counts as tail
SCALES = 48  # mean magnitudes from 1/16 of a code to 2**(47/4 - 4), about 215
LAPLACIAN, GAUSSIAN = 0, SCALES  # first row of each shape
_FIX = 1 << 62  # fixed-point one of the exponentials below
_BITS = 31  # of the fixed-point masses along a row
_QUARTER_OCTAVES = (_FIX, 5484249825272419511, 6521908912666391106, 7755900482342532474)  # floor(2**(62 + i/4))
_PI = 14488038916154245684  # floor(2**62 pi)


@cache
def scale_bounds() -> np.ndarray:
    """Return the mean magnitudes from which on the next scale is nearer, [SCALES - 1] int64 in 2**-20 code."""
    steps = np.array([_scale_fixed(i) >> 42 for i in range(SCALES)], np.int64)
    return (steps[1:] + steps[:-1]) // 2


@cache
def distributions() -> np.ndarray:
    """Return the mass below each point, [2 * SCALES, 2 * PHASES * REACH + 1] int64; the middle is 2**TOTAL_BITS / 2."""
    masses = np.concatenate([_laplacian_masses(), _gaussian_masses()], axis=1)  # [PHASES * REACH, 2 * SCALES]
    side = np.concatenate([np.zeros((1, 2 * SCALES), np.int64), np.cumsum(masses, axis=0)])
    side = (side << TOTAL_BITS - 1) // side[-1]  # from the mean outwards: 0 to 2**(TOTAL_BITS - 1)
    half = 1 << TOTAL_BITS - 1
    return np.ascontiguousarray(np.concatenate([half - side[:0:-1], half + side]).T)


def _laplacian_masses() -> np.ndarray:
    """Return the mass of each eighth of a code outwards from the mean, up to a factor: exp(-x / scale)."""
    ratios = [_exp_negative(_FIX * _FIX // (PHASES * _scale_fixed(i))) for i in range(SCALES)]
    ratio = np.array([value >> 62 - _BITS for value in ratios], np.int64)
    rows = [np.full(SCALES, 1 << _BITS, np.int64)]
    for _ in range(PHASES * REACH - 1):
        rows.append(rows[-1] * ratio >> _BITS)
    return np.array(rows)


def _gaussian_masses() -> np.ndarray:
    """Return the like for exp(-x**2 / (pi scale**2)), whose mean magnitude is the scale, sampled mid-interval."""
    # At x = (j + 1/2) / PHASES the exponent is (j**2 + j + 1/4) a; the 1/4 is a factor of the whole row.
    exponents = [_FIX**4 // (PHASES**2 * _PI * _scale_fixed(i) ** 2) for i in range(SCALES)]
    step = np.array([_exp_negative(2 * value) >> 62 - _BITS for value in exponents], np.int64)  # exp(-2 a)
    value, ratio = np.full(SCALES, 1 << _BITS, np.int64), step.copy()
    rows = [value]
    for _ in range(PHASES * REACH - 1):  # from j to j + 1 the exponent grows by 2 (j + 1) a
        value = value * ratio >> _BITS
        ratio = ratio * step >> _BITS
        rows.append(value)
    return np.array(rows)


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
