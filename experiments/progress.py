"""How far a long piece of work is, on stderr."""

import sys
import time


class Progress:
    """A line on a terminal, or one every half minute in a log: how far, how fast, how long to go."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done, self._failed = total, unit, 0, 0
        self._began_s = self._told_s = time.monotonic()
        self._live = sys.stderr.isatty()
        self._start = "\r" if self._live else ""

    def add(self, count: int, failed: int) -> None:
        """Count what has ended; `failed` is the number of failures so far."""
        self._done, self._failed = self._done + count, failed
        now_s = time.monotonic()
        if now_s - self._told_s > (0.2 if self._live else 30.0):
            self._told_s = now_s
            print(self._start + self._line(), end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Say how it went."""
        print(self._start + self._line(), file=sys.stderr)

    def _line(self) -> str:
        spent_s = max(time.monotonic() - self._began_s, 1e-9)
        rate = self._done / spent_s
        left = f", {(self._total - self._done) / rate:.0f} s to go" if 0 < self._done < self._total else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done}/{self._total} {self._unit} in {spent_s:.1f} s, {rate:.1f}/s{left}{failed}"
