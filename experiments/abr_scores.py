"""Controllers on the test half of the vendored traces, over the emulator, with the oracle's plan as the yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abr import Ladder, create_abr, known_names
from abr.oracle import best_path
from abr.qoe import create_qoe
from emulator import LinkConfig, create_transport
from experiments.abr_sessions import half
from experiments.errors import UsageError
from experiments.future import link_future
from experiments.simulate import simulate
from experiments.transfer_times import slow_down
from player.config import PlayerConfig
from player.session import Session
from traces import Trace, catalogue

RATIOS = np.array([300, 750, 1200, 1850, 2850, 4300]) / 4300
"""Pensieve's ladder; its top is set to 1.5 times the link's mean rate."""
TOP = 1.5
SEGMENTS, SEGMENT_S, BUFFER_S = 60, 2.0, 20.0
LEARNED = ("pensieve", "fugu")


def make_ladder(trace: Trace, number: int) -> Ladder:
    """Return the ladder for the test trace of this number: sizes vary by 20 % from segment to segment."""
    rates = np.maximum(np.round(RATIOS * TOP * trace.mean_bps), 1000 * np.arange(1, 7))
    spread = np.random.default_rng(number).lognormal(0.0, 0.2, (SEGMENTS, 1))
    sizes = np.maximum(np.round(rates * SEGMENT_S / 8 * spread), 1)
    return Ladder(rates, sizes, np.full(SEGMENTS, SEGMENT_S))


def play(name: str, trace: Trace, ladder: Ladder, **options: Any) -> tuple[float, float]:
    """Return (QoE_lin per segment in top bitrates, rebuffering ratio) of one session."""
    controller = create_abr(name, ladder, buffer_capacity_s=BUFFER_S, **options)
    session = Session(ladder, controller, PlayerConfig(buffer_s=BUFFER_S, timeout_s=60.0))
    simulate(session, create_transport(trace, LinkConfig()), segment_frames=[1] * SEGMENTS)
    log = session.log()
    utility = ladder.bitrate_bps[[row["representation"] for row in log.segments]] / ladder.bitrate_bps[-1]
    total = utility.sum() - log.summary["rebuffered_s"] - np.abs(np.diff(utility)).sum()
    return float(total) / SEGMENTS, log.summary["rebuffering_ratio"]


def score_table(names: Sequence[str], *, weights: Path | None = None, limit: int | None = None) -> str:
    """Return a table: mean QoE_lin per segment, its 95 % interval over traces, distance to the oracle, rebuffering."""
    unknown = [name for name in names if name not in known_names() or name == "oracle"]
    if unknown:
        raise UsageError(f"--abr: unknown controller {', '.join(unknown)}; known: {', '.join(known_names())}")
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    bound: list[float] = []
    for number, trace_name in enumerate(half(training=False)[:limit]):
        trace = slow_down(catalogue.load(trace_name))
        ladder = make_ladder(trace, number)
        path = best_path(ladder, create_qoe(ladder), link_future(trace, LinkConfig()), capacity_s=BUFFER_S)
        bound.append(path.qoe / (ladder.bitrate_bps[-1] / 1e6) / SEGMENTS)
        for name in names:
            options = {"weights": str(weights / f"{name}.npz")} if weights and name in LEARNED else {}
            scores[name].append(play(name, trace, ladder, **options))
    lines = [f"{len(bound)} traces; oracle {np.mean(bound):.4f}", "controller      QoE_lin  +-95 %  to oracle  rebuf %"]
    for name, rows in scores.items():
        qoe = np.array([row[0] for row in rows])
        interval = 1.96 * qoe.std(ddof=1) / np.sqrt(len(qoe)) if len(qoe) > 1 else float("nan")
        gap, stalled = np.mean(np.array(bound) - qoe), 100 * np.mean([row[1] for row in rows])
        lines.append(f"{name:14} {qoe.mean():8.4f} {interval:7.4f} {gap:10.4f} {stalled:8.2f}")
    return "\n".join(lines)
