"""Command line: compare the two transports, or time one transfer. Thin: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence

from emulator import compare
from emulator.config import MODELS, LinkConfig
from emulator.errors import EmulatorError
from emulator.queues import QUEUE_NAMES
from emulator.transport import create_transport
from traces import Trace, TraceError, load_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (EmulatorError, TraceError, OSError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m emulator", description="The emulated network in virtual time.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    comparison = commands.add_parser("compare", help="table of the fluid model's error against the packet model")
    comparison.add_argument("--traces", default=",".join(compare.TRACES), help="comma-separated; NAME@N: 1/N share")
    comparison.add_argument("--rtts", default=",".join(map(str, compare.RTTS_MS)), help="round trips in ms")
    comparison.add_argument("--requests", type=int, default=60, help="per trace and round trip (default %(default)s)")
    _add_link_options(comparison)
    comparison.set_defaults(run=_compare)

    transfer = commands.add_parser("transfer", help="time one object on a fresh connection, as JSON")
    transfer.add_argument("--trace", default="lte", help="catalogue name, NAME@N for a 1/N share, or a file")
    transfer.add_argument("--size", type=int, required=True, metavar="BYTES")
    transfer.add_argument("--at", type=float, default=0.0, metavar="S", help="time of the request")
    transfer.add_argument("--deadline", type=float, default=math.inf, metavar="S", help="give up at this time")
    transfer.add_argument("--model", default="packet", choices=MODELS)
    transfer.add_argument("--delay-ms", type=float, default=LinkConfig.delay_ms, help="one-way delay")
    _add_link_options(transfer)
    transfer.set_defaults(run=_transfer)
    return parser


def _add_link_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", default=LinkConfig.queue, choices=QUEUE_NAMES)
    parser.add_argument("--queue-packets", type=int, default=LinkConfig.queue_packets)
    parser.add_argument("--loss", type=float, default=LinkConfig.loss)
    parser.add_argument("--seed", type=int, default=0)


def _link(arguments: argparse.Namespace) -> LinkConfig:
    return LinkConfig(
        queue=arguments.queue, queue_packets=arguments.queue_packets, loss=arguments.loss, seed=arguments.seed
    )


def _load(name: str) -> Trace:
    """Load a trace by name; NAME@N is what one of N users gets of it."""
    base, at_sign, share = name.rpartition("@")
    if at_sign and share.isdecimal() and int(share) > 0:
        return load_trace(base, share=int(share))
    return load_trace(name)


def _compare(arguments: argparse.Namespace) -> None:
    if arguments.requests < 1:
        raise EmulatorError(f"requests is {arguments.requests}; expected 1 or more")
    try:
        rtts_ms = [float(text) for text in arguments.rtts.split(",")]
    except ValueError:
        raise EmulatorError(f"rtts {arguments.rtts!r}; expected numbers separated by commas") from None
    traces = [(name, _load(name)) for name in arguments.traces.split(",")]
    pairs = compare.compare_all(
        traces, _link(arguments), rtts_ms=rtts_ms, requests=arguments.requests, seed=arguments.seed
    )
    print(compare.format_table(pairs))


def _transfer(arguments: argparse.Namespace) -> None:
    config = dataclasses.replace(_link(arguments), model=arguments.model, delay_ms=arguments.delay_ms)
    transport = create_transport(_load(arguments.trace), config)
    result = transport.request(arguments.size, arguments.at, arguments.deadline)
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    sys.exit(main())
