"""What of the machine a build may use: cores and memory, a container's limits (cgroup v2) among them."""

from __future__ import annotations

import math
import os
from pathlib import Path

MOST_PROCESSES = 256
"""That a build starts, whatever the machine."""
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """Return on how many cores this process may compute at a time."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")  # microseconds of every so many, or "max"
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def available_bytes() -> int:
    """Return the memory that is free for programs, as the kernel estimates it; all there is where it does not tell."""
    found = [line.split()[1] for line in _read(_MEMINFO).splitlines() if line.startswith("MemAvailable:")]
    free = int(found[0]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most, taken = (_read(_CGROUP / f"memory.{name}") for name in ("max", "current"))
    if most.isdecimal() and taken.isdecimal():
        stat = dict(line.split(" ", 1) for line in _read(_CGROUP / "memory.stat").splitlines())
        cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))  # given up when asked for
        free = min(free, max(0, int(most) - int(taken) + cached))
    return free


def _read(path: Path) -> str:
    """Return what a file of the kernel holds; nothing where it is not there."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
