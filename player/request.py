"""What a session asks its driver to do, and how the attempts at one request go. No I/O and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from abr import AbrError, ThroughputSample
from player.config import PlayerConfig
from player.errors import SessionError
from player.playback import CLOCK_TOLERANCE_S

MAX_BACKOFF_S = 60.0
"""Longest pause between two attempts."""


@dataclass(frozen=True)
class Request:
    """Fetch this segment now; report within `timeout_s`."""

    segment: int
    representation: int
    size_bytes: int
    """Bytes to fetch: the segment and, if the representation is used for the first time, its init segment."""
    timeout_s: float
    held: int | None = None
    """Of a buffered segment to be upgraded: the representation at hand. On a layered ladder only what lies above it is
    fetched."""
    mode: int = 0
    """How to render it: index into the modes of `Ladder.rendering`; 0, every frame, where there is none."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_s` (may be infinite) unless something arrives earlier."""

    until_s: float


@dataclass(frozen=True)
class Finished:
    """The session is over."""


Action = Request | Wait | Finished


class TransferLike(Protocol):
    """What a driver reports of a finished download; `emulator.Transfer` is one."""

    @property
    def request_s(self) -> float: ...
    @property
    def first_byte_s(self) -> float: ...
    @property
    def finish_s(self) -> float: ...
    @property
    def size_bytes(self) -> int: ...


@dataclass
class Pending:
    """What to fetch next, as decided, and how the attempts at it went."""

    segment: int
    representation: int
    not_before_s: float
    held: int | None = None
    """The representation at hand, if this is an upgrade of a buffered segment."""
    mode: int = 0
    failures: int = 0

    def fail(self, now_s: float, config: PlayerConfig) -> bool:
        """Note a failed attempt and when to try again; False: give up.

        `retries` further attempts with growing pauses, then as many at the lowest representation. An upgrade is not
        worth a second attempt: what it would improve can be shown.
        """
        if self.held is not None:
            return False
        self.failures += 1
        pause_s = config.backoff_s * 2.0 ** min(self.failures - 1, 60)
        if self.failures > config.retries:
            if self.representation == 0:
                return False
            self.representation, self.failures, pause_s = 0, 0, config.backoff_s
        self.not_before_s = now_s + min(pause_s, MAX_BACKOFF_S)
        return True


@dataclass(frozen=True)
class InFlight:
    """The request that the driver is working on."""

    request: Request
    sent_s: float
    init_bytes: int
    """Part of the request's size."""
    before_bytes: int = 0
    """What the same answer brought before it and is taken in already."""

    def measure(self, transfer: TransferLike, now_s: float) -> ThroughputSample:
        """Return what a whole answer tells of the link; SessionError if it cannot be the answer to this request."""
        expected_bytes = self.before_bytes + self.request.size_bytes
        if transfer.size_bytes != expected_bytes:
            raise SessionError(f"{transfer.size_bytes} bytes arrived, but {expected_bytes} were requested")
        if transfer.finish_s > now_s + CLOCK_TOLERANCE_S or transfer.request_s < self.sent_s - CLOCK_TOLERANCE_S:
            raise SessionError(f"{transfer} does not lie between its request at {self.sent_s} s and now, {now_s} s")
        return _sample(transfer.size_bytes, (transfer.request_s, transfer.first_byte_s, transfer.finish_s))

    def measure_part(self, received_bytes: int, first_byte_s: float | None, now_s: float) -> ThroughputSample | None:
        """Return what the part that had arrived by `now_s` tells of the link, if anything."""
        if first_byte_s is None or received_bytes == 0:
            return None
        return _sample(received_bytes, (self.sent_s, first_byte_s, now_s), complete=False)

    def check_received(self, received_bytes: int) -> None:
        """Raise SessionError if an answer cannot have that many bytes."""
        total_bytes = self.before_bytes + self.request.size_bytes
        if not self.before_bytes <= received_bytes <= total_bytes:
            raise SessionError(f"{received_bytes} bytes received of {total_bytes}")


@dataclass(frozen=True)
class Delivered:
    """What has arrived whole and is to be rendered."""

    fetched: InFlight
    finish_s: float

    @property
    def segment(self) -> int:
        """The segment."""
        return self.fetched.request.segment


def _sample(size_bytes: int, times_s: tuple[float, float, float], *, complete: bool = True) -> ThroughputSample:
    try:
        return ThroughputSample(size_bytes, *times_s, complete=complete)
    except AbrError as error:
        raise SessionError(f"impossible transfer: {error}") from error
