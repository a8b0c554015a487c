"""Sabre's link and its books: time in ms, sizes in bits, everything that is not a player or a controller."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from experiments.compat.sabre_inputs import Movie, Period


class SabreLink:
    """The link: a position in a trace that repeats, moved by whatever takes time. Times in ms, sizes in bits."""

    def __init__(self, periods: list[Period], on_period: Callable[[Period, float], None]) -> None:
        """`on_period` hears of each period as it begins, and when."""
        self._periods, self._on_period = periods, on_period
        self.time_ms = 0.0
        self._index = -1
        self._next_period()

    @property
    def period(self) -> Period:
        """The present stretch."""
        return self._periods[self._index]

    def idle(self, duration_ms: float) -> None:
        """Let time pass."""
        while duration_ms > self._left_ms:
            duration_ms -= self._pass_rest()
        self._pass(duration_ms)

    def request(self) -> float:
        """Return how long the answer's first bit takes: one unit of delay, used up at 1 / latency per ms."""
        units, spent_ms = 1.0, 0.0
        while units * self.period.latency_ms > self._left_ms:
            units -= self._left_ms / self.period.latency_ms
            spent_ms += self._pass_rest()
        return spent_ms + self._pass(units * self.period.latency_ms)

    def download(self, bits: float, least_bits: float = math.inf, least_ms: float = 0.0) -> tuple[float, float]:
        """Receive up to `bits`, but stop once both minima are reached; return bits and ms."""
        got_bits = spent_ms = 0.0
        while bits > 0 and (least_bits > 0 or least_ms > 0):
            rate = self.period.bandwidth_kbps
            wanted = min(bits, max(least_bits, least_ms * rate))
            if rate > 0 and wanted <= self._left_ms * rate:
                return got_bits + wanted, spent_ms + self._pass(wanted / rate)
            if rate == 0 and least_bits <= 0 and least_ms <= self._left_ms:
                return got_bits, spent_ms + self._pass(least_ms)
            step_bits, step_ms = self._left_ms * rate, self._pass_rest()
            got_bits, spent_ms = got_bits + step_bits, spent_ms + step_ms
            bits, least_bits, least_ms = bits - step_bits, least_bits - step_bits, least_ms - step_ms
        return got_bits, spent_ms

    def _pass(self, duration_ms: float) -> float:
        """Move on inside the present period."""
        self._left_ms -= duration_ms
        self.time_ms += duration_ms
        return duration_ms

    def _pass_rest(self) -> float:
        """Move on to the next period."""
        rest_ms = self._pass(self._left_ms)
        self._next_period()
        return rest_ms

    def _next_period(self) -> None:
        self._index = (self._index + 1) % len(self._periods)
        self._left_ms = self.period.duration_ms
        self._on_period(self.period, self.time_ms)


@dataclass
class _Rise:
    """The link has begun to sustain a quality above everything buffered."""

    time_ms: float
    quality: int
    answered_ms: float | None = None
    """When a segment of that quality began to play, or the link fell below it."""


class Viewer:
    """Sabre's books: what was played, and how fast the player followed the link upwards."""

    def __init__(self, movie: Movie, buffer_ms: float, ramp_up_quality: int | None) -> None:
        self._movie, self._buffer_ms, self._ramp_up_quality = movie, buffer_ms, ramp_up_quality
        self.sustainable: int | None = None
        self.contents: list[int] = []
        """Qualities of the segments in the buffer at the end of the last step, the one on the screen included."""
        self.ramp_up_ms: float | None = None
        self.reaction_ms = 0.0
        self._rises: list[_Rise] = []

    def on_period(self, period: Period, time_ms: float) -> None:
        """Note what quality the link sustains from `time_ms` on."""
        rate_kbps = period.bandwidth_kbps * (1 - period.latency_ms / self._movie.segment_ms)
        higher = self._movie.bitrates_kbps[1:]
        quality = next((index for index, rate in enumerate(higher) if rate > rate_kbps), len(higher))
        before, self.sustainable = self.sustainable, quality
        if before is None or quality == before:
            return
        self._settle(time_ms)
        for rise in self._rises:
            if rise.answered_ms is None and rise.quality > quality:
                rise.answered_ms = time_ms
        if quality > max([before, *self.contents, *(rise.quality for rise in self._rises)]):
            self._rises.append(_Rise(time_ms, quality))

    def on_play(self, quality: int, time_ms: float) -> None:
        """Note that a segment began to play."""
        wanted = self.sustainable if self._ramp_up_quality is None else self._ramp_up_quality
        if self.ramp_up_ms is None and quality >= (wanted or 0):
            self.ramp_up_ms = time_ms
        for rise in self._rises:
            if rise.answered_ms is None and quality >= rise.quality:
                rise.answered_ms = time_ms

    def on_step(self, time_ms: float, contents: list[int]) -> None:
        """Note what is buffered after a download or a wait."""
        self.contents = contents
        self._settle(time_ms)

    def _settle(self, time_ms: float) -> None:
        while self._rises and self._rises[0].time_ms < time_ms - self._buffer_ms:
            rise = self._rises.pop(0)
            answered_ms = math.inf if rise.answered_ms is None else rise.answered_ms
            self.reaction_ms += min(self._buffer_ms, answered_ms - rise.time_ms)
