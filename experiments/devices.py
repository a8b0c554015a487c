"""Slow devices: stalls, quality and frame rate with control that knows what rendering costs, and without.

    python -m experiments.devices [--clip demo ...] [--traces 7] [--out outputs/devices]

A device renders so many frames a second with the whole generator. What a segment costs follows from its package: with
motion only key frames pass the generator and the rest is warped, without it every frame does. How much cheaper a warp
is, is measured once on this machine (`device.json`), or given. The quality of the reduced render modes is measured:
repeated frames against the true ones, every seventh frame (`modes.csv`). Sessions run in virtual time over vendored
traces. Rows are kept as they are made; the same command goes on there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.clips import CLIP_HELP, DEFAULT_CACHE

if TYPE_CHECKING:
    import pandas as pd

    from abr import Abr, Ladder
    from experiments.clips import Clip
    from player.presentation import Presentation

FRAMES_PER_S = (10, 15, 20, 30, 45, 60, 90, 120, 200)
CONTROLS = (("bola", False), ("bola", True), ("quality_mpc", False), ("quality_mpc", True))
"""Controller, and whether it knows what rendering costs."""
COLUMNS = {
    "rebuffering_ratio": ("Rebuffering [%]", 1, 100.0),
    "quality": ("Quality", 3, 1.0),
    "frame_rate": ("Frames/s shown", 1, 1.0),
}
"""Column -> title, digits, scale."""
_REPEATS = 5
_EVERY = 7
"""Every 7th frame is measured: no multiple of the modes' steps, so that new and repeated frames get their shares."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.devices", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", action="append", metavar="VIDEO[=PACKAGE]", help=f"{CLIP_HELP}; may be repeated")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of packages")
    parser.add_argument(
        "--metric", default="auto", help="quality measured (default auto: the package's headline metric)"
    )
    parser.add_argument(
        "--warp-cost", type=float, metavar="X", help="a warped frame's cost in passes (default: measured)"
    )
    parser.add_argument(
        "--traces", type=int, default=7, metavar="N", help="at most N of each family (default 7; 0: all)"
    )
    parser.add_argument("--session", type=float, default=180.0, metavar="S", help="length of the programme, s")
    parser.add_argument("--out", type=Path, default=Path("outputs/devices"), help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    from experiments.errors import UsageError
    from experiments.job import REPORTED_ERRORS

    try:
        if arguments.warp_cost is not None and not 0 <= arguments.warp_cost <= 1:
            raise UsageError(f"--warp-cost {arguments.warp_cost:g}: expected 0 to 1 passes")
        if arguments.session <= 0 or arguments.traces < 0:
            raise UsageError("--session: expected more than 0; --traces: expected 0 or more")
        print(study(arguments))
    except REPORTED_ERRORS as error:
        print(f"experiments.devices: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Case:
    """A clip with the quality [S, R, M] of its render modes."""

    name: str
    clip: Clip
    quality: Any


def study(arguments: argparse.Namespace) -> str:
    """Measure and play what is missing; write and return the table, and draw the figure."""
    from experiments.clips import headline, obtain_clip
    from experiments.layers import trace_names
    from experiments.paper import save_figure
    from player.files import write_bytes

    clips = [obtain_clip(text, arguments.cache) for text in arguments.clip or ["demo"]]
    shared = set.intersection(*(set(clip.prompts.metrics) for clip in clips))
    metric = arguments.metric if arguments.metric != "auto" else headline(sorted(shared))
    warp_cost = arguments.warp_cost
    if warp_cost is None:
        warp_cost = device_profile(arguments.out / "device.json")["warp_cost"]
    names = [f"{clip.name}, {'motion' if has_motion(clip.prompts) else 'every frame generated'}" for clip in clips]
    cases = [
        Case(name, clip, mode_quality(name, clip, metric, arguments.out / "modes.csv"))
        for name, clip in zip(names, clips, strict=True)
    ]
    table = play_all(cases, warp_cost, trace_names(arguments.traces), arguments)
    text = f"{head(cases, warp_cost, metric, table)}\n\n{report(table, metric)}\n"
    write_bytes(arguments.out / "devices.md", text.encode())
    save_figure(figure(table, metric), arguments.out, "devices")
    return text


def has_motion(prompts: Presentation) -> bool:
    """Say whether a package's segments carry motion."""
    from player.bitstream import read_init, read_segment

    info = read_init(prompts.read_init(0))
    return any(
        read_segment(info, prompts.read_segment(number, 0)).motion is not None for number in range(prompts.segments)
    )


def device_profile(path: Path) -> dict[str, float]:
    """Return this machine's passes per second and its cost of a warp in passes, measured on first use."""
    import json

    from player.files import write_json

    if path.exists():
        profile: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return profile
    pass_s, warp_s = measure_device()
    write_json(path, {"frames_per_s": 1 / pass_s, "warp_cost": warp_s / pass_s})
    return {"frames_per_s": 1 / pass_s, "warp_cost": warp_s / pass_s}


def measure_device(frames: int = 16) -> tuple[float, float]:
    """Return the processor seconds of one frame from the embedded generator, and of one warped frame: medians."""
    import statistics
    import time

    import numpy as np
    import torch

    from player.decoder import load_model
    from player.generator import Generator
    from player.motion import Between, frames_between, motion_grid
    from player.pixels import to_pixels

    generator = load_model("prompt", "embedded", device="cpu")
    if not isinstance(generator, Generator):
        raise TypeError("prompts need a generator")
    embeddings = torch.zeros(frames, generator.tokens, generator.width)
    passes, warps = [], []
    with torch.no_grad():
        for _ in range(_REPEATS + 1):
            began_s = time.process_time()
            pictures = generator.generate(embeddings).float()
            to_pixels(pictures)
            passes.append((time.process_time() - began_s) / frames)
            motion = torch.ones(1, 2, *motion_grid(*pictures.shape[2:]))  # as in a segment: anchors between the keys
            between = Between.of(np.array([0, frames]), frames, [0, frames // 2, frames])
            began_s = time.process_time()
            to_pixels(frames_between(pictures[:2], motion.expand(2, -1, -1, -1), between))
            warps.append((time.process_time() - began_s) / frames)
    return statistics.median(passes[1:]), statistics.median(warps[1:])  # the first turn warms up


def mode_quality(name: str, clip: Clip, metric: str, path: Path) -> Any:
    """Return the mean of `metric` over each segment as shown in each render mode [S, R, M]; measured once per case."""
    import pandas as pd

    from player.files import write_bytes
    from player.render_modes import MODES

    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    if not any(row["case"] == name and row["metric"] == metric for row in rows):
        rows += [{"case": name, "metric": metric, **row} for row in measure_modes(clip, metric)]
        write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = pd.DataFrame(rows)
    own = table[(table["case"] == name) & (table["metric"] == metric)]
    wide = own.pivot(index=["segment", "representation"], columns="mode", values="quality")[list(MODES)]
    return wide.to_numpy().reshape(clip.prompts.segments, len(clip.prompts.representations), len(MODES))


def measure_modes(clip: Clip, metric: str) -> list[dict[str, Any]]:
    """Decode every segment of every representation; return the quality of each render mode against the source."""
    from player.bitstream import read_init, read_segment
    from player.decoder import create_decoder, load_model
    from player.quality import load_metrics
    from player.render_modes import MODES, shown_frames

    prompts = clip.prompts
    (measure,) = load_metrics([metric])
    generator = load_model("prompt", "embedded", device="auto")
    infos = [read_init(prompts.read_init(rung)) for rung in range(len(prompts.representations))]
    decoders = [create_decoder("prompt", prompts.read_init(rung), generator=generator) for rung in range(len(infos))]
    rows = []
    for number, original in enumerate(clip.originals()):
        for rung, (info, decoder) in enumerate(zip(infos, decoders, strict=True)):
            data = prompts.read_segment(number, rung)
            segment, frames = read_segment(info, data), decoder.decode(data)
            for mode in MODES:
                places = shown_frames(segment, mode)[_EVERY - 1 :: _EVERY]
                quality = float(measure(original[_EVERY - 1 :: _EVERY], frames[places]).mean())
                rows.append({"segment": number, "representation": rung, "mode": mode, "quality": quality})
    return rows


def play_all(cases: Sequence[Case], warp_cost: float, names: list[str], arguments: argparse.Namespace) -> pd.DataFrame:
    """Return one row per case, trace, device and control; those in `sessions.csv` are taken from there."""
    import pandas as pd

    from emulator import LinkConfig, create_transport
    from experiments.shares import default_share
    from player.files import write_bytes
    from player.programme import build_programme
    from player.render_modes import Device, rendering_of, with_rendering
    from traces import TraceConfig, catalogue, load_trace

    path = arguments.out / "sessions.csv"
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    keys = ("case", "trace", "device", "abr", "aware")
    done = {tuple(row[key] for key in keys) for row in rows}
    for case in cases:
        programme = build_programme(case.clip.prompts, arguments.session)
        rendering = rendering_of(case.clip.prompts, Device(1.0, warp_cost), case.quality)
        ladder = with_rendering(programme.ladder, rendering)
        for name in names:
            missing = [
                (device, *control)
                for device in FRAMES_PER_S
                for control in CONTROLS
                if (case.name, name, device, *control) not in done
            ]
            if not missing:
                continue
            entry, trace = catalogue.find(name), load_trace(TraceConfig(name=name, share=default_share(name)))
            for device, abr, aware in missing:
                numbers = play(abr, aware, ladder, float(device), create_transport(trace, LinkConfig()))
                family = name if entry is None else entry.family
                row = {"case": case.name, "trace": name, "family": family, "device": device, "abr": abr, "aware": aware}
                rows.append({**row, **numbers})
            write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = pd.DataFrame(rows)
    wanted = table["trace"].isin(names) & table["case"].isin([case.name for case in cases])
    return table[wanted].reset_index(drop=True)


def play(abr: str, aware: bool, ladder: Ladder, passes_per_s: float, transport: Any) -> dict[str, float]:
    """Return the numbers of one session on a device; `frame_rate` is of different frames, stops included."""
    from dataclasses import replace

    import numpy as np

    from experiments.simulate import simulate
    from player.config import PlayerConfig
    from player.session import Session

    assert ladder.rendering is not None
    rendering = ladder.rendering.on(passes_per_s)
    ladder, config = replace(ladder, rendering=rendering), PlayerConfig()
    session = Session(ladder, controller(abr, aware, ladder, config.buffer_s), config)
    simulate(session, transport, segment_frames=[1] * ladder.segments)
    log = session.log()
    shown = [row for row in log.segments if row["content_start_s"] is not None]
    places = [(row["segment"], row["representation"], rendering.modes.index(row["render_mode"])) for row in shown]
    at, weights = tuple(np.array(places).T), np.array([row["duration_s"] for row in shown])
    watched_s = log.summary["played_s"] + log.summary["rebuffered_s"]
    assert rendering.quality is not None
    return {
        "quality": float(np.average(rendering.quality[at], weights=weights)),
        "rebuffering_ratio": log.summary["rebuffering_ratio"],
        "frame_rate": float((rendering.frame_rate[at] * weights).sum() / watched_s),
        "startup_delay_s": log.summary["startup_delay_s"],
        "switches": log.summary["switches"],
    }


def controller(abr: str, aware: bool, ladder: Ladder, buffer_s: float) -> Abr:
    """Return a controller; an unaware one is not told what rendering costs, others plan it or are put under it."""
    from dataclasses import replace

    from abr import create_abr
    from abr.render_aware import RenderAware
    from abr.render_mpc import RenderMpc

    if not aware:
        return create_abr(abr, replace(ladder, rendering=None), buffer_capacity_s=buffer_s)
    inner = create_abr(abr, ladder, buffer_capacity_s=buffer_s)
    return inner if isinstance(inner, RenderMpc) else RenderAware(inner, ladder)


def head(cases: Sequence[Case], warp_cost: float, metric: str, table: pd.DataFrame) -> str:
    """Return what the numbers are of, and each case's render modes: cost and measured quality, means over it."""
    from player.render_modes import Device, rendering_of

    families = table["family"].nunique()
    lines = [
        f"{table['trace'].nunique()} traces of {families} families; quality is {metric}; a warp costs "
        f"{warp_cost:.3f} passes",
        "",
        f"| clip | render mode | frames/s | passes/s needed | {metric} |",
        "|---|---|---:|---:|---:|",
    ]
    for case in cases:
        rendering = rendering_of(case.clip.prompts, Device(1.0, warp_cost), case.quality)
        duration_s = case.clip.prompts.manifest.segment_duration_s[:, None, None]
        for place, mode in enumerate(rendering.modes):
            rate = (rendering.frame_rate * duration_s).mean(axis=(0, 1))[place] / duration_s.mean()
            needed = rendering.passes.mean(axis=(0, 1))[place] / duration_s.mean()
            quality = case.quality[:, :, place].mean()
            lines.append(f"| {case.name} | {mode} | {rate:.1f} | {needed:.1f} | {quality:.3f} |")
    return "\n".join(lines)


def report(table: pd.DataFrame, metric: str) -> str:
    """Return means over traces by case, controller and device, unaware and aware, with intervals, as Markdown."""
    from experiments.intervals import bootstrap_mean
    from experiments.series import METRICS

    titles = {**{name: COLUMNS[name][0] for name in COLUMNS}, "quality": METRICS[metric].title}
    lines = []
    for (case, abr), rows in table.groupby(["case", "abr"], sort=False):
        lines += [f"**{case}, {abr}**: unaware, then aware of rendering; 95 % bootstrap intervals over traces", ""]
        heads = [f"{titles[name]}, {kind}" for name in COLUMNS for kind in ("unaware", "aware")]
        lines += ["| device, frames/s | " + " | ".join(heads) + " |", "|---:|" + "---:|" * len(heads)]
        for device, own in rows.groupby("device"):
            cells = [
                bootstrap_mean(own[own["aware"] == aware][name]).text(COLUMNS[name][1], COLUMNS[name][2])
                for name in COLUMNS
                for aware in (False, True)
            ]
            lines.append(f"| {device} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def figure(table: pd.DataFrame, metric: str) -> Any:
    """Draw stalls, quality and frame rate over the device's speed, one row of panels for each case."""
    import matplotlib.pyplot as plt

    from experiments.intervals import bootstrap_mean
    from experiments.paper import PAGE_IN, SERIES_COLORS, add_caption, paper_style, shared_legend
    from experiments.series import METRICS

    cases = list(dict.fromkeys(table["case"]))
    titles = {**{name: COLUMNS[name][0] for name in COLUMNS}, "quality": METRICS[metric].title}
    with paper_style():
        size = (PAGE_IN, 0.6 + 1.9 * len(cases))
        drawn, axes = plt.subplots(len(cases), 3, figsize=size, layout="constrained", squeeze=False, sharex=True)
        for line, case in zip(axes, cases, strict=True):
            for axis, (name, (_, _, scale)) in zip(line, COLUMNS.items(), strict=True):
                for number, (abr, aware) in enumerate(CONTROLS):
                    own = table[(table["case"] == case) & (table["abr"] == abr) & (table["aware"] == aware)]
                    means = {device: bootstrap_mean(rows[name]) for device, rows in own.groupby("device")}
                    colour, label = SERIES_COLORS[number // 2], f"{abr}, {'aware' if aware else 'unaware'}"
                    middle, low, high = (
                        [scale * getattr(one, part) for one in means.values()] for part in ("mean", "low", "high")
                    )
                    style = "o-" if aware else "s--"
                    axis.plot(list(means), middle, style, ms=2.5, lw=1, color=colour, label=label)
                    axis.fill_between(list(means), low, high, color=colour, alpha=0.12, lw=0)
                axis.set(xscale="log", ylabel=titles[name])
                axis.set_xticks(FRAMES_PER_S, [str(device) for device in FRAMES_PER_S], fontsize=6)
                axis.minorticks_off()
            line[1].set_title(case)
        for axis in axes[-1]:
            axis.set_xlabel("Device [passes/s]")
        shared_legend(drawn, axes)
        traces = table["trace"].nunique()
        add_caption(drawn, f"{traces} vendored traces, default shares; bands: 95 % bootstrap intervals", PAGE_IN)
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
