"""From the far end of the emulated path to the host's network, in user space and without privileges or NAT.

The outside namespace's kernel takes every address for its own, so a connection of the command to any server ends
there: a real TCP, whose packets cross the emulated path. The relay, which lives in the host's namespace, connects to
that server by itself and copies bytes. The shaper hands it two kinds of packets instead of the kernel:

- The first packet of each TCP connection (SYN). The relay connects to its destination; if that works it makes sure that
  somebody listens at the port and passes the packet on. If the connection is refused there, it is refused here.
- UDP datagrams. They are sent on from a socket of the relay, one per flow; answers go back as packets.

The outside address itself stands for the host's 127.0.0.1; its UDP port 53 for the host's name server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

COPY_BYTES = 65_536
UNSENT_BYTES = 128 * 1024  # TCP_NOTSENT_LOWAT: how far a server runs ahead of the emulated path
CONNECT_TIMEOUT_S = 30.0
UDP_IDLE_S = 60.0
LARGEST_DATAGRAM_BYTES = 1472  # one packet of 1500 bytes

_TCP_NOTSENT_LOWAT = 25
_TCP, _UDP = 6, 17
_SYN, _ACK = 0x02, 0x10
_DNS_PORT = 53

Address = tuple[str, int]


@dataclass(frozen=True)
class Flow:
    """Who talks to whom."""

    source: Address
    destination: Address


def concerns_relay(packet: bytes) -> bool:
    """Tell whether the shaper is to hand a packet to the relay: a TCP SYN or a UDP datagram over IPv4."""
    if len(packet) < 28 or packet[0] >> 4 != 4:
        return False
    if packet[9] == _UDP:
        return True
    flags = (packet[0] & 15) * 4 + 13
    return packet[9] == _TCP and len(packet) > flags and packet[flags] & (_SYN | _ACK) == _SYN


def parse_flow(packet: bytes) -> Flow:
    """Return the flow of an IPv4 packet with ports."""
    source_port, destination_port = struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
    return Flow((socket.inet_ntoa(packet[12:16]), source_port), (socket.inet_ntoa(packet[16:20]), destination_port))


def udp_payload(packet: bytes) -> bytes | None:
    """Return a datagram's payload; None if the packet is one fragment of several."""
    if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
        return None
    start = (packet[0] & 15) * 4
    return packet[start + 8 : start + struct.unpack_from("!H", packet, start + 4)[0]]


def udp_packet(source: Address, destination: Address, payload: bytes) -> bytes:
    """Build an IPv4 packet with a datagram; no UDP checksum, which IPv4 leaves open (RFC 768)."""
    size_bytes = 28 + len(payload)
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, size_bytes, 0, 0x4000, 64, _UDP, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    header = header[:10] + struct.pack("!H", checksum) + header[12:]
    return header + struct.pack("!HHHH", source[1], destination[1], size_bytes - 20, 0) + payload


def name_server(path: Path = Path("/etc/resolv.conf")) -> str | None:
    """Return the host's first IPv4 name server."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(OSError):
                socket.inet_aton(words[1])
                return words[1]
    return None


class Listeners:
    """Sockets that listen in the outside namespace, made there by `serve_listeners`."""

    def __init__(self, helper: socket.socket) -> None:
        self._helper = helper
        self._ports: set[int] = set()

    def open(self, port: int) -> socket.socket | None:
        """Return a new listening socket at `port` of every address; None if there is one already."""
        if port in self._ports:
            return None
        self._helper.send(struct.pack("!H", port))
        message, descriptors, _, _ = socket.recv_fds(self._helper, 64, 1)
        if not descriptors:
            raise OSError(errno.EADDRINUSE, message.decode())
        self._ports.add(port)
        return socket.socket(fileno=descriptors[0])


def serve_listeners(requests: socket.socket) -> None:
    """Answer each request, a port, with a listening socket of this process's namespace, until the asker is gone."""
    while request := requests.recv(2):
        (port,) = struct.unpack("!H", request)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", port))
                listener.listen(1024)
                socket.send_fds(requests, [b"ok"], [listener.fileno()])
        except OSError as error:
            requests.send(os.strerror(error.errno or 0).encode())


class Relay:
    """Connects the outside namespace to this process's network.

    Args:
        packets: SOCK_SEQPACKET to the shaper: packets that concern us, and answers to UDP.
        listeners: makes listening sockets in the outside namespace.
        outside: the outside's TUN, where packets that the kernel there is to see are written.
        own_address: the outside's address, which stands for this host.
    """

    def __init__(self, packets: socket.socket, listeners: Listeners, *, outside: int, own_address: str) -> None:
        self._packets = packets
        self._listeners = listeners
        self._outside = outside
        self._own_address = own_address
        self._name_server = name_server()
        self._opening: set[Flow] = set()
        self._connected: dict[Flow, socket.socket] = {}  # to the server; the client's side is not accepted yet
        self._datagrams: dict[Flow, _UdpFlow] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._packets.setblocking(False)
        self._loop.add_reader(self._packets, self._take_packets)

    def stop(self) -> None:
        """Drop everything."""
        self._loop.remove_reader(self._packets)
        for task in self._tasks:
            task.cancel()
        for upstream in self._connected.values():
            upstream.close()
        for flow in list(self._datagrams.values()):
            flow.close()

    def _take_packets(self) -> None:
        while True:
            try:
                packet = self._packets.recv(COPY_BYTES)
            except BlockingIOError:
                return
            if not packet:  # the shaper has ended
                self._loop.remove_reader(self._packets)
                return
            flow = parse_flow(packet)
            if packet[9] == _UDP:
                self._take_datagram(flow, packet)
            elif flow in self._connected:
                os.write(self._outside, packet)  # sent again: the answer to the first one was lost
            elif flow not in self._opening:
                self._opening.add(flow)
                self._start(self._open(flow, packet))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def target(self, destination: Address, *, udp: bool = False) -> Address:
        """Return where a destination of the command is in the host's network."""
        host, port = destination
        if host != self._own_address:
            return destination
        if udp and port == _DNS_PORT and self._name_server is not None:
            return self._name_server, port
        return "127.0.0.1", port

    async def _open(self, flow: Flow, syn: bytes) -> None:
        """Connect to where the command wants to, then let its connection be established."""
        upstream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        upstream.setblocking(False)
        try:
            await asyncio.wait_for(self._loop.sock_connect(upstream, self.target(flow.destination)), CONNECT_TIMEOUT_S)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener = self._listeners.open(flow.destination[1])
            self._connected[flow] = upstream
            self._loop.call_later(CONNECT_TIMEOUT_S, self._give_up, flow)
        except ConnectionRefusedError:
            upstream.close()  # nobody listens here either, so the kernel refuses too
            listener = None
        except (OSError, asyncio.TimeoutError) as error:
            upstream.close()
            log.warning("%s:%d: %s", *flow.destination, error)
            return  # no answer, as from the network
        finally:
            self._opening.discard(flow)
        if listener is not None:
            listener.setblocking(False)
            self._start(self._accept(listener))
        os.write(self._outside, syn)

    def _give_up(self, flow: Flow) -> None:
        """Close the connection to a server whose client never finished its handshake."""
        upstream = self._connected.pop(flow, None)
        if upstream is not None:
            upstream.close()

    async def _accept(self, listener: socket.socket) -> None:
        """Join each connection accepted at one port with the one to its server."""
        with listener:
            while True:
                accepted, source = await self._loop.sock_accept(listener)
                upstream = self._connected.pop(Flow(source, accepted.getsockname()), None)
                if upstream is None:
                    _reset(accepted)  # its server refused; another one has this port
                    continue
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                accepted.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                self._start(self._join(accepted, upstream))

    async def _join(self, client: socket.socket, server: socket.socket) -> None:
        """Copy both ways until both have ended; a broken side breaks the other."""
        copies = [
            self._loop.create_task(self._copy(client, server)),
            self._loop.create_task(self._copy(server, client)),
        ]
        try:
            await asyncio.gather(*copies)
        except OSError:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            _reset(client)
            _reset(server)
        finally:
            client.close()
            server.close()

    async def _copy(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, COPY_BYTES):
            await self._loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)

    def _take_datagram(self, flow: Flow, packet: bytes) -> None:
        payload = udp_payload(packet)
        if payload is None:
            log.warning("UDP from %s:%d in fragments; expected at most %d bytes", *flow.source, LARGEST_DATAGRAM_BYTES)
            return
        if flow not in self._datagrams:
            try:
                self._datagrams[flow] = _UdpFlow(self, flow, self.target(flow.destination, udp=True))
            except OSError as error:
                log.warning("UDP to %s:%d: %s", *flow.destination, error)
                return
        self._datagrams[flow].send(payload)

    def answer(self, flow: Flow, payload: bytes) -> None:
        """Send a datagram of a flow's server down to the command."""
        if len(payload) > LARGEST_DATAGRAM_BYTES:
            log.warning("UDP of %d bytes dropped; expected at most %d", len(payload), LARGEST_DATAGRAM_BYTES)
            return
        with contextlib.suppress(BlockingIOError):
            self._packets.send(udp_packet(flow.destination, flow.source, payload))

    def forget(self, flow: Flow) -> None:
        """Let an idle UDP flow go."""
        self._datagrams.pop(flow, None)


class _UdpFlow:
    """One flow's socket in the host's network."""

    def __init__(self, relay: Relay, flow: Flow, target: Address) -> None:
        self._relay = relay
        self._flow = flow
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(target)
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._receive)
        self._used_s = self._loop.time()
        self._alarm = self._loop.call_later(UDP_IDLE_S, self._look)

    def send(self, payload: bytes) -> None:
        """Send a datagram of the command on; the network may lose it."""
        self._used_s = self._loop.time()
        with contextlib.suppress(OSError):
            self._socket.send(payload)

    def close(self) -> None:
        """Give the socket up."""
        self._alarm.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._relay.forget(self._flow)

    def _receive(self) -> None:
        self._used_s = self._loop.time()
        with contextlib.suppress(OSError):
            self._relay.answer(self._flow, self._socket.recv(COPY_BYTES))

    def _look(self) -> None:
        idle_s = self._loop.time() - self._used_s
        if idle_s >= UDP_IDLE_S:
            self.close()
        else:
            self._alarm = self._loop.call_later(UDP_IDLE_S - idle_s, self._look)


def _reset(connection: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
