"""Search for the setting of an encoder whose bytes come nearest to a target. Pure: the encoder is a function."""

from __future__ import annotations

from collections.abc import Callable

TOLERANCE = 0.03
"""A bitrate this close (relative) to the target is not corrected further."""


def nearest_setting(excess: Callable[[int], float], *, best: int, worst: int, stride: int) -> int:
    """Return the whole number between `best` and `worst` quality whose excess is nearest to zero, as far as looked at.

    The target is bracketed on a grid of `stride`, worst quality first, so that the searches for several targets try the
    same settings; then the bracket is narrowed by interpolation until an excess is within half the tolerance or nothing
    is left between. What is tried depends on the target and on `excess` alone.

    Args:
        excess: logarithm of the size over the target at a setting; taken to fall as settings rise.
        best: lowest setting, largest files.
        worst: highest setting, smallest files.
        stride: distance of the grid.
    """
    tried: dict[int, float] = {}

    def look(setting: int) -> float:
        if setting not in tried:
            tried[setting] = excess(setting)
        return tried[setting]

    high, low = worst, worst
    while look(low) < 0 and low > best:
        high, low = low, max(best, low - stride)
    if look(high) < 0 < look(low):
        while high - low > 1 and min(look(low), -look(high)) > TOLERANCE / 2:
            place = low + (high - low) * look(low) / (look(low) - look(high))
            middle = min(max(round(place), low + 1), high - 1)
            low, high = (middle, high) if look(middle) > 0 else (low, middle)
    return min(tried, key=lambda setting: (abs(tried[setting]), -setting))
