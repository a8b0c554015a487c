"""How fast fits get somewhere: `python -m experiments.fit_speed VIDEO --run fast:1 --run fast:30 --run paper:100`.

Every run fits one segment at one rank by a preset cut at a number of steps, and tells how many frames the generator
rendered meanwhile (evaluations, with or without gradient) beside what came out. `--track 100` also tells so after every
100 steps on the way, and `--until NAME=VALUE` ends a run there once a metric is that good. `--nested 2,4,8` compares
the lower ranks of one fit with fits made for each of them alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from packager.encoder import PromptEncoder
    from packager.fit import FitConfig, Ladder
    from player.bitstream import Segment
    from player.generator import Generator
    from player.quality import Metric

_MEASURED_EVERY = 4  # frames; neighbours are much alike


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fit_speed", description=__doc__.split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--run", dest="runs", action="append", default=[], help="PRESET:STEPS, such as paper:100")
    parser.add_argument("--track", type=int, metavar="STEPS", help="also measure after every so many steps of a run")
    parser.add_argument("--until", metavar="NAME=VALUE", help="with --track: stop a run where a metric is as good")
    parser.add_argument("--rank", type=int, default=8, help="of the runs")
    parser.add_argument("--nested", default="", help="lower ranks to compare with fits of their own: 2,4,8")
    parser.add_argument("--top-rank", type=int, default=16, help="of the fit that holds the lower ranks")
    parser.add_argument("--segment", type=int, default=0, help="which segment, from 0")
    parser.add_argument("--segment-s", type=float, default=2.0, help="its duration, s")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    # torch is imported late, so that --help answers at once
    import torch

    from packager.errors import PackagerError
    from player.errors import PlayerError

    try:
        rows: list[dict[str, Any]] = []

        def report(row: dict[str, Any]) -> None:
            numbers = (
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
            print("  ".join(numbers), flush=True)
            rows.append(row)

        study(arguments, report)
    except (PackagerError, PlayerError, ValueError) as error:
        sys.stderr.write(f"fit_speed: {error}\n")
        return 1
    if arguments.json:
        content = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def study(arguments: argparse.Namespace, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for every run, then two for every nested rank: of the fit of all, and of a fit of its own."""
    from experiments.fit_study import read_segment_frames
    from packager.encoder import load_encoder
    from packager.fit import FAST
    from player.generator import load_generator
    from player.quality import load_metrics

    configs = [(text, parse_run(text)) for text in arguments.runs]
    nested = [int(rank) for rank in arguments.nested.split(",") if rank]
    if not configs and not nested:
        raise ValueError("nothing to do: expected --run or --nested")
    if arguments.until and not arguments.track:
        raise ValueError(f"--until {arguments.until}: expected --track STEPS beside it")
    if nested and max(nested) >= arguments.top_rank:
        raise ValueError(f"--nested {arguments.nested}: expected ranks below --top-rank {arguments.top_rank}")
    generator = load_generator(arguments.generator, device=arguments.device)
    encoder = load_encoder(generator)
    frames = read_segment_frames(arguments.video, arguments.segment, arguments.segment_s, generator.native_size)
    metrics = load_metrics(device=arguments.device, frame_size=generator.native_size)
    goal = parse_goal(arguments.until, metrics) if arguments.until else None

    def scores(segment: Segment, top_rank: int) -> dict[str, float]:
        return _scores(frames, segment, top_rank, generator, metrics)

    def fit(config: FitConfig, ranks: Sequence[int], seen: _Seen | None = None) -> tuple[Ladder, dict[str, Any]]:
        return _metered_fit(frames, generator, encoder, config, ranks, seen)

    def track(text: str) -> _Seen:
        def seen(step: int, segment: Callable[[int], Segment], meter: _Meter) -> bool:
            if not arguments.track or step % arguments.track:
                return False
            cost = meter.cost()
            with meter.paused():
                found = scores(segment(arguments.rank), arguments.rank)
            report({"run": text, "step": step, "rank": arguments.rank, **cost, **found})
            return goal is not None and goal(found)

        return seen

    for text, config in configs:
        fitted, cost = fit(config, [arguments.rank], track(text))
        report({"run": text, "rank": arguments.rank, **cost, **scores(fitted[arguments.rank], arguments.rank)})
    if nested:
        fitted, cost = fit(FAST, [*nested, arguments.top_rank])
        for rank in nested:
            within = scores(fitted[rank], arguments.top_rank)
            report({"run": f"within rank {arguments.top_rank}", "rank": rank, **cost, **within})
            alone, cost_alone = fit(FAST, [rank])
            report({"run": "alone", "rank": rank, **cost_alone, **scores(alone[rank], rank)})


def parse_goal(text: str, metrics: Sequence[Metric]) -> Callable[[Mapping[str, float]], bool]:
    """Return whether scores are as good as NAME=VALUE asks for."""
    name, _, value = text.partition("=")
    metric = next((metric for metric in metrics if metric.name == name), None)
    try:
        wanted = float(value)
    except ValueError:
        metric = None
    if metric is None:
        known = ", ".join(metric.name for metric in metrics)
        raise ValueError(f"--until {text}: expected NAME=VALUE with a name of {known}")
    sign = 1 if metric.higher_is_better else -1
    return lambda scores: sign * scores[name] >= sign * wanted


def parse_run(text: str) -> FitConfig:
    """Return the preset with its number of steps that `paper:100` means."""
    from packager.fit import fit_preset

    preset, _, steps = text.partition(":")
    if not steps.isdecimal():
        raise ValueError(f"--run {text}: expected PRESET:STEPS, such as paper:100")
    return fit_preset(preset, iterations=int(steps))


@contextmanager
def counted_frames(generator: Generator) -> Iterator[list[int]]:
    """Give a list whose sum is the number of frames that the generator has rendered since."""
    batches: list[int] = []
    hook = generator.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        yield batches
    finally:
        hook.remove()


class _Meter:
    """What a fit has cost so far, but for what happened while the meter was paused."""

    def __init__(self, batches: list[int]) -> None:
        self._batches = batches
        self._seconds, self._processor = time.perf_counter(), time.process_time()

    def cost(self) -> dict[str, Any]:
        return {
            "evaluations": sum(self._batches),
            "seconds": time.perf_counter() - self._seconds,
            "processor_s": time.process_time() - self._processor,
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        count, seconds, processor = len(self._batches), time.perf_counter(), time.process_time()
        yield
        del self._batches[count:]
        self._seconds += time.perf_counter() - seconds
        self._processor += time.process_time() - processor


_Seen = Callable[[int, "Callable[[int], Segment]", _Meter], bool]
"""Called after each step with the segment as it is; returns whether the fit has got far enough."""


class _FarEnoughError(Exception):
    """Ends a fit from within."""


def _metered_fit(
    frames: np.ndarray,
    generator: Generator,
    encoder: PromptEncoder | None,
    config: FitConfig,
    ranks: Sequence[int],
    seen: _Seen | None,
) -> tuple[Ladder, dict[str, Any]]:
    from packager.fit import fit_segment
    from player.decoder import from_pixels

    last: list[Ladder] = []
    with counted_frames(generator) as batches:
        meter = _Meter(batches)

        def observe(step: int, segment: Callable[[int], Segment]) -> None:
            if seen is not None and seen(step, segment, meter):
                last.append({rank: segment(rank) for rank in ranks})
                raise _FarEnoughError

        with suppress(_FarEnoughError):
            last.append(fit_segment(from_pixels(frames), generator, encoder, config, ranks=ranks, observe=observe))
        return last[0], meter.cost()


def _scores(
    frames: np.ndarray, segment: Segment, top_rank: int, generator: Generator, metrics: Sequence[Metric]
) -> dict[str, float]:
    """Return the mean quality of what decodes, and the two losses that the presets descend on."""
    from packager.losses import frame_loss
    from player.decoder import from_pixels, render_segment

    shown = render_segment(segment, generator.norm_rank(top_rank), generator)
    shown, true = shown[::_MEASURED_EVERY], frames[::_MEASURED_EVERY]
    output, target = from_pixels(shown), from_pixels(true)
    losses = {
        "paper_loss": float((output - target).square().mean()),
        "fast_loss": float(frame_loss(output, target).mean()),
    }
    return losses | {metric.name: float(metric(true, shown).mean()) for metric in metrics}


if __name__ == "__main__":
    raise SystemExit(main())
