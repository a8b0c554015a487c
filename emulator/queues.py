"""The queues of a link by name, and Mahimahi's way of writing their arguments."""

from __future__ import annotations

import re
from collections import deque
from typing import Protocol

from emulator.aqm import CoDelQueue, MahimahiCoDelQueue, PieQueue
from emulator.errors import LinkError
from emulator.fifo import DropHeadQueue, DropTailQueue, InfiniteQueue, MahimahiDropHeadQueue, Packet

QUEUE_NAMES = ("infinite", "droptail", "drophead", "codel", "pie")
COMPAT_NAMES = ("none", "mahimahi")


class PacketQueue(Protocol):
    """What a link needs of its queue."""

    packets: deque[Packet]
    size_bytes: int
    discarded: list[Packet]

    def enqueue(self, packet: Packet) -> list[Packet]:
        """Take `packet` in; return the packets dropped for it (perhaps itself)."""

    def dequeue(self, now_ms: int) -> Packet:
        """Remove and return the packet to send next, dropped ones go to `discarded`; the queue must not be empty."""

    def describe(self) -> str:
        """Return the queue's line in a Mahimahi log header."""


def create_queue(
    name: str,
    *,
    limit_packets: int = 0,
    limit_bytes: int = 0,
    target_ms: int = 5,
    interval_ms: int = 100,
    reference_ms: int = 15,
    burst_ms: int = 150,
    compat: str = "none",
    seed: int = 0,
) -> PacketQueue:
    """Build the queue called `name` (one of QUEUE_NAMES).

    Args:
        name: what kind of queue.
        limit_packets, limit_bytes: limits, 0 = not set; all but `infinite` need at least one.
        target_ms, interval_ms: of codel; the defaults are RFC 8289's.
        reference_ms, burst_ms: of pie; the defaults are RFC 8033's.
        compat: `mahimahi` reproduces the defects of its drophead and codel; `none` has the queues as they are meant.
        seed: of pie's drops.

    Raises:
        LinkError: unknown name, number out of range, a limited queue without a limit or an infinite one with any.
    """
    if compat not in COMPAT_NAMES:
        raise LinkError(f"unknown compat {compat!r}; known: {', '.join(COMPAT_NAMES)}")
    exact = compat == "mahimahi"
    if name == "infinite":
        if limit_packets or limit_bytes:
            raise LinkError(f"queue infinite takes no limits, found {limit_packets} packets, {limit_bytes} bytes")
        return InfiniteQueue()
    if name == "droptail":
        return DropTailQueue(limit_packets=limit_packets, limit_bytes=limit_bytes)
    if name == "drophead":
        drophead = MahimahiDropHeadQueue if exact else DropHeadQueue
        return drophead(limit_packets=limit_packets, limit_bytes=limit_bytes)
    if name == "codel":
        codel = MahimahiCoDelQueue if exact else CoDelQueue
        return codel(target_ms=target_ms, interval_ms=interval_ms, limit_packets=limit_packets, limit_bytes=limit_bytes)
    if name == "pie":
        return PieQueue(
            reference_ms=reference_ms,
            burst_ms=burst_ms,
            limit_packets=limit_packets,
            limit_bytes=limit_bytes,
            seed=seed,
        )
    raise LinkError(f"unknown queue {name!r}; known queues: {', '.join(QUEUE_NAMES)}")


_LIMITS = {"packets": "limit_packets", "bytes": "limit_bytes"}
_OPTIONS = {  # Mahimahi's names of the arguments, and ours
    "infinite": {},
    "droptail": _LIMITS,
    "drophead": _LIMITS,
    "codel": {**_LIMITS, "target": "target_ms", "interval": "interval_ms"},
    "pie": {**_LIMITS, "qdelay_ref": "reference_ms", "max_burst": "burst_ms"},
}


def parse_queue(name: str, arguments: str, *, compat: str = "none", seed: int = 0) -> PacketQueue:
    """Build a queue from Mahimahi's argument string, such as `bytes=200000, target=50, interval=500`.

    Separators are free. Under compat `mahimahi` codel and pie need both their times, as there; else they have defaults.

    Raises:
        LinkError: as `create_queue`; or the string holds something that is not a known `name=digits`, or a name twice.
    """
    known = _OPTIONS.get(name)
    if known is None:
        raise LinkError(f"unknown queue {name!r}; known queues: {', '.join(QUEUE_NAMES)}")
    found: dict[str, int] = {}
    for key, digits in re.findall(r"([A-Za-z_]+)=([0-9]{1,15})(?![0-9])", arguments):
        if key not in known or known[key] in found:
            expected = f"each of {', '.join(known)} at most once" if known else "no arguments"
            raise LinkError(f"queue {name}: found {key}={digits}; expected {expected}")
        found[known[key]] = int(digits)
    if re.search(r"[A-Za-z0-9=]", re.sub(r"([A-Za-z_]+)=([0-9]{1,15})(?![0-9])", "", arguments)):
        raise LinkError(f"queue {name}: arguments {arguments!r}; expected name=digits, separated by anything else")
    missing = [key for key, option in known.items() if key not in _LIMITS and option not in found]
    if compat == "mahimahi" and missing:
        raise LinkError(f"queue {name}: {', '.join(missing)} missing from {arguments!r}; Mahimahi has no defaults")
    return create_queue(name, **found, compat=compat, seed=seed)
