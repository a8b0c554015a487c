"""Command line: replay arrivals and graph logs, compare the two transports, time one transfer. Parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emulator import compare, graph, realtime, speed
from emulator.config import MODELS, LinkConfig, parse_settings
from emulator.elements import cross, parse_element
from emulator.errors import EmulatorError
from emulator.queues import COMPAT_NAMES, QUEUE_NAMES, parse_queue
from emulator.replay import LogHeader, events_md5, read_arrivals, replay, write_log
from emulator.transport import create_transport
from traces import Trace, TraceError, load_trace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0  # the shell's status is its command's
    except (EmulatorError, TraceError, OSError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m emulator", description="The emulated network.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_replay(commands)
    _add_graph(commands)
    _add_compare(commands)
    _add_transfer(commands)
    _add_speed(commands)
    realtime.add_commands(commands)
    return parser


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("replay", help="send recorded arrivals through a link; write Mahimahi's log of it")
    parser.add_argument("--trace", required=True, help="a trace file, or a catalogue name")
    parser.add_argument("--arrivals", required=True, metavar="FILE", help="'ms bytes' per line, TUN header included")
    parser.add_argument("--end-ms", type=int, required=True, metavar="N", help="last millisecond of the log")
    parser.add_argument("--once", action="store_true", help="the link ends with the trace's last line")
    parser.add_argument("--queue", default="infinite", choices=QUEUE_NAMES)
    parser.add_argument("--queue-args", default="", metavar="TEXT", help="as mm-link's, e.g. 'packets=10'")
    parser.add_argument("--compat", default="none", choices=COMPAT_NAMES, help="mahimahi: its defects too")
    parser.add_argument("--seed", type=int, default=0, help="of pie's drops and of random elements")
    parser.add_argument(
        "--before",
        action="append",
        default=[],
        metavar="ELEMENT",
        help="crossed before the link, outermost first: delay=MS, loss=P, onoff=ON_S,OFF_S or intermittent=ON_S,OFF_S",
    )
    parser.add_argument("--uplink", action="store_true", help="call the log an uplink's")
    parser.add_argument("--log", required=True, metavar="OUT", help="the log to write")
    parser.set_defaults(run=_replay)


def _add_graph(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("graph", help="capacity, throughput and delays of a link log, ours or Mahimahi's")
    parser.add_argument("log", metavar="LOG")
    parser.add_argument("--bin-ms", type=int, default=500, help="width of the rates' bins (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("-o", "--output", metavar="FIGURE", help="draw it: .png, .pdf or .svg")
    parser.set_defaults(run=_graph)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("compare", help="table of the fluid model's error against the packet model")
    parser.add_argument("--traces", default=",".join(compare.TRACES), help="comma-separated; NAME@N: 1/N share")
    parser.add_argument("--rtts", default=",".join(map(str, compare.RTTS_MS)), help="round trips in ms")
    parser.add_argument("--requests", type=int, default=60, help="per case (default %(default)s)")
    parser.add_argument("--queues", metavar="N,N,...", help="droptail limits, or 'infinite'; replaces --queue")
    _add_link_options(parser)
    parser.set_defaults(run=_compare)


def _add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("transfer", help="time one object on a fresh connection, as JSON")
    parser.add_argument("--trace", default="lte", help="catalogue name, NAME@N for a 1/N share, or a file")
    parser.add_argument("--size", type=int, required=True, metavar="BYTES")
    parser.add_argument("--at", type=float, default=0.0, metavar="S", help="time of the request")
    parser.add_argument("--deadline", type=float, default=math.inf, metavar="S", help="give up at this time")
    parser.add_argument("--model", default="packet", choices=MODELS)
    parser.add_argument("--delay-ms", type=float, default=LinkConfig.delay_ms, help="one-way delay")
    _add_link_options(parser)
    parser.set_defaults(run=_transfer)


def _add_speed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("speed", help="how fast virtual time runs here: packets, transfers, sessions a second")
    parser.add_argument("--trace", default="lte", help="catalogue name, NAME@N for a 1/N share, or a file")
    parser.add_argument("--seconds", type=float, default=1.0, help="processor time of each measurement")
    _add_link_options(parser)
    parser.set_defaults(run=_speed)


def _add_link_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", default=LinkConfig.queue, choices=QUEUE_NAMES)
    parser.add_argument("--queue-packets", type=int, default=LinkConfig.queue_packets)
    parser.add_argument("--loss", type=float, default=LinkConfig.loss)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting of the link, as link.KEY of an experiment, e.g. congestion_control=reno",
    )


def _link(arguments: argparse.Namespace) -> LinkConfig:
    return LinkConfig(
        queue=arguments.queue,
        queue_packets=arguments.queue_packets,
        loss=arguments.loss,
        seed=arguments.seed,
        **parse_settings(arguments.link, taken=("model", "delay_ms", "queue", "queue_packets", "loss", "seed")),
    )


def _load(name: str) -> Trace:
    """Load a trace by name; NAME@N is what one of N users gets of it."""
    base, at_sign, share = name.rpartition("@")
    if at_sign and not Path(name).exists() and share.isdecimal() and int(share) > 0:
        return load_trace(base, share=int(share))
    return load_trace(name)


def _replay(arguments: argparse.Namespace) -> None:
    queue = parse_queue(arguments.queue, arguments.queue_args, compat=arguments.compat, seed=arguments.seed)
    trace = _load(arguments.trace)
    arrivals = read_arrivals(arguments.arrivals)
    if arguments.before:
        elements = [parse_element(text, seed=arguments.seed + place) for place, text in enumerate(arguments.before)]
        crossed = cross(elements, [(now_ms * 1000, size_bytes) for now_ms, size_bytes in arrivals])
        arrivals = [(now_us // 1000, size_bytes) for now_us, size_bytes in crossed]
    direction = "Uplink" if arguments.uplink else "Downlink"
    header = LogHeader(direction, arguments.trace, arguments.log, queue.describe())
    started_s = time.process_time()
    lines = replay(trace, arrivals, end_ms=arguments.end_ms, queue=queue, repeat=not arguments.once)
    elapsed_s = time.process_time() - started_s
    write_log(arguments.log, header, lines)
    print(json.dumps({"events": len(lines), "md5_of_event_lines": events_md5(lines)}))
    print(f"{len(lines) / max(elapsed_s, 1e-9):,.0f} events per second of one core", file=sys.stderr)


def _graph(arguments: argparse.Namespace) -> None:
    log = graph.read_log(arguments.log)
    summary = graph.summarise(log)
    if arguments.output:
        if Path(arguments.output).suffix not in (".png", ".pdf", ".svg"):
            raise EmulatorError(f"figure {arguments.output!r}; expected a name ending in .png, .pdf or .svg")
        from emulator.log_plot import plot_log

        plot_log(log, arguments.output, bin_ms=arguments.bin_ms)
    print(json.dumps(dataclasses.asdict(summary)) if arguments.json else graph.format_summary(summary))


def _compare(arguments: argparse.Namespace) -> None:
    if arguments.requests < 1:
        raise EmulatorError(f"requests is {arguments.requests}; expected 1 or more")
    try:
        rtts_ms = [float(text) for text in arguments.rtts.split(",")]
    except ValueError:
        raise EmulatorError(f"rtts {arguments.rtts!r}; expected numbers separated by commas") from None
    traces = [(name, _load(name)) for name in arguments.traces.split(",")]
    config = _link(arguments)
    configs = [config] if arguments.queues is None else compare.with_queues(config, arguments.queues.split(","))
    pairs = compare.compare_all(traces, configs, rtts_ms=rtts_ms, requests=arguments.requests, seed=arguments.seed)
    print(compare.format_table(pairs))


def _speed(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.seconds <= 60:
        raise EmulatorError(f"seconds is {arguments.seconds}; expected above 0, at most 60")
    speeds = speed.measure(_load(arguments.trace), _link(arguments), seconds=arguments.seconds)
    print(speed.format_speeds(speeds))


def _transfer(arguments: argparse.Namespace) -> None:
    config = dataclasses.replace(_link(arguments), model=arguments.model, delay_ms=arguments.delay_ms)
    transport = create_transport(_load(arguments.trace), config)
    result = transport.request(arguments.size, arguments.at, arguments.deadline)
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    sys.exit(main())
