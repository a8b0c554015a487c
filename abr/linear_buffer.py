"""Linear maps of the buffer level, as Pensieve and Puffer call "BBA". They are two different rules.

Pensieve (Mao et al., SIGCOMM 2017; its simulator's `bb`) maps the buffer to the *index* of a representation. Puffer
(Yan et al., "Learning in situ", NSDI 2020) maps it to a *size* of the next segment and takes the best measured quality
that is not larger: the form that suits segments whose sizes and qualities differ from one to the next.
"""

from __future__ import annotations

import math

import numpy as np

from abr.base import Decision, Ladder, Observation, check_fraction, check_positive
from abr.errors import OptionError
from abr.qoe import oriented_quality


class IndexMap:
    """`bb`: lowest below the reservoir, highest from reservoir + cushion on, floor((R - 1)(Q - reservoir) / cushion).

    Reservoir 5 s and cushion 10 s are absolute, as in Pensieve. A player of less buffer never reaches the top: where
    reservoir + cushion exceeds cap - segment, both shrink in proportion until it does not.
    """

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        reservoir_s: float = 5.0,
        cushion_s: float = 10.0,
        first: int = 0,
    ) -> None:
        """Args: first: representation of the first segment (Pensieve starts at 1)."""
        self.reservoir_s = check_positive("reservoir_s", reservoir_s)
        self.cushion_s = check_positive("cushion_s", cushion_s)
        reachable_s = check_positive("buffer_capacity_s", buffer_capacity_s) - float(ladder.segment_duration_s.max())
        if 0 < reachable_s < reservoir_s + cushion_s:
            self.reservoir_s *= reachable_s / (reservoir_s + cushion_s)
            self.cushion_s *= reachable_s / (reservoir_s + cushion_s)
        self.top = ladder.representations - 1
        self.first = check_first(first, ladder)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        if observation.last_representation is None:
            return Decision(self.first, reason="first segment")
        filled_s = min(max(observation.buffer_s - self.reservoir_s, 0.0), self.cushion_s)
        choice = math.floor(self.top * filled_s / self.cushion_s)
        return Decision(choice, reason=f"{filled_s:.2f} s of {self.cushion_s:.2f} s of cushion filled")


class SizeMap:
    """`puffer_bba`: the best quality among the next segment's versions that are at most f(Q) bytes large.

    f is the smallest version's size up to `low` of the cap, the largest one's from `high` of the cap on, linear between
    (Puffer: 0.2 and 0.8 of 15 s). Where cap - segment is less than `high` of the cap, it takes its place, so that the
    largest version stays in reach. Without measured quality the largest version that fits is taken.
    """

    def __init__(self, ladder: Ladder, *, buffer_capacity_s: float, low: float = 0.2, high: float = 0.8) -> None:
        """Args: low, high: shares of the buffer cap, low < high <= 1."""
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        check_fraction("high", high)
        if not 0 <= low < high:
            raise OptionError(f"low must be in [0, high = {high:g}), not {low:g}")
        reachable_s = capacity_s - float(ladder.segment_duration_s.max())
        self.upper_s = min(high * capacity_s, reachable_s) if reachable_s > 0 else high * capacity_s
        self.lower_s = low / high * self.upper_s if self.upper_s < high * capacity_s else low * capacity_s
        self.ladder = ladder
        self.score = ladder.segment_bytes if ladder.quality is None else oriented_quality(ladder)  # [S, R]

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. Equal qualities: the smaller version."""
        index = observation.segment_index
        sizes, score = self.ladder.segment_bytes[index], self.score[index]  # [R]
        share = min(max((observation.buffer_s - self.lower_s) / (self.upper_s - self.lower_s), 0.0), 1.0)
        limit_bytes = sizes.min() + share * (sizes.max() - sizes.min())
        order = np.lexsort((sizes, -np.where(sizes <= limit_bytes, score, -np.inf)))
        choice = int(order[0])
        return Decision(
            choice,
            reason=f"up to {limit_bytes / 1e3:.1f} kB at {observation.buffer_s:.2f} s: {sizes[choice] / 1e3:.1f} kB",
        )


def check_first(first: int, ladder: Ladder) -> int:
    """Return the first segment's representation if the ladder has it; raise OptionError otherwise."""
    if not (isinstance(first, int) and 0 <= first < ladder.representations):
        raise OptionError(f"first must be in 0..{ladder.representations - 1}, not {first!r}")
    return first
