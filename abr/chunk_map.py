"""BBA-1 and BBA-2: buffer to *segment size*, for programmes whose segments differ in size. Huang et al., SIGCOMM 2014.

The paper's constants belong to a 240 s buffer and are kept as shares of the cap, as in `bba`: reservoir 8..140 s from
the next 480 s, highest rate from 216 s on, outage protection 0.4 s per segment up to 80 s.
"""

from __future__ import annotations

import numpy as np

from abr.base import Decision, Ladder, Observation, check_positive

PAPER_CAP_S = 240.0
LEAST_RESERVOIR_S, MOST_RESERVOIR_S = 8.0, 140.0
LOOKAHEAD_S = 480.0
UPPER_S = 216.0
OUTAGE_STEP_S, MOST_OUTAGE_S = 0.4, 80.0
OUTAGE_BELOW = 0.75
"""Share of the cap above which no more outage protection is gathered."""
MOST_SHARE = 0.8
"""Share of the way to the highest rate that reservoir and protection may take together; the cushion keeps the rest."""
EMPTY_GAIN, FULL_GAIN = 0.875, 0.5
"""Startup: share of a segment that its download must have added to the buffer; 8 and 2 times real time."""


class ChunkMap:
    """`bba1`, and with `startup` `bba2`.

    Section 5. The map f rises from the mean size at the lowest representation, at the reservoir's end, to that at the
    highest. Algorithm 1 (see `bba`) then compares f(Q) with the sizes of the *next segment's* versions. The reservoir
    is what the next seconds would drain at a capacity of exactly the lowest bitrate: sum (S_0 / R_0 - p). Section 7.1:
    each decision with a risen buffer below 75 % of the cap adds to the outage protection, which enlarges the reservoir.

    Section 6, BBA-2. In startup, one step up whenever the last download added more than a share of its segment's
    duration to the buffer: 0.875 on an empty buffer, falling linearly to 0.5 where the map reaches the highest size.
    Startup ends when the buffer shrinks or the map asks for more; only then is outage protection gathered.
    """

    def __init__(self, ladder: Ladder, *, buffer_capacity_s: float, startup: bool = False) -> None:
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        scale = capacity_s / PAPER_CAP_S
        reachable_s = capacity_s - float(ladder.segment_duration_s.max())
        self.ladder, self.capacity_s = ladder, capacity_s
        self.upper_s = min(UPPER_S * scale, reachable_s) if reachable_s > 0 else UPPER_S * scale
        self._scale = scale * self.upper_s / (UPPER_S * scale)
        self._drain_s = ladder.segment_bytes[:, 0] * 8 / ladder.bitrate_bps[0] - ladder.segment_duration_s  # [S]
        self._end_s = np.cumsum(ladder.segment_duration_s)  # [S]
        self._map_bytes = ladder.segment_bytes.mean(axis=0)[[0, -1]]
        self.outage_s, self.startup = 0.0, startup
        self._buffer_before_s = 0.0

    def reservoir_s(self, index: int) -> float:
        """Return the reservoir before segment `index`, outage protection included."""
        begin_s = self._end_s[index] - self.ladder.segment_duration_s[index]
        stop = int(np.searchsorted(self._end_s, begin_s + LOOKAHEAD_S * self._scale, side="right"))
        drain_s = float(self._drain_s[index : max(stop, index + 1)].sum())
        reservoir_s = min(max(drain_s, LEAST_RESERVOIR_S * self._scale), MOST_RESERVOIR_S * self._scale)
        return min(reservoir_s + self.outage_s, MOST_SHARE * self.upper_s)

    def size_bytes(self, buffer_s: float, reservoir_s: float) -> float:
        """Return f(Q), the size that the map allows."""
        share = min(max((buffer_s - reservoir_s) / (self.upper_s - reservoir_s), 0.0), 1.0)
        low, high = self._map_bytes
        return float(low + share * (high - low))

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        index, buffer_s, last = observation.segment_index, observation.buffer_s, observation.last_representation
        rising, self._buffer_before_s = buffer_s > self._buffer_before_s, buffer_s
        if last is None:
            return Decision(0, reason="first segment: lowest")
        if not self.startup and rising and buffer_s < OUTAGE_BELOW * self.capacity_s:
            self.outage_s = min(self.outage_s + OUTAGE_STEP_S * self._scale, MOST_OUTAGE_S * self._scale)
        reservoir_s = self.reservoir_s(index)
        allowed = self.size_bytes(buffer_s, reservoir_s)
        choice = self._algorithm_1(index, buffer_s, reservoir_s, allowed, last)
        reason = f"f({buffer_s:.2f} s) = {allowed / 1e3:.1f} kB, reservoir {reservoir_s:.2f} s"
        if self.startup:
            step = self._startup_step(observation, last)
            self.startup = rising and choice <= step
            if self.startup:
                return Decision(step, reason=f"startup; {reason}")
        return Decision(choice, reason=reason)

    def _algorithm_1(self, index: int, buffer_s: float, reservoir_s: float, allowed: float, last: int) -> int:
        """Return the representation by the paper's Algorithm 1 on sizes."""
        sizes, top = self.ladder.segment_bytes[index], self.ladder.representations - 1
        if buffer_s <= reservoir_s:
            return 0
        if buffer_s >= self.upper_s:
            return top
        if last < top and allowed >= sizes[last + 1]:
            return max((m for m in range(last, top + 1) if sizes[m] < allowed), default=last)
        if last > 0 and allowed <= sizes[last - 1]:
            return min((m for m in range(last + 1) if sizes[m] > allowed), default=last)
        return last

    def _startup_step(self, observation: Observation, last: int) -> int:
        """Return the representation by BBA-2's startup rule."""
        if not observation.samples:
            return last
        latest = observation.samples[-1]
        duration_s = float(self.ladder.segment_duration_s[max(observation.segment_index - 1, 0)])
        gain = 1 - (latest.finish_s - latest.request_s) / duration_s
        full = min(observation.buffer_s / self.upper_s, 1.0)
        return min(last + (gain > EMPTY_GAIN + (FULL_GAIN - EMPTY_GAIN) * full), self.ladder.representations - 1)


def bba1_controller(ladder: Ladder, *, buffer_capacity_s: float) -> ChunkMap:
    """Build `bba1`: the chunk map with its computed reservoir."""
    return ChunkMap(ladder, buffer_capacity_s=buffer_capacity_s)


def bba2_controller(ladder: Ladder, *, buffer_capacity_s: float) -> ChunkMap:
    """Build `bba2`: the same after a startup that steps up by the download speed."""
    return ChunkMap(ladder, buffer_capacity_s=buffer_capacity_s, startup=True)
