"""Prompts as tensors: compose U and V into embeddings, interpolate between key prompts, quantize and back.

The one place where quantization, composition and interpolation are written, for encoder and decoder alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptSpace:
    """What a generator adds to every prompt: embedding = base + U (dictionary + V) / sqrt(norm_rank).

    The paper's own form (Promptus, arXiv 2405.20032, section 4) is the case base = 0, dictionary = 0. A dictionary lets
    V be a small correction that costs few bytes, so that most bits go to U.
    """

    base: Tensor  # [L, D]
    dictionary: Tensor  # [max_rank, D]

    def compose(self, u: Tensor, v: Tensor, norm_rank: int) -> Tensor:
        """Return embeddings [..., L, D] of prompts u [..., L, r], v [..., r, D].

        `norm_rank` is the rank of the whole fit, not r: a prefix of a nested prompt keeps the scale of its components.
        """
        rank = u.shape[-1]
        values = v + self.dictionary[:rank].to(v.dtype)
        return self.base.to(u.dtype) + u @ values / math.sqrt(norm_rank)


def interpolation_matrix(offsets: np.ndarray, frames: int) -> Tensor:
    """Return the weights float32 [frames, K] that turn key prompts at frame `offsets` [K] into one prompt a frame.

    Each row holds the two linear weights of the neighbouring key prompts and sums to one (Promptus, section 4.3).
    """
    positions = np.arange(frames)
    right = np.clip(np.searchsorted(offsets, positions, side="left"), 0, len(offsets) - 1)
    left = np.maximum(right - 1, 0)
    left = np.where(offsets[right] == positions, right, left)
    span = np.maximum(offsets[right] - offsets[left], 1)
    share = (positions - offsets[left]) / span
    weights = np.zeros((frames, len(offsets)), np.float32)
    weights[positions, left] += (1 - share).astype(np.float32)
    weights[positions, right] += share.astype(np.float32)
    return torch.from_numpy(weights)


def interpolate(keys: Tensor, weights: Tensor) -> Tensor:
    """Return one factor a frame [T, ...] from the key prompts' factors [K, ...] under weights [T, K]."""
    return torch.einsum("tk,k...->t...", weights.to(keys.dtype), keys)


def quantize(values: Tensor, scale: Tensor) -> Tensor:
    """Return int16 codes: values over scale, rounded to nearest, halves to even; scale broadcasts."""
    limit = torch.iinfo(torch.int16).max
    return torch.clamp(torch.round(values / scale), -limit, limit).to(torch.int16)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Return float32 values: scale * code."""
    return codes.to(torch.float32) * scale


def quantize_ste(values: Tensor, scale: Tensor) -> Tensor:
    """Return the quantized and dequantized values with the gradient of the identity (straight-through estimator).

    Bengio et al. 2013, arXiv 1308.3432. Forward equals dequantize(quantize(values)) exactly.
    """
    return values + (dequantize(quantize(values.detach(), scale), scale) - values.detach())
