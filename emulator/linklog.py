"""A link's log written while it runs, in Mahimahi's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from emulator.link import Link
from emulator.replay import LogHeader


class LinkLogWriter:
    """Moves a link's event lines to a file behind Mahimahi's header.

    Args:
        file: takes the text.
        link: built with `keep_log=True`.
        direction: `Uplink` or `Downlink`.
        command: the command line that runs the link.
        epoch_ms: wall-clock time of time 0 of the trace, ms since 1970.
    """

    def __init__(self, file: TextIO, link: Link, *, direction: str, command: Sequence[str], epoch_ms: int) -> None:
        self._file = file
        self._link = link
        name, queue, words = str(getattr(file, "name", "-")), link.queue.describe(), " ".join(command)
        self._write(LogHeader(direction, link.trace.name, name, queue, words, epoch_ms).lines())

    def flush(self) -> None:
        """Write the events since the last time."""
        lines, self._link.log = self._link.log, []
        self._write(lines)
        self._file.flush()

    def _write(self, lines: list[str]) -> None:
        self._file.writelines(f"{line}\n" for line in lines)
