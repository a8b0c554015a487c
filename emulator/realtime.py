"""The real-time commands: `shell`, `proxy` and `bench`. Parse, start, wait for the end, print."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

from emulator.config import LinkConfig
from emulator.errors import RealTimeError
from emulator.queues import QUEUE_NAMES, PacketQueue, create_queue, parse_queue
from traces import Trace, TraceConfig, load_trace


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the real-time commands to the command line."""
    proxy = commands.add_parser(
        "proxy",
        help="put a TCP server behind an emulated link, in real time, without privileges",
        description="Listen for TCP connections and carry their bytes to and from a server over an emulated link: a "
        "trace, a queue, a delay, and the packet model's TCP. Stops with Ctrl-C.",
    )
    proxy.add_argument("--upstream", required=True, type=_address, metavar="HOST:PORT", help="the server")
    proxy.add_argument(
        "--listen", default="127.0.0.1:0", type=_address, metavar="HOST:PORT", help="port 0: any free one"
    )
    proxy.add_argument("--handshake-rtts", type=int, default=LinkConfig.handshake_rtts, help="1 = TCP (default)")
    add_link_options(proxy)
    proxy.set_defaults(run=_proxy)

    shell = commands.add_parser(
        "shell",
        help="run a command behind an emulated link, in real time; as mm-delay and mm-link do",
        description="Run a command in a network namespace whose packets cross an emulated link. From inside, this host "
        "is 100.64.0.1 (MAHIMAHI_BASE). Works for root, and for users who may make namespaces and open /dev/net/tun.",
    )
    add_link_options(shell)
    shell.add_argument("--uplink-loss", type=float, default=0.0, metavar="P", help="of uplink packets")
    shell.add_argument("--congestion", default="cubic", metavar="NAME", help="TCP's on both sides (default cubic)")
    shell.add_argument("--direct", action="store_true", help="no relay: the host's own sockets are the far end; root")
    shell.add_argument("command", nargs="*", metavar="-- COMMAND", help="default: your shell")
    shell.set_defaults(run=_shell)

    bench = commands.add_parser("bench", help="measure how late packets leave the shaper on this machine")
    bench.add_argument("--rates", default="5,20,100,200,400", metavar="LIST", help="Mbit/s (default %(default)s)")
    bench.add_argument("--seconds", type=float, default=5.0, help="per rate (default %(default)s)")
    bench.add_argument("--devices", choices=("tun", "sockets"), help="default: tun where it is permitted")
    bench.add_argument("--json", action="store_true", help="print everything as JSON")
    bench.set_defaults(run=_bench)


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the emulated path."""
    parser.add_argument("--trace", required=True, help="the downlink: catalogue name or file of a trace")
    parser.add_argument("--share", type=int, default=1, metavar="N", help="what one of N users gets of it")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="begin S seconds into the trace")
    parser.add_argument("--rate", type=float, metavar="BPS", help="of trace 'constant', in bit/s")
    parser.add_argument("--uplink", metavar="TRACE", help="the uplink; without it the uplink only delays")
    parser.add_argument(
        "--delay-ms", "--delay", type=float, default=LinkConfig.delay_ms, metavar="MS", help="one way (default 20)"
    )
    parser.add_argument("--queue", default=LinkConfig.queue, choices=QUEUE_NAMES, help="of the downlink")
    parser.add_argument(
        "--queue-packets", type=int, metavar="N", help=f"its limit (default {LinkConfig.queue_packets})"
    )
    parser.add_argument("--queue-bytes", type=int, metavar="N", help="its limit in bytes, 4 of TUN per packet included")
    parser.add_argument("--queue-args", metavar="ARGS", help="instead, as for mm-link: 'packets=100, target=5'")
    parser.add_argument("--loss", type=float, default=LinkConfig.loss, metavar="P", help="of downlink packets")
    parser.add_argument("--seed", type=int, default=LinkConfig.seed, help="of the losses")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the downlink's events, in Mahimahi's format")
    parser.add_argument("--uplink-log", type=Path, metavar="FILE", help="likewise for the uplink trace")


def downlink_queue(arguments: argparse.Namespace) -> PacketQueue:
    """Build the downlink's queue as the options say."""
    packets, size_bytes = arguments.queue_packets, arguments.queue_bytes
    if arguments.queue_args is not None:
        if packets is not None or size_bytes is not None:
            raise RealTimeError("--queue-args replaces --queue-packets and --queue-bytes; expected one or the other")
        return parse_queue(arguments.queue, arguments.queue_args, seed=arguments.seed)
    if packets is None and size_bytes is None and arguments.queue != "infinite":
        packets = LinkConfig.queue_packets
    return create_queue(arguments.queue, limit_packets=packets or 0, limit_bytes=size_bytes or 0, seed=arguments.seed)


def downlink_trace(arguments: argparse.Namespace) -> Trace:
    """Load the downlink's trace as the options say."""
    return load_trace(
        TraceConfig(arguments.trace, share=arguments.share, offset_s=arguments.start, rate_bps=arguments.rate)
    )


def uplink_trace(arguments: argparse.Namespace) -> Trace | None:
    """Load the uplink's trace, if there is one."""
    if arguments.uplink is None:
        if arguments.uplink_log is not None:
            raise RealTimeError("--uplink-log needs --uplink; an uplink that only delays has no events")
        return None
    return load_trace(arguments.uplink, offset_s=arguments.start)


def _address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT or [IPv6]:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}; expected HOST:PORT")
    return host.strip("[]"), int(port)


def _shell(arguments: argparse.Namespace) -> int:
    from emulator.shell import ShellConfig, run_shell

    config = ShellConfig(
        trace=downlink_trace(arguments),
        uplink=uplink_trace(arguments),
        queue=downlink_queue(arguments),
        delay_ms=arguments.delay_ms,
        loss=arguments.loss,
        uplink_loss=arguments.uplink_loss,
        seed=arguments.seed,
        log=arguments.log,
        uplink_log=arguments.uplink_log,
        congestion=arguments.congestion,
        direct=arguments.direct,
    )
    return run_shell(config, arguments.command or [os.environ.get("SHELL", "/bin/sh")])


def _bench(arguments: argparse.Namespace) -> None:
    from emulator import bench

    try:
        rates_bps = [float(text) * 1e6 for text in arguments.rates.split(",")]
    except ValueError:
        raise RealTimeError(f"rates {arguments.rates!r}; expected numbers separated by commas") from None
    report = bench.run(rates_bps, seconds=arguments.seconds, devices=arguments.devices)
    print(json.dumps(dataclasses.asdict(report), indent=1) if arguments.json else bench.format_report(report))


def _proxy(arguments: argparse.Namespace) -> None:
    with contextlib.ExitStack() as files:

        def log_file(path: Path | None) -> TextIO | None:
            return None if path is None else files.enter_context(path.open("w", encoding="ascii"))

        asyncio.run(_run_proxy(arguments, log_file(arguments.log), log_file(arguments.uplink_log)))


async def _run_proxy(arguments: argparse.Namespace, log: TextIO | None, uplink_log: TextIO | None) -> None:
    """Run the proxy until SIGINT or SIGTERM; say on standard output where it listens once it does."""
    from emulator.proxy import TraceProxy

    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    upstream, listen = arguments.upstream, arguments.listen
    proxy = TraceProxy(
        downlink_trace(arguments),
        *upstream,
        uplink=uplink_trace(arguments),
        listen_host=listen[0],
        listen_port=listen[1],
        downlink_log=log,
        uplink_log=uplink_log,
        queue=downlink_queue(arguments),
        delay_ms=arguments.delay_ms,
        loss=arguments.loss,
        seed=arguments.seed,
        handshake_rtts=arguments.handshake_rtts,
    )
    async with proxy:
        sys.stdout.write(f"listening on {listen[0]}:{proxy.port}, upstream {upstream[0]}:{upstream[1]}\n")
        sys.stdout.flush()
        await over.wait()
