"""The real-time driver of a session: HTTP over one keep-alive connection, the wall clock, and a renderer.

The same `Session` decides here and in a simulation. What a driver has to say is measured like this: a request begins
when it is handed to the connection; its first byte has come when the response's header is read (what browsers call
responseStart, and what `emulator.Transfer` counts); it is finished with the body's last byte. Times count from the
start of `Client.run`. Giving a request up closes the connection, as HTTP/1.1 must; the next one opens another.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from player import latent_stream
from player.bitstream import read_init, read_segment
from player.errors import BitstreamError, FetchError
from player.events import TIMEOUT
from player.mp4 import list_boxes
from player.programme import Programme
from player.remote import IDENTITY, RemotePresentation, describe
from player.session import Finished, Request, Session

log = logging.getLogger(__name__)

PROMPT, VAE = "prompt", "vae"
"""The codec whose segments carry CRCs and need a generator; see `player.manifest.MIME_TYPES`."""
PROGRESS_S = 0.05
"""A session that may abandon a request hears of its progress this often, as browsers report it (XMLHttpRequest)."""
TURN_S = 0.25
"""The session hears of the time at least this often, so that what is shown of it is fresh."""
INTERRUPTED = "interrupted"
"""The reason logged of a request that was under way when the client was told to stop."""
KEEPALIVE_S = 300.0
"""An idle connection is kept this long on our side; servers decide for themselves."""


@dataclass(frozen=True)
class Transfer:
    """A finished download as the session hears of it. Times in seconds of the session's clock."""

    request_s: float
    first_byte_s: float
    finish_s: float
    size_bytes: int


@dataclass(frozen=True)
class Media:
    """What was fetched for one segment, checked."""

    segment: int
    representation: int
    init: bytes
    data: bytes


class MediaRenderer(Protocol):
    """Turns segments into frames, one after the other, without holding up the event loop."""

    async def render(self, media: Media) -> None:
        """Return when the segment can be shown."""


class PacedRenderer:
    """Stands for a renderer of a given speed; None: rendering costs no time."""

    def __init__(self, programme: Programme, fps: float | None = None) -> None:
        self._frames, self._fps = programme.segment_frames, fps

    async def render(self, media: Media) -> None:
        if self._fps is not None:
            await asyncio.sleep(float(self._frames[media.segment]) / self._fps)


def check_media(codec: str, init: bytes, data: bytes) -> None:
    """Raise BitstreamError unless a segment arrived as it was packaged, as far as its format can tell.

    Prompt and latent segments carry CRCs over every byte. Pixel segments have none: their boxes must fill them exactly.
    """
    if codec == PROMPT:
        read_segment(read_init(init), data)
        return
    if codec == VAE:
        latent_stream.read_segment(latent_stream.read_init(init), data)
        return
    for name, content, needed in (("init segment", init, b"moov"), ("segment", data, b"moof")):
        if needed not in (box.kind for box in list_boxes(content)):
            raise BitstreamError(f"{name}: no box {needed.decode()!r}")


class Client:
    """Plays a remote programme through a session."""

    def __init__(
        self,
        remote: RemotePresentation,
        programme: Programme,
        session: Session,
        renderer: MediaRenderer,
        *,
        on_turn: Callable[[float], None] | None = None,
    ) -> None:
        """
        Args:
            on_turn: called with the session's time whenever something may have changed.
        """
        self._remote, self._programme, self._session = remote, programme, session
        self._renderer = renderer
        self._on_turn = on_turn or (lambda now_s: None)
        self._inits: dict[int, bytes] = {}
        self._woken = asyncio.Event()
        self._start_s: float | None = None
        self.last_error = ""
        """Why the latest failed request failed."""
        self.connections = 0
        """TCP connections opened for media."""

    @property
    def started_s(self) -> float | None:
        """The session's time 0 on the event loop's clock, which is that of `time.monotonic`; None before it."""
        return self._start_s

    @property
    def now_s(self) -> float:
        """The session's time."""
        return 0.0 if self._start_s is None else asyncio.get_running_loop().time() - self._start_s

    async def run(self) -> None:
        """Play to the end. Cancelled, it counts what had arrived of a request under way, and leaves the log whole."""
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(self._count_connection)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),  # the session times requests out
            headers={**IDENTITY, "Host": self._remote.host},
            auto_decompress=False,
            trace_configs=[tracing],
        ) as http:
            self._start_s = asyncio.get_running_loop().time()
            arrived: asyncio.Queue[Media] = asyncio.Queue()
            rendering = asyncio.create_task(self._render_all(arrived))
            rendering.add_done_callback(self._wake)
            try:
                await self._drive(http, arrived, rendering)
            finally:
                rendering.cancel()
                with suppress(asyncio.CancelledError):
                    await rendering

    async def _drive(
        self, http: aiohttp.ClientSession, arrived: asyncio.Queue[Media], rendering: asyncio.Task[None]
    ) -> None:
        """Do what the session says until it is over."""
        fetch: _Fetch | None = None
        try:
            while not isinstance(action := self._session.next_action(self.now_s), Finished):
                if isinstance(action, Request):
                    fetch = _Fetch(self, http, action)
                    fetch.task.add_done_callback(self._wake)
                    continue
                self._on_turn(self.now_s)
                await self._sleep_until(action.until_s if fetch is None else fetch.look_s)
                if rendering.done():
                    rendering.result()  # it ends only by an error
                if fetch is not None and await self._is_over(fetch, arrived):
                    fetch = None
        except asyncio.CancelledError:
            if fetch is not None:
                await fetch.cancel()
                self._fail(fetch, INTERRUPTED)
            raise
        finally:
            if fetch is not None:
                await fetch.cancel()

    async def _is_over(self, fetch: _Fetch, arrived: asyncio.Queue[Media]) -> bool:
        """Tell the session how the request under way stands; return whether it has ended."""
        now_s = self.now_s
        if fetch.task.done():
            media = fetch.result()
            if isinstance(media, str):
                self._fail(fetch, media)
                return True
            self._session.on_complete(self.now_s, fetch.transfer)
            self._inits[media.representation] = media.init
            arrived.put_nowait(media)
            await asyncio.sleep(0)  # free rendering is done by then, before the session decides again
            return True
        if fetch.finish_s is not None:  # all is here and being checked
            return False
        if now_s >= fetch.sent_s + fetch.request.timeout_s:
            await fetch.cancel()
            self._fail(fetch, TIMEOUT)
            return True
        if not self._session.wants_progress:
            return False
        if self._session.on_progress(now_s, fetch.received_bytes, first_byte_s=fetch.first_byte_s):
            await fetch.cancel()
            return True
        return False

    def _fail(self, fetch: _Fetch, reason: str) -> None:
        self.last_error = f"{fetch.url}: {reason}"
        log.warning("%s", self.last_error)
        self._session.on_error(self.now_s, reason, fetch.received_bytes, first_byte_s=fetch.first_byte_s)

    async def _sleep_until(self, until_s: float) -> None:
        """Return at `until_s`, at the next turn, or when a download or a rendering has ended."""
        step_s = PROGRESS_S if self._session.wants_progress else TURN_S
        delay_s = max(min(until_s - self.now_s, step_s), 0.0)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), delay_s)
        self._woken.clear()

    async def _render_all(self, arrived: asyncio.Queue[Media]) -> None:
        while True:
            media = await arrived.get()
            await self._renderer.render(media)
            self._session.on_rendered(self.now_s, media.segment)
            self._woken.set()

    def _wake(self, task: asyncio.Task[object]) -> None:
        self._woken.set()

    async def _count_connection(self, *unused: object) -> None:
        self.connections += 1

    # What a fetch asks of its client.

    def plan(self, request: Request) -> list[tuple[str, int]]:
        """Return the URLs and sizes that answer a request: the media segment, its init segment first where new."""
        segment_bytes = int(self._programme.ladder.segment_bytes[request.segment, request.representation])
        files = [(self._remote.segment_url(request.segment, request.representation), segment_bytes)]
        if request.size_bytes > segment_bytes:
            init = self._remote.init_url(request.representation), request.size_bytes - segment_bytes
            return [init, *files]
        return files

    async def checked(self, request: Request, parts: list[bytes]) -> Media:
        """Return the fetched parts as media; BitstreamError if they are corrupt."""
        init = parts[0] if len(parts) > 1 else self._inits[request.representation]
        await asyncio.to_thread(check_media, self._remote.presentation.manifest.codec, init, parts[-1])
        return Media(request.segment, request.representation, init, parts[-1])


class _Fetch:
    """A request under way."""

    def __init__(self, client: Client, http: aiohttp.ClientSession, request: Request) -> None:
        self._client, self._http = client, http
        self.request = request
        self.sent_s = client.now_s
        self.first_byte_s: float | None = None
        self.finish_s: float | None = None
        self.received_bytes = 0
        self.url = ""
        self.task = asyncio.create_task(self._run())

    @property
    def look_s(self) -> float:
        """When to look at it even if nothing happens."""
        return self.sent_s + self.request.timeout_s if self.finish_s is None else math.inf

    @property
    def transfer(self) -> Transfer:
        """What the session hears of a whole answer."""
        if self.first_byte_s is None or self.finish_s is None:
            raise FetchError(f"{self.url}: not finished")
        return Transfer(self.sent_s, self.first_byte_s, self.finish_s, self.request.size_bytes)

    def result(self) -> Media | str:
        """Return what was fetched, or why it was not."""
        try:
            return self.task.result()
        except (aiohttp.ClientError, OSError, ValueError) as error:  # BitstreamError is a ValueError
            return describe(error)
        except FetchError as error:
            return str(error)

    async def cancel(self) -> None:
        """Stop; the connection is closed unless the answer was complete."""
        self.task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self.task

    async def _run(self) -> Media:
        parts = [await self._get(url, size_bytes) for url, size_bytes in self._client.plan(self.request)]
        self.finish_s = self._client.now_s
        return await self._client.checked(self.request, parts)

    async def _get(self, url: str, size_bytes: int) -> bytes:
        """Return a file of known size."""
        self.url = url
        data = bytearray()
        # After a failure what lies in a cache on the way is suspect.
        headers = {"Cache-Control": "no-cache"} if self._client.last_error else {}
        async with self._http.get(url, headers=headers) as response:
            if self.first_byte_s is None:
                self.first_byte_s = self._client.now_s
            if response.status != 200:
                raise FetchError(f"HTTP status {response.status} {response.reason}, expected 200")
            if response.content_length not in (None, size_bytes):
                raise FetchError(f"{response.content_length} bytes announced, expected {size_bytes}")
            async for chunk in response.content.iter_any():
                if len(data) + len(chunk) > size_bytes:
                    raise FetchError(f"more than the expected {size_bytes} bytes")
                data += chunk
                self.received_bytes += len(chunk)
        if len(data) != size_bytes:
            raise FetchError(f"{len(data)} bytes, expected {size_bytes}")
        return bytes(data)
