"""Concealment of late segments: how good made-up frames are by horizon, and how much rebuffering they stand for.

    python -m experiments.concealment [--clip demo ...] [--traces 4] [--out outputs/concealment]

At every boundary of two segments the player is made to go on without the second: its made-up frames, and the frame that
a pixel player would freeze, are measured against the source's frames; what the second segment renders to, had it come,
is the bound. Sessions with and without concealment run in virtual time over vendored traces. Both tables are kept as
CSV as they grow; the same command goes on there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.clips import CLIP_HELP, DEFAULT_CACHE

if TYPE_CHECKING:
    import pandas as pd

    from experiments.clips import Clip
    from player.quality import Metric

HORIZONS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
WAYS = {"rendered": "rendered, had it come", "concealed": "concealed", "frozen": "frozen"}
LIMITS_S = (0.0, 0.5, 1.0, 2.0)
"""Bounds of concealment that sessions are played with."""
CONTROLLERS = (("bola", "independent"), ("layered_bola", "layered"))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.concealment", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", action="append", metavar="VIDEO[=PACKAGE]", help=f"{CLIP_HELP}; may be repeated")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of packages")
    parser.add_argument("--metrics", default="auto", help="names, separated by commas (default auto: all there is)")
    parser.add_argument(
        "--traces", type=int, default=5, metavar="N", help="at most N of each family (default 5; 0: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/concealment"), help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    from experiments.job import REPORTED_ERRORS

    try:
        print(study(arguments))
    except REPORTED_ERRORS as error:
        print(f"experiments.concealment: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def study(arguments: argparse.Namespace) -> str:
    """Measure and play what is missing; write and return the tables, and draw the figure."""
    from experiments.clips import obtain_clip
    from experiments.paper import save_figure
    from player.files import write_bytes
    from player.quality import load_metrics

    clips = [obtain_clip(text, arguments.cache) for text in arguments.clip or ["demo"]]
    names = arguments.metrics if arguments.metrics == "auto" else arguments.metrics.split(",")
    metrics = load_metrics(names)
    quality = measure_all(clips, metrics, arguments.out / "quality.csv")
    sessions = play_all(clips[0], arguments.traces, arguments.out / "sessions.csv")
    measured = [metric.name for metric in metrics]
    text = f"{quality_report(quality, measured)}\n\n{session_report(sessions)}\n"
    write_bytes(arguments.out / "concealment.md", text.encode())
    save_figure(figure(quality, measured, sessions), arguments.out, "concealment")
    return text


def measure_all(clips: Sequence[Clip], metrics: Sequence[Metric], path: Path) -> pd.DataFrame:
    """Return one row per clip, boundary, horizon and way to fill it: each metric; done clips come from `path`."""
    import pandas as pd

    from player.files import write_bytes

    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {row["clip"] for row in rows}
    for clip in clips:
        if clip.name not in done:
            rows += measure(clip, metrics)
            write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    return pd.DataFrame(rows)


def measure(clip: Clip, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Measure one clip at its highest representation."""
    import numpy as np

    from player.decoder import PromptDecoder, load_model
    from player.generator import Generator

    prompts, fps = clip.prompts, float(clip.prompts.manifest.fps)
    top = len(prompts.representations) - 1
    generator = load_model("prompt", "embedded", device="auto")
    if not isinstance(generator, Generator):
        raise TypeError("prompts need a generator")
    decoder = PromptDecoder(prompts.read_init(top), generator)
    rows = []
    for number, original in enumerate(clip.originals()):
        if number:
            offsets = [round(horizon * fps) for horizon in HORIZONS_S if round(horizon * fps) <= len(original)]
            places = np.array(offsets, dtype=int) - 1
            before = prompts.read_segment(number - 1, top)
            shown = {
                "rendered": decoder.decode(prompts.read_segment(number, top)),
                "concealed": decoder.conceal(before, max(offsets)),
                "frozen": np.repeat(decoder.decode(before)[-1:], max(offsets), axis=0),
            }
            for way, frames in shown.items():
                scores = {metric.name: metric(original[places], frames[places]) for metric in metrics}
                for index, horizon in enumerate(HORIZONS_S[: len(places)]):
                    values = {name: float(column[index]) for name, column in scores.items()}
                    rows.append({"clip": clip.name, "boundary": number, "horizon_s": horizon, "way": way, **values})
    return rows


def play_all(clip: Clip, traces: int, path: Path) -> pd.DataFrame:
    """Return one row per trace, controller and bound of concealment; what is in `path` is taken from there."""
    import pandas as pd

    from emulator import LinkConfig, create_transport
    from experiments.clips import headline, layer_sizes, layered_ladder
    from experiments.layers import play, trace_names
    from experiments.shares import default_share
    from player.config import PlayerConfig
    from player.files import write_bytes
    from player.programme import build_programme
    from traces import TraceConfig, load_trace

    programme = build_programme(clip.prompts, 180.0)
    layered = layered_ladder(programme.ladder, *layer_sizes(clip.prompts))
    ladders = {"independent": programme.ladder, "layered": layered}
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["trace"], row["abr"], row["conceal_s"]) for row in rows}
    names = trace_names(traces)
    for name in names:
        missing = [(*kind, limit) for kind in CONTROLLERS for limit in LIMITS_S if (name, kind[0], limit) not in done]
        trace = load_trace(TraceConfig(name=name, share=default_share(name))) if missing else None
        for abr, kind, limit in missing:
            assert trace is not None
            transport = create_transport(trace, LinkConfig())
            config, metric = PlayerConfig(conceal_s=limit), headline(clip.prompts.metrics)
            numbers = play(abr, ladders[kind], transport, clip.prompts, metric, config)
            rows.append({"trace": name, "abr": abr, "ladder": kind, "conceal_s": limit, **numbers})
        if missing:
            write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = pd.DataFrame(rows)
    return table[table["trace"].isin(names)].reset_index(drop=True)


def quality_report(quality: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Return means by horizon, and what concealing gains over freezing, boundary by boundary, as Markdown."""
    from experiments.intervals import bootstrap_mean
    from experiments.series import METRICS

    boundaries = quality[["clip", "boundary"]].drop_duplicates()
    lines = [f"{len(boundaries)} boundaries of {quality['clip'].nunique()} clips"]
    for metric in metrics:
        digits = METRICS[metric].digits
        lines += ["", f"| {METRICS[metric].title} after [s] | {' | '.join(WAYS.values())} | concealed - frozen |"]
        lines.append("|---|" + "---:|" * (len(WAYS) + 1))
        for horizon, rows in quality.groupby("horizon_s"):
            wide = rows.pivot(index=["clip", "boundary"], columns="way", values=metric)
            gain = bootstrap_mean((wide["concealed"] - wide["frozen"]).to_numpy())
            means = " | ".join(f"{wide[way].mean():.{digits}f}" for way in WAYS)
            lines.append(f"| {horizon:g} | {means} | {gain.text(digits)} |")
    return "\n".join(lines)


def session_report(sessions: pd.DataFrame) -> str:
    """Return rebuffering and concealed time by bound, as Markdown; differences are paired by trace."""
    from experiments.intervals import bootstrap_mean

    lines = [
        f"{sessions['trace'].nunique()} traces",
        "",
        "| controller | ladder | bound [s] | rebuffering [%] | change [points] | concealed [% of time] | quality |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for abr, kind in CONTROLLERS:
        own = sessions[sessions["abr"] == abr]
        base = own[own["conceal_s"] == 0].set_index("trace")["rebuffering_ratio"]
        for limit, rows in own.groupby("conceal_s"):
            stops = rows.set_index("trace")["rebuffering_ratio"]
            change = bootstrap_mean((stops - base).to_numpy()).text(2, 100) if limit else "-"
            concealed = 100 * (rows["concealed_s"] / rows["elapsed_s"]).mean()
            cells = [
                f"{limit:g}",
                f"{100 * stops.mean():.2f}",
                change,
                f"{concealed:.2f}",
                f"{rows['quality'].mean():.4f}",
            ]
            lines.append(f"| {abr} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(quality: pd.DataFrame, metrics: Sequence[str], sessions: pd.DataFrame) -> Any:
    """Draw quality by horizon with intervals, and the share of time that stands still by bound."""
    import matplotlib.pyplot as plt

    from experiments.intervals import bootstrap_mean
    from experiments.paper import PAGE_IN, SERIES_COLORS, add_caption, paper_style, shared_legend
    from experiments.series import METRICS

    panels = [name for name in metrics if name != "ms_ssim"]
    with paper_style():
        drawn, axes = plt.subplots(1, len(panels) + 1, figsize=(PAGE_IN, 2.4), layout="constrained")
        for axis, metric in zip(axes, panels, strict=False):
            for colour, (way, label) in zip(SERIES_COLORS, WAYS.items(), strict=False):
                rows = quality[quality["way"] == way].groupby("horizon_s")[metric]
                means = [bootstrap_mean(values.to_numpy()) for _, values in rows]
                horizons = list(rows.groups)
                axis.plot(horizons, [one.mean for one in means], "o-", ms=2, color=colour, label=label)
                axis.fill_between(
                    horizons, [one.low for one in means], [one.high for one in means], color=colour, alpha=0.15, lw=0
                )
            axis.set(xlabel="Time without a segment [s]", ylabel=METRICS[metric].title)
        for style, (abr, kind) in zip(("o-", "s--"), CONTROLLERS, strict=True):
            ratios = sessions[sessions["abr"] == abr].groupby("conceal_s")["rebuffering_ratio"].mean()
            axes[-1].plot(ratios.index, 100 * ratios, style, ms=2.5, color="0.3", label=f"{abr}, {kind}")
        axes[-1].set(xlabel="Bound of concealment [s]", ylabel="Rebuffering [%]", ylim=(0, None))
        shared_legend(drawn, axes)
        boundaries = len(quality[["clip", "boundary"]].drop_duplicates())
        caption = f"{boundaries} boundaries of {quality['clip'].nunique()} clips, bands: 95 % bootstrap intervals; "
        add_caption(drawn, f"{caption}sessions over {sessions['trace'].nunique()} traces", PAGE_IN)
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
