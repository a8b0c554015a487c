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
from player.bitstream import check_segment, read_inits
from player.codecs import PROMPT, VAE
from player.errors import BitstreamError, FetchError
from player.events import TIMEOUT
from player.mp4 import list_boxes
from player.programme import Programme
from player.remote import IDENTITY, RemotePresentation, describe
from player.session import Finished, Request, Session

log = logging.getLogger(__name__)

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
    """What was fetched for one segment, checked; of a layered representation all layers, lowest first."""

    segment: int
    representation: int
    init: bytes
    data: bytes


@dataclass(frozen=True)
class File:
    """One file of those that answer a request."""

    layer: int
    """The representation that it belongs to."""
    is_init: bool
    url: str
    size_bytes: int


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

    Of a layered representation `init` and `data` are those of its layers, lowest first, one after the other.
    Prompt and latent segments carry CRCs over every byte. Pixel segments have none: their boxes must fill them exactly.
    """
    if codec == PROMPT:
        check_segment(read_inits(init), data)
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
        self._inits: dict[int, bytes] = {}  # of each representation its own
        self._layers: dict[int, list[bytes]] = {}  # of each segment what is there, on a layered ladder
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
            failure = fetch.failure()
            if failure is not None:
                self._fail(fetch, failure)
                await self._render_kept(fetch, arrived)
                return True
            self._session.on_complete(self.now_s, fetch.transfer)
            await self._hand_over(fetch.request, fetch.parts, arrived)
            return True
        if fetch.finish_s is not None:  # all is here and being checked
            return False
        if now_s >= fetch.sent_s + fetch.request.timeout_s:
            await fetch.cancel()
            self._fail(fetch, TIMEOUT)
            await self._render_kept(fetch, arrived)
            return True
        if not self._session.wants_progress:
            return False
        if self._session.on_progress(now_s, fetch.received_bytes, first_byte_s=fetch.first_byte_s):
            await fetch.cancel()
            await self._render_kept(fetch, arrived)
            return True
        kept = self._session.take_kept()
        if kept is not None:  # the fetch goes on
            await self._hand_over(kept, fetch.parts_of(kept), arrived)
        return False

    async def _hand_over(
        self, request: Request, parts: list[tuple[File, bytes]], arrived: asyncio.Queue[Media]
    ) -> None:
        """Give what a request has brought to the renderer."""
        media = self.media(request, parts)
        self._inits |= {file.layer: data for file, data in parts if file.is_init}
        if self.layered:
            new = [data for file, data in parts if not file.is_init]
            self._layers[media.segment] = [*self._held(request), *new]
        arrived.put_nowait(media)
        await asyncio.sleep(0)  # free rendering is done by then, before the session decides again

    async def _render_kept(self, fetch: _Fetch, arrived: asyncio.Queue[Media]) -> None:
        """Give the renderer the whole layers of a request that ended unfinished, if the session keeps them."""
        if self._session.take_kept() is not None:
            fetch.drop_tail()
            await self._hand_over(fetch.request, fetch.parts, arrived)

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

    @property
    def layered(self) -> bool:
        """Whether representations build on each other."""
        return self._programme.ladder.layer_bytes is not None

    def plan(self, request: Request) -> list[File]:
        """Return the files that answer a request: of each layer the media segment, its init segment first where new.

        On a ladder without layers the representation asked for is the only one.
        """
        ladder, segment = self._programme.ladder, request.segment
        sizes = ladder.segment_bytes if ladder.layer_bytes is None else ladder.layer_bytes
        files = []
        for layer in self._layers_of(request):
            if layer not in self._inits and ladder.init_bytes is not None:
                files.append(File(layer, True, self._remote.init_url(layer), int(ladder.init_bytes[layer])))
            files.append(File(layer, False, self._remote.segment_url(segment, layer), int(sizes[segment, layer])))
        return files

    def media(self, request: Request, parts: list[tuple[File, bytes]]) -> Media:
        """Return what a decoder takes: the parts fetched, behind the layers that were there before."""
        inits = self._inits | {file.layer: data for file, data in parts if file.is_init}
        representation = parts[-1][0].layer
        layers = range(0 if self.layered else representation, representation + 1)
        data = [*self._held(request), *(data for file, data in parts if not file.is_init)]
        return Media(request.segment, representation, b"".join(inits[layer] for layer in layers), b"".join(data))

    async def check(self, media: Media) -> None:
        """Raise BitstreamError if a segment is corrupt."""
        await asyncio.to_thread(check_media, self._remote.presentation.manifest.codec, media.init, media.data)

    def _layers_of(self, request: Request) -> range:
        if not self.layered:
            return range(request.representation, request.representation + 1)
        return range(0 if request.held is None else request.held + 1, request.representation + 1)

    def _held(self, request: Request) -> list[bytes]:
        """Return the layers at hand of a segment to be upgraded."""
        if request.held is None or not self.layered:
            return []
        return self._layers[request.segment][: request.held + 1]


class _Fetch:
    """A request under way."""

    def __init__(self, client: Client, http: aiohttp.ClientSession, request: Request) -> None:
        self._client, self._http = client, http
        self.request = request
        self.sent_s = client.now_s
        self.first_byte_s: float | None = None
        self.finish_s: float | None = None
        self._received_bytes = 0
        self._unchecked = False
        self.parts: list[tuple[File, bytes]] = []
        """Files that have arrived whole, in the order of the plan; every media segment among them is checked."""
        self.url = ""
        self.task = asyncio.create_task(self._run())

    @property
    def received_bytes(self) -> int:
        """What has arrived. A layer not checked, or corrupt, lacks a byte, lest the session keep it."""
        is_layer = self._client.layered and self._unchecked
        return self._received_bytes - is_layer

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

    def failure(self) -> str | None:
        """Return why the request failed; None if it did not."""
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

    def parts_of(self, kept: Request) -> list[tuple[File, bytes]]:
        """Return the files of the part of an unfinished request that is taken in by itself."""
        return [part for part in self.parts if part[0].layer <= kept.representation]

    def drop_tail(self) -> None:
        """Forget an init segment whose media segment has not arrived."""
        while self.parts and self.parts[-1][0].is_init:
            self.parts.pop()

    async def _run(self) -> None:
        files = self._client.plan(self.request)
        for file in files:
            part = file, await self._get(file.url, file.size_bytes)
            if file is files[-1]:
                self.finish_s = self._client.now_s
            if not file.is_init:
                self._unchecked = True
                await self._client.check(self._client.media(self.request, [*self.parts, part]))
                self._unchecked = False
            self.parts.append(part)

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
                self._received_bytes += len(chunk)
        if len(data) != size_bytes:
            raise FetchError(f"{len(data)} bytes, expected {size_bytes}")
        return bytes(data)
