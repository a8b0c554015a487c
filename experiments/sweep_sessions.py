"""One session of a study in virtual time, reduced to one row. Quality is looked up, never measured; no torch."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from abr import AbrConfig, Ladder
from abr.qoe import scaled_quality
from emulator import LinkConfig, create_transport
from experiments.device import DeviceConfig, controller_on, ladder_on
from experiments.future import link_future
from experiments.simulate import simulate
from player.config import PlayerConfig
from player.programme import Programme
from player.session import Session
from traces import Trace, TraceConfig, catalogue, load_trace, registry

if TYPE_CHECKING:
    from player.record import SevereRule

PROMPT = "prompt"
REBUFFERING_WEIGHT = 1.0
"""QoE per second of rebuffering, in units of the utility's range (top bitrate, or best quality)."""
SWITCHING_WEIGHT = 1.0
STARTUP_WEIGHT = 1.0
"""QoE per second of startup delay in the columns that count it; Yin et al. (SIGCOMM 2015) weigh it as rebuffering."""
_ANY_DEVICE = DeviceConfig()
QOE_COLUMNS = ("qoe_lin", "qoe_lin_startup", "qoe_quality", "qoe_quality_startup")


@dataclass(frozen=True)
class Spec:
    """One session but for its link."""

    key: str
    """Hash of everything that decides the session, its link and package included."""
    programme: str
    """What is streamed: a key of the study's programmes."""
    label: str
    """The controller, with its options, as the table names it."""
    abr: AbrConfig
    player: PlayerConfig
    device: DeviceConfig
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Swept key -> its value; columns of the session's row."""


@dataclass(frozen=True)
class Cell:
    """What a worker does at a time: sessions over one link."""

    trace: TraceConfig
    link: LinkConfig
    seed: int | None
    """What offset and loss were drawn from, if they were."""
    sessions: tuple[Spec, ...]


@dataclass(frozen=True)
class Failure:
    """A session that raised an error."""

    trace: TraceConfig
    session: Spec
    reason: str


class Looked:
    """A programme with the sums of its frames' quality, ready to be looked up by (segment, representation)."""

    def __init__(self, package: str, video: str, programme: Programme, rule: SevereRule) -> None:
        presentation, ladder = programme.presentation, programme.ladder
        self.package, self.video, self.codec, self.ladder = package, video, presentation.manifest.codec, ladder
        self.frames: NDArray[np.int64] = programme.segment_frames
        self.segment_frames: list[int] = self.frames.tolist()
        index, self._metrics = programme.clip_segment, list(presentation.metrics)
        sums = [presentation.mean_quality(metric)[index] * self.frames[:, None] for metric in self._metrics]  # [S, R]
        sums.append(self._severe(programme, rule)[index])  # severely distorted frames
        self._sums = np.array(sums).reshape(len(sums), -1)  # [metrics + 1, S R]
        utilities = {"qoe_lin": np.tile(ladder.bitrate_bps / ladder.bitrate_bps[-1], (len(index), 1))}
        if ladder.quality is not None:
            utilities["qoe_quality"] = scaled_quality(ladder)
        self._utility_names = list(utilities)
        self._utilities = np.array(list(utilities.values())).reshape(len(utilities), -1)  # [utilities, S R]
        self._presentation = presentation
        self._on_devices: dict[tuple[float | None, float], Ladder] = {}
        self.quality_names = ("severe_share", "qoe_quality", "qoe_quality_startup", *self._metrics)
        self._nothing = dict.fromkeys(("media_bps", *QOE_COLUMNS, "severe_share", *self._metrics), math.nan)

    @staticmethod
    def _severe(programme: Programme, rule: SevereRule) -> NDArray[np.float64]:
        from player.quality import severely_distorted_share  # torch, which the workers do without

        presentation, ladder = programme.presentation, programme.ladder
        table = np.full((presentation.segments, ladder.representations), math.nan)
        if rule.metric is None or rule.metric not in presentation.metrics:
            return table
        for segment, rung in np.ndindex(*table.shape):
            values = presentation.frame_quality(segment, rung, rule.metric)
            share = severely_distorted_share(values, rule.metric, threshold=rule.threshold)
            table[segment, rung] = share * len(values)
        return table

    def ladder_on(self, device: DeviceConfig) -> Ladder:
        """Return the ladder with what rendering costs on a device, if that is said; kept for the next session on it."""
        key = (device.passes_per_s, device.warp_cost)
        if key not in self._on_devices:
            self._on_devices[key] = ladder_on(device, self._presentation, self.ladder)
        return self._on_devices[key]

    def numbers(
        self, shown: Sequence[tuple[int, int]], *, rebuffered_s: float, startup_delay_s: float
    ) -> dict[str, float]:
        """Return the row's part that follows from which version of each segment was shown."""
        if not shown:
            return {"frames": 0, **self._nothing}
        segments, representations = np.array(shown).T
        at = segments * self.ladder.representations + representations
        frames = int(self.frames[segments].sum())
        # `take` makes each row contiguous, so that its sum does not depend on what is beside it.
        *means, severe_share = (self._sums.take(at, axis=1).sum(axis=1) / frames).tolist()
        utilities = self._utilities.take(at, axis=1)  # [utilities, n]
        switching = np.abs(np.diff(utilities)).sum(axis=1)
        cost = REBUFFERING_WEIGHT * rebuffered_s + SWITCHING_WEIGHT * switching
        qoe = ((utilities.sum(axis=1) - cost) / self.ladder.segments).tolist()
        startup_cost = STARTUP_WEIGHT * startup_delay_s / self.ladder.segments
        media_bits = 8 * float(self.ladder.segment_bytes.take(at).sum())
        return {
            **self._nothing,
            "frames": frames,
            "media_bps": media_bits / float(self.ladder.segment_duration_s[segments].sum()),
            "severe_share": severe_share,
            **dict(zip(self._metrics, means, strict=True)),
            **dict(zip(self._utility_names, qoe, strict=True)),
            **{f"{name}_startup": value - startup_cost for name, value in zip(self._utility_names, qoe, strict=True)},
        }


@functools.cache
def family_of(trace: str) -> str:
    """Return the family of a vendored trace or of one that another package offers, or `own`."""
    entry = catalogue.find(trace)
    if entry is not None:
        return entry.family
    member = registry.find_member(trace)
    return "own" if member is None else member[0]


class Study:
    """What every worker of a study holds."""

    def __init__(self, programmes: Mapping[str, Looked]) -> None:
        self.programmes = programmes

    def __call__(self, cell: Cell) -> tuple[list[dict[str, Any]], list[Failure]]:
        """Run a cell's sessions; return their rows and what failed."""
        logger = logging.getLogger("player")
        before = logger.level
        logger.setLevel(logging.ERROR)  # what a session met with is in its row
        try:
            return self._play(cell)
        finally:
            logger.setLevel(before)

    def _play(self, cell: Cell) -> tuple[list[dict[str, Any]], list[Failure]]:
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        try:
            trace = load_trace(cell.trace)
        except Exception as error:  # nothing that one cell meets may sink the others
            return rows, [Failure(cell.trace, session, reason_of(error)) for session in cell.sessions]
        for session in cell.sessions:
            looked = self.programmes[session.programme]
            try:
                row = conditions(cell, session, trace, looked)
                rows.append({**row, **play(session.abr, trace, looked, session.player, cell.link, session.device)})
            except Exception as error:  # a plug-in may raise anything
                failures.append(Failure(cell.trace, session, reason_of(error)))
        return rows, failures


def play(
    controller: AbrConfig,
    trace: Trace,
    looked: Looked,
    player: PlayerConfig,
    link: LinkConfig,
    device: DeviceConfig = _ANY_DEVICE,
) -> dict[str, Any]:
    """Play one session and return its numbers. What reduced render modes look like was not measured: quality is empty
    if any was shown."""
    if controller.name == "oracle":  # the one controller that is told the future
        future = {"finish_s": link_future(trace, link)}
        controller = dataclasses.replace(controller, options={**future, **controller.options})
    if looked.codec != PROMPT:  # a pixel codec has nothing to make frames up from
        player = dataclasses.replace(player, conceal_s=0.0)
    ladder = looked.ladder_on(device)
    session = Session(ladder, controller_on(device, controller, ladder, player.buffer_s), player)
    simulate(
        session,
        create_transport(trace, link),
        segment_frames=looked.segment_frames,
        render_fps=render_fps(looked, player),
    )
    summary = session.summary()
    names = (
        "startup_delay_s", "elapsed_s", "rebuffered_s", "rebuffering_ratio", "rebuffering_count", "switches",
        "skipped_segments", "abandonments", "upgrades", "wasted_bytes",
    )  # fmt: skip
    startup_s, rebuffered_s = summary["startup_delay_s"], summary["rebuffered_s"]
    numbers = looked.numbers(session.shown(), rebuffered_s=rebuffered_s, startup_delay_s=startup_s)
    if session.reduced_segments:
        numbers |= dict.fromkeys(looked.quality_names, math.nan)
    return {
        "segments": ladder.segments,
        **{name: summary[name] for name in names},
        "waiting_ratio": (startup_s + rebuffered_s) / summary["elapsed_s"] if summary["elapsed_s"] > 0 else 0.0,
        "received_bytes": summary["downloaded_bytes"] + summary["wasted_bytes"],
        "reduced_segments": session.reduced_segments,
        **numbers,
    }


def conditions(cell: Cell, session: Spec, trace: Trace, looked: Looked) -> dict[str, Any]:
    """Return the part of a session's row that is known before it is played."""
    session_s = float(looked.ladder.segment_duration_s.sum())
    fps, speed = render_fps(looked, session.player), session.device.passes_per_s if looked.codec == PROMPT else None
    return {
        **session.columns,
        "session": session.key,
        "trace": cell.trace.name,
        "family": family_of(cell.trace.name),
        "share": cell.trace.share,
        "offset_s": cell.trace.offset_s,
        "seed": cell.seed,
        "video": looked.video,
        "codec": looked.codec,
        "package": looked.package,
        "abr": session.label,
        "session_s": session_s,
        "buffer_s": session.player.buffer_s,
        "delay_ms": cell.link.delay_ms,
        "loss": cell.link.loss,
        "link_model": cell.link.model,
        "render_fps": math.nan if fps is None else fps,
        "passes_per_s": math.nan if speed is None else speed,
        "trace_bps": trace.mean_bps,
        "session_bps": trace.capacity_bytes(0, 1000 * session_s) * 8 / session_s,
    }


def render_fps(looked: Looked, player: PlayerConfig) -> float | None:
    """Return how fast the viewer's device renders the programme; pixels are decoded in hardware."""
    return player.render_fps if looked.codec == PROMPT else None


def reason_of(error: Exception) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
