"""What learned controllers are trained and tested on: two halves of the vendored traces, and random ladders over them.

Traces of one drive (its up and down directions) stay together; inside each family, drives alternate between the halves,
so that both hold every kind of network. Nothing of the test half is seen in training.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abr import Ladder, Observation, ThroughputSample
from traces import MTU_BYTES, Trace, catalogue

BIN_MS = 100
PAYLOAD_SHARE = 1448 / MTU_BYTES
WINDOW_BYTES = 10 * 1448
HISTORY = 8
SEGMENTS = 60
MOST_REBUFFERING_S = 10.0


def half(training: bool) -> list[str]:
    """Return the names of the traces of one half, in catalogue order."""
    names = []
    number = 0
    for family in catalogue.families():
        drives: dict[str, int] = {}
        for entry in family.entries:
            drive = entry.name.removesuffix("-down").removesuffix("-up")
            if drive not in drives:
                drives[drive] = number
                number += 1
            if (drives[drive] % 2 == 0) == training:
                names.append(entry.name)
    return names


class BinnedLink:
    """A link as bytes per 100 ms: fast enough to train on, and close to `emulator`'s fluid model where that matters.

    A transfer takes a round trip, then the time in which the bins hold its packets, but no less than slow start from
    10 packets takes in round trips.
    """

    def __init__(self, trace: Trace) -> None:
        bins = trace.rate_bps(BIN_MS / 1000) / 8 * (BIN_MS / 1000) * PAYLOAD_SHARE
        self._sums = [0.0, *np.cumsum(bins).tolist()]  # bytes delivered by the end of each bin
        self._period_s = (len(self._sums) - 1) * BIN_MS / 1000
        self.mean_bps = 8 * self._sums[-1] / self._period_s

    def transfer(self, size_bytes: int, request_s: float, rtt_s: float) -> ThroughputSample:
        """Return the transfer of an object asked for at `request_s`."""
        begin_s = request_s + rtt_s
        finish_s = self._time_of(self._bytes_until(begin_s) + size_bytes)
        rounds = max(math.ceil(math.log2(size_bytes / WINDOW_BYTES + 1)), 1)
        finish_s = max(finish_s, begin_s + (rounds - 1) * rtt_s)
        return ThroughputSample(size_bytes, request_s, begin_s, finish_s)

    def _bytes_until(self, time_s: float) -> float:
        lap, rest_s = divmod(time_s, self._period_s)
        position = rest_s * 1000 / BIN_MS
        index = min(int(position), len(self._sums) - 2)
        share = position - index
        return lap * self._sums[-1] + self._sums[index] + share * (self._sums[index + 1] - self._sums[index])

    def _time_of(self, total: float) -> float:
        lap, rest = divmod(total, self._sums[-1])
        index = max(bisect_left(self._sums, rest) - 1, 0)
        width = self._sums[index + 1] - self._sums[index]
        share = (rest - self._sums[index]) / width if width else 0.0
        return lap * self._period_s + (index + share) * BIN_MS / 1000


@dataclass
class Situation:
    """One training session's circumstances."""

    ladder: Ladder
    link: BinnedLink
    capacity_s: float
    rtt_s: float
    start_s: float


def draw_situation(links: Sequence[BinnedLink], generator: np.random.Generator) -> Situation:
    """Draw a link, a place in it, and a ladder of 3 to 6 representations around what the link carries."""
    link = links[int(generator.integers(len(links)))]
    count = int(generator.integers(3, 7))
    top_bps = link.mean_bps * math.exp(generator.uniform(math.log(0.4), math.log(3.0)))
    steps = generator.uniform(1.3, 2.6, count - 1)
    rates = top_bps / np.concatenate([np.cumprod(steps)[::-1], [1.0]])
    duration_s = float(generator.choice([1.0, 2.0, 4.0]))
    spread = generator.lognormal(0.0, 0.2, (SEGMENTS, 1)) * generator.lognormal(0.0, 0.05, (SEGMENTS, count))
    sizes = np.maximum(np.sort(rates * duration_s / 8 * spread, axis=1).round(), 1)
    ladder = Ladder(rates, sizes, np.full(SEGMENTS, duration_s))
    capacity_s = max(float(generator.uniform(10.0, 40.0)), 2.5 * duration_s)
    return Situation(ladder, link, capacity_s, float(generator.uniform(0.02, 0.1)), float(generator.uniform(0, 1000)))


class TrainingSession:
    """A session without what training does not need: no rendering, no failures. Reward: QoE_lin per segment.

    Utility is bitrate / top bitrate, a second of rebuffering costs 1, switches 1 per unit: Pensieve's weights. Of one
    segment at most `MOST_REBUFFERING_S` count, so that no outage, which nobody can help, outweighs all else learnt.
    """

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self._samples: list[ThroughputSample] = []
        self._now_s, self._buffer_s = situation.start_s, 0.0
        self._index, self._last = 0, 0
        self._utility: NDArray[np.float64] = situation.ladder.bitrate_bps / situation.ladder.bitrate_bps[-1]
        self.step(0)  # the first segment, the lowest; its wait is startup

    @property
    def done(self) -> bool:
        """Whether every segment is downloaded."""
        return self._index == self.situation.ladder.segments

    def observe(self) -> Observation:
        """Return what a controller sees before the next segment."""
        return Observation(
            self._now_s, self._index, self._buffer_s, self.situation.capacity_s, self._last, tuple(self._samples), True
        )

    def step(self, representation: int) -> float:
        """Fetch the next segment in `representation`; return its reward."""
        situation = self.situation
        size = int(situation.ladder.segment_bytes[self._index, representation])
        duration_s = float(situation.ladder.segment_duration_s[self._index])
        sample = situation.link.transfer(size, self._now_s, situation.rtt_s)
        spent_s = sample.finish_s - self._now_s
        rebuffered_s = max(spent_s - self._buffer_s, 0.0) if self._index else 0.0
        self._buffer_s = max(self._buffer_s - spent_s, 0.0) + duration_s
        wait_s = max(self._buffer_s + duration_s - situation.capacity_s, 0.0)
        self._buffer_s -= wait_s
        self._now_s = sample.finish_s + wait_s
        self._samples = [*self._samples[1 - HISTORY :], sample]
        utility = float(self._utility[representation])
        change = abs(utility - float(self._utility[self._last])) if self._index else 0.0
        self._index, self._last = self._index + 1, representation
        return utility - min(rebuffered_s, MOST_REBUFFERING_S) - change
