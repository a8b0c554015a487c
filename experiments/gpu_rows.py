"""Rows of `experiments.bench_gpu`: each is measured alone, may run out of memory or of time, and is written at once."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.gpu_fit import COMPILED, FIT_ROWS, measure_fit
from experiments.provenance import provenance
from experiments.random_models import SD_TURBO, TAESD, TINY_SIDE, parameters_of, random_generator
from packager.errors import PackagerError
from player.device_memory import frames_that_fit
from player.engine import Engine, RenderOptions
from player.errors import PlayerError
from player.files import write_json
from player.generator import Generator
from player.pixels import to_pixels

WEIGHTS = "random weights of the exact architecture (stabilityai/sd-turbo): for speed and memory, not for pictures"
TINY_WEIGHTS = "a small model of random weights: numbers that say nothing, from a run to try the script"
CARDS_GB = (8, 12, 24, 80)
_REPEATS = 3
_SLOWEST_S = {"compile": 90.0, "max-autotune": 240.0, COMPILED: 90.0}
"""Rows that compile, and what the budget must have left for them; guesses, not measurements."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    device: torch.device
    dtype: str
    decoder: str
    frames: int
    tiny: bool
    quick: bool

    def generator(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Generator:
        """Return the model in a dtype, on the plan's device or another."""
        side, decoder = TINY_SIDE if self.tiny else 64, TAESD if self.decoder == "taesd" else SD_TURBO / "vae"
        where = self.device if device is None else device
        return random_generator(decoder=decoder, device=where, dtype=dtype, latent_side=side, tiny=self.tiny)

    @property
    def half(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def embeddings(self, generator: Generator, count: int) -> Tensor:
        """Return embeddings [n, L, D] as a segment's, drawn anew from one seed."""
        source = torch.Generator(self.device).manual_seed(1)
        return torch.randn(count, generator.tokens, generator.width, device=self.device, generator=source)


# ---- rows of rendering: name, what it is, options of the engine; None: the plain loop -------------------------------

_OFF = RenderOptions(batch=1, reuse=False, merge_keys=False, cuda_graphs=False)
RENDER_ROWS: dict[str, RenderOptions | None] = {
    "float32": None,
    "half": None,
    "channels_last": None,
    "batch": replace(_OFF, batch=0),
    "reuse": replace(_OFF, batch=0, reuse=True),
    "keys": replace(_OFF, batch=0, reuse=True, merge_keys=True),
    "graphs": RenderOptions(),
    "compile": RenderOptions(compile="default"),
    "max-autotune": RenderOptions(compile="max-autotune"),
}
TITLES = {
    "float32": "float32, one frame at a time",
    "half": "half precision",
    "channels_last": "+ channels_last",
    "batch": "+ frames of the segment in batches",
    "reuse": "+ what no prompt reaches computed once",
    "keys": "+ keys and values in one product",
    "graphs": "+ CUDA graphs",
    "compile": "+ torch.compile",
    "max-autotune": "+ torch.compile, max-autotune",
}


class Bench:
    """Measures rows within a time budget and keeps the JSON file up to date."""

    def __init__(self, plan: Plan, budget_s: float, path: Path) -> None:
        self.plan, self._path, self._began_s, self._budget_s = plan, path, time.monotonic(), budget_s
        self.report: dict[str, Any] = {
            "weights": TINY_WEIGHTS if plan.tiny else WEIGHTS,
            "tiny": plan.tiny,
            "finished": False,
            **_machine(plan),
        }
        self.report |= {"rendering": [], "memory": [], "fitting": []}

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget_s - (time.monotonic() - self._began_s)

    def run(self, show: Callable[[str], None]) -> None:
        """Measure everything there is time for."""
        show(f"{self.report['device']}, torch {self.report['torch']}; {self.report['weights']}")
        self._note(show, operations(self.plan))
        self._note(show, {"ceiling_tflops": float(f"{matmul_ceiling(self.plan) / 1e12:.4g}")})
        try:
            self._note(show, precision(self.plan))
        except torch.OutOfMemoryError:
            self._note(show, {"relative_error_latents": None, "relative_error_frames": None})
        for name in RENDER_ROWS:
            self._row(show, "rendering", name, partial(self._render_row, name))
        for count in (1, 2) if self.plan.tiny else (1, 2, 4, 8, 16, 32, 64):
            self._row(show, "memory", str(count), partial(measure_memory, self.plan, count))
        self._note(show, {"cards": self._cards()})
        for name in FIT_ROWS:
            self._row(show, "fitting", name, partial(self._compiling_row if name == COMPILED else self._fit_row, name))
        self.report["finished"] = True
        write_json(self._path, self.report)

    def _row(self, show: Callable[[str], None], part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row, or say why there is none."""
        began_s = time.monotonic()
        reason = "" if self.left_s > 0 else "skipped: the time budget is spent"
        found: dict[str, Any] = {}
        if not reason:
            try:
                found = measure()
            except torch.OutOfMemoryError:
                reason = "did not fit the memory"
            except (PlayerError, PackagerError) as error:  # the engine and the fit say likewise what did not fit
                reason = f"skipped: {error}"
            except SkippedError as error:
                reason = f"skipped: {error}"
        if reason:
            found = {"skipped": reason}
        row = {"name": name, **found, "took_s": round(time.monotonic() - began_s, 2)}
        if "frames_per_s" in row and part == "rendering" and self.plan.device.type == "cuda":
            flops = row["frames_per_s"] * self.report["gflop_per_frame"] * 1e9
            row["share_of_ceiling"] = round(flops / (self.report["ceiling_tflops"] * 1e12), 4)
        self.report[part].append(row)
        _release(self.plan.device)
        write_json(self._path, self.report)
        show(_line(part, row))

    def _note(self, show: Callable[[str], None], found: dict[str, Any]) -> None:
        self.report |= found
        write_json(self._path, self.report)
        show(json.dumps(found))

    def _render_row(self, name: str) -> dict[str, Any]:
        if name == "graphs" and self.plan.device.type != "cuda":
            raise SkippedError("needs a CUDA device")
        return self._compiling_row(name) if name in _SLOWEST_S else measure_alone(self.plan, name)

    def _fit_row(self, name: str) -> dict[str, Any]:
        return measure_fit(self.plan, name)

    def _compiling_row(self, name: str) -> dict[str, Any]:
        if self.plan.device.type != "cuda":
            raise SkippedError("needs a CUDA device")
        if name != "compile" and self.plan.quick:
            raise SkippedError("takes minutes; leave --quick out")
        if self.left_s < _SLOWEST_S[name]:
            raise SkippedError(f"{self.left_s:.0f} s of the budget left, may take {_SLOWEST_S[name]:.0f}")
        return self._in_a_process(name)

    def _in_a_process(self, name: str) -> dict[str, Any]:
        """Measure a row that may take longer than there is time: in a process that can be stopped."""
        plan = self.plan
        _release(plan.device)
        command = [sys.executable, "-m", "experiments.bench_gpu", "--row", name, "--device", str(plan.device)]
        command += ["--dtype", plan.dtype, "--decoder", plan.decoder, "--frames", str(plan.frames)]
        command += ["--tiny"] if plan.tiny else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.left_s, check=False)
        except subprocess.TimeoutExpired:
            raise SkippedError("still compiling when the time budget was spent") from None
        if done.returncode:
            raise SkippedError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200])
        return json.loads(done.stdout.strip().splitlines()[-1])

    def _cards(self) -> dict[str, int | str]:
        """Return frames at a time by card, from the peaks measured; 0: not even one."""
        peaks = {row["name"]: row["peak_bytes"] for row in self.report["memory"] if "peak_bytes" in row}
        if len(peaks) < 2:
            return {f"{card} GB": "not measured" for card in CARDS_GB}
        (low, low_bytes), (high, high_bytes) = ((int(k), peaks[k]) for k in (min(peaks, key=int), max(peaks, key=int)))
        each = (high_bytes - low_bytes) / (high - low)
        weights = self.report["weight_bytes"]
        one = low_bytes - weights - (low - 1) * each  # beside the weights
        fitting: dict[str, int | str] = {}
        for card in CARDS_GB:
            free = int(card * 1e9 - weights)
            fitting[f"{card} GB"] = 0 if free < one else frames_that_fit(free, int(one), int(one + each))
        return fitting


def measure_row(plan: Plan, name: str) -> dict[str, Any]:
    """Return one row of rendering or fitting by its name."""
    return measure_fit(plan, name) if name in FIT_ROWS else measure_alone(plan, name)


class SkippedError(Exception):
    """A row that is not measured, and why."""


def measure_alone(plan: Plan, name: str) -> dict[str, Any]:
    """Return one row of rendering: frames/s, median of several runs after a warm-up, and the peak of the memory."""
    generator = plan.generator(torch.float32 if name == "float32" else plan.half)
    options = RENDER_ROWS[name]
    if name in ("float32", "half"):
        generator.to(memory_format=torch.contiguous_format)
    embeddings = plan.embeddings(generator, plan.frames if options else min(plan.frames, 8))
    engine = Engine(generator, options) if options else None
    render = engine.render if engine else partial(_frame_by_frame, generator)
    seconds, first_s, peak = timed(plan, partial(render, embeddings))
    row = {"title": TITLES[name], "frames": len(embeddings), "frames_per_s": round(len(embeddings) / seconds, 3)}
    if engine:
        row["frames_at_a_time"] = engine.batch
    return row | {"first_run_s": round(first_s, 2), "peak_bytes": peak}


@torch.no_grad()
def _frame_by_frame(generator: Generator, embeddings: Tensor) -> Any:
    return [to_pixels(generator.generate(one[None])).cpu() for one in embeddings]


def timed(plan: Plan, run: Callable[[], Any]) -> tuple[float, float, int | None]:
    """Return the median seconds of a run, those of the first, and the peak of the device's memory in bytes."""
    cuda = plan.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(plan.device)
    taken = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize(plan.device)
        taken.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(plan.device) if cuda else None
    return statistics.median(taken[1:]), taken[0], peak


def measure_memory(plan: Plan, count: int) -> dict[str, Any]:
    """Return the peak of the memory with so many frames at a time, weights included."""
    if plan.device.type != "cuda":
        raise SkippedError("needs a CUDA device")
    generator = plan.generator(plan.half)
    engine = Engine(generator, replace(RenderOptions(), batch=count, cuda_graphs=False))
    torch.cuda.reset_peak_memory_stats(plan.device)
    with torch.no_grad(), engine._current_device():
        engine._submit(plan.embeddings(generator, count)).result()  # not `submit`, which would halve it
    return {"peak_bytes": torch.cuda.max_memory_allocated(plan.device)}


def operations(plan: Plan) -> dict[str, Any]:
    """Return GFLOP a frame (a multiply-add is two), as is and without what the engine computes once; parameters."""
    ghost = plan.generator(torch.float32, "meta")
    embedding = torch.empty(1, ghost.tokens, ghost.width, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False, depth=None) as whole:
            clean = ghost.denoise(embedding)
        with FlopCounterMode(display=False) as decoding:
            ghost.decode_latents(clean)
    weights = parameters_of(ghost.unet) + parameters_of(ghost.decoder)
    return {
        "gflop_per_frame": round((whole.get_total_flops() + decoding.get_total_flops()) / 1e9, 3),
        "gflop_unet": round(whole.get_total_flops() / 1e9, 3),
        "gflop_decoder": round(decoding.get_total_flops() / 1e9, 3),
        "parameters_unet": parameters_of(ghost.unet),
        "weight_bytes": weights * plan.half.itemsize,
    }


def matmul_ceiling(plan: Plan) -> float:
    """Return FLOP/s of a large matrix product in the half precision, the best of several."""
    side = 256 if plan.tiny else 8192
    a, b = (torch.randn(side, side, device=plan.device, dtype=plan.half) for _ in range(2))
    rounds, taken = (1, []) if plan.tiny else (20, [])
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(rounds):
            product = a @ b
        product[0, 0].item()  # waits
        taken.append((time.perf_counter() - began) / rounds)
    return 2 * side**3 / min(taken)


@torch.no_grad()
def precision(plan: Plan) -> dict[str, Any]:
    """Return the relative error of half precision against float32, of the same weights and prompts."""
    exact = plan.generator(torch.float32)
    embeddings = plan.embeddings(exact, 2)
    latents = exact.denoise(embeddings)
    frames = exact.decode_latents(latents)
    weights = {name: value.cpu() for name, value in exact.state_dict().items()}
    del exact
    _release(plan.device)
    half = plan.generator(plan.half)
    half.load_state_dict(weights)
    rounded = half.denoise(embeddings)
    shown = half.decode_latents(rounded)
    return {
        "relative_error_latents": float((rounded - latents).norm() / latents.norm()),
        "relative_error_frames": float((shown.float() - frames).norm() / frames.norm()),
    }


def _machine(plan: Plan) -> dict[str, Any]:
    cuda = plan.device.type == "cuda"
    facts: dict[str, Any] = {"device": torch.cuda.get_device_name(plan.device) if cuda else "CPU"}
    if cuda:
        facts |= {
            "memory_bytes": torch.cuda.get_device_properties(plan.device).total_memory,
            "cuda": torch.version.cuda,
        }
        facts["cudnn"] = torch.backends.cudnn.version()
    facts |= {"torch": torch.__version__, "dtype": plan.dtype, "decoder": plan.decoder, "frames": plan.frames}
    return facts | {"provenance": provenance(overrides=[], seeds={}, inputs={})}


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _line(part: str, row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    title = row.get("title", row["name"] if part != "memory" else f"{row['name']} frames at a time")
    if "skipped" in row:
        return f"{part:10s} {title:44s} {row['skipped']}"
    cells: Iterable[str] = (
        f"{row['frames_per_s']:9.2f} frames/s" if "frames_per_s" in row else "",
        f"{row['iterations_per_s']:8.2f} iterations/s" if "iterations_per_s" in row else "",
        f"{100 * row['share_of_ceiling']:5.1f} % of the ceiling" if "share_of_ceiling" in row else "",
        f"{row['peak_bytes'] / 1e9:6.2f} GB" if row.get("peak_bytes") else "",
    )
    return f"{part:10s} {title:44s} " + "  ".join(filter(None, cells))
