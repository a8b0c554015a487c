"""How much of a link the player gets: ``trace.share=N`` hands it every N-th delivery opportunity.

A 50 kbit/s stream never has to adapt on a 5 Mbit/s link. The player is therefore one of N users of the cell, with N so
large that the mean rate lies inside the default ladder: representations change and rebuffering can happen. Every table
and figure states N. Traces of your own, and synthetic ones, are used whole unless you say otherwise.
"""

from abr import Ladder
from traces import Trace, catalogue

TARGET_MEAN_BPS = 45e3
"""Mean rate that the default shares leave, bit/s: inside the embedded generator's ladder at 256x256."""

DEFAULT_SHARES = {
    "lte": 115,
    "umts": 45,
    "evdo": 12,
    "hsdpa": 21,
    "fcc": 24,
    "4g": 700,
    "5g": 10_000,
    "starlink": 3_000,
}
"""Share of each vendored family: the mean rate of its default member over TARGET_MEAN_BPS, rounded to two digits or so.
One share for all members keeps their differences."""


def default_share(trace_name: str) -> int:
    """Return the share of a trace by name: its family's for vendored traces, 1 for all others."""
    entry = catalogue.find(trace_name)
    return 1 if entry is None else DEFAULT_SHARES.get(entry.family, 1)


def suggest_share(trace: Trace, ladder: Ladder, *, position: float = 0.75) -> int:
    """Return the share that brings the trace's mean rate between the ladder's ends.

    Args:
        trace: the whole link.
        ladder: the representations to stream.
        position: where between the lowest (0) and the highest (1) bitrate the mean should lie.
    """
    low, high = float(ladder.bitrate_bps[0]), float(ladder.bitrate_bps[-1])
    return max(1, round(trace.mean_bps / (low + position * (high - low))))
