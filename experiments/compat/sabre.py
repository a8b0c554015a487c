"""Sabre on our controllers and our session: its link, its clock and its metrics, as a driver of `player.Session`.

Sabre (Spiteri, Sitaraman, Sparacio, MMSys 2018) streams a movie of equal segments over a link of constant pieces. What
is Sabre's is here, once:

- The link: a request costs one latency, then bits flow at the bandwidth of the moment; the trace repeats.
- Progress is looked at after every 12 kbit, or 50 ms worth of bits if that is more; never for the first segment, which
  comes in the lowest quality.
- The player starts with its first segment and resumes with the next one after a stop.
- Metrics count a segment as played when it starts, in units of segment durations of all the time that passed.

Decisions by average bitrate instead of real segment sizes are an option of the controllers (`sizes=nominal`). Sabre's
published numbers contain one defect: a misspelt variable makes it ask the controller afresh after an abandonment
instead of fetching what the controller had named; `--reproduce-defects` does so too (`player.reconsider_abandoned`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abr import Abr, Ladder, ThroughputSample
from abr.bola import FiniteBola
from abr.bolae import BolaE
from abr.dynamic import Dynamic
from abr.replacement import FastSwitching
from abr.split import SplitEstimator
from abr.throughput_rule import ThroughputRule
from experiments.compat.sabre_inputs import UNITS_PER_BIT, Movie, Period, read_movie, read_network
from experiments.compat.sabre_link import SabreLink, Viewer
from experiments.errors import UsageError
from player.config import PlayerConfig
from player.events import SegmentPlayed
from player.playback import MEDIA_TOLERANCE_S
from player.session import Finished, Request, Session

NAMES = ("bola", "bola-basic", "bolae", "throughput", "dynamic", "dynamicdash")
STEP_BITS, STEP_MS = 12_000, 50
NEVER_S = 1e9
"""Sabre's requests never time out."""


@dataclass(frozen=True)
class Settings:
    """A run of the command: Sabre's options under our names."""

    abr: str
    buffer_s: float = 25.0
    gp: float = 5.0
    basic: bool = False
    oscillates: bool = True
    low_buffer_rule: bool = True
    mean: str = "ewma"
    window: int = 3
    half_lives_s: tuple[float, ...] = (3.0, 8.0)
    replace: str = "none"
    abandons: bool = True
    reproduce_defects: bool = False
    ramp_up_quality: int | None = None


def make_controller(ladder: Ladder, settings: Settings) -> Abr:
    """Build one of our controllers as Sabre configures it."""
    capacity_s, segment_s = settings.buffer_s, float(ladder.segment_duration_s[0])

    def estimator() -> SplitEstimator:
        return SplitEstimator(segment_s, mean=settings.mean, window=settings.window, half_lives_s=settings.half_lives_s)

    def bola() -> FiniteBola:
        return FiniteBola(
            ladder,
            estimator(),
            buffer_capacity_s=capacity_s,
            gp=settings.gp,
            oscillates=settings.oscillates,
            finite=not settings.basic,
            sizes="nominal",
        )

    def bolae() -> BolaE:
        return BolaE(
            ladder,
            estimator(),
            buffer_capacity_s=capacity_s,
            gp=settings.gp,
            oscillates=settings.oscillates,
            low_buffer_rule=settings.low_buffer_rule,
            sizes="nominal",
        )

    def throughput() -> ThroughputRule:
        return ThroughputRule(ladder, estimator(), low_buffer_rule=settings.low_buffer_rule, sizes="nominal")

    makers: dict[str, Callable[[], Abr]] = {
        "bola": bola,
        "bolae": bolae,
        "throughput": throughput,
        "dynamic": lambda: Dynamic(bola(), throughput()),
        "dynamicdash": lambda: Dynamic(bolae(), throughput()),
    }
    inner = makers[settings.abr]()
    if settings.replace == "none":
        return inner
    return FastSwitching(inner, segment_s=segment_s, side=settings.replace)


@dataclass(frozen=True)
class Transfer:
    """A download as Sabre's verbose output has it."""

    segment: int
    quality: int
    begin_ms: float
    end_ms: float

    def __str__(self) -> str:
        return f"[{int(self.begin_ms)}-{int(self.end_ms)}]  {self.segment}: q={self.quality}"


class Run:
    """One session over Sabre's link."""

    def __init__(self, movie: Movie, periods: list[Period], settings: Settings) -> None:
        self.movie, self.settings = movie, settings
        self.viewer = Viewer(movie, settings.buffer_s * 1000, settings.ramp_up_quality)
        self.link = SabreLink(periods, self.viewer.on_period)
        ladder = movie.ladder()
        config = PlayerConfig(
            buffer_s=settings.buffer_s,
            startup_s=0.0,
            rebuffer_s=0.0,
            timeout_s=NEVER_S,
            reconsider_abandoned=settings.reproduce_defects,
        )
        self.session = Session(ladder, make_controller(ladder, settings), config)
        self._missing = set(range(len(movie.segment_bits)))
        self._seen, self._showing = 0, 0
        self.downloads: list[Transfer] = []
        """The requests that were answered whole, in order."""

    def play(self) -> None:
        """Play the movie to its end."""
        session, now_s, idle_ms = self.session, 0.0, 0.0
        while True:
            action = session.next_action(now_s)
            self._note(now_s)
            self.link.idle(idle_ms)  # Sabre plays first and moves the link after that
            idle_ms = 0.0
            if isinstance(action, Finished):
                return
            if isinstance(action, Request):
                now_s = self._fetch(action, now_s)
                continue
            if self._missing:
                idle_ms = (action.until_s - now_s) * 1000
            now_s = action.until_s

    def _fetch(self, request: Request, now_s: float) -> float:
        """Carry out a request; return when it was over."""
        size_bits = request.size_bytes / UNITS_PER_BIT
        latency_ms = self.link.request()
        if not self._looks_at(request):
            spent_ms = latency_ms + self.link.download(size_bits)[1]
        else:
            spent_ms, got_bits, least_ms = latency_ms, 0.0, STEP_MS - latency_ms
            while got_bits < size_bits:
                bits, step_ms = self.link.download(size_bits - got_bits, STEP_BITS, least_ms)
                got_bits, spent_ms, least_ms = got_bits + bits, spent_ms + step_ms, STEP_MS
                look_s, received = now_s + spent_ms / 1000, round(got_bits * UNITS_PER_BIT)
                if got_bits < size_bits and self.session.on_progress(
                    look_s, received, first_byte_s=now_s + latency_ms / 1000
                ):
                    return look_s
        finish_s = now_s + spent_ms / 1000
        transfer = ThroughputSample(request.size_bytes, now_s, now_s + latency_ms / 1000, finish_s)
        self.session.on_complete(finish_s, transfer)
        self.session.on_rendered(finish_s, request.segment)
        self._missing.discard(request.segment)
        self.downloads.append(Transfer(request.segment, request.representation, now_s * 1000, finish_s * 1000))
        return finish_s

    def _looks_at(self, request: Request) -> bool:
        """Say whether the request can be given up; BOLA-BASIC gives up replacements only."""
        settings = self.settings
        by_controller = request.segment > 0 and not (settings.basic and settings.abr == "bola")
        return settings.abandons and (request.held is not None or by_controller)

    def _note(self, now_s: float) -> None:
        """Enter what the last step brought into Sabre's books."""
        events = self.session.events()
        for event in events[self._seen :]:
            if isinstance(event, SegmentPlayed):
                self._showing = event.representation
                self.viewer.on_play(event.representation, event.time_s * 1000)
        self._seen = len(events)
        waiting = self.session.buffered
        waiting_s = len(waiting) * self.movie.segment_ms / 1000
        showing = [self._showing] if self.session.buffer_s > waiting_s + MEDIA_TOLERANCE_S else []
        self.viewer.on_step(now_s * 1000, showing + [item.representation for item in waiting])


def report(run: Run) -> dict[str, Any]:
    """Return Sabre's metrics of a finished run; the names are those of its published tables."""
    movie, summary = run.movie, run.session.log().summary
    played = [event.representation for event in run.session.events() if isinstance(event, SegmentPlayed)]
    rates, utilities = movie.bitrates_kbps, movie.utilities
    segment_s, total_s = movie.segment_ms / 1000, summary["elapsed_s"]
    share = segment_s / total_s  # turns a sum over segments into an average over time
    pairs = list(itertools.pairwise(played))
    utility = sum(utilities[quality] for quality in played)
    rebuffered = summary["rebuffered_s"] / segment_s
    return {
        "utility": utility * share,
        "bitrate": sum(rates[quality] for quality in played) * share,
        "rebuffer_s": summary["rebuffered_s"],
        "rebuf_ratio": summary["rebuffered_s"] / total_s,
        "rebuf_events": summary["rebuffering_count"],
        "bitrate_change": sum(abs(rates[after] - rates[before]) for before, after in pairs) * share,
        "log_bitrate_change": sum(abs(utilities[after] - utilities[before]) for before, after in pairs) * share,
        "score": (utility - run.settings.gp * rebuffered) * share,
        "play_time": total_s,
        "rampup": None if run.viewer.ramp_up_ms is None else run.viewer.ramp_up_ms / 1000,
        "reaction": run.viewer.reaction_ms / 1000,
        "switches": summary["switches"],
        "abandonments": summary["abandonments"],
        "replacements": summary["upgrades"],
        "played": played,
    }


def report_text(run: Run) -> str:
    """Return the metrics in the words and order of Sabre's own output, so that the two can be compared by diff."""
    numbers = report(run)
    chunks = numbers["play_time"] / (run.movie.segment_ms / 1000)
    averages = {
        "played utility": numbers["utility"],
        "played bitrate": numbers["bitrate"],
        "rebuffer": numbers["rebuf_ratio"] * run.movie.segment_ms / 1000,
        "rebuffer events": numbers["rebuf_events"] / chunks,
        "bitrate change": numbers["bitrate_change"],
        "log bitrate change": numbers["log_bitrate_change"],
    }
    lines = [f"buffer size: {run.settings.buffer_s * 1000:.0f}"]
    for name, average in averages.items():
        lines += [f"total {name}: {average * chunks:f}"]
        if name == "rebuffer":
            lines += [f"rebuffer ratio: {numbers['rebuf_ratio']:f}"]
        lines += [f"time average {name}: {average:f}"]
        if name == "played bitrate":
            lines += [f"total play time: {numbers['play_time']:f}", f"total play time chunks: {chunks:f}"]
    lines += [f"time average score: {numbers['score']:f}"]
    ramp_up = "none" if numbers["rampup"] is None else f"{numbers['rampup']:f}"
    lines += [f"rampup time: {ramp_up}", f"total reaction time: {numbers['reaction']:f}"]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; short forms are Sabre's."""
    add = parser.add_argument
    add("-n", "--network", type=Path, required=True, help="JSON: [{duration_ms, bandwidth_kbps, latency_ms}, ...]")
    add("-m", "--movie", type=Path, required=True, help="JSON: segment_duration_ms, bitrates_kbps, segment_sizes_bits")
    add("-b", "--buffer", type=float, default=25.0, help="buffer cap, s (default 25)")
    add("-a", "--abr", choices=NAMES, default="bolae", help="default bolae; bola-basic is bola with -ab")
    add("-nm", "--network-multiplier", type=float, default=1.0, help="times every bandwidth")
    add("-ml", "--movie-length", type=float, help="cut or repeat the movie to this length, s")
    add("-ab", "--abr-basic", action="store_true", help="bola: neither finite nor abandoning")
    add("-ao", "--abr-osc", action="store_true", help="BOLA-O instead of BOLA-U: fewer oscillations")
    add("-gp", "--gamma-p", type=float, default=5.0, help="weight of rebuffering in BOLA and in the score (default 5)")
    add("-noibr", "--no-insufficient-buffer-rule", action="store_true", help="bolae becomes BOLA-PL")
    add("-ma", "--moving-average", choices=("ewma", "sliding"), default="ewma", help="of throughput and latency")
    add("-ws", "--window-size", type=int, default=3, help="sliding: samples in the mean (default 3)")
    add("-hl", "--half-life", type=float, nargs="+", default=(3.0, 8.0), help="ewma: half-lives, s (default 3 8)")
    add("-r", "--replace", choices=("none", "left", "right"), default="none", help="which lower segment to replace")
    add("-noa", "--no-abandon", action="store_true", help="never abandon a download")
    add("-rmp", "--rampup-threshold", type=int, help="quality that ends the ramp-up; default: what the link sustains")
    add("--reproduce-defects", action="store_true", help="ask afresh after an abandonment, as Sabre's code does")
    add("--json", action="store_true", help="print JSON")
    add("-v", "--verbose", action="store_true", help="one line for each download")


def run(parsed: argparse.Namespace) -> str:
    """Return what the command prints."""
    movie = read_movie(parsed.movie, length_s=parsed.movie_length)
    periods = read_network(parsed.network, multiplier=parsed.network_multiplier)
    basic = parsed.abr_basic or parsed.abr == "bola-basic"
    settings = Settings(
        abr="bola" if parsed.abr == "bola-basic" else parsed.abr,
        buffer_s=parsed.buffer,
        gp=parsed.gamma_p,
        basic=basic,
        oscillates=not parsed.abr_osc,
        low_buffer_rule=not parsed.no_insufficient_buffer_rule,
        mean=parsed.moving_average,
        window=parsed.window_size,
        half_lives_s=tuple(parsed.half_life),
        replace=parsed.replace,
        abandons=not parsed.no_abandon,
        reproduce_defects=parsed.reproduce_defects,
        ramp_up_quality=parsed.rampup_threshold,
    )
    _check(settings, movie)
    one = Run(movie, periods, settings)
    one.play()
    if parsed.json:
        return json.dumps(report(one), indent=2)
    lines = [str(transfer) for transfer in one.downloads] if parsed.verbose else []
    return "\n".join([*lines, report_text(one)])


def _check(settings: Settings, movie: Movie) -> None:
    """Refuse what the session and the controllers would take but Sabre cannot mean."""
    segment_s, top = movie.segment_ms / 1000, len(movie.bitrates_kbps) - 1
    if not (math.isfinite(settings.buffer_s) and settings.buffer_s > segment_s):
        raise UsageError(f"--buffer {settings.buffer_s:g}: expected more than a segment, which lasts {segment_s:g} s")
    if settings.ramp_up_quality is not None and not 0 <= settings.ramp_up_quality <= top:
        raise UsageError(f"--rampup-threshold {settings.ramp_up_quality}: expected a quality in 0..{top}")
