"""A low-rank update of the decoder for each title, carried in the init segment: does it pay for its bytes?

Part of `python -m experiments.codec_ideas`. The update (LoRA, Hu et al. 2021, arXiv 2106.09685) of every convolution's
weight is fitted while the prompts stay, then the prompts are fitted anew to the changed decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bd_rate import Curve, bd_rate
from packager.encoder import PromptEncoder
from packager.fit import Ladder, fit_preset, fit_segment
from packager.losses import frame_loss
from player.bitstream import StreamInfo, write_segment
from player.decoder import from_pixels, render_segment
from player.generator import Generator
from player.motion import Between, frames_between, motion_fields

if TYPE_CHECKING:
    from player.quality import Metric

LADDER = (2, 4, 8, 16)
UPDATE_RANKS = (1, 4)
_STEPS = 80
_RATE = 2e-3  # of learning
_FRAMES_PER_STEP = 12
_PROGRAMMES_S = (4, 60, 600)  # over which an update's bytes are spread
_FPS = Fraction(30)


def adapter(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, metrics: Sequence[Metric]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield BD-rates of ladders whose decoder has a low-rank update of its own, against one with as many steps of
    fitting and none; the update's bytes are spread over programmes of several lengths."""
    pixels = from_pixels(frames)
    first = fit_segment(pixels, generator, encoder, fit_preset("fast"), ranks=LADDER)
    plain = fit_segment(pixels, generator, encoder, fit_preset("fast", iterations=60), ranks=LADDER)
    anchor = _ladder(frames, generator, plain, metrics)
    for rank in UPDATE_RANKS:
        size, restore = _adapt(pixels, generator, first, rank)
        try:
            again = fit_segment(pixels, generator, encoder, fit_preset("fast"), ranks=LADDER)
            tested = _ladder(frames, generator, again, metrics)
        finally:
            restore()
        numbers: dict[str, float] = {"adapter bytes": size}
        for metric in metrics:
            numbers[f"{metric.name} at rank {LADDER[-1]}: without"] = anchor[-1][metric.name]
            numbers[f"{metric.name} with"] = tested[-1][metric.name]
        for seconds in _PROGRAMMES_S:
            for metric in (m for m in metrics if m.name != "psnr_db"):
                key = f"BD-rate {metric.name}, {seconds} s [%]"
                numbers[key] = _delta(anchor, tested, 8 * size / seconds, metric)
        yield f"low-rank update of rank {rank}", numbers


def _delta(anchor: list[dict[str, float]], tested: list[dict[str, float]], extra_bps: float, metric: Metric) -> float:
    curves = [
        Curve.of(
            [row["bps"] + extra for row in rows],
            [row[metric.name] for row in rows],
            higher_is_better=metric.higher_is_better,
        )
        for rows, extra in ((anchor, 0.0), (tested, extra_bps))
    ]
    value = bd_rate(*curves).value
    return float("nan") if value is None else 100 * value


def _ladder(
    frames: np.ndarray, generator: Generator, fitted: Ladder, metrics: Sequence[Metric]
) -> list[dict[str, float]]:
    """Return bitrate and quality of every rank of a segment."""
    height, width = generator.native_size
    rows = []
    for rank in LADDER:
        sizes = (width, height, width, height)
        info = StreamInfo(
            generator.id, generator.tokens, generator.width, rank, max(LADDER), *sizes, _FPS, *generator.settings.grid
        )
        part = fitted[rank]
        size = len(write_segment(info, part, sequence=1, start_frame=0))
        shown = render_segment(part, generator.norm_rank(max(LADDER)), generator)
        quality = {m.name: float(m(frames[::3], shown[::3]).mean()) for m in metrics}
        rows.append({"bps": size * 8 * float(_FPS) / len(frames), **quality})
    return rows


def _adapt(pixels: Tensor, generator: Generator, fitted: Ladder, rank: int) -> tuple[int, Callable[[], None]]:
    """Fit a low-rank update of all the decoder's convolutions to a segment whose prompts stay as they are.

    Returns:
        The update's bytes in 8 bits a value, and what takes it out of the generator again.
    """
    layers = [module for module in generator.decoder.modules() if isinstance(module, nn.Conv2d)]
    own = [layer.weight.detach().clone() for layer in layers]
    source = torch.Generator().manual_seed(0)
    factors = []
    for weight in own:
        out, inside = len(weight), weight[0].numel()
        down = torch.randn(rank, inside, generator=source) / inside**0.5
        factors.append((torch.zeros(out, rank, requires_grad=True), down.requires_grad_(True)))
    segment = fitted[max(LADDER)]
    motion = motion_fields(segment, torch.device("cpu"))
    between = Between.of(segment.offsets, len(pixels), segment.all_anchors, segment.cuts)
    latents = {}
    with torch.no_grad():
        for kept in LADDER:
            part = fitted[kept]
            u = (
                torch.from_numpy(np.stack([k.u for k in part.keys]) * part.u_scale).float()
                * generator.step_scale[:kept]
            )
            v = torch.from_numpy(np.stack([k.v for k in part.keys]) * part.v_scale[:, None]).float()
            latents[kept] = generator.denoise(generator.space.compose(u, v, generator.norm_rank(max(LADDER))))
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam([x for pair in factors for x in pair], lr=_RATE)

    def decode(kept: int, weights: Sequence[Tensor]) -> Tensor:
        names = {f"body.{name}": layer for name, layer in generator.decoder.body.named_modules()}
        places = {id(layer): name for name, layer in names.items()}
        changed = {f"{places[id(layer)]}.weight": w for layer, w in zip(layers, weights, strict=True)}
        return torch.func.functional_call(generator.decoder, changed, (latents[kept],))

    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = _RATE * (0.1 + 0.45 * (1 + np.cos(np.pi * step / _STEPS)))
        weights = [w + (up @ down).view_as(w) for w, (up, down) in zip(own, factors, strict=True)]
        chosen = torch.from_numpy(rng.choice(len(pixels), min(_FRAMES_PER_STEP, len(pixels)), replace=False))
        keys = decode(int(rng.choice(LADDER)), weights)
        loss = frame_loss(frames_between(keys, motion, between[chosen]), pixels[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def in_eight_bits(x: Tensor) -> Tensor:
        unit = x.detach().abs().amax().clamp(min=1e-12) / 127
        return torch.round(x.detach() / unit) * unit

    for layer, weight, (up, down) in zip(layers, own, factors, strict=True):
        layer.weight.data = weight + (in_eight_bits(up) @ in_eight_bits(down)).view_as(weight)

    def restore() -> None:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight.data = weight

    return sum(up.numel() + down.numel() + 8 for up, down in factors), restore
