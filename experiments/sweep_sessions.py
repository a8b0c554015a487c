"""One session of a study in virtual time, reduced to one row. Quality is looked up, never measured; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from abr import Ladder, create_abr
from abr.qoe import scaled_quality
from emulator import LinkConfig, create_transport
from experiments.errors import UsageError
from experiments.future import link_future
from experiments.simulate import simulate
from player.config import PlayerConfig
from player.log import SessionLog
from player.programme import Programme
from player.quality import severely_distorted_share
from player.record import SevereRule
from player.session import Session
from traces import Trace, catalogue, load_trace

PROMPT = "prompt"
REBUFFERING_WEIGHT = 1.0
"""QoE per second of rebuffering, in units of the utility's range (top bitrate, or best quality)."""
SWITCHING_WEIGHT = 1.0


@dataclass(frozen=True)
class Cell:
    """What a worker does at a time: the sessions of all controllers over one link."""

    trace: str
    share: int
    offset_s: float
    package: str
    controllers: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A session that raised an error."""

    cell: Cell
    controller: str
    reason: str


class Looked:
    """A programme with the means of its frames' quality, ready to be looked up by (segment, representation)."""

    def __init__(self, name: str, programme: Programme, rule: SevereRule) -> None:
        presentation = programme.presentation
        self.name, self.codec, self.ladder = name, presentation.manifest.codec, programme.ladder
        self.frames: NDArray[np.int64] = programme.segment_frames
        index = programme.clip_segment
        self.means = {metric: presentation.mean_quality(metric)[index] for metric in presentation.metrics}  # [S, R]
        self.severe = self._severe(programme, rule)[index]  # [S, R] severely distorted frames
        self.utilities = {"qoe_lin": np.tile(self.ladder.bitrate_bps / self.ladder.bitrate_bps[-1], (len(index), 1))}
        if self.ladder.quality is not None:
            self.utilities["qoe_quality"] = scaled_quality(self.ladder)

    @staticmethod
    def _severe(programme: Programme, rule: SevereRule) -> NDArray[np.float64]:
        presentation, ladder = programme.presentation, programme.ladder
        table = np.full((presentation.segments, ladder.representations), math.nan)
        if rule.metric is None or rule.metric not in presentation.metrics:
            return table
        for segment, rung in np.ndindex(*table.shape):
            values = presentation.frame_quality(segment, rung, rule.metric)
            share = severely_distorted_share(values, rule.metric, threshold=rule.threshold)
            table[segment, rung] = share * len(values)
        return table

    def numbers(self, log: SessionLog) -> dict[str, float]:
        """Return the row's part that follows from which version of each segment was shown."""
        shown = [(row["segment"], row["representation"]) for row in log.segments if row["content_start_s"] is not None]
        nothing = dict.fromkeys(("media_bps", "qoe_lin", "qoe_quality", "severe_share", *self.means), math.nan)
        if not shown:
            return {"frames": 0, **nothing}
        at = tuple(np.array(shown).T)
        frames = self.frames[at[0]]
        media_bits = 8 * float(self.ladder.segment_bytes[at].sum())
        return {
            **nothing,
            "frames": int(frames.sum()),
            "media_bps": media_bits / float(self.ladder.segment_duration_s[at[0]].sum()),
            "severe_share": float(self.severe[at].sum() / frames.sum()),
            **{name: float(np.average(values[at], weights=frames)) for name, values in self.means.items()},
            **{name: self._qoe(values[at], log) for name, values in self.utilities.items()},
        }

    def _qoe(self, utility: NDArray[np.float64], log: SessionLog) -> float:
        cost = REBUFFERING_WEIGHT * log.summary["rebuffered_s"] + SWITCHING_WEIGHT * np.abs(np.diff(utility)).sum()
        return float((utility.sum() - cost) / self.ladder.segments)


def parse_controller(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of a controller written as ``name`` or ``name:key=value+key=value``."""
    name, _, options = text.partition(":")
    pairs = [pair for pair in options.split("+") if pair]
    if any("=" not in pair for pair in pairs):
        raise UsageError(f"abr={text}: expected name:key=value+key=value")
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
    if not isinstance(parsed, dict):
        raise UsageError(f"abr={text}: expected name:key=value+key=value")
    return name, {str(key): value for key, value in parsed.items()}


def family_of(trace: str) -> str:
    """Return the family of a vendored trace, or `own`."""
    entry = catalogue.find(trace)
    return "own" if entry is None else entry.family


class Study:
    """What every worker of a study holds."""

    def __init__(
        self, programmes: Mapping[str, Programme], rule: SevereRule, player: PlayerConfig, link: LinkConfig
    ) -> None:
        self.looked = {name: Looked(name, programme, rule) for name, programme in programmes.items()}
        self.player, self.link = player, link

    def run(self, cell: Cell) -> tuple[list[dict[str, Any]], list[Failure]]:
        """Run a cell's sessions; return their rows and what failed."""
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        try:
            trace = load_trace(cell.trace, share=cell.share, offset_s=cell.offset_s)
        except Exception as error:  # nothing that one cell meets may sink the others
            return rows, [Failure(cell, name, _reason(error)) for name in cell.controllers]
        shared = self._conditions(cell, trace)
        for name in cell.controllers:
            try:
                rows.append({**shared, "abr": name, **self.play(name, trace, self.looked[cell.package])})
            except Exception as error:  # a plug-in may raise anything
                failures.append(Failure(cell, name, _reason(error)))
        return rows, failures

    def play(self, controller: str, trace: Trace, looked: Looked) -> dict[str, Any]:
        """Play one session and return its numbers."""
        name, options = parse_controller(controller)
        if name == "oracle":  # the one controller that is told the future
            options = {"finish_s": link_future(trace, self.link), **options}
        ladder: Ladder = looked.ladder
        abr = create_abr(name, ladder, buffer_capacity_s=self.player.buffer_s, **options)
        session = Session(ladder, abr, self.player)
        render_fps = self.player.render_fps if looked.codec == PROMPT else None  # pixels are decoded in hardware
        frames: Sequence[int] = looked.frames.tolist()
        simulate(session, create_transport(trace, self.link), segment_frames=frames, render_fps=render_fps)
        log = session.log()
        summary = log.summary
        names = (
            "startup_delay_s", "elapsed_s", "rebuffered_s", "rebuffering_ratio", "rebuffering_count", "switches",
            "skipped_segments", "abandonments", "upgrades", "wasted_bytes",
        )  # fmt: skip
        return {
            "segments": ladder.segments,
            **{name: summary[name] for name in names},
            "received_bytes": summary["downloaded_bytes"] + summary["wasted_bytes"],
            **looked.numbers(log),
        }

    def _conditions(self, cell: Cell, trace: Trace) -> dict[str, Any]:
        looked = self.looked[cell.package]
        session_s = float(looked.ladder.segment_duration_s.sum())
        fps = self.player.render_fps if looked.codec == PROMPT else None
        return {
            "trace": cell.trace,
            "family": family_of(cell.trace),
            "share": cell.share,
            "offset_s": cell.offset_s,
            "codec": looked.codec,
            "package": cell.package,
            "session_s": session_s,
            "buffer_s": self.player.buffer_s,
            "delay_ms": self.link.delay_ms,
            "loss": self.link.loss,
            "link_model": self.link.model,
            "render_fps": math.nan if fps is None else fps,
            "trace_bps": trace.mean_bps,
            "session_bps": trace.capacity_bytes(0, 1000 * session_s) * 8 / session_s,
        }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
