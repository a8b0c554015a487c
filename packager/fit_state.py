"""What one segment's fit is made of: parameters, the prompts they give, frames and losses of those."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from packager.fit_config import FitConfig
from packager.losses import frame_loss, motion_rate, sequence_rate
from player.bitstream import KeyPrompt, Segment
from player.generator import Generator
from player.motion import Between, frames_between
from player.prompt import dequantize, interpolate, interpolation_matrix, quantize, quantize_ste

# How much a bit of motion counts against a bit of prompt. Motion must pay in every representation, the lowest included.
_MOTION_RATE = 4.0


@dataclass
class FitState:
    """Parameters of the key prompts of one segment, and what each frame's loss was last."""

    u: nn.Parameter  # [K, L, R], in units of the generator's step_scale
    v: nn.Parameter  # [K or 1, R, D]
    motion: nn.Parameter | None  # [A - 1, 2, rows, columns] in pixels
    frames: int  # T, of the segment
    offsets: np.ndarray  # [K], frames that carry key prompts
    anchors: np.ndarray  # [A], frames that motion fields start and end at, those with key prompts among them
    cuts: tuple[int, ...]  # frames that open a new scene
    config: FitConfig
    generator: Generator
    changes: dict[int, nn.Parameter] = field(default_factory=dict)  # lower rank r: of V [K or 1, r, D]
    losses: Tensor = field(init=False)  # [T], last known loss of each frame at the full rank, features left out
    _weights: Tensor = field(init=False)  # [T, K] interpolation of prompts; without motion
    _between: Between = field(init=False)  # where the frames lie between the key frames; with motion

    def __post_init__(self) -> None:
        device = self.u.device
        self.losses = torch.full((self.frames,), math.inf, device=device)
        if self.motion is None:
            self._weights = interpolation_matrix(self.offsets, self.frames).to(device)
        else:
            self._between = Between.of(self.offsets, self.frames, self.anchors, self.cuts).to(device)

    @property
    def rank(self) -> int:
        return self.u.shape[-1]

    def parameters(self) -> list[nn.Parameter]:
        """Return what is fitted."""
        motion = [] if self.motion is None else [self.motion]
        return [self.u, self.v, *motion, *self.changes.values()]

    @property
    def u_scale(self) -> Tensor:
        """The unit [R] of each component of U."""
        return self.generator.step_scale[: self.rank]

    @property
    def u_steps(self) -> Tensor:
        """The quantization step [R] of each component of U."""
        return self.config.u_step * self.u_scale

    def v_at(self, rank: int) -> Tensor:
        """Return V [K or 1, r, D] of a rank."""
        v = self.v[:, :rank]
        return v + self.changes[rank] if rank in self.changes else v

    @torch.no_grad()
    def u_codes(self, rank: int) -> Tensor:
        """Return the codes int16 [K, L, r] of U at a rank: the nearest, but the code of the key prompt before, which
        costs least, up to `repeat` steps beyond where that is the nearest."""
        steps = self.u_steps[:rank]
        first, *others = self.u[..., :rank] * self.u_scale[:rank]
        codes = [quantize(first, steps)]
        for values in others:
            repeats = (values / steps - codes[-1]).abs() < 0.5 + self.config.repeat
            codes.append(torch.where(repeats, codes[-1], quantize(values, steps)))
        return torch.stack(codes)

    def quantized(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return u [K, L, r], v [K, r, D] of a rank after fake quantization."""
        u = self.u[..., :rank] * self.u_scale[:rank]
        u = u + (
            dequantize(self.u_codes(rank), self.u_steps[:rank]) - u.detach()
        )  # straight through, as `quantize_ste`
        v = quantize_ste(self.v_at(rank), torch.tensor(self.config.v_step, device=self.u.device))
        return u, v.expand(len(u), -1, -1)

    def prompts(self, chosen: Tensor, rank: int) -> Tensor:
        """Return the embeddings [m, L, D] that are rendered to show the segment's frames `chosen` [n] at a rank: with
        motion the key prompts, else one for each frame."""
        u, v = self.quantized(rank)
        if self.motion is None:
            weights = self._weights[chosen]
            u, v = interpolate(u, weights), interpolate(v, weights)
        return self.generator.space.compose(u, v, self.generator.norm_rank(self.rank))

    def shown(self, rendered: Tensor, chosen: Tensor) -> Tensor:
        """Return the frames `chosen` [n, 3, H, W] that come of what `prompts` gave for them, rendered [m, 3, H, W]."""
        if self.motion is None:
            return rendered
        motion = quantize_ste(self.motion, torch.tensor(self.config.motion_step, device=self.u.device))
        return frames_between(rendered, motion, self._between[chosen])

    def frame_losses(self, frames: Tensor, output: Tensor) -> Tensor:
        """Return the loss [n] of rendered frames against true ones, both [n, 3, H, W]."""
        if self.config.squared:
            return (output - frames).square().mean(dim=(1, 2, 3))
        return frame_loss(output, frames)

    def regularizer(self, embeddings: Tensor, rank: int) -> Tensor:
        """Return the rate term, V's as of a rank, and the paper's term on the embeddings."""
        config, grid = self.config, self.generator.settings.grid
        total = (
            config.embedding_weight * embeddings.abs().mean() if config.embedding_weight else embeddings.new_zeros(())
        )
        if config.rate_weight:
            total = total + config.rate_weight * sequence_rate(self.u, grid, config.u_step)
            # V stands against U by its share of values, once a segment if shared
            for v in [self.v, self.v_at(rank)] if rank in self.changes else [self.v]:
                share = v.numel() / self.u.numel()
                total = total + config.rate_weight * share * torch.log2(1 + 2 * v.abs() / config.v_step).mean()
            if self.motion is not None:
                share = self.motion.numel() / self.u.numel()
                total = total + config.rate_weight * _MOTION_RATE * share * motion_rate(self.motion, config.motion_step)
        return total

    @torch.no_grad()
    def segment(self, rank: int) -> Segment:
        """Return what the fit has come to at a rank, quantized."""
        config, device = self.config, self.u.device
        u = self.u_codes(rank).cpu().numpy()
        v = quantize(self.v_at(rank), torch.tensor(config.v_step, device=device)).expand(len(u), -1, -1).cpu().numpy()
        keys = tuple(
            KeyPrompt(int(at), np.ascontiguousarray(ku), np.ascontiguousarray(kv))
            for at, ku, kv in zip(self.offsets, u, v, strict=True)
        )
        scales = np.full(rank, config.u_step, np.float32), np.full(rank, config.v_step, np.float32)
        if self.motion is None:
            return Segment(self.frames, *scales, keys)
        motion = quantize(self.motion, torch.tensor(config.motion_step, device=device)).cpu().numpy()
        anchors = tuple(np.setdiff1d(self.anchors, self.offsets).tolist())
        return Segment(self.frames, *scales, keys, motion, anchors, self.cuts, config.motion_step)
