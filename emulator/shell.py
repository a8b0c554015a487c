"""A command behind an emulated link: namespaces, TUN devices, the shaper, and the way out to the host.

Processes: this one supervises (and relays, see `emulator.relay`); one fork runs the shaper's loop; one fork enters the
outside namespace, leaves a helper there that makes listening sockets, goes on into the inside namespace and becomes the
command. Nothing outlives this process: the others are told by the kernel when it is gone, the devices vanish with their
descriptors and the namespaces with their processes.

With `direct` the outside is this process's own network namespace and there is no relay: the packets are those of the
host's own sockets. That needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TextIO

from emulator import namespace
from emulator.elements import BernoulliLoss
from emulator.errors import EmulatorError, RealTimeError
from emulator.link import Link
from emulator.linklog import LinkLogWriter
from emulator.path import Path, downlink_path, uplink_path
from emulator.processes import end, fork
from emulator.queues import PacketQueue
from emulator.relay import Listeners, Relay, concerns_relay, serve_listeners
from emulator.shaper import Shaper, prepare_process
from traces import Trace

_FLUSH_S = 0.5
_TOLERATED_LATE = 0.01  # share of packets, before the user is warned
_KEYBOARD_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
_RESOLV_CONF = pathlib.Path("/etc/resolv.conf")
_SOCKET_BUFFER_BYTES = 4 * 1024 * 1024  # between shaper and relay


@dataclass
class ShellConfig:
    """What `run_shell` sets up.

    Attributes:
        trace: the downlink's opportunities; None: the downlink only delays.
        uplink: the uplink's (unlimited queue); None: the uplink only delays.
        queue: of the downlink; unlimited if None.
        delay_ms: one way.
        loss: probability that a downlink packet is lost before the delay and the link.
        uplink_loss: likewise for uplink packets.
        seed: of the losses.
        log: file for the downlink's events, in Mahimahi's format.
        uplink_log: likewise for the uplink; needs an uplink trace.
        congestion: TCP congestion control on both sides of the link.
        direct: let the host's own sockets be the far end; needs root.
    """

    trace: Trace | None
    uplink: Trace | None = None
    queue: PacketQueue | None = None
    delay_ms: float = 20.0
    loss: float = 0.0
    uplink_loss: float = 0.0
    seed: int = 0
    log: pathlib.Path | None = None
    uplink_log: pathlib.Path | None = None
    congestion: str = "cubic"
    direct: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms <= 60_000:
            raise RealTimeError(f"delay_ms is {self.delay_ms}; expected 0 to 60000")
        for log, trace, direction in ((self.log, self.trace, "downlink"), (self.uplink_log, self.uplink, "uplink")):
            if log is not None and trace is None:
                raise RealTimeError(f"a log of the {direction} needs a trace of the {direction}")


@dataclass
class _Devices:
    """What the parts of a shell share."""

    outside: int  # TUN
    inside: int  # TUN
    helper: socket.socket | None  # to the process that listens in the outside namespace; None with `direct`


def run_shell(config: ShellConfig, command: Sequence[str]) -> int:
    """Run a command behind the link and return its exit status (128 + n if signal n ended it).

    Raises:
        RealTimeError: what it needs is missing here; says what.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        for signal_number in _KEYBOARD_SIGNALS:  # the terminal sends them to the command, which decides
            stack.callback(signal.signal, signal_number, signal.signal(signal_number, signal.SIG_IGN))
        route = _prepare_route(stack, config)
        number = namespace.free_number()
        resolv_conf = _write_resolv_conf(stack, number, config)
        outside = -1
        if config.direct:
            if os.geteuid() != 0:
                raise RealTimeError("--direct needs root; without it the relay carries the traffic to the host")
            outside = namespace.open_device(
                f"emulator{number}",
                namespace.outside_address(number),
                namespace.inside_address(number),
                config.congestion,
            )
            stack.callback(os.close, outside)
        ours, theirs = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        child = fork(lambda: _become_command(theirs, number, config, command, resolv_conf))
        theirs.close()
        stack.callback(end, child)
        devices = _receive_devices(stack, ours, outside)
        packets, extra = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        shaper = fork(lambda: _run_shaper(devices, extra, route, [packets, ours]))
        extra.close()
        stack.callback(end, shaper, signal.SIGTERM)
        os.close(devices.inside)
        start_ns = packets.recv(64)  # the shaper is ready, and says when its trace began
        if not start_ns:
            raise RealTimeError("the shaper ended early")
        relay = None
        if devices.helper is not None:
            address = namespace.outside_address(number)
            relay = Relay(packets, Listeners(devices.helper), outside=devices.outside, own_address=address)
        return asyncio.run(_supervise(child, shaper, relay, lambda: ours.send(start_ns)))


@dataclass
class _Route:
    """The two directions, and where their logs go."""

    down: Path
    up: Path
    logs: list[tuple[str, Link, TextIO]]  # direction, link, file


def _prepare_route(stack: contextlib.ExitStack, config: ShellConfig) -> _Route:
    """Build what the configuration describes and open its files, so that mistakes show before anything starts."""
    down = None if config.trace is None else Link(config.trace, config.queue, keep_log=config.log is not None)
    up = None if config.uplink is None else Link(config.uplink, keep_log=config.uplink_log is not None)
    delay_us = round(config.delay_ms * 1000)
    route = _Route(
        downlink_path(delay_us, down, BernoulliLoss(config.loss, seed=config.seed)),
        uplink_path(delay_us, up, BernoulliLoss(config.uplink_loss, seed=config.seed + 1)),
        [],
    )
    for direction, link, file in (("Downlink", down, config.log), ("Uplink", up, config.uplink_log)):
        if link is not None and file is not None:
            opened = stack.enter_context(file.open("w", encoding="ascii", errors="replace"))
            route.logs.append((direction, link, opened))
    return route


def _write_resolv_conf(stack: contextlib.ExitStack, number: int, config: ShellConfig) -> pathlib.Path | None:
    """Write the command's resolv.conf: its name server is the relay. None where there is none to replace."""
    if config.direct or not _RESOLV_CONF.exists():
        return None
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emulator-")))
    folder.chmod(0o755)
    path = folder / "resolv.conf"
    path.write_text(f"nameserver {namespace.outside_address(number)}\n")
    return path


def _become_command(
    control: socket.socket, number: int, config: ShellConfig, command: Sequence[str], resolv_conf: pathlib.Path | None
) -> NoReturn:
    """Make the namespaces, hand the devices over, wait for the start, and become the command."""
    try:
        descriptors = _enter(number, config, resolv_conf)
    except (EmulatorError, OSError) as error:
        control.send(f"E{error}".encode()[:4000])
        os._exit(1)
    socket.send_fds(control, [b"devices"], descriptors)
    start = control.recv(64)
    if not start:
        os._exit(1)
    control.close()
    os.environ["MAHIMAHI_BASE"] = namespace.outside_address(number)
    os.environ["EMULATOR_START_NS"] = start.decode()
    for signal_number in (*_KEYBOARD_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):  # ignored by us or by Python
        signal.signal(signal_number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        sys.stderr.write(f"emulator: {command[0]}: {error.strerror}\n")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _enter(number: int, config: ShellConfig, resolv_conf: pathlib.Path | None) -> list[int]:
    """Enter the inside namespace, by way of the outside one; return descriptors: inside[, outside, helper]."""
    namespace.enter_new_user_and_network()
    descriptors: list[int] = []
    if not config.direct:
        outside = namespace.configure_outside(number, config.congestion)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def listen() -> None:
            ours.close()
            os.close(outside)
            serve_listeners(theirs)

        fork(listen)
        theirs.close()
        namespace.enter_new_network()
        descriptors = [outside, ours.detach()]
    inside = namespace.configure_inside(number, config.congestion)
    if resolv_conf is not None:
        namespace.mount_over(resolv_conf, _RESOLV_CONF)
    return [inside, *descriptors]


def _receive_devices(stack: contextlib.ExitStack, control: socket.socket, outside: int) -> _Devices:
    """Take the devices that the child has made; RealTimeError repeats why it could not."""
    message, descriptors, _, _ = socket.recv_fds(control, 4096, 3)
    if not descriptors:
        text = message[1:].decode(errors="replace") if message else "the set-up process ended early"
        raise RealTimeError(text)
    if len(descriptors) == 1:
        return _Devices(outside, descriptors[0], None)
    stack.callback(os.close, descriptors[1])
    helper = stack.enter_context(socket.socket(fileno=descriptors[2]))
    return _Devices(descriptors[1], descriptors[0], helper)


def _run_shaper(devices: _Devices, extra: socket.socket, route: _Route, others: list[socket.socket]) -> None:
    """Shape until SIGTERM; what is in the logs then is complete."""
    for other in others:
        other.close()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    relayed = devices.helper is not None
    extra.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    scheduling = prepare_process()
    start_ns, epoch_ms = time.monotonic_ns(), round(time.time() * 1000)
    logs = [
        LinkLogWriter(file, link, direction=direction, command=sys.argv, epoch_ms=epoch_ms)
        for direction, link, file in route.logs
    ]
    shaper = Shaper(
        route.down,
        route.up,
        outside=devices.outside,
        inside=devices.inside,
        start_ns=start_ns,
        extra_outside=extra.fileno() if relayed else None,
        deliver=_delivery(devices.outside, extra) if relayed else None,
        housekeeping=_flushing(logs) if logs else None,
    )
    signal.signal(signal.SIGTERM, lambda *_: shaper.stop())
    extra.send(str(start_ns).encode())
    extra.setblocking(False)
    shaper.run()
    for log in logs:
        log.flush()
    if shaper.late_departures > _TOLERATED_LATE * shaper.departures:
        sys.stderr.write(
            f"emulator: {shaper.late_departures} of {shaper.departures} packets left over 1 ms late ({scheduling}): "
            "the machine is too busy; root would help, see: python -m emulator bench\n"
        )


def _delivery(outside: int, extra: socket.socket) -> Callable[[bytes], None]:
    """Return what parts the relay's packets from the kernel's."""

    def deliver(packet: bytes) -> None:
        with contextlib.suppress(OSError):  # a full buffer or a device that is down loses packets
            if concerns_relay(packet):
                extra.send(packet)
            else:
                os.write(outside, packet)

    return deliver


def _flushing(logs: list[LinkLogWriter]) -> Callable[[], None]:
    last_s = time.monotonic()

    def flush() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _FLUSH_S:
            last_s = time.monotonic()
            for log in logs:
                log.flush()

    return flush


async def _supervise(child: int, shaper: int, relay: Relay | None, begin: Callable[[], object]) -> int:
    """Relay until the command has ended; return its exit status. Signals to end go to the command."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _pass_on, child, number)

    def reap(process: int, descriptor: int) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if ended.done():
            return
        if process == child:
            ended.set_result(status if status >= 0 else 128 - status)
        else:
            ended.set_exception(RealTimeError(f"the shaper ended early (status {status}); the command was ended too"))

    for process in (child, shaper):
        descriptor = os.pidfd_open(process)
        loop.add_reader(descriptor, reap, process, descriptor)
    if relay is not None:
        relay.start()
    begin()
    try:
        return await ended
    finally:
        if relay is not None:
            relay.stop()


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
