"""Arrivals through a link, and the log that Mahimahi would have written of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emulator.errors import LinkError
from emulator.link import Link
from emulator.queues import PacketQueue
from traces import Trace

Arrival = tuple[int, int]
"""(time in ms, size in bytes as the link counts it)"""

_MAX_DIGITS = 15


@dataclass(frozen=True)
class LogHeader:
    """What the comment lines of a link log say; times as Mahimahi prints them, 0 in virtual time."""

    direction: str  # "Downlink" or "Uplink"
    trace: str
    log: str
    queue: str
    command: str = "virtual-clock"
    init_timestamp: int = 0
    base_timestamp: int = 0

    def lines(self) -> list[str]:
        """Return the header's lines, as `mm-link` writes them and its graphs expect them."""
        return [
            f"# mahimahi mm-link ({self.direction}) [{self.trace}] > {self.log}",
            f"# command line: '{self.command}'",
            f"# queue: {self.queue}",
            f"# init timestamp: {self.init_timestamp}",
            f"# base timestamp: {self.base_timestamp}",
        ]


def read_arrivals(path: str | Path) -> list[Arrival]:
    """Read "ms bytes" lines, times not decreasing; LinkError names the line that is anything else."""
    arrivals: list[Arrival] = []
    last_ms = 0
    try:
        text = Path(path).read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise LinkError(f"{path}: not a text file; expected lines of 'ms bytes'") from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not all(word.isdigit() and len(word) <= _MAX_DIGITS for word in words):
            raise LinkError(f"{path}:{number}: found {line[:60]!r}, expected 'ms bytes' in whole numbers")
        now_ms, size_bytes = int(words[0]), int(words[1])
        if now_ms < last_ms:
            raise LinkError(
                f"{path}:{number}: found {now_ms} after {last_ms}, expected a time not before the line above"
            )
        last_ms = now_ms
        arrivals.append((now_ms, size_bytes))
    return arrivals


def replay(
    trace: Trace, arrivals: Iterable[Arrival], *, end_ms: int, queue: PacketQueue | None = None, repeat: bool = True
) -> list[str]:
    """Run a link from 0 to `end_ms`, both included, and return the event lines of its log.

    Args:
        trace: the link's opportunities.
        arrivals: in order of time; those after `end_ms`, or once the link has finished, are not seen.
        end_ms: when to stop.
        queue: what waits; unlimited if not given. It must be new.
        repeat: False is `mm-link --once`: the link is finished right after its last opportunity.
    """
    if end_ms < 0:
        raise LinkError(f"end at {end_ms} ms; expected 0 or later")
    link = Link(trace, queue, keep_log=True, repeat=repeat)
    for now_ms, size_bytes in arrivals:
        if now_ms > end_ms:
            break
        if not repeat:
            link.advance(now_ms)
            if link.finished:
                break
        link.arrive(now_ms, size_bytes)
    link.advance(end_ms)
    return link.log


def events_md5(lines: Iterable[str]) -> str:
    """Return the MD5 of event lines, each ended by a newline."""
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def write_log(path: str | Path, header: LogHeader, lines: Iterable[str]) -> None:
    """Write a link log."""
    text = "".join(f"{line}\n" for line in [*header.lines(), *lines])
    Path(path).write_text(text, encoding="ascii", errors="replace")
