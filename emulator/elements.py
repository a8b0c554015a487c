"""What a packet may meet on its way beside a link: delay, random loss, a link that goes off and on. No clock.

A gate decides about one packet at a time (`drops`); times in whole microseconds. Nesting is the order in which a
packet meets the elements, as mm-delay, mm-loss and mm-onoff nest by their order on the command line.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from emulator.errors import LinkError


class Gate(Protocol):
    """An element that lets a packet through at once or drops it."""

    def drops(self, now_us: int) -> bool:
        """Decide about the packet that arrives now; times must not run backwards."""


class Delay:
    """A fixed one-way delay, first in, first out (mm-delay). Any unit of time, the same for every call."""

    def __init__(self, delay: int) -> None:
        if delay < 0:
            raise LinkError(f"delay of {delay}; expected 0 or more")
        self.delay = delay
        self.items: deque[tuple[int, Any]] = deque()  # (release time, item)

    def arrive(self, now: int, item: Any) -> None:
        """Take an item in at `now`; it leaves at `now` + delay."""
        self.items.append((now + self.delay, item))

    def advance(self, now: int) -> list[tuple[int, Any]]:
        """Return (release time, item) of everything due by `now`, oldest first."""
        released = []
        while self.items and self.items[0][0] <= now:
            released.append(self.items.popleft())
        return released


class BernoulliLoss:
    """Drops each packet with the same probability, independently (mm-loss); seeded, so every run loses the same."""

    def __init__(self, probability: float, *, seed: int = 0) -> None:
        if not 0 <= probability < 1:
            raise LinkError(f"loss probability {probability}; expected 0 <= p < 1")
        self.probability = probability
        self._random = random.Random(seed)

    def drops(self, now_us: int = 0) -> bool:
        """Draw the next packet's fate."""
        return self.probability > 0 and self._random.random() < self.probability


class OnOff:
    """Passes everything while on and drops everything while off; on at first.

    Args:
        mean_on_s, mean_off_s: lengths of the periods: means of an exponential law (mm-onoff), or if `fixed` the lengths
            themselves (mm-intermittent). Never on and never off (0) are both possible, but not together.
        fixed: whether all periods are equally long.
        seed: of the lengths.
    """

    def __init__(self, mean_on_s: float, mean_off_s: float, *, fixed: bool = False, seed: int = 0) -> None:
        if not (0 <= mean_on_s < float("inf") and 0 <= mean_off_s < float("inf") and mean_on_s + mean_off_s > 0):
            raise LinkError(f"on for {mean_on_s} s, off for {mean_off_s} s; expected times of 0 or more, not both 0")
        self._means_s = (mean_off_s, mean_on_s)
        self._fixed = fixed
        self._random = random.Random(seed)
        self._on = True
        self._until_us = self._draw_us()

    def drops(self, now_us: int) -> bool:
        """Tell whether it is off now."""
        while self._until_us <= now_us:
            self._on = not self._on
            self._until_us += self._draw_us()
        return not self._on

    def _draw_us(self) -> int:
        mean_s = self._means_s[self._on]
        if mean_s == 0 or self._fixed:
            return round(mean_s * 1e6)
        return round(self._random.expovariate(1 / mean_s) * 1e6)


_ELEMENTS = "delay=MS, loss=P, onoff=MEAN_ON_S,MEAN_OFF_S or intermittent=ON_S,OFF_S"


def parse_element(text: str, *, seed: int = 0) -> Delay | Gate:
    """Build an element from text such as `delay=40` (a Delay in us), `loss=0.01` or `onoff=1,0.5`."""
    name, _, values = text.partition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if name == "delay" and len(numbers) == 1 and 0 <= numbers[0] <= 1e9:
        return Delay(round(numbers[0] * 1000))
    if name == "loss" and len(numbers) == 1:
        return BernoulliLoss(numbers[0], seed=seed)
    if name in ("onoff", "intermittent") and len(numbers) == 2:
        return OnOff(*numbers, fixed=name == "intermittent", seed=seed)
    raise LinkError(f"element {text!r}; expected {_ELEMENTS}")


def cross(elements: Sequence[Delay | Gate], packets: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Send packets, (time in us, size) in order of time, through elements in series; return those that come out."""
    crossing = list(packets)
    for element in elements:
        if isinstance(element, Delay):
            crossing = [(time_us + element.delay, size) for time_us, size in crossing]
        else:
            crossing = [(time_us, size) for time_us, size in crossing if not element.drops(time_us)]
    return crossing
