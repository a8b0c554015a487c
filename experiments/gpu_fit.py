"""Rows of `experiments.bench_gpu` for fitting: this project's fit, and a loop as the published one, on one machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from player.generator import Generator

if TYPE_CHECKING:
    from experiments.gpu_rows import Plan


@dataclass(frozen=True)
class FitRow:
    """How a row fits."""

    frames_per_step: int = 10
    """Of one segment, its intervals together."""
    segments: int = 1
    """Fitted together; 0: as many as fit the memory."""
    compile: str = "off"


PUBLISHED = "published loop"
"""One frame at a time, float32 parameters under autocast."""
COMPILED = "+ torch.compile"
FIT_ROWS: dict[str, FitRow | None] = {
    PUBLISHED: None,
    "10 frames a step": FitRow(),
    "30 frames a step": FitRow(30),
    "60 frames a step": FitRow(60),
    "10 frames a step of segments that fit": FitRow(segments=0),
    COMPILED: FitRow(segments=0, compile="default"),
}
_RANK, _INTERVAL = 8, 10
_STEPS = 6
_SEGMENTS_ON_CPU = 2  # where memory is not asked, to go the same way


def measure_fit(plan: Plan, name: str) -> dict[str, Any]:
    """Return frames/s and steps/s of a fit with gradient, after a warm-up step, and the peak of the memory.

    A step of the published loop here is one pass over an interval, in which it steps for every frame.
    """
    cuda, row = plan.device.type == "cuda", FIT_ROWS[name]
    generator = plan.generator(torch.float32 if row is None else plan.half if cuda else torch.float32)
    frames = torch.rand(1 + plan.frames, 3, *generator.native_size, device=plan.device) * 2 - 1
    if cuda:
        torch.cuda.reset_peak_memory_stats(plan.device)
    found: dict[str, Any] = {}
    if row is None:
        rendered = min(_INTERVAL, plan.frames)
        step_s = _published_step_s(generator, frames[: rendered + 1], plan.half)
    else:
        step_s, segments, at_once = _own_step_s(generator, frames, row, steps=1 if plan.tiny else _STEPS)
        rendered = segments * min(row.frames_per_step, len(frames))
        found = {"segments_at_once": segments, "frames_at_once": at_once or rendered}
    found |= {"frames_a_step": rendered, "frames_per_s": round(rendered / step_s, 3)}
    found["iterations_per_s"] = round(1 / step_s, 3)
    return found | {"peak_bytes": torch.cuda.max_memory_allocated(plan.device) if cuda else None}


def _own_step_s(generator: Generator, frames: Tensor, row: FitRow, steps: int) -> tuple[float, int, int]:
    """Return the seconds of a step of `packager.fit.fit_segments` in the preset `paper`, the segments fitted together,
    and the frames that pass the generator at once (0: all)."""
    from packager.fit import fit_preset, fit_segments, segments_that_fit

    times: list[float] = []
    config = fit_preset(
        "paper",
        iterations=1 + steps,
        frames_per_step=row.frames_per_step,
        worst_share=0.0,
        interval=_INTERVAL,
        segments_at_once=row.segments or (0 if generator.device.type == "cuda" else _SEGMENTS_ON_CPU),
        compile=row.compile,
    )
    segments, config = segments_that_fit(generator, config, len(frames))
    # every step ends with its loss on the host, so the device's queue is empty at each of these
    fit_segments(
        [frames] * segments,
        generator,
        None,
        config,
        ranks=[_RANK],
        progress=lambda *_: times.append(time.perf_counter()),
    )
    return (times[-1] - times[0]) / steps, segments, config.frames_at_once


def _published_step_s(generator: Generator, frames: Tensor, half: torch.dtype) -> float:
    """Return the seconds of one pass over an interval as the published loop makes it.

    Frame by frame: compose, render under autocast with float32 weights, loss, gradient, and a step of Adam. Its feature
    term (VGG-19) is left out here as in the fit it is compared with.
    """
    device = generator.device
    source = torch.Generator(device).manual_seed(0)
    shapes = (2, generator.tokens, _RANK), (2, _RANK, generator.width)
    u, v = (torch.rand(shape, device=device, generator=source, requires_grad=True) for shape in shapes)
    optimizer = torch.optim.Adam([u, v], lr=0.1)
    taken = []
    for _ in range(2):  # the first pass warms up
        began = time.perf_counter()
        for step in range(1, len(frames)):
            share = step / _INTERVAL
            a, b = ((1 - share) * factor[0] + share * factor[1] for factor in (u, v))
            embedding = (a @ b / math.sqrt(_RANK))[None]
            with torch.autocast(device.type, half):
                shown = generator.generate(embedding).float()
            loss = 0.8 * (shown - frames[step][None]).square().mean() + 0.1 * embedding.abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss.item()
        taken.append(time.perf_counter() - began)
    return taken[1]
