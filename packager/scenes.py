"""Which frames of a segment carry key prompts: the ends of its scenes and frames evenly between, or, where motion makes
the frames beside them, the middles of spans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Of a range of 2. Over 31 real clips the fastest hand-held ones reach 0.2 with a median of 0.09; cuts lie above 0.27.
_CUT_CHANGE = 0.2
_CUT_RATIO = 4.0


def key_offsets(frames: int, interval: int, cuts: Sequence[int] = ()) -> np.ndarray:
    """Return the frames int64 [K] that carry key prompts.

    The first and last frame of every scene do, and frames evenly between, at most `interval` apart: nothing is
    interpolated across a cut. `cuts` are the frames that open a new scene, increasing, none of them 0.
    """
    edges = [0, *cuts, frames]
    scenes = []
    for first, after in pairwise(edges):
        count = math.ceil((after - 1 - first) / interval) + 1
        scenes.append(np.round(np.linspace(first, after - 1, count)).astype(np.int64))
    return np.concatenate(scenes)


def key_spans(frames: int, interval: int, cuts: Sequence[int] = ()) -> np.ndarray:
    """Return the edges int64 [K + 1], from 0 to `frames`, of the spans that have one key prompt each.

    Every scene is divided evenly into spans of at most `interval` frames; `cuts` as in `key_offsets`.
    """
    edges = [0, *cuts, frames]
    parts = []
    for first, after in pairwise(edges):
        count = math.ceil((after - first) / interval)
        parts.append(np.round(np.linspace(first, after, count, endpoint=False)).astype(np.int64))
    return np.concatenate([*parts, [frames]])


def middles(edges: np.ndarray) -> np.ndarray:
    """Return the frame in the middle of each span, int64 [K], of their edges [K + 1]."""
    return (edges[:-1] + edges[1:] - 1) // 2


def scene_cuts(frames: Tensor) -> list[int]:
    """Return the frames of [T, 3, H, W] in [-1, 1] that open a new scene.

    A cut changes the picture at large, from one frame to the next and much more than its neighbours do: the mean
    absolute difference of 16x16-pixel means is above `_CUT_CHANGE` and above `_CUT_RATIO` times the segment's median.
    """
    if len(frames) < 2:
        return []
    coarse = functional.avg_pool2d(frames, 16) if min(frames.shape[2:]) >= 16 else frames
    change = coarse.diff(dim=0).abs().mean(dim=(1, 2, 3))
    threshold = max(_CUT_CHANGE, _CUT_RATIO * change.median().item())
    return [int(t) + 1 for t in torch.nonzero(change > threshold).flatten()]
