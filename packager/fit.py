"""Fit prompts to the frames of one segment by gradient descent through the generator.

Every frame counts, not only those under a key prompt: the loss is taken after interpolation (along motion, or of the
prompts as in the paper), through fake quantization with straight-through gradients, at a rank drawn for each frame, so
that one fit serves every rank of the ladder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from packager.encoder import PromptEncoder
from packager.errors import BuildError
from packager.losses import frame_loss, motion_rate, sequence_rate
from packager.motion import estimate_motion, merge_still
from packager.start import STARTS, first_prompts
from player.bitstream import KeyPrompt, Segment
from player.generator import Generator
from player.motion import MOTION_STEP_PX, Between, frames_between
from player.prompt import interpolate, interpolation_matrix, quantize, quantize_ste

log = logging.getLogger(__name__)

# Of a range of 2. Over 31 real clips the fastest hand-held ones reach 0.2 with a median of 0.09; cuts lie above 0.27.
_CUT_CHANGE = 0.2
_CUT_RATIO = 4.0
_MOTION_LEARNING_RATE = 6.0  # of the fit's learning rate: motion is in pixels, not of unit scale
# How much a bit of motion counts against a bit of prompt. Motion must pay in every representation, the lowest included.
_MOTION_RATE = 4.0


@dataclass
class FitConfig:
    """How one segment is fitted."""

    preset: str = "fast"
    interval: int = 10
    """Frames between key prompts, at most (Promptus, section 4.3: 10)."""
    iterations: int = 30
    """Steps of gradient descent on a segment, at most."""
    frames_per_step: int = 20
    """Frames rendered a step, drawn over the whole segment."""
    learning_rate: float = 0.03
    """Adam's step at the start; quantities are of unit scale."""
    schedule: str = "cosine"
    """How the learning rate falls: cosine (to a tenth over the iterations), or plateau (halved when the loss stalls, as
    published)."""
    min_learning_rate: float = 0.003
    """The fit ends when the plateau schedule falls below this."""
    patience: int = 8
    """Steps without a better smoothed loss before the learning rate is halved."""
    u_step: float = 0.35
    """Quantization step of U, in units of the generator's `step_scale` of each component (docs/RESULTS.md)."""
    v_step: float = 0.05
    """Quantization step of V."""
    motion: bool = True
    """Render the key frames only, and warp and blend them into the frames between along a motion field that is sent
    with them; without it every frame is rendered from an interpolated prompt (Promptus)."""
    still_error: float = 1e-3
    """With motion: intervals are joined beyond `interval` where the true frames between are met within this mean
    squared error (36 dB for a range of 2), far below what a prompt costs: still and drawn scenes. 0: never."""
    share_v: bool = True
    """One V for all key prompts of a segment; its repetition then costs almost no bytes."""
    rate_weight: float = 0.04
    """Weight of the estimated bits a value against the frame loss (docs/RESULTS.md)."""
    worst_share: float = 0.25
    """Share of each step's frames that is drawn from the worst so far."""
    embedding_weight: float = 0.0
    """Weight of mean |embedding| (Promptus: 0.1)."""
    squared: bool = False
    """Mean squared error instead of absolute error and structure (Promptus)."""
    autocast: str = "auto"
    """Arithmetic of the descent: auto (bfloat16 where the device is fast at it, else float32), bfloat16 or float32. The
    first and last losses, which decide what is kept, are always taken in the generator's own precision."""
    start: str = "auto"
    """Where it starts: encoder (one pass of the generator's encoder), empty (the generator's empty prompt and a small
    random low-rank term), random (Promptus), or auto: the encoder where there is one, else random."""
    frames_at_once: int = 0
    """Most frames that pass the generator together, the rest being computed once more for the gradient (checkpointing);
    0: all of a step, which is halved once, and said so, where memory runs out."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("interval", "iterations", "frames_per_step", "patience"):
            if getattr(self, name) < 1:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "min_learning_rate", "u_step", "v_step"):
            if not getattr(self, name) > 0:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected more than 0")
        if self.schedule not in ("cosine", "plateau"):
            raise BuildError(f"fit.schedule is {self.schedule}, expected cosine or plateau")
        if self.autocast not in ("auto", "bfloat16", "float32"):
            raise BuildError(f"fit.autocast is {self.autocast}, expected auto, bfloat16 or float32")
        if self.start not in STARTS:
            raise BuildError(f"fit.start is {self.start}, expected one of {', '.join(STARTS)}")
        if self.frames_at_once < 0:
            raise BuildError(f"fit.frames_at_once is {self.frames_at_once}, expected 1 or more, or 0 for all")
        if not 0 <= self.worst_share < 1:
            raise BuildError(f"fit.worst_share is {self.worst_share}, expected 0 to below 1")


FAST = FitConfig()
# The published procedure (Promptus' inversion.py): random start, Adam at 0.1 halved on plateaus down to 0.001, squared
# error with weight 0.8 and mean |embedding| with 0.1. Two differences: its feature term needs VGG-19 and is left out,
# and all intervals of a segment are fitted together, so that segments stand alone.
PAPER = FitConfig(
    preset="paper",
    iterations=10_000,
    frames_per_step=10,
    learning_rate=0.1,
    schedule="plateau",
    min_learning_rate=0.001,
    patience=300,
    motion=False,
    share_v=False,
    rate_weight=0.0,
    embedding_weight=0.125,
    squared=True,
    start="random",
)
PRESETS = {"fast": FAST, "paper": PAPER}


def fit_preset(name: str, **changes: object) -> FitConfig:
    """Return a copy of a named preset with some fields changed; raise BuildError for an unknown name."""
    if name not in PRESETS:
        raise BuildError(f"preset {name!r} is not known: expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


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


@dataclass
class _Fit:
    """State of one fit: parameters of the key prompts and what each frame's loss was last."""

    u: nn.Parameter  # [K, L, R], in units of the generator's step_scale
    v: nn.Parameter  # [K or 1, R, D]
    motion: nn.Parameter | None  # [K - 1, 2, rows, columns] in pixels
    offsets: np.ndarray  # [K], frames that carry key prompts
    config: FitConfig
    generator: Generator
    losses: Tensor = field(init=False)  # [T], last known loss of each frame
    at_once: int = field(init=False)  # most frames that pass the generator together; 0: all
    _weights: Tensor = field(init=False)  # [T, K] interpolation of prompts
    _between: Between = field(init=False)  # where the frames lie between the key frames

    def __post_init__(self) -> None:
        frames, device = int(self.offsets[-1]) + 1, self.u.device
        self.at_once = self.config.frames_at_once
        self.losses = torch.full((frames,), math.inf, device=device)
        self._weights = interpolation_matrix(self.offsets, frames).to(device)
        if self.motion is not None:
            self._between = Between.of(self.offsets, frames).to(device)

    @property
    def rank(self) -> int:
        return self.u.shape[-1]

    def parameters(self) -> list[nn.Parameter]:
        """Return what is fitted."""
        return [self.u, self.v] if self.motion is None else [self.u, self.v, self.motion]

    @property
    def u_scale(self) -> Tensor:
        """The unit [R] of each component of U."""
        return self.generator.step_scale[: self.rank]

    @property
    def u_steps(self) -> Tensor:
        """The quantization step [R] of each component of U."""
        return self.config.u_step * self.u_scale

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Return u [K, L, R], v [K, R, D] after fake quantization."""
        u = quantize_ste(self.u * self.u_scale, self.u_steps)
        v = quantize_ste(self.v, torch.tensor(self.config.v_step, device=self.u.device))
        return u, v.expand(len(u), -1, -1)

    def _compose(self, u: Tensor, v: Tensor, ranks: Tensor) -> Tensor:
        """Return embeddings [n, L, D] of u [n, L, R], v [n, R, D], each cut to its own rank [n]."""
        kept = torch.arange(self.rank, device=u.device) < ranks[:, None]  # [n, R]
        return self.generator.space.compose(u * kept[:, None, :], v, self.generator.norm_rank(self.rank))

    def _generate(self, embeddings: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(embeddings.device.type, dtype, enabled=dtype != torch.float32):
            if not self.at_once or len(embeddings) <= self.at_once:
                return self.generator.generate(embeddings).float()
            parts = embeddings.split(self.at_once)
            return torch.cat([checkpoint(self.generator.generate, part, use_reentrant=False) for part in parts]).float()

    def render(self, chosen: Tensor, ranks: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return frames [n, 3, H, W] of the segment's frames `chosen` [n], each at its own rank [n], the generator
        running in `dtype`, and the embeddings that were rendered."""
        u, v = self.quantized()
        if self.motion is None:
            weights = self._weights[chosen]
            embeddings = self._compose(interpolate(u, weights), interpolate(v, weights), ranks)
            return self._generate(embeddings, dtype), embeddings
        order = torch.argsort(ranks, stable=True)
        distinct, counts = ranks.unique(return_counts=True)
        times, keys = len(distinct), len(u)
        embeddings = self._compose(
            u.repeat(times, 1, 1), v.repeat(times, 1, 1), distinct.repeat_interleave(keys)
        )  # the key prompts at one rank after the other
        motion = quantize_ste(self.motion, torch.tensor(MOTION_STEP_PX, device=u.device))
        parts = [
            frames_between(key_frames, motion, self._between[chosen[members]])
            for key_frames, members in zip(
                self._generate(embeddings, dtype).split(keys), order.split(counts.tolist()), strict=True
            )
        ]
        return torch.cat(parts)[torch.argsort(order)], embeddings

    def frame_losses(self, frames: Tensor, output: Tensor) -> Tensor:
        """Return the loss [n] of rendered frames against true ones, both [n, 3, H, W]."""
        if self.config.squared:
            return (output - frames).square().mean(dim=(1, 2, 3))
        return frame_loss(output, frames)

    def regularizer(self, embeddings: Tensor) -> Tensor:
        """Return the rate term and the paper's term on the embeddings."""
        config, grid = self.config, self.generator.settings.grid
        total = (
            config.embedding_weight * embeddings.abs().mean() if config.embedding_weight else embeddings.new_zeros(())
        )
        if config.rate_weight:
            total = total + config.rate_weight * sequence_rate(self.u, grid, config.u_step)
            # V stands against U by its share of values, once a segment if shared
            share = self.v.numel() / self.u.numel()
            total = total + config.rate_weight * share * torch.log2(1 + 2 * self.v.abs() / config.v_step).mean()
            if self.motion is not None:
                share = self.motion.numel() / self.u.numel()
                total = total + config.rate_weight * _MOTION_RATE * share * motion_rate(self.motion, MOTION_STEP_PX)
        return total


def fit_segment(
    frames: Tensor,
    generator: Generator,
    encoder: PromptEncoder | None,
    config: FitConfig,
    *,
    ranks: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    observe: Callable[[int, Callable[[], Segment]], None] | None = None,
) -> Segment:
    """Fit the key prompts of one segment at all ranks together.

    Args:
        frames: [T, 3, H, W] float32 in [-1, 1] at the generator's native size.
        generator: frozen generator; the fit runs on its device.
        encoder: where the fit starts, or None for a random start.
        config: schedule, steps and weights.
        ranks: the ladder; the largest is the rank of the returned segment, smaller ones are its prefixes.
        progress: called as progress(step, most steps) after each step.
        observe: called as observe(step, segment) after each step, where segment() is what the fit has come to.

    Returns:
        The segment at the largest rank; `truncate` gives the others.

    Raises:
        BuildError: ranks the generator does not have, or frames of another size.
    """
    rank = max(ranks)
    if min(ranks) < 1 or rank > generator.max_rank:
        raise BuildError(f"ranks {list(ranks)}: this generator has ranks 1 to {generator.max_rank}")
    if tuple(frames.shape[2:]) != generator.native_size:
        raise BuildError(f"frames of {tuple(frames.shape[2:])} pixels, expected {generator.native_size}")
    frames = frames.to(generator.device)
    offsets = key_offsets(len(frames), config.interval, scene_cuts(frames))
    if config.motion and config.still_error:
        offsets = merge_still(frames, offsets, config.still_error)
    u, v = first_prompts(frames[torch.from_numpy(offsets)], generator, encoder, config, rank)
    if config.share_v:
        v = v.mean(dim=0, keepdim=True)
    motion = nn.Parameter(estimate_motion(frames, offsets)) if config.motion and len(offsets) > 1 else None
    fit = _Fit(nn.Parameter(u / generator.step_scale[:rank]), nn.Parameter(v), motion, offsets, config, generator)
    start = [p.detach().clone() for p in fit.parameters()]
    before = _objective(fit, frames, rank)

    def told(step: int) -> None:
        if progress is not None:
            progress(step, config.iterations)
        if observe is not None:
            observe(step, lambda: _to_segment(fit, offsets, len(frames)))

    _descend(fit, frames, sorted(set(ranks)), told)
    after = _objective(fit, frames, rank)
    log.info("fitted %d frames, %d key prompts: objective %.4f -> %.4f", len(frames), len(offsets), before, after)
    if not after <= before:  # a schedule that diverged must not cost what the encoder already had
        log.warning("the fit did not lower its objective (%.4f -> %.4f); keeping its start", before, after)
        for parameter, first in zip(fit.parameters(), start, strict=True):
            parameter.data = first
    return _to_segment(fit, offsets, len(frames))


def _descend(fit: _Fit, frames: Tensor, ranks: list[int], told: Callable[[int], None]) -> None:
    """Run Adam under the schedule until it is through or the schedule ends it; told(step) follows each step."""
    config = fit.config
    rng = np.random.default_rng(config.seed)
    groups: list[dict[str, Any]] = [{"params": [fit.u, fit.v]}]
    if fit.motion is not None:
        groups.append({"params": [fit.motion], "lr": _MOTION_LEARNING_RATE * config.learning_rate})
    optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    dtype = descent_dtype(config.autocast, frames.device)
    smoothed, best, since = math.nan, math.inf, 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(config.iterations):
        if config.schedule == "cosine":
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * step / config.iterations))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = share * peak
        chosen = torch.from_numpy(_draw_frames(fit, rng)).to(frames.device)
        drawn = torch.from_numpy(_draw_ranks(ranks, len(chosen), rng)).to(frames.device)
        losses = _gradients(fit, frames, chosen, drawn, dtype)
        fit.losses[chosen] = losses
        optimizer.step()
        value = losses.mean().item()
        smoothed = value if math.isnan(smoothed) else 0.8 * smoothed + 0.2 * value
        best, since = (smoothed, 0) if smoothed < best * 0.999 else (best, since + 1)
        if config.schedule == "plateau" and since >= config.patience:
            since = 0
            for group in optimizer.param_groups:
                group["lr"] /= 2
        told(step + 1)
        if config.schedule == "plateau" and optimizer.param_groups[0]["lr"] < config.min_learning_rate:
            break


def _gradients(fit: _Fit, frames: Tensor, chosen: Tensor, ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """Give the parameters their gradients of one step and return the losses [n] of its frames."""
    while True:
        for parameter in fit.parameters():
            parameter.grad = None
        try:
            output, embeddings = fit.render(chosen, ranks, dtype)
            losses = fit.frame_losses(frames[chosen], output)
            (losses.mean() + fit.regularizer(embeddings)).backward()
        except torch.OutOfMemoryError as error:
            if fit.at_once or len(chosen) == 1:
                shown = fit.at_once or 1
                raise BuildError(
                    f"the fit ran out of memory on {frames.device} with {shown} frames at once; give a smaller "
                    "fit.frames_at_once, or free memory"
                ) from error
            fit.at_once = (len(chosen) + 1) // 2
            log.warning("%s ran out of memory; fitting %d frames at once from now on", frames.device, fit.at_once)
        else:
            return losses.detach()


def descent_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `FitConfig.autocast` means on a device."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:  # there is no public question for this; where torch lacks the private one, float32 is only slower
            fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)


def _draw_frames(fit: _Fit, rng: np.random.Generator) -> np.ndarray:
    """Return the frames [n] of one step: spread over the segment, some of them the worst so far."""
    total = len(fit.losses)
    count = min(fit.config.frames_per_step, total)
    worst = min(int(fit.config.worst_share * count), total - 1)
    spread = count - worst
    edges = np.linspace(0, total, spread + 1)
    drawn = np.floor(edges[:-1] + rng.random(spread) * np.diff(edges)).astype(np.int64)
    if not worst:
        return np.minimum(drawn, total - 1)
    order = torch.argsort(fit.losses, descending=True)[: 2 * worst].cpu().numpy()
    return np.concatenate([np.minimum(drawn, total - 1), rng.choice(order, worst, replace=False)])


def _draw_ranks(ranks: list[int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return a rank for each of `count` frames: every second one the full rank, the rest one of the ranks below it."""
    drawn = np.full(count, rng.choice(ranks[:-1] or ranks))
    drawn[::2] = ranks[-1]
    return drawn


@torch.no_grad()
def _objective(fit: _Fit, frames: Tensor, rank: int) -> float:
    """Return what the fit minimises, over all frames at the full rank."""
    indices = torch.arange(len(frames), device=frames.device)
    total = 0.0
    for chunk in indices.split(fit.config.frames_per_step):
        output, embeddings = fit.render(chunk, torch.full_like(chunk, rank))
        loss = fit.frame_losses(frames[chunk], output).mean() + fit.regularizer(embeddings)
        total += loss.item() * len(chunk) / len(frames)
    return total


@torch.no_grad()
def _to_segment(fit: _Fit, offsets: np.ndarray, frames: int) -> Segment:
    config, rank = fit.config, fit.rank
    u = quantize(fit.u * fit.u_scale, fit.u_steps).cpu().numpy()
    v = quantize(fit.v, torch.tensor(config.v_step, device=fit.u.device)).expand(len(u), -1, -1).cpu().numpy()
    keys = tuple(
        KeyPrompt(int(at), np.ascontiguousarray(ku), np.ascontiguousarray(kv))
        for at, ku, kv in zip(offsets, u, v, strict=True)
    )
    u_scale, v_scale = fit.u_steps.cpu().numpy(), np.full(rank, config.v_step, np.float32)
    motion = None
    if fit.motion is not None:
        motion = quantize(fit.motion, torch.tensor(MOTION_STEP_PX, device=fit.u.device)).cpu().numpy()
    return Segment(frames, u_scale, v_scale, keys, motion)
