"""BBA-0: choose by the buffer alone. Huang et al., "A Buffer-Based Approach to Rate Adaptation", SIGCOMM 2014, 4.1.

The paper's player holds 240 s: reservoir 90 s, cushion 126 s, so that the highest rate is reached at 216 s. Here both
scale with the cap: reservoir 37.5 %, cushion 52.5 %. A player asks for a segment only when it fits under the cap, so it
never decides with more than cap - segment in the buffer; where that is less than reservoir + cushion (small caps),
both shrink in proportion until the highest rate can be reached.
"""

from __future__ import annotations

from abr.base import Decision, Ladder, Observation, check_fraction, check_positive

RESERVOIR = 90 / 240
CUSHION = 126 / 240


class BufferBased:
    """Algorithm 1 of the paper: a linear map f from buffer to rate, and hysteresis around the last rate.

    The rate changes only when f(B) reaches the next higher discrete rate (then: the highest below f) or the next lower
    one (then: the lowest above f).
    """

    def __init__(
        self, ladder: Ladder, *, buffer_capacity_s: float, reservoir: float = RESERVOIR, cushion: float = CUSHION
    ) -> None:
        """Args: reservoir, cushion: shares of the buffer cap, together at most 1."""
        capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        check_fraction("reservoir", reservoir)
        check_fraction("cushion", cushion)
        check_fraction("reservoir + cushion", reservoir + cushion)
        self.ladder = ladder
        upper_s = (reservoir + cushion) * capacity_s
        reachable_s = capacity_s - float(ladder.segment_duration_s.max())
        # With segments as long as the cap the buffer is empty at every decision: any positive map then says "lowest".
        shrink = min(1.0, reachable_s / upper_s) if reachable_s > 0 else 1.0
        self.reservoir_s = reservoir * capacity_s * shrink
        self.upper_s = upper_s * shrink

    def rate_map_bps(self, buffer_s: float) -> float:
        """Return f(B): the lowest bitrate up to the reservoir, the highest from its end on, linear between."""
        low, high = float(self.ladder.bitrate_bps[0]), float(self.ladder.bitrate_bps[-1])
        share = (buffer_s - self.reservoir_s) / (self.upper_s - self.reservoir_s)
        return low + (high - low) * min(max(share, 0.0), 1.0)

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`. Before the first download the last rate is the lowest."""
        buffer_s, rates = observation.buffer_s, self.ladder.bitrate_bps
        top = self.ladder.representations - 1
        last = observation.last_representation or 0
        wanted_bps = self.rate_map_bps(buffer_s)
        if buffer_s <= self.reservoir_s:
            choice, why = 0, "in the reservoir"
        elif buffer_s >= self.upper_s:
            choice, why = top, "above the cushion"
        elif last < top and wanted_bps >= rates[last + 1]:
            choice, why = (
                max((index for index in range(last, top + 1) if rates[index] < wanted_bps), default=last),
                "up",
            )
        elif last > 0 and wanted_bps <= rates[last - 1]:
            choice, why = min((index for index in range(last + 1) if rates[index] > wanted_bps), default=last), "down"
        else:
            choice, why = last, "keep"
        return Decision(choice, reason=f"{why}: f({buffer_s:.2f} s) = {wanted_bps / 1e3:.0f} kbit/s")
