"""Fit prompts to the frames of segments by gradient descent through the generator.

Every frame counts, not only those under a key prompt: the loss is taken after interpolation (along motion, or of the
prompts as in the paper), through fake quantization with straight-through gradients. Steps are taken at all ranks in
turn, so that one fit serves every rank of the ladder, and their running average is what is kept. Several segments may
descend together: their frames then pass the generator as one batch, and nothing else is shared.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from packager.encoder import PromptEncoder
from packager.errors import BuildError
from packager.fit_config import FAST as FAST
from packager.fit_config import PRESETS as PRESETS
from packager.fit_config import FitConfig as FitConfig
from packager.fit_config import descent_dtype as descent_dtype
from packager.fit_config import fit_preset as fit_preset
from packager.fit_forward import Forward, frames_with_gradient
from packager.fit_state import FitState
from packager.motion import TrueMotion
from packager.scenes import key_offsets as key_offsets
from packager.scenes import key_spans, middles
from packager.scenes import scene_cuts as scene_cuts
from packager.start import first_prompts
from player.bitstream import Segment
from player.generator import Generator
from player.motion import motion_anchors

log = logging.getLogger(__name__)

_MOTION_LEARNING_RATE = 6.0  # of the fit's learning rate: motion is in pixels, not of unit scale
_CHANGE_LEARNING_RATE = 0.5  # likewise: what a lower rank's V differs by is corrected in few of the steps
_MOST_STEPS_BETWEEN = 2  # at lower ranks, from one at the full rank to the next
_LOOKED_AT = 6  # every which frame decides whether a fit was worth it


Ladder = dict[int, Segment]
"""A fitted segment at each rank."""


def fit_segment(
    frames: Tensor,
    generator: Generator,
    encoder: PromptEncoder | None,
    config: FitConfig,
    *,
    ranks: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    observe: Callable[[int, Callable[[int], Segment]], None] | None = None,
) -> Ladder:
    """Fit the key prompts of one segment at all ranks together.

    Args:
        frames: [T, 3, H, W] float32 in [-1, 1] at the generator's native size.
        generator: frozen generator; the fit runs on its device.
        encoder: where the fit starts, or None for a random start.
        config: schedule, steps and weights.
        ranks: the ladder; U and motion of lower ranks are prefixes of those of the highest, and so is V unless
            `config.rank_v`.
        progress: called as progress(step, most steps) after each step.
        observe: called as observe(step, segment) after each step, where segment(rank) is what the fit has come to.

    Returns:
        The segment at each rank.

    Raises:
        BuildError: ranks the generator does not have, frames of another size, or too little memory.
    """

    def told(step: int, descents: list[_Descent]) -> None:
        if progress is not None:
            progress(step, config.iterations)
        if observe is not None:
            observe(step, descents[0].segment)

    return _fit([frames], generator, encoder, config, ranks, told)[0]


def fit_segments(
    segments: Sequence[Tensor | TrueMotion],
    generator: Generator,
    encoder: PromptEncoder | None,
    config: FitConfig,
    *,
    ranks: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[Ladder]:
    """Fit several segments together; arguments as of `fit_segment`, `segments` holding the frames of each, or
    its motion on the generator's device: what an earlier fit of the same frames has found is not looked for again.

    Draws, schedule and optimizer are each segment's own, and a step's loss is the sum of theirs, so every segment gets
    the gradients that it gets alone. Only the rounding of products over a larger batch differs.
    """
    return _fit(segments, generator, encoder, config, ranks, lambda step, _: _tell(progress, step, config))


def segments_that_fit(generator: Generator, config: FitConfig, frames: int) -> tuple[int, FitConfig]:
    """Return how many segments of `frames` frames to fit together, and the settings with `frames_at_once` filled in.

    On CUDA both follow from the memory that is free; on a CPU a segment is fitted alone, whole, unless `config` says
    otherwise.

    Raises:
        BuildError: not even the gradient of one frame fits.
    """
    needed = frames_in_a_step(config, frames)
    if generator.device.type != "cuda" or (config.frames_at_once and config.segments_at_once):
        return config.segments_at_once or 1, config
    most = config.frames_at_once or frames_with_gradient(generator, config)
    if not config.frames_at_once and most < needed * max(config.segments_at_once, 1):
        config = replace(config, frames_at_once=most)
    return config.segments_at_once or max(1, most // needed), config


def frames_in_a_step(config: FitConfig, frames: int) -> int:
    """Return how many frames at most pass the generator in a step of the fit of a segment of `frames` frames."""
    if not config.motion:
        return min(config.frames_per_step, frames)
    return math.ceil(frames / config.key_interval)  # the key frames


def _tell(progress: Callable[[int, int], None] | None, step: int, config: FitConfig) -> None:
    if progress is not None:
        progress(step, config.iterations)


def _fit(
    segments: Sequence[Tensor | TrueMotion],
    generator: Generator,
    encoder: PromptEncoder | None,
    config: FitConfig,
    ranks: Sequence[int],
    told: Callable[[int, list[_Descent]], None],
) -> list[Ladder]:
    """Fit segments together; told(step, descents) follows each step."""
    rank = max(ranks)
    if min(ranks) < 1 or rank > generator.max_rank:
        raise BuildError(f"ranks {list(ranks)}: this generator has ranks 1 to {generator.max_rank}")
    seen = [part if isinstance(part, TrueMotion) else TrueMotion(part.to(generator.device)) for part in segments]
    for motion in seen:
        if (size := tuple(motion.frames.shape[2:])) != generator.native_size:
            raise BuildError(f"frames of {size} pixels, expected {generator.native_size}")
    forward = Forward(generator, config)
    descents = [_Descent.begin(motion, forward, encoder, config, ranks) for motion in seen]
    _descend(descents, forward, config, told)
    return [descent.result() for descent in descents]


class _Descent:
    """The way of one segment's fit: its state, what it is drawn with, and Adam under its schedule."""

    def __init__(self, frames: Tensor, state: FitState, forward: Forward, ranks: Sequence[int]) -> None:
        self.state, self.over = state, False
        self._frames, self._forward, self._ranks, self._config = frames, forward, sorted(set(ranks)), state.config
        self._start = [parameter.detach().clone() for parameter in state.parameters()]
        self._average = [parameter.clone() for parameter in self._start]
        self._before = self._objective()
        self._rng = np.random.default_rng(self._config.seed)
        self._windows = torch.Generator().manual_seed(self._config.seed)
        rate = self._config.learning_rate
        groups: list[dict[str, Any]] = [{"params": [state.u, state.v]}]
        if state.motion is not None:
            groups.append({"params": [state.motion], "lr": _MOTION_LEARNING_RATE * rate})
        if state.changes:
            groups.append({"params": list(state.changes.values()), "lr": _CHANGE_LEARNING_RATE * rate})
        self._optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.95))
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._smoothed, self._best, self._since = math.nan, math.inf, 0
        self._taken, self._steps_at = 0, Counter[int]()  # steps so far, in all and at each rank

    @classmethod
    def begin(
        cls,
        seen: TrueMotion,
        forward: Forward,
        encoder: PromptEncoder | None,
        config: FitConfig,
        ranks: Sequence[int],
    ) -> _Descent:
        """Choose the key frames of the frames that were seen, and where their prompts and motion start."""
        generator, rank, frames = forward.generator, max(ranks), seen.frames
        cuts = scene_cuts(frames)
        if config.motion:
            edges = key_spans(len(frames), config.key_interval, cuts)
            if config.still_error:
                edges = seen.merge_still(edges, cuts, config.still_error, config.motion_interval)
            offsets = middles(edges)
        else:
            offsets = key_offsets(len(frames), config.key_interval, cuts)
        u, v = first_prompts(frames[torch.from_numpy(offsets)], generator, encoder, config, rank)
        if config.share_v:
            v = v.mean(dim=0, keepdim=True)
        motion, anchors = None, offsets
        if config.motion and len(frames) > 1:
            anchors = motion_anchors(offsets, len(frames), config.motion_interval, cuts)
            motion = nn.Parameter(seen.estimate(offsets, anchors, cuts))
        u = nn.Parameter(u / generator.step_scale[:rank])
        lower = sorted(set(ranks))[:-1] if config.rank_v else []
        changes = {low: nn.Parameter(torch.zeros_like(v[:, :low])) for low in lower}
        v = nn.Parameter(v)
        state = FitState(u, v, motion, len(frames), offsets, anchors, tuple(cuts), config, generator, changes)
        return cls(frames, state, forward, ranks)

    def draw(self, step: int) -> None:
        """Set the learning rate of a step, draw its frames and choose their rank."""
        config = self._config
        if config.schedule == "cosine":
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * step / config.iterations))
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = share * peak
        chosen = _draw_frames(self.state, self._rng)
        self.chosen = torch.from_numpy(chosen).to(self._frames.device)
        self.rank = rank_of_step(self._ranks, step)
        self._first = self._steps_at[self.rank] % 2  # of the frames whose features are compared
        self._steps_at[self.rank] += 1

    def prompts(self) -> Tensor:
        """Return the embeddings [m, L, D] to render for what was drawn."""
        return self.state.prompts(self.chosen, self.rank)

    def losses(self, rendered: Tensor) -> Tensor:
        """Return the loss [n] of each frame that was drawn, of `prompts` rendered [m, 3, H, W].

        Features, which cost most, are compared for every second frame with twice the weight. They say nothing of which
        frame is the worst, then, and neither do steps at lower ranks.
        """
        output = self.state.shown(rendered, self.chosen)
        frames = self._frames[self.chosen]
        losses = self.state.frame_losses(frames, output)
        if self.rank == self._ranks[-1]:
            self.state.losses[self.chosen] = losses.detach()
        some = slice(self._first if len(frames) > 1 else 0, None, 2)
        apart = self._forward.feature_losses(output[some], frames[some], self._windows)
        weight = len(frames) / len(apart)
        return losses.index_add(0, torch.arange(len(frames), device=losses.device)[some], weight * apart)

    def step(self, losses: Tensor) -> None:
        """Follow the gradients, which met these losses [n]; the schedule may end the fit."""
        config, optimizer = self._config, self._optimizer
        optimizer.step()
        self._taken += 1
        # a plain mean until that covers as many steps as the running one does: the start has no part in it
        kept = min(config.average, 1 - 1 / self._taken)
        for average, parameter in zip(self._average, self.state.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - kept)
        value = losses.mean().item()
        self._smoothed = value if math.isnan(self._smoothed) else 0.8 * self._smoothed + 0.2 * value
        better = self._smoothed < self._best * 0.999
        self._best, self._since = (self._smoothed, 0) if better else (self._best, self._since + 1)
        if config.schedule == "plateau":
            if self._since >= config.patience:
                self._since = 0
                for group in optimizer.param_groups:
                    group["lr"] /= 2
            self.over = optimizer.param_groups[0]["lr"] < config.min_learning_rate

    def segment(self, rank: int) -> Segment:
        """Return what the fit has come to at a rank, quantized."""
        current = [parameter.data for parameter in self.state.parameters()]
        self._set(self._average)
        try:
            return self.state.segment(rank)
        finally:
            self._set(current)

    def result(self) -> Ladder:
        """Return the segment that was fitted, or where it started if that was better, at each rank."""
        self._set(self._average)
        before, after, state = self._before, self._objective(), self.state
        keys = len(state.offsets)
        log.info("fitted %d frames, %d key prompts: objective %.4f -> %.4f", len(self._frames), keys, before, after)
        if not after <= before:  # a schedule that diverged must not cost what the encoder already had
            log.warning("the fit did not lower its objective (%.4f -> %.4f); keeping its start", before, after)
            self._set(self._start)
        return {rank: state.segment(rank) for rank in self._ranks}

    def _set(self, values: Sequence[Tensor]) -> None:
        """Give the parameters these values."""
        for parameter, value in zip(self.state.parameters(), values, strict=True):
            parameter.data = value

    @torch.no_grad()
    def _objective(self) -> float:
        """Return what the fit minimises, at the full rank, in the generator's own precision.

        Every sixth frame is looked at, and of every twelfth the features: the two ends of a fit are far enough apart.
        """
        frames, state = self._frames, self.state
        looked_at = torch.arange(0, len(frames), _LOOKED_AT, device=frames.device)
        total = 0.0
        rendered = None
        for chunk in looked_at.split(self._config.frames_per_step):
            if rendered is None or state.motion is None:  # with motion all chunks show the same key frames
                embeddings = state.prompts(chunk, state.rank)
                rendered = self._forward.exact(embeddings)
            output = state.shown(rendered, chunk)
            loss = state.frame_losses(frames[chunk], output).mean() + state.regularizer(embeddings, state.rank)
            loss = loss + self._forward.feature_losses(output[::2], frames[chunk[::2]]).mean()
            total += loss.item() * len(chunk) / len(looked_at)
        return total


def _descend(
    descents: list[_Descent], forward: Forward, config: FitConfig, told: Callable[[int, list[_Descent]], None]
) -> None:
    """Take the steps of all fits together until each is through or its schedule ends it."""
    for step in range(config.iterations):
        active = [descent for descent in descents if not descent.over]
        if not active:
            break
        for descent in active:
            descent.draw(step)
        for descent, losses in zip(active, _gradients(active, forward), strict=True):
            descent.step(losses)
        told(step + 1, descents)


def _gradients(active: list[_Descent], forward: Forward) -> list[Tensor]:
    """Give the parameters their gradients of one step and return the losses [n] of each fit's frames."""
    while True:
        for descent in active:
            for parameter in descent.state.parameters():
                parameter.grad = None
        try:
            return _backward(active, forward)
        except torch.OutOfMemoryError as error:
            forward.shrink(sum(len(descent.prompts()) for descent in active), error)


def _backward(active: list[_Descent], forward: Forward) -> list[Tensor]:
    """Do the work of `_gradients`; a function of its own, so that nothing of it is held when memory has run out."""
    embeddings = [descent.prompts() for descent in active]
    rendered = forward.descent(torch.cat(embeddings)).split([len(own) for own in embeddings])
    losses = [descent.losses(frames) for descent, frames in zip(active, rendered, strict=True)]
    terms = [
        own.mean() + descent.state.regularizer(prompts, descent.rank)
        for own, descent, prompts in zip(losses, active, embeddings, strict=True)
    ]
    torch.stack(terms).sum().backward()
    return [own.detach() for own in losses]


def _draw_frames(fit: FitState, rng: np.random.Generator) -> np.ndarray:
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


def rank_of_step(ranks: Sequence[int], step: int) -> int:
    """Return the rank of a step, counted from 0, of a fit at rising ranks: all in turn, but no fewer than every third
    step at the full one, however many others there are."""
    *lower, full = ranks
    turn, within = divmod(step, min(len(ranks), _MOST_STEPS_BETWEEN + 1))
    return lower[(turn * _MOST_STEPS_BETWEEN + within - 1) % len(lower)] if within else full
