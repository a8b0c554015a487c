"""Child processes that do not outlive this one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from emulator.errors import EmulatorError
from emulator.namespace import die_with_parent


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child that dies with us; return its process id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            work()
            status = 0
    except EmulatorError as error:
        sys.stderr.write(f"emulator: {error}\n")
    except OSError as error:
        sys.stderr.write(f"emulator: {error.strerror}\n")
    finally:
        os._exit(status)


def end(child: int, number: int = signal.SIGKILL) -> None:
    """End a child if it still runs, and wait for it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, number)
            os.waitpid(child, 0)
