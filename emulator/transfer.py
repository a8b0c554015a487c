"""One request over a transport: checked, under way, and done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulator.config import NEVER_US
from emulator.errors import TransportError


@dataclass(frozen=True)
class Transfer:
    """What became of one request. Times in seconds since the trace began.

    `finish_s` is the arrival of the last byte or, of a transfer cut short, its deadline. `first_byte_s` is the arrival
    of the response's first byte (its header's), or `finish_s` if none came. `received_bytes` counts body bytes that
    arrived in order, which is what an HTTP client gets to see; `complete` tells whether that is all of them.
    """

    request_s: float
    first_byte_s: float
    finish_s: float
    size_bytes: int
    received_bytes: int
    complete: bool


@dataclass(frozen=True)
class Request:
    """A checked request; the models work in whole microseconds."""

    size_bytes: int
    request_s: float
    deadline_s: float

    @property
    def request_us(self) -> int:
        """When it is made."""
        return round(self.request_s * 1e6)

    @property
    def deadline_us(self) -> int:
        """When it is given up; NEVER_US without a deadline."""
        return NEVER_US if math.isinf(self.deadline_s) else round(self.deadline_s * 1e6)

    def completed(self, first_byte_us: float, finish_us: float) -> Transfer:
        """Return the transfer that ends with its last byte at `finish_us`."""
        finish_s = min(finish_us / 1e6, self.deadline_s)
        first_byte_s = min(first_byte_us / 1e6, finish_s)
        return Transfer(self.request_s, first_byte_s, finish_s, self.size_bytes, self.size_bytes, True)

    def cut(self, first_byte_us: float | None, received_bytes: int) -> Transfer:
        """Return the transfer that its deadline ends; any count of body bytes is clipped to what exists."""
        first_byte_s = self.deadline_s if first_byte_us is None else min(first_byte_us / 1e6, self.deadline_s)
        received_bytes = min(max(received_bytes, 0), self.size_bytes)
        return Transfer(self.request_s, first_byte_s, self.deadline_s, self.size_bytes, received_bytes, False)


def check_request(size_bytes: int, request_s: float, deadline_s: float, *, previous_finish_us: int) -> Request:
    """Check a request's arguments against each other and the last transfer's end."""
    if size_bytes < 0:
        raise TransportError(f"object of {size_bytes} bytes; expected 0 or more")
    if not (math.isfinite(request_s) and request_s >= 0):
        raise TransportError(f"request at {request_s} s; expected a finite time of 0 or more")
    if not deadline_s >= request_s:
        raise TransportError(f"deadline at {deadline_s} s for a request at {request_s} s; expected it not earlier")
    request = Request(size_bytes, request_s, deadline_s)
    if request.request_us < previous_finish_us:
        raise TransportError(f"request at {request_s} s while the last transfer ends at {previous_finish_us / 1e6} s")
    return request


class Download:
    """A response under way: its whole timeline if it is left alone, and the means to cut it short.

    Attributes:
        size_bytes: of the body.
        request_s: when it was asked for.
        first_byte_s: when the response's first byte arrives; infinite if never.
        finish_s: when its last byte arrives; infinite if never.
    """

    def __init__(self, planned: Transfer, in_order_by: Callable[[int], int], cut: Callable[[float], Transfer]) -> None:
        """Take the transfer as it goes uncut, the body bytes in order by a time in us, and how to cut it short."""
        self.size_bytes = planned.size_bytes
        self.request_s = planned.request_s
        self.first_byte_s = planned.first_byte_s
        self.finish_s = planned.finish_s
        self._in_order_by = in_order_by
        self._cut = cut
        self._cancelled: Transfer | None = None

    def received_bytes(self, time_s: float) -> int:
        """Return the body bytes that have arrived in order by `time_s`, and before any cancellation."""
        if not math.isfinite(time_s):
            raise TransportError(f"received bytes asked for at {time_s} s; expected a finite time")
        if self._cancelled is not None and time_s >= self._cancelled.finish_s:
            return self._cancelled.received_bytes
        if time_s >= self.finish_s:
            return self.size_bytes
        if time_s < self.first_byte_s:
            return 0
        return min(max(self._in_order_by(round(time_s * 1e6)), 0), self.size_bytes)

    def cancel(self, time_s: float) -> Transfer:
        """Give up at `time_s`; return what `Transport.request` returns for a request with this deadline.

        From `time_s` on the transport may be used again; what the server had sent by then still takes its turn on the
        link. At or after `finish_s` there is nothing left to cancel: the transfer returned is complete.

        Raises:
            TransportError: it was cancelled before, the time is before the request, or another request has followed.
        """
        if self._cancelled is not None:
            raise TransportError(f"download cancelled at {time_s} s; it was cancelled at {self._cancelled.finish_s} s")
        if not time_s >= self.request_s:
            raise TransportError(f"download cancelled at {time_s} s; expected no time before {self.request_s} s")
        self._cancelled = self._cut(time_s)
        return self._cancelled


class Rewindable(ABC):
    """A transport that computes a transfer to its end at once, and goes back when that is to be cut short."""

    _finish_us: int = 0  # of the last transfer
    _requests: int = 0  # made so far

    @abstractmethod
    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Fetch an object; see `Transport.request`."""

    def begin(self, size_bytes: int, request_s: float) -> Download:
        """Start to fetch an object; see `Transport.begin`."""
        check_request(size_bytes, request_s, math.inf, previous_finish_us=self._finish_us)
        before = {"_finish_us": self._finish_us, **self._save()}
        planned = self.request(size_bytes, request_s)
        number = self._requests

        def cut(time_s: float) -> Transfer:
            if self._requests != number:
                raise TransportError(f"download cancelled at {time_s} s; another request has been made since")
            if time_s >= planned.finish_s:
                return planned
            self.__dict__.update(before)
            return self.request(size_bytes, request_s, time_s)

        return Download(planned, self._in_order_by(), cut)

    @abstractmethod
    def _save(self) -> dict[str, Any]:
        """Return copies of all attributes that a request changes."""

    @abstractmethod
    def _in_order_by(self) -> Callable[[int], int]:
        """Return a function of time (us): how many body bytes of the last response had arrived in order by then."""
