"""Pensieve's simulator on our controllers and our session: the same traces and sizes, its clock, its link, its QoE.

What is Pensieve's (Mao et al., SIGCOMM 2017; test/fixed_env.py of its repository) is stated here once: 48 segments of
4 s at six bitrates; a link that delivers 95 % of the trace's rate and whose clock stands still during the 80 ms added
to each download; a player that starts with its first segment, stops only when empty, and with more than 60 s in the
buffer sleeps in steps of 500 ms; the first segment at 750 kbit/s and out of the sum

    QoE_lin = sum b_k - 4.3 * rebuffered seconds - sum |b_k - b_{k-1}|       b in Mbit/s, segments 1..47.

Everything else is `player.Session` and `abr`. Three properties of its `mpc.py` are options of this driver, because its
published numbers contain them: sizes are those of the segment *after* the one to choose (so the controller is given a
ladder shifted by one), of equal plans the last wins, and errors of prediction leak from one trace into the next, files
in alphabetical order (`--compat reset` forgets them instead, as each session in reality does).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abr import Abr, Ladder, ThroughputSample, create_estimator
from abr.linear_buffer import IndexMap
from abr.mpc import Mpc, PredictionErrors
from abr.qoe import create_qoe
from abr.rate_based import HarmonicRate
from emulator import Transfer
from experiments.errors import UsageError
from player.config import PlayerConfig
from player.session import Finished, Request, Session
from traces.formats import RateSeries, read_rates

BITRATES_BPS = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
SEGMENTS, SEGMENT_S, FIRST = 48, 4.0, 1
BUFFER_S, SLEEP_S = 60.0, 0.5
PAYLOAD_SHARE, RTT_S = 0.95, 0.08
REBUFFERING = 4.3
UNBOUNDED_S = 1e9
"""Pensieve's requests never time out, and its plans know no cap on the buffer."""
NAMES = ("bb", "rb", "robustmpc", "mpc")
COMPAT = ("leak", "reset", "reset-fixed")


@dataclass(frozen=True)
class TraceScore:
    """One trace's result, the first segment left out of everything but `startup_s`."""

    trace: str
    qoe_lin: float
    mean_bitrate_kbps: float
    """Of all segments, the first included, as in Pensieve's tables."""
    rebuffered_s: float
    startup_s: float
    sum_abs_switch_kbps: float


class PensieveLink:
    """The link of fixed_env.py: a pointer into the trace that moves while bytes flow or the player sleeps.

    The rate of row k holds over (t_{k-1}, t_k]; after the last row the pointer goes back to row 1, so that the period
    is the last time. Like an `emulator.Transport`, but for its own clock.
    """

    def __init__(self, rates: RateSeries, start_s: float = 0.0) -> None:
        """Args: start_s: time of the trace's row 0, which later laps, but not the first one, play as part of row 1."""
        self._durations_s = np.diff(rates.edges_s).tolist()
        self._lead_s = start_s
        self._bytes_per_s = (rates.rate_bps / 8).tolist()
        if not max(self._bytes_per_s) > 0:
            raise UsageError("a trace without a single rate above 0 delivers nothing")
        self._row, self._into_s = 0, 0.0

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Return the download of an object that begins now; the deadline is not looked at."""
        spent_s, left = 0.0, float(size_bytes)
        while True:
            rate, rest_s = self._bytes_per_s[self._row], self._durations_s[self._row] - self._into_s
            payload = rate * rest_s * PAYLOAD_SHARE
            if payload > left:
                step_s = left / rate / PAYLOAD_SHARE
                self._into_s += step_s
                finish_s = request_s + spent_s + step_s + RTT_S
                return Transfer(request_s, request_s + RTT_S, finish_s, size_bytes, size_bytes, True)
            left -= payload
            spent_s += rest_s
            self._next_row()

    def sleep(self, duration_s: float) -> None:
        """Let the link's time pass without a transfer."""
        while duration_s >= (rest_s := self._durations_s[self._row] - self._into_s):
            duration_s -= rest_s
            self._next_row()
        self._into_s += duration_s

    def _next_row(self) -> None:
        self._row, self._into_s = self._row + 1, 0.0
        if self._row == len(self._durations_s):
            self._durations_s[0] += self._lead_s
            self._row, self._lead_s = 0, 0.0


def read_link(path: Path) -> PensieveLink:
    """Return the link that plays a trace file (time_s Mbit/s per line)."""
    rates = read_rates(path, format="cooked")
    start_s = float(path.read_text(encoding="utf-8-sig").replace(",", " ").split()[0])
    try:
        return PensieveLink(rates, start_s)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_sizes(folder: Path) -> NDArray[np.int64]:
    """Return the sizes [49, R] in the first column of the files video_size_0, video_size_1, ...

    Row 48 is never fetched, but planned with; where a file ends before it, it is one byte, as good as Pensieve's zero.
    """
    columns = [_read_column(folder / f"video_size_{index}") for index in range(len(BITRATES_BPS))]
    return np.array([[*column, 1][: SEGMENTS + 1] for column in columns], dtype=np.int64).T


def _read_column(path: Path) -> list[int]:
    try:
        lines = path.read_text(encoding="ascii").rstrip().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}, expected a file with one size in bytes per line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not text, expected one size in bytes per line") from error
    words = [next(iter(line.split()), "") for line in lines]
    for number, word in enumerate(words, start=1):
        if not (word.isdigit() and 0 < len(word) <= 15 and int(word) > 0):
            raise UsageError(f"{path}:{number}: found {word[:40]!r}, expected a size in bytes above 0")
    if len(words) < SEGMENTS:
        raise UsageError(f"{path}: {len(words)} sizes, expected {SEGMENTS} or more")
    return [int(word) for word in words]


def make_ladder(sizes: NDArray[np.int64], begin: int) -> Ladder:
    """Return Pensieve's ladder of 48 segments whose sizes begin with row `begin`."""
    durations = np.full(SEGMENTS, SEGMENT_S)
    return Ladder(np.array(BITRATES_BPS, dtype=float), sizes[begin : begin + SEGMENTS], durations)


def make_controller(name: str, sizes: NDArray[np.int64], compat: str, errors: PredictionErrors) -> Abr:
    """Build one of our controllers as Pensieve configures it."""
    if name == "bb":
        return IndexMap(make_ladder(sizes, 0), buffer_capacity_s=BUFFER_S + SEGMENT_S, first=FIRST)
    if name == "rb":
        return HarmonicRate(make_ladder(sizes, 0), buffer_capacity_s=BUFFER_S, first=FIRST)
    ladder = make_ladder(sizes, 0 if compat == "reset-fixed" else 1)
    return Mpc(
        ladder,
        create_qoe(ladder, rebuffering=REBUFFERING),
        create_estimator("naive"),
        buffer_capacity_s=UNBOUNDED_S,
        errors=None if name == "mpc" else errors,
        first=FIRST,
        ties="last",
    )


def play(name: str, link: PensieveLink, ladder: Ladder, controller: Abr) -> tuple[TraceScore, list[Transfer]]:
    """Play one trace to its end; return its score and the transfers. `name` is the trace's."""
    config = PlayerConfig(buffer_s=BUFFER_S + SEGMENT_S, startup_s=0.0, rebuffer_s=0.0, timeout_s=UNBOUNDED_S)
    session, now_s = Session(ladder, controller, config), 0.0
    transfers: list[Transfer] = []
    while not isinstance(action := session.next_action(now_s), Finished):
        if isinstance(action, Request):
            transfer = link.request(action.size_bytes, now_s)
            now_s = transfer.finish_s
            session.on_complete(now_s, transfer)
            session.on_rendered(now_s, action.segment)
            transfers.append(transfer)
        else:  # the buffer is above 60 s, or everything is downloaded: come back after whole steps of sleep
            steps = math.ceil((action.until_s - now_s) / SLEEP_S - 1e-9)
            link.sleep(steps * SLEEP_S)
            now_s += steps * SLEEP_S
    return _score(name, session), transfers


def evaluate(folder: Path, sizes: NDArray[np.int64], name: str, compat: str) -> Iterator[TraceScore]:
    """Yield the score of each trace of a folder, in alphabetical order."""
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise UsageError(f"{folder}: no files, expected a folder of traces (time_s Mbit/s per line)")
    errors = PredictionErrors()
    for path in paths:
        if compat != "leak":
            errors = PredictionErrors()
        controller = make_controller(name, sizes, compat, errors)
        score, transfers = play(path.name, read_link(path), make_ladder(sizes, 0), controller)
        if isinstance(controller, Mpc):  # Pensieve's loop looks at the last download, too, before the next trace
            controller.believe([_sample(transfer) for transfer in transfers], transfers[-1].finish_s)
        yield score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--traces", type=Path, required=True, help="folder of traces: time_s Mbit/s per line")
    parser.add_argument("--sizes", type=Path, required=True, help="folder of video_size_0 .. video_size_5")
    parser.add_argument("--abr", choices=NAMES, required=True, help="mpc: without the error's discount")
    parser.add_argument(
        "--compat",
        choices=COMPAT,
        default="leak",
        help="MPC's past errors: leak into the next trace (as published), reset; reset-fixed: also the right sizes",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace) -> str:
    """Return what the command prints."""
    scores = list(evaluate(parsed.traces, read_sizes(parsed.sizes), parsed.abr, parsed.compat))
    mean = float(np.mean([score.qoe_lin for score in scores]))
    if parsed.json:
        head = {"abr": parsed.abr, "compat": parsed.compat, "mean_qoe_lin": mean}
        return json.dumps({**head, "traces": [asdict(score) for score in scores]}, indent=2)
    lines = [f"{'trace':32} {'QoE_lin':>12} {'kbit/s':>9} {'rebuf s':>9} {'switch kbit/s':>13}"]
    lines += [
        f"{score.trace:32} {score.qoe_lin:12.6f} {score.mean_bitrate_kbps:9.3f} {score.rebuffered_s:9.6f} "
        f"{score.sum_abs_switch_kbps:13.0f}"
        for score in scores
    ]
    return "\n".join([*lines, f"{'mean of ' + str(len(scores)):32} {mean:12.6f}"])


def _score(name: str, session: Session) -> TraceScore:
    log = session.log()
    chosen = np.array([row["representation"] for row in log.segments])
    rates_bps = np.array(BITRATES_BPS, dtype=float)[chosen]
    switch_bps = float(np.abs(np.diff(rates_bps)).sum())
    rebuffered_s = log.summary["rebuffered_s"]
    return TraceScore(
        trace=name,
        qoe_lin=float(rates_bps[1:].sum() / 1e6 - REBUFFERING * rebuffered_s - switch_bps / 1e6),
        mean_bitrate_kbps=float(rates_bps.mean() / 1e3),
        rebuffered_s=rebuffered_s,
        startup_s=log.summary["startup_delay_s"],
        sum_abs_switch_kbps=switch_bps / 1e3,
    )


def _sample(transfer: Transfer) -> ThroughputSample:
    return ThroughputSample(transfer.size_bytes, transfer.request_s, transfer.first_byte_s, transfer.finish_s)
