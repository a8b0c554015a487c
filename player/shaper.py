"""An emulated link in front of the server, for `play --trace`: the emulator's proxy as a process of its own.

The player knows the emulator by its command line only, as it would know any other shaper; a process of its own also
keeps the link's clock apart from the player's.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from player.errors import FetchError

_READY = re.compile(r"listening on (\S+):(\d+)")
STOP_S = 5.0
"""The proxy may take this long to end after it was told to."""


@asynccontextmanager
async def shaped(url: str, arguments: Sequence[str]) -> AsyncIterator[str]:
    """Run `python -m emulator proxy` in front of a URL's server; yield the URL as seen through it.

    The trace begins when the proxy is ready, which is when this yields.

    Args:
        arguments: `--trace lte --delay-ms 40` and so on; docs/emulation.md.

    Raises:
        FetchError: not an http URL, or a proxy that does not start; its own line says why.
    """
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise FetchError(f"{url}: --trace shapes http:// only; for anything else run the player in an emulator shell")
    upstream = f"{parts.hostname}:{parts.port or 80}"
    command = [sys.executable, "-m", "emulator", "proxy", "--upstream", upstream, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield urlunsplit(parts._replace(netloc=await _address(process)))
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Return the HOST:PORT that the proxy says it listens on."""
    if process.stdout is None or process.stderr is None:
        raise FetchError("the proxy has no output")
    line = (await process.stdout.readline()).decode(errors="replace")
    match = _READY.search(line)
    if match is None:
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise FetchError(f"the link did not start: {said[-1] if said else line.strip() or 'no reason given'}")
    return f"{match[1]}:{match[2]}"
