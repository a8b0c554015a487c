"""Estimate the motion between anchors, where the fit of a segment starts, and join spans whose key frames it can do
without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from packager.scenes import middles
from player.motion import Between, frames_between, motion_anchors, motion_grid

# Coarse to fine: (side of the frames in pixels against the full side, steps of descent, step size in full pixels).
_SCALES = ((1 / 16, 40, 3.0), (1 / 8, 30, 1.5), (1 / 4, 15, 0.7))
_PATH_SCALES = ((1 / 8, 20, 1.0), (1 / 4, 15, 0.7))  # then along the whole way between key frames
_SHARES = (0.25, 0.5, 0.75)  # the frames between two anchors that are looked at
_SPAN_SHARES = (0.0, 0.25, 0.75, 1.0)  # those of a span, whose key frame is in the middle
# Mean absolute difference (range 2) that a pixel of difference between neighbouring vectors must win: still or
# featureless parts then follow what surrounds them.
_SMOOTHNESS = 1e-3


class TrueMotion:
    """The motion of one segment, by its true frames: fits, and tries with fewer key frames, share what is found."""

    def __init__(self, frames: Tensor) -> None:
        """Look at the frames [T, 3, H, W], in [-1, 1], of a segment."""
        self.frames = frames
        self._scaled: dict[float, Tensor] = {}  # by scale
        self._nearest: dict[tuple[int, ...], Tensor] = {}  # by stops
        self._whole: dict[tuple[tuple[int, ...], ...], Tensor] = {}  # by key frames, stops and cuts

    def estimate(self, offsets: np.ndarray, anchors: np.ndarray | None = None, cuts: Sequence[int] = ()) -> Tensor:
        """Return the motion [A - 1, 2, rows, columns] in pixels between anchors, as `player.motion` reads it.

        Descends on the mean absolute difference between true frames and those blended from the true key frames, coarse
        to fine, so that motion is found up to about 1/8 of the frame from anchor to anchor; first as if every anchor
        were a key frame, then along the whole way between key frames. Zero where no frame lies between.

        Args:
            offsets: the key frames [K].
            anchors: frames [A] that motion fields start and end at, the key frames among them; None: those alone.
            cuts: frames that open a new scene; of the fields, those from one scene to the next stay zero.
        """
        stops = offsets if anchors is None else anchors
        near = tuple(stops.tolist())
        whole = tuple(offsets.tolist()), near, tuple(cuts)
        if near not in self._nearest:
            shape = max(len(stops) - 1, 0), 2, *motion_grid(*self.frames.shape[2:])
            still = torch.zeros(shape, device=self.frames.device)
            self._nearest[near] = self._improve(still, stops, stops, (), _SCALES)
        if whole not in self._whole:
            found = self._nearest[near]
            more = len(stops) > len(offsets)
            self._whole[whole] = self._improve(found, offsets, stops, cuts, _PATH_SCALES) if more else found
        return self._whole[whole].clone()

    def merge_still(self, edges: np.ndarray, cuts: Sequence[int], tolerance: float, interval: int) -> np.ndarray:
        """Return the edges [k + 1] of the spans that are left when those that motion can do without are joined.

        Neighbouring spans of a scene become one, pair by pair and again, as long as the true frames of the whole,
        blended from the true key frames in the middle of the spans along their motion, are missed by `tolerance` at
        most.

        Args:
            edges: of the spans [K + 1] to choose from.
            cuts: frames that open a new scene.
            tolerance: mean squared error, for a range of 2.
            interval: frames between anchors of motion, at most.
        """
        frames = self.frames
        while True:
            joints, at = [], 1
            while at < len(edges) - 1:
                joinable = edges[at] not in cuts
                joints += [at] if joinable else []
                at += 2 if joinable else 1
            if not joints:
                return edges
            merged = np.delete(edges, joints)
            offsets = middles(merged)
            stops = motion_anchors(offsets, len(frames), interval, cuts)
            motion = self.estimate(offsets, stops, cuts)
            between = Between.of(offsets, len(frames), stops, cuts).to(frames.device)
            needed = []
            for joint in joints:
                first, last = int(edges[joint - 1]), int(edges[joint + 1]) - 1
                chosen = [round(first + s * (last - first)) for s in _SPAN_SHARES]
                looked_at = torch.tensor(chosen, device=frames.device)
                if _blend_error(frames, offsets, motion, between[looked_at], looked_at) > tolerance:
                    needed.append(edges[joint])
            if len(needed) == len(joints):
                return edges
            edges = np.sort(np.concatenate([merged, needed])).astype(np.int64)

    def _improve(
        self,
        motion: Tensor,
        offsets: np.ndarray,
        stops: np.ndarray,
        cuts: Sequence[int],
        scales: Sequence[tuple[float, int, float]],
    ) -> Tensor:
        """Return the motion between `stops` after steps of descent, frames being made of the frames at `offsets`."""
        frames = self.frames
        looked_at = {round(a + s * (b - a)) for a, b in pairwise(stops) if b - a > 1 for s in _SHARES}
        inner = sorted((looked_at | set(stops.tolist())) - set(offsets.tolist()))
        if not inner:
            return motion
        chosen = torch.tensor(inner, device=frames.device)
        between = Between.of(offsets, len(frames), stops, cuts).to(frames.device)[chosen]
        at_keys = torch.from_numpy(offsets).to(frames.device)
        motion = motion.clone().requires_grad_(True)
        for scale, steps, rate in scales:
            if scale not in self._scaled:
                self._scaled[scale] = functional.interpolate(frames, scale_factor=scale, mode="area")
            keys, targets = self._scaled[scale][at_keys], self._scaled[scale][chosen]
            optimizer = torch.optim.Adam([motion], lr=rate)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * (1 - step / steps)
                error = (frames_between(keys, motion * scale, between) - targets).abs().mean()
                rough = motion.diff(dim=2).abs().mean() + motion.diff(dim=3).abs().mean()
                optimizer.zero_grad(set_to_none=True)
                (error + _SMOOTHNESS * rough).backward()
                optimizer.step()
        return motion.detach()


@torch.no_grad()
def _blend_error(frames: Tensor, offsets: np.ndarray, motion: Tensor, between: Between, chosen: Tensor) -> float:
    """Return the mean squared error of the frames `chosen`, blended from the true frames at `offsets`."""
    blended = frames_between(frames[torch.from_numpy(offsets)], motion, between)
    return (blended - frames[chosen]).square().mean().item()
