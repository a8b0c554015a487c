"""Command line: `python -m traces list|info|plot|convert`. Parse, call, print."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from traces import catalogue, registry
from traces.config import SYNTHETIC, TraceConfig, load_trace
from traces.errors import TraceError
from traces.formats import FORMATS, write_cooked, write_mahimahi, write_sabre
from traces.trace import Trace

_NAMES = "catalogue name (see: list), path of a trace file, or " + ", ".join(SYNTHETIC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a bad trace or setting, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
        sys.stdout.flush()
    except TraceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(prog="python -m traces", description="Network traces: list, inspect, convert.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="list|info|plot|convert")

    listing = commands.add_parser("list", help="list the vendored traces")
    listing.add_argument("family", nargs="?", help="show only this family")
    listing.set_defaults(command=_list)

    info = commands.add_parser("info", help="print a trace's figures and origin as JSON")
    _add_selection(info)
    info.set_defaults(command=_info)

    plot = commands.add_parser("plot", help="draw rate over time and its distribution")
    _add_selection(plot)
    plot.add_argument("-o", "--output", type=Path, required=True, help="file to write: .pdf, .png or .svg")
    plot.add_argument("--bin", type=float, default=1.0, metavar="S", help="mean rate over S seconds (default 1)")
    plot.add_argument("--duration", type=float, metavar="S", help="draw S seconds instead of one period")
    plot.add_argument("--log", action="store_true", help="logarithmic rate axes")
    plot.set_defaults(command=_plot)

    convert = commands.add_parser("convert", help="write a trace in another format")
    _add_selection(convert, several=False)
    convert.add_argument("output", type=Path, help="file to write")
    convert.add_argument("--to", choices=FORMATS, default="mahimahi", help="format (default mahimahi)")
    convert.add_argument(
        "--bin", type=float, default=1.0, metavar="S", help="cooked, sabre: S seconds a line (default 1)"
    )
    convert.add_argument("--force", action="store_true", help="overwrite an existing file")
    convert.set_defaults(command=_convert)
    return parser


def _add_selection(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Add the arguments that choose traces."""
    default = TraceConfig()
    if several:
        parser.add_argument("trace", nargs="+", help=_NAMES)
    else:
        parser.add_argument("trace", help=_NAMES)
    parser.add_argument("--share", type=int, default=default.share, metavar="N", help="every N-th opportunity only")
    parser.add_argument("--offset", type=float, default=default.offset_s, metavar="S", help="start S seconds into it")
    parser.add_argument("--rate", type=float, metavar="MBPS", help="constant: rate in Mbit/s")
    parser.add_argument("--rates", metavar="MBPS,...", help="step, markov: rates in Mbit/s, comma-separated")
    parser.add_argument("--dwell", type=float, default=default.dwell_s, metavar="S", help="step, markov: (mean) stay")
    parser.add_argument("--length", type=float, default=default.duration_s, metavar="S", help="markov: period")
    parser.add_argument("--seed", type=int, default=default.seed, help="markov: seed")


def _load(options: argparse.Namespace, name: str) -> Trace:
    """Return one of the chosen traces."""
    try:
        rates_bps = [float(rate) * 1e6 for rate in options.rates.split(",")] if options.rates else []
    except ValueError as error:
        raise TraceError(f"--rates: found {options.rates!r}, expected numbers (Mbit/s) with commas between") from error
    config = TraceConfig(
        name=name,
        share=options.share,
        offset_s=options.offset,
        rate_bps=None if options.rate is None else options.rate * 1e6,
        rates_bps=rates_bps,
        dwell_s=options.dwell,
        duration_s=options.length,
        seed=options.seed,
    )
    return load_trace(config)


def _list(options: argparse.Namespace) -> None:
    """Print the catalogue."""
    known = catalogue.families()
    chosen = [family for family in known if options.family in (None, family.name)]
    if not chosen and options.family not in registry.plugins().names():
        names = ", ".join([*(family.name for family in known), *registry.plugins().names()])
        raise TraceError(f"family: found {options.family!r}, expected one of {names}")
    for family in chosen:
        sys.stdout.write(f"{family.name}: {family.title}\n")
        for entry in family.entries:
            mark = "*" if entry.name == family.default else " "
            figures = f"{entry.duration_s:8.1f} s {entry.mean_bps / 1e6:9.3f} Mbit/s  p5 {entry.p5_bps / 1e6:8.3f}"
            sys.stdout.write(f"  {mark} {entry.name:<28}{figures}  {entry.original}\n")
    _list_offered(options.family)
    extra = ", ".join(f"{alias} = {name}" for alias, name in catalogue.aliases().items())
    sys.stdout.write(f"\n* what the family's name alone stands for. Also: {extra}.\n")
    sys.stdout.write(f"Synthetic: {', '.join(SYNTHETIC)}. Any other name is the path of a trace file.\n")


def _list_offered(chosen: str | None) -> None:
    """Print what other packages offer; a broken one's line says what is wrong with it."""
    for name in registry.plugins().names():
        if chosen not in (None, name):
            continue
        try:
            one = registry.offered(name)
        except TraceError as error:
            sys.stdout.write(f"{name}: broken: {error}\n")
            continue
        if isinstance(one, registry.TraceFormat):
            sys.stdout.write(f"{name}: {one.title}; reads files *{one.suffix}\n")
            continue
        sys.stdout.write(f"{name}: {one.title}\n")
        for member in one.members:
            sys.stdout.write(f"  {'*' if member == one.members[0] else ' '} {name}/{member}\n")


def _info(options: argparse.Namespace) -> None:
    """Print figures of traces, one JSON object each."""
    for name in options.trace:
        trace = _load(options, name)
        figures: dict[str, object] = {
            "name": trace.name,
            "share": options.share,
            "offset_s": options.offset,
            "period_s": trace.duration_s,
            "opportunities": int(trace.opportunities_ms.size),
            "mean_bps": round(trace.mean_bps, 1),
            **{f"p{q}_bps": round(trace.percentile_bps(q), 1) for q in (5, 25, 50, 75, 95)},
        }
        entry = catalogue.find(name)
        if entry is not None and entry.name == trace.name:
            figures |= {"measured_from": entry.original, "origin": entry.origin, "licence": entry.licence}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def _plot(options: argparse.Namespace) -> None:
    """Draw traces."""
    part = f", 1/{options.share}" if options.share > 1 else ""
    part += f", +{options.offset:g} s" if options.offset else ""
    loaded = [_load(options, name) for name in options.trace]
    loaded = [replace(trace, name=trace.name + part) for trace in loaded]
    from traces.plot import plot_traces  # matplotlib costs most of a second; nothing else needs it

    plot_traces(loaded, options.output, bin_s=options.bin, duration_s=options.duration, log=options.log)


def _convert(options: argparse.Namespace) -> None:
    """Write a trace in another format."""
    trace = _load(options, options.trace)
    if options.output.exists() and not options.force:
        raise TraceError(f"{options.output}: found an existing file, expected a new name or --force")
    if options.to == "mahimahi":
        delay_ms = write_mahimahi(trace, options.output)
        if delay_ms:
            sys.stderr.write(
                f"note: the last opportunity was moved by {delay_ms} ms to the period's end, as the format needs\n"
            )
    elif options.to == "cooked":
        write_cooked(trace, options.output, bin_s=options.bin)
    else:
        write_sabre(trace, options.output, bin_s=options.bin)


if __name__ == "__main__":
    sys.exit(main())
