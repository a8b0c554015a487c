"""Layers against independent representations: the same prompts, controllers and links, session by session.

    python -m experiments.layers [--clip demo] [--traces 4] [--out outputs/layers]

The independent ladder is the packaged one. The layered ladder holds the same prompts, each representation only what the
one below lacks, at the bytes that the format takes for that; its frames are the same. Sessions are in virtual time over
the vendored traces at their default shares. Rows go to `sessions.csv` as they are made; the same command goes on there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.clips import CLIP_HELP, DEFAULT_CACHE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    from abr import Ladder
    from player.config import PlayerConfig
    from player.presentation import Presentation

INDEPENDENT, LAYERED = "independent", "layered"
PLAYS = (
    ("bola", INDEPENDENT), ("layered_bola", INDEPENDENT), ("layered_bola", LAYERED),
    ("robustmpc", INDEPENDENT), ("layered_mpc", INDEPENDENT), ("layered_mpc", LAYERED),
)  # fmt: skip
"""Controller and ladder; the first of three is the common controller, the second upgrades by fetching again."""
COLUMNS = {
    "quality": ("Quality", 4, 1.0),
    "rebuffering_ratio": ("Rebuffering [%]", 2, 100.0),
    "kbps_shown": ("Shown [kbit/s]", 2, 1.0),
    "kbps_received": ("Received [kbit/s]", 2, 1.0),
    "switches": ("Switches", 1, 1.0),
    "upgrades": ("Upgrades", 1, 1.0),
}
"""Column -> title, digits, scale."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.layers", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", default="demo", metavar="VIDEO[=PACKAGE]", help=CLIP_HELP)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of packages")
    parser.add_argument("--traces", type=int, default=0, metavar="N", help="at most N of each family (default: all)")
    parser.add_argument("--session", type=float, default=180.0, metavar="S", help="length of the programme, s")
    parser.add_argument("--buffer", type=float, default=20.0, metavar="S", help="buffer cap, s (default 20)")
    parser.add_argument(
        "--utility",
        choices=("rate", "quality"),
        default="rate",
        help="what controllers gain: bitrate or measured quality",
    )
    parser.add_argument(
        "--low-buffer", type=float, metavar="X", help="layered_bola's low_buffer, to play it as carefully as bola"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/layers"), help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    from experiments.job import REPORTED_ERRORS

    try:
        print(study(arguments))
    except REPORTED_ERRORS as error:
        print(f"experiments.layers: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def study(arguments: argparse.Namespace) -> str:
    """Play what has not been played; write and return the tables, and draw the figure."""
    from experiments.clips import headline, layer_sizes, layered_ladder, obtain_clip
    from experiments.paper import save_figure
    from player.files import write_bytes
    from player.programme import build_programme

    prompts = obtain_clip(arguments.clip, arguments.cache).prompts
    programme = build_programme(prompts, arguments.session)
    ladders = {INDEPENDENT: programme.ladder}
    ladders[LAYERED] = layered_ladder(programme.ladder, *layer_sizes(prompts))
    metric = headline(prompts.metrics)
    options = play_options(arguments.utility, arguments.low_buffer)
    path = arguments.out / "sessions.csv"
    table = play_all(ladders, prompts, metric, trace_names(arguments.traces), path, arguments.buffer, options)
    overhead = ladders[LAYERED].bitrate_bps / ladders[INDEPENDENT].bitrate_bps - 1
    title = f"{len(table['trace'].unique())} traces of {len(table['family'].unique())} families, quality is {metric}; "
    title += f"layers cost {', '.join(f'{100 * share:+.1f} %' for share in overhead)} per representation"
    text = f"{title}\n\n{report(table)}\n"
    write_bytes(arguments.out / "layers.md", text.encode())
    save_figure(figure(table, metric), arguments.out, "layers")
    return text


def play_options(utility: str, low_buffer: float | None) -> dict[str, dict[str, Any]]:
    """Return each controller's options."""
    options: dict[str, dict[str, Any]] = {abr: {} for abr, _ in PLAYS}
    if utility == "quality":
        options = {abr: {"utility": "quality"} for abr in options}
    if low_buffer is not None:
        options["layered_bola"] = {**options["layered_bola"], "low_buffer": low_buffer}
    return options


def trace_names(limit: int) -> list[str]:
    """Return the vendored traces, at most `limit` of each family, evenly over it (0: all)."""
    import numpy as np

    from traces import catalogue

    names = []
    for family in catalogue.families():
        entries = family.entries
        count = min(limit, len(entries)) if limit > 0 else len(entries)
        names += [entries[round(place)].name for place in np.linspace(0, len(entries) - 1, count)]
    return names


def play_all(
    ladders: dict[str, Ladder],
    prompts: Presentation,
    metric: str,
    names: list[str],
    path: Path,
    buffer_s: float,
    options: dict[str, dict[str, Any]],
) -> pd.DataFrame:
    """Return one row per trace, controller and ladder; those in `path` are taken from there, others are added to it."""
    import pandas as pd

    from emulator import LinkConfig, create_transport
    from experiments.shares import default_share
    from player.config import PlayerConfig
    from player.files import write_bytes
    from traces import TraceConfig, catalogue, load_trace

    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["trace"], row["abr"], row["ladder"]) for row in rows}
    for name in names:
        missing = [play for play in PLAYS if (name, *play) not in done]
        if not missing:
            continue
        entry = catalogue.find(name)
        family = name if entry is None else entry.family
        trace = load_trace(TraceConfig(name=name, share=default_share(name)))
        for abr, kind in missing:
            transport = create_transport(trace, LinkConfig())
            config = PlayerConfig(buffer_s=buffer_s)
            numbers = play(abr, ladders[kind], transport, prompts, metric, config, **options[abr])
            rows.append({"trace": name, "family": family, "abr": abr, "ladder": kind, **numbers})
        write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = pd.DataFrame(rows)
    return table[table["trace"].isin(names)].reset_index(drop=True)


def play(
    abr: str,
    ladder: Ladder,
    transport: Any,
    prompts: Presentation,
    metric: str,
    config: PlayerConfig,
    **options: Any,
) -> dict[str, float]:
    """Return the numbers of one session; `options` are the controller's."""
    import numpy as np

    from abr import create_abr
    from experiments.simulate import simulate
    from player.session import Session

    session = Session(ladder, create_abr(abr, ladder, buffer_capacity_s=config.buffer_s, **options), config)
    simulate(session, transport, segment_frames=[1] * ladder.segments)
    log = session.log()
    shown = [row for row in log.segments if row["downloaded"]]
    quality = prompts.mean_quality(metric)
    scores = [_shown_quality(row, quality[row["segment"] % len(quality)]) for row in shown]
    weights = [row["duration_s"] for row in shown]
    media_s = sum(weights)
    received = log.summary["downloaded_bytes"] + log.summary["wasted_bytes"]
    return {
        "quality": float(np.average(scores, weights=weights)) if shown else float("nan"),
        "rebuffering_ratio": log.summary["rebuffering_ratio"],
        "concealed_s": log.summary["concealed_s"],
        "elapsed_s": log.summary["elapsed_s"],
        "kbps_shown": sum(row["size_bytes"] for row in shown) * 8e-3 / media_s if shown else 0.0,
        "kbps_received": received * 8e-3 / media_s if shown else 0.0,
        "switches": log.summary["switches"],
        "upgrades": log.summary["upgrades"],
        "skipped_s": log.summary["skipped_s"],
    }


def _shown_quality(row: Mapping[str, Any], quality: np.ndarray) -> float:
    """Return a segment's quality, of [R]; one whose layers came while it played counts as both, by time."""
    if row["raised_to"] is None:
        return float(quality[row["representation"]])
    share = row["raised_after_s"] / row["duration_s"]
    return float(share * quality[row["representation"]] + (1 - share) * quality[row["raised_to"]])


def report(table: pd.DataFrame) -> str:
    """Return means over traces, and differences to the common controller, trace by trace, as Markdown."""
    from experiments.intervals import bootstrap_mean

    names = list(COLUMNS)
    lines = ["| controller | ladder | " + " | ".join(COLUMNS[name][0] for name in names) + " |"]
    lines.append("|---|---|" + "---:|" * len(names))
    for abr, kind in PLAYS:
        rows = select(table, abr, kind)
        cells = [f"{rows[name].mean() * COLUMNS[name][2]:.{COLUMNS[name][1]}f}" for name in names]
        lines.append(f"| {abr} | {kind} | " + " | ".join(cells) + " |")
    compared = names[:4]
    lines += ["", "Differences, paired by trace, with 95 % bootstrap intervals", ""]
    lines.append("| compared | " + " | ".join(COLUMNS[name][0] for name in compared) + " |")
    lines.append("|---|" + "---:|" * len(compared))
    for pair, against in comparisons():
        difference = select(table, *pair)[compared] - select(table, *against)[compared]
        cells = [
            bootstrap_mean(difference[name].dropna()).text(COLUMNS[name][1], COLUMNS[name][2]) for name in compared
        ]
        lines.append(f"| {pair[0]}, {pair[1]} - {against[0]}, {against[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparisons() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return which plays are compared: layers with the common controller, and with upgrades by fetching again."""
    return [(PLAYS[first + 2], PLAYS[first + other]) for first in (0, 3) for other in (0, 1)]


def select(table: pd.DataFrame, abr: str, kind: str) -> pd.DataFrame:
    """Return the rows of one play, by trace."""
    return table[(table["abr"] == abr) & (table["ladder"] == kind)].set_index("trace")


def figure(table: pd.DataFrame, metric: str) -> Any:
    """Draw each trace's change of quality and of rebuffering from the common controller to its layered kin."""
    import matplotlib.pyplot as plt

    from experiments.paper import PAGE_IN, SERIES_COLORS, add_caption, paper_style, shared_legend
    from experiments.series import METRICS

    with paper_style():
        drawn, axes = plt.subplots(1, 2, figsize=(PAGE_IN, 2.6), layout="constrained", sharex=True, sharey=True)
        for axis, (pair, against) in zip(axes, comparisons()[::2], strict=True):
            both = select(table, *pair).join(select(table, *against).add_suffix("_before"))
            for number, (family, rows) in enumerate(both.groupby("family")):
                colour, marker = SERIES_COLORS[number % len(SERIES_COLORS)], "os^"[number // len(SERIES_COLORS) % 3]
                stops = 100 * (rows["rebuffering_ratio"] - rows["rebuffering_ratio_before"])
                axis.plot(stops, rows["quality"] - rows["quality_before"], marker, ms=2.5, color=colour, label=family)
            axis.axhline(0, color="0.6", linewidth=0.6)
            axis.axvline(0, color="0.6", linewidth=0.6)
            axis.set(xlabel="Rebuffering, change [percentage points]", title=f"{pair[0]} over {against[0]}")
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        axes[0].set_ylabel(f"{METRICS[metric].title}, change ({better} is better)")
        shared_legend(drawn, axes)
        add_caption(
            drawn, f"one point per trace, {len(table['trace'].unique())} vendored traces, default shares", PAGE_IN
        )
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
