"""How much of a link the player gets: ``trace.share=N`` hands it every N-th delivery opportunity.

A 20 kbit/s stream never has to adapt on a 5 Mbit/s link. The player is therefore one of N users of the cell, with N so
large that the mean rate lies inside the default ladder: representations change and rebuffering can happen. Every table
and figure states N. Traces of your own, and synthetic ones, are used whole unless you say otherwise.
"""

from abr import Ladder
from traces import Trace, catalogue

TARGET_MEAN_BPS = 20e3
"""Mean rate that the default shares leave on the first trace of each family, bit/s: inside the embedded generator's
ladder at 256x256."""


def default_share(trace_name: str) -> int:
    """Return the share of a trace by name: its family's for vendored traces, 1 for all others.

    All members of a family get the share of its default member, two digits of it, so that they keep their differences.
    """
    entry = catalogue.find(trace_name)
    if entry is None:
        return 1
    family = next(family for family in catalogue.families() if family.name == entry.family)
    first = next(member for member in family.entries if member.name == family.default)
    return max(1, int(float(f"{first.mean_bps / TARGET_MEAN_BPS:.2g}")))


def suggest_share(trace: Trace, ladder: Ladder, *, position: float = 0.75) -> int:
    """Return the share that brings the trace's mean rate between the ladder's ends.

    Args:
        trace: the whole link.
        ladder: the representations to stream.
        position: where between the lowest (0) and the highest (1) bitrate the mean should lie.
    """
    low, high = float(ladder.bitrate_bps[0]), float(ladder.bitrate_bps[-1])
    return max(1, round(trace.mean_bps / (low + position * (high - low))))
