"""How late the shaper is on this machine: full packets at a constant rate, each departure against its due time.

A sender offers 10 % more than the link's rate, so the queue is never empty and every opportunity has a packet. Two
errors are taken of each departure: after the shaper's write, and by the receiving kernel's time stamp.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import select
import socket
import struct
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emulator import namespace
from emulator.errors import EmulatorError, RealTimeError
from emulator.link import Link
from emulator.path import downlink_path, uplink_path
from emulator.processes import end, fork
from emulator.queues import create_queue
from emulator.shaper import LATE_US, Shaper, prepare_process
from traces import MTU_BYTES, Trace, TraceConfig, load_trace

_PORT = 9
_PAYLOAD_BYTES = 1472
_OVERLOAD = 1.1
_QUEUE_PACKETS = 256
_WARM_UP_S = 0.5
_PATIENCE_S = 10.0
_SO_TIMESTAMPNS = 35
_BUFFER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Errors:
    """Percentiles of departure errors, in microseconds."""

    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True)
class RateResult:
    """One rate's measurement."""

    rate_bps: float
    departures: int
    utilisation: float
    """Departures over opportunities."""
    written: Errors
    """Written minus due, by the shaper's clock."""
    received: Errors | None
    """Stamped by the receiving kernel minus due; None where the count received differs from the count written."""
    received_fraction: float
    cpu: float
    """Processor time of the shaper over elapsed time."""

    @property
    def is_sustained(self) -> bool:
        """Whether the shaper kept up: at least 99 % of the opportunities used, 99 % of the departures not late."""
        return self.utilisation >= 0.99 and self.written.p99_us <= LATE_US


@dataclass(frozen=True)
class Report:
    """What `run` found, and on what."""

    devices: str
    scheduling: str
    machine: dict[str, str]
    load_before: float
    load_after: float
    rates: list[RateResult]
    sustained_bps: float
    """The highest rate of those tried that was sustained; 0 if none."""


def run(rates_bps: list[float], *, seconds: float, devices: str | None = None) -> Report:
    """Measure at each rate.

    Args:
        rates_bps: of the link.
        seconds: per rate, after half a second that does not count.
        devices: `tun`, or `sockets` (pairs of Unix sockets, no privileges); None: `tun` where it is permitted.
    """
    if not all(0 < rate_bps < math.inf for rate_bps in rates_bps):
        raise RealTimeError(f"rates {rates_bps}; expected numbers above 0")
    if not 0.1 <= seconds <= 600:
        raise RealTimeError(f"seconds is {seconds}; expected 0.1 to 600")
    if devices is None:
        devices = "tun" if _may_have_devices() else "sockets"
    load_before = os.getloadavg()[0]
    measured = [_measure(rate_bps, seconds, devices) for rate_bps in rates_bps]
    results = [result for result, _ in measured]
    return Report(
        devices=devices,
        scheduling=measured[-1][1],
        machine=machine_facts(),
        load_before=load_before,
        load_after=os.getloadavg()[0],
        rates=results,
        sustained_bps=max((result.rate_bps for result in results if result.is_sustained), default=0.0),
    )


def machine_facts() -> dict[str, str]:
    """Return what the numbers depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def format_report(report: Report) -> str:
    """Lay a report out as a Markdown table under one line of facts."""
    facts = report.machine
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}; {report.devices}; "
        f"{report.scheduling}; load {report.load_before:.1f} before, {report.load_after:.1f} after",
        "",
        "| link [Mbit/s] | departures | used | p50 [us] | p90 | p99 | p99.9 | largest | received: p50 | p99 | CPU |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in report.rates:
        errors, received = result.written, result.received
        stamped = f"{received.p50_us:.0f} | {received.p99_us:.0f}" if received else "- | -"
        lines.append(
            f"| {result.rate_bps / 1e6:g} | {result.departures} | {result.utilisation:.2%} | {errors.p50_us:.0f} "
            f"| {errors.p90_us:.0f} | {errors.p99_us:.0f} | {errors.p999_us:.0f} | {errors.max_us:.0f} "
            f"| {stamped} | {result.cpu:.0%} |"
        )
    lines += ["", f"sustained (p99 at most 1 ms, at least 99 % used): {report.sustained_bps / 1e6:g} Mbit/s"]
    return "\n".join(lines)


def _may_have_devices() -> bool:
    """Try in a child, silently."""

    def attempt() -> None:
        try:
            namespace.enter_new_user_and_network()
            namespace.configure_outside(0, "reno")
        except (EmulatorError, OSError):
            os._exit(1)

    return os.waitstatus_to_exitcode(os.waitpid(fork(attempt), 0)[1]) == 0


def _measure(rate_bps: float, seconds: float, devices: str) -> tuple[RateResult, str]:
    """Measure one rate; return the result and how the shaper was scheduled."""
    trace = load_trace(TraceConfig("constant", rate_bps=rate_bps))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emulator-bench-")))
        control, theirs = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ends = fork(lambda: _be_both_ends(theirs, rate_bps, devices, folder))
        stack.callback(end, ends)
        theirs.close()
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
        if len(descriptors) != 2:
            raise RealTimeError(message.decode(errors="replace") or "the bench's set-up process ended early")
        shaper = fork(lambda: _shape(trace, descriptors[0], descriptors[1], seconds, folder))
        stack.callback(end, shaper)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(b"go")
        _wait(shaper, "shaper")
        control.send(b"stop")
        _wait(ends, "receiver")
        return _summarise(rate_bps, trace, seconds, folder)


def _wait(child: int, name: str) -> None:
    if os.waitpid(child, 0)[1] != 0:
        raise RealTimeError(f"the bench's {name} ended early")


def _be_both_ends(control: socket.socket, rate_bps: float, devices: str, folder: Path) -> None:
    """Hand the shaper its two descriptors, then offer packets outside and stamp those that arrive inside."""
    try:
        send, receiver, descriptors = _tun_ends() if devices == "tun" else _socket_ends()
    except (EmulatorError, OSError) as error:
        control.send(str(error).encode()[:4000])
        return
    socket.send_fds(control, [b"devices"], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    control.recv(16)
    sender = fork(lambda: _offer(send, rate_bps * _OVERLOAD))
    stamps_ns = array("q")
    receiver.setblocking(False)
    stopping = False
    while True:
        readable = select.select([receiver] if stopping else [receiver, control], (), (), 0.2)[0]
        if receiver in readable:
            _stamp_batch(receiver, stamps_ns)
        elif stopping:
            break
        if control in readable:
            stopping = True
            end(sender)
    np.save(folder / "stamps.npy", np.array(stamps_ns, dtype=np.int64))


def _tun_ends() -> tuple[Callable[[bytes], object], socket.socket, list[int]]:
    """Return what sends outside, the socket that receives inside, and the TUNs [outside, inside]."""
    namespace.enter_new_user_and_network()
    outside = namespace.configure_outside(0, "reno")
    source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # stays in the outside namespace
    namespace.enter_new_network()
    inside = namespace.configure_inside(0, "reno")
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    receiver.bind(("", _PORT))
    source.connect((namespace.inside_address(0), _PORT))
    return source.send, receiver, [outside, inside]


def _socket_ends() -> tuple[Callable[[bytes], object], socket.socket, list[int]]:
    """Likewise by two pairs of Unix sockets, which need no privileges."""
    source, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inside, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for shaped in (outside, inside):
        shaped.setblocking(False)
    return lambda payload: source.send(bytes(28) + payload), receiver, [outside.detach(), inside.detach()]


def _offer(send: Callable[[bytes], object], rate_bps: float) -> None:
    """Send full packets at a rate, every millisecond what is due."""
    prepare_process()  # on a busy machine an ordinary process would offer too little
    packets_per_s = rate_bps / (8 * MTU_BYTES)
    payload = bytes(_PAYLOAD_BYTES)
    start_s = time.monotonic()
    sent = 0
    while True:
        due = int((time.monotonic() - start_s) * packets_per_s)
        for _ in range(min(due - sent, 1000)):
            with contextlib.suppress(OSError):
                send(payload)
        sent = due
        time.sleep(0.001)


def _stamp_batch(receiver: socket.socket, stamps_ns: array[int]) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            _, ancillary, _, _ = receiver.recvmsg(2048, 64)
            stamp_ns = time.time_ns()
            for _, kind, value in ancillary:
                if kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("qq", value[:16])
                    stamp_ns = seconds * 1_000_000_000 + nanoseconds
            stamps_ns.append(stamp_ns)


def _shape(trace: Trace, outside: int, inside: int, seconds: float, folder: Path) -> None:
    """Run the shaper for a while, from the first packet on, and write down what it did."""
    scheduling = prepare_process()
    select.select([outside], (), (), _PATIENCE_S)
    start_ns, start_wall_ns = time.monotonic_ns(), time.time_ns()
    link = Link(trace, create_queue("droptail", limit_packets=_QUEUE_PACKETS))
    end_ns = start_ns + round((seconds + _WARM_UP_S) * 1e9)
    shaper = Shaper(
        downlink_path(0, link),
        uplink_path(0, None),
        outside=outside,
        inside=inside,
        start_ns=start_ns,
        housekeeping=lambda: shaper.stop() if time.monotonic_ns() >= end_ns else None,
    )
    shaper.late_us, shaper.due_us = array("i"), array("q")
    started_s, used_s = time.monotonic(), time.process_time()
    shaper.run()
    cpu = (time.process_time() - used_s) / (time.monotonic() - started_s)
    np.savez(
        folder / "shaper.npz",
        late_us=np.array(shaper.late_us),
        due_us=np.array(shaper.due_us),
        start_wall_ns=start_wall_ns,
        cpu=cpu,
        scheduling=scheduling,
    )


def _summarise(rate_bps: float, trace: Trace, seconds: float, folder: Path) -> tuple[RateResult, str]:
    with np.load(folder / "shaper.npz") as shaped:
        due_us, late_us, start_wall_ns = shaped["due_us"], shaped["late_us"], int(shaped["start_wall_ns"])
        cpu, scheduling = float(shaped["cpu"]), str(shaped["scheduling"])
    stamps_ns = np.load(folder / "stamps.npy")
    first_us, last_us = _WARM_UP_S * 1e6, (_WARM_UP_S + seconds) * 1e6
    counted = (due_us > first_us) & (due_us <= last_us)
    if not counted.any():
        raise RealTimeError(f"no packet left in {seconds:g} s at {rate_bps / 1e6:g} Mbit/s; expected a higher rate")
    received = None
    if len(stamps_ns) == len(due_us):
        received = _errors(((stamps_ns - start_wall_ns) / 1000 - due_us)[counted])
    opportunities = int(trace.count_until(last_us / 1000)) - int(trace.count_until(first_us / 1000))
    result = RateResult(
        rate_bps=rate_bps,
        departures=int(counted.sum()),
        utilisation=float(counted.sum() / opportunities),
        written=_errors(late_us[counted]),
        received=received,
        received_fraction=float(len(stamps_ns) / len(due_us)),
        cpu=cpu,
    )
    return result, scheduling


def _errors(values_us: NDArray[Any]) -> Errors:
    p50, p90, p99, p999 = (float(value) for value in np.percentile(values_us, [50, 90, 99, 99.9]))
    return Errors(p50, p90, p99, p999, float(values_us.max()))
