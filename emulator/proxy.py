"""A TCP proxy whose bytes cross the emulated path in real time; needs no privileges.

Every connection gets the packet model's own TCP, and all share one downlink and one uplink (`emulator.stream`): a queue
may drop packets, random loss may hit them, they are sent again. What has arrived in order is written to the other side.

What it is not: the kernels' TCP ends at the proxy on either side. Neither end sees the emulated losses or round trips
in its own TCP state, and a sender's writes return once the proxy has taken them. asyncio rounds timers up to 1 ms.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO, cast

from emulator.config import HEADER_BYTES, LinkConfig
from emulator.errors import RealTimeError
from emulator.linklog import LinkLogWriter
from emulator.path import NEVER_US
from emulator.queues import PacketQueue
from emulator.stream import Connection, Network
from traces import Trace

log = logging.getLogger(__name__)

SOCKET_BUFFER_BYTES = 128 * 1024
"""SO_RCVBUF and SO_SNDBUF of the proxy's sockets (Linux doubles it). A server runs ahead of the emulated path by at
most this, `stream.BUFFER_BYTES` and its own send buffer; less than a loopback segment of 64 KiB would stall it."""

_FLUSH_S = 0.5


class TraceProxy:
    """A proxy to one upstream server behind an emulated link; use as `async with TraceProxy(...) as proxy`.

    Time 0 of the trace is the moment of entry. One downlink and one uplink are shared by all connections.

    Args:
        trace: the downlink's opportunities.
        upstream_host: the server behind the link.
        upstream_port: its TCP port.
        uplink: the uplink's opportunities (unlimited queue); None: the uplink only delays.
        listen_host: where clients connect.
        listen_port: likewise; 0 lets the system choose, see `port`.
        downlink_log: text stream that takes the downlink's event lines as Mahimahi writes them.
        uplink_log: likewise for the uplink; needs an uplink trace.
        queue: the downlink's queue, instead of the one that `config` describes.
        config: the rest of the network; `model` is not looked at.
        fields: fields of LinkConfig by name, over those of `config`, e.g. `delay_ms=20, queue_packets=100`.
    """

    def __init__(
        self,
        trace: Trace,
        upstream_host: str,
        upstream_port: int,
        *,
        uplink: Trace | None = None,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        downlink_log: TextIO | None = None,
        uplink_log: TextIO | None = None,
        queue: PacketQueue | None = None,
        config: LinkConfig | None = None,
        **fields: Any,
    ) -> None:
        if uplink_log is not None and uplink is None:
            raise RealTimeError("a log of the uplink needs an uplink trace")
        if not 0 <= listen_port <= 65535 or not 0 < upstream_port <= 65535:
            raise RealTimeError(f"ports {listen_port} and {upstream_port}; expected at most 65535")
        self.upstream = (upstream_host, upstream_port)
        self.network = Network(
            trace,
            dataclasses.replace(config or LinkConfig(), **fields),
            uplink=uplink,
            queue=queue,
            keep_log=downlink_log is not None,
            keep_uplink_log=uplink_log is not None,
        )
        self._listen = (listen_host, listen_port)
        self._log_files = (downlink_log, uplink_log)
        self._logs: list[LinkLogWriter] = []
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flusher: asyncio.TimerHandle | None = None
        self._start_s = 0.0

    async def __aenter__(self) -> TraceProxy:
        """Start the trace and listen; RealTimeError if that address is taken."""
        self.loop = asyncio.get_running_loop()
        self._start_s = self.loop.time()
        host, port = self._listen
        try:
            self._server = await self.loop.create_server(self._accept, host, port)
        except OSError as error:
            raise RealTimeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._open_logs()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, cut every connection, write the rest of the logs."""
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.abort()
        for timer in (self._timer, self._flusher):
            if timer is not None:
                timer.cancel()
        await asyncio.sleep(0)  # the transports report that they are closed
        self.flush_logs()

    @property
    def port(self) -> int:
        """The port clients connect to."""
        if self._server is None:
            raise RealTimeError("the proxy is not running; enter its context first")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The root of the upstream server as seen through the link, over HTTP."""
        host = f"[{self._listen[0]}]" if ":" in self._listen[0] else self._listen[0]
        return f"http://{host}:{self.port}"

    @property
    def start_s(self) -> float:
        """When the trace began, on the clock of `time.monotonic`."""
        return self._start_s

    @property
    def now_s(self) -> float:
        """Seconds since the trace began."""
        return self.loop.time() - self._start_s

    def flush_logs(self) -> None:
        """Write the event lines so far."""
        for link_log in self._logs:
            link_log.flush()

    def catch_up(self) -> int:
        """Let everything happen that is due, and return the time in us; call before handing the network anything."""
        now_us = int(self.now_s * 1e6)
        self.network.run(now_us)
        return now_us

    def reschedule(self) -> None:
        """Set the alarm to the network's next event; call after handing the network something."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_us = self.network.next_us
        if next_us < NEVER_US:
            self._timer = self.loop.call_at(self._start_s + next_us / 1e6, self._wake)

    def _wake(self) -> None:
        self.catch_up()
        self.reschedule()

    def _accept(self) -> _Side:
        pair = _Pair(self, self._pairs.discard)
        self._pairs.add(pair)
        return pair.client

    def _open_logs(self) -> None:
        epoch_ms = round(time.time() * 1000)
        links = (("Downlink", self.network.downlink), ("Uplink", self.network.uplink))
        for file, (direction, link) in zip(self._log_files, links, strict=True):
            if file is not None and link is not None:
                self._logs.append(LinkLogWriter(file, link, direction=direction, command=sys.argv, epoch_ms=epoch_ms))
        if self._logs:
            self._flush_regularly()

    def _flush_regularly(self) -> None:
        self.flush_logs()
        self._flusher = self.loop.call_later(_FLUSH_S, self._flush_regularly)


class _Pair:
    """A client's socket, its upstream socket, and the emulated connection between them."""

    def __init__(self, proxy: TraceProxy, forget: Callable[[_Pair], None]) -> None:
        self._proxy = proxy
        self._forget = forget
        self.client = _Side(self)
        self.server = _Side(self)
        self._connection = Connection(
            proxy.network,
            hold_client=lambda on: self.client.hold("window", on),
            hold_server=lambda on: self.server.hold("window", on),
        )
        self._connecting: asyncio.Task[None] | None = None
        self._is_over = False

    def made(self, side: _Side) -> None:
        """Open the emulated connection first, then the upstream one; until then the client is not read."""
        if side is self.client:
            side.hold("opening", True)
            now_us = self._proxy.catch_up()
            self._connection.open(now_us, self._connect)
            self._proxy.reschedule()

    def received(self, side: _Side, data: bytes) -> None:
        """Send what a side has written to the other one."""
        now_us = self._proxy.catch_up()
        if side is self.client:
            self._connection.down.acknowledge(now_us)  # a request carries what is still to be acknowledged
            self._connection.up.write(now_us, data, self.server.write)
        else:
            self._connection.down.write(now_us, data, self.client.write)
        self._proxy.reschedule()

    def ended(self, side: _Side) -> None:
        """Pass the end of a side's data on, behind the data."""
        now_us = self._proxy.catch_up()
        if side is self.client:
            self._connection.up.push(now_us, HEADER_BYTES, self.server.end)
        else:
            self._connection.down.push(now_us, HEADER_BYTES, self.client.end)
        self._proxy.reschedule()

    def lost(self, side: _Side, error: Exception | None) -> None:
        """Let the other side hear of a closed socket: from a client at once, from a server behind its data."""
        if self._is_over:
            return
        now_us = self._proxy.catch_up()
        if side is self.client:
            self._connection.reset(now_us, self._client_is_gone)
        elif error is not None:
            self._connection.down.push(now_us, HEADER_BYTES, lambda _: self.abort())
        self._proxy.reschedule()

    def abort(self) -> None:
        """Cut both sides at once."""
        self._is_over = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._connection.close()
        self._forget(self)
        for side in (self.client, self.server):
            side.abort()

    def _client_is_gone(self, time_us: int) -> None:
        self.abort()

    def _connect(self, time_us: int) -> None:
        self._connecting = self._proxy.loop.create_task(self._connect_upstream())

    async def _connect_upstream(self) -> None:
        """Connect to the server; a failure resets the client."""
        host, port = self._proxy.upstream
        try:
            await self._proxy.loop.create_connection(lambda: self.server, host, port)
        except OSError as error:
            log.warning("upstream %s:%d: %s", host, port, error.strerror or error)
            self.abort()
            return
        self.client.hold("opening", False)


class _Side(asyncio.Protocol):
    """One socket of a pair."""

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._transport: asyncio.Transport | None = None
        self._holds: set[str] = set()  # why it is not read
        self._has_ended = False  # no more comes from it
        self._was_told = False  # that no more comes to it

    @property
    def is_open(self) -> bool:
        """Whether it can still be written to."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        kernel = transport.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            kernel.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if self._holds:
            self._transport.pause_reading()
        self._pair.made(self)

    def data_received(self, data: bytes) -> None:
        self._pair.received(self, data)

    def eof_received(self) -> bool:
        self._has_ended = True
        self._pair.ended(self)
        return not self._was_told  # False: both directions have ended, the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.lost(self, error)

    def pause_writing(self) -> None:
        self._opposite().hold("reader", True)

    def resume_writing(self) -> None:
        self._opposite().hold("reader", False)

    def hold(self, reason: str, on: bool) -> None:
        """Read only while there is no reason not to."""
        was_held = bool(self._holds)
        if on:
            self._holds.add(reason)
        else:
            self._holds.discard(reason)
        if self._transport is None or self._transport.is_closing() or bool(self._holds) == was_held:
            return
        if self._holds:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Write what has crossed the path."""
        if self._transport is not None and self.is_open:
            self._transport.write(data)

    def end(self, time_us: int) -> None:
        """Say that no more comes; close the socket if no more comes from it either."""
        self._was_told = True
        if self._transport is not None and self.is_open:
            if self._has_ended:
                self._transport.close()
            else:
                self._transport.write_eof()

    def abort(self) -> None:
        """Close the socket at once."""
        if self._transport is not None:
            self._transport.abort()

    def _opposite(self) -> _Side:
        return self._pair.server if self is self._pair.client else self._pair.client
