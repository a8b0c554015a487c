"""How much work fits a CUDA device's memory, from what it takes for one frame and for two."""

from __future__ import annotations

from collections.abc import Callable

import torch

MOST_FRAMES = 64
"""At a time: more gain nothing, since one alone nearly fills a GPU."""
_SHARE = 0.85  # of what is free; the rest is for fragments and for other programs


def frames_that_fit(free_bytes: int, one_bytes: int, two_bytes: int) -> int:
    """Return how many frames at a time fit, 1 to 64, where one and two need so much beside the weights."""
    each_bytes = max(two_bytes - one_bytes, 1)
    count = int((_SHARE * free_bytes - (one_bytes - each_bytes)) // each_bytes)
    return min(max(count, 1), MOST_FRAMES)


def most_frames(device: torch.device, work: Callable[[int], object]) -> int:
    """Return how many frames at a time fit a CUDA device.

    Args:
        work: does the work for so many frames; called with 1, 1 and 2, since the first call also allocates what stays.

    Raises:
        torch.OutOfMemoryError: not even one frame fits.
    """
    peaks: list[int] = []
    for count in (1, 1, 2):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
        try:
            work(count)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            return 1
        peaks.append(torch.cuda.max_memory_allocated(device) - before_bytes)
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return frames_that_fit(free_bytes, peaks[1], peaks[2])
