"""Time a study's sessions: `python -m experiments.bench_sessions PACKAGE [--abr throughput,bba,bola] [--trace lte]`.

For each controller, milliseconds of processor time for a session of 180 s over the fluid link, and the sessions per
second that makes on one core; the same session over Sabre's model of a link (a rate per second and one latency per
request, `experiments.compat.sabre_link`), and what a segment costs in both. Then the same sessions on several processes
at once, by wall clock and by the workers' processor time: the two differ by what else the machine does.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abr import Abr
    from emulator import Download, Transfer, Transport
    from traces import Trace

SESSION_S = 180.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_sessions", description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path, help="a packaged folder")
    parser.add_argument("--abr", default="throughput,bba,bola")
    parser.add_argument("--trace", default="lte")
    parser.add_argument("--sessions", type=int, default=40, help="of each controller (default 40)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    arguments = parser.parse_args(argv)
    if arguments.sessions < 1 or arguments.jobs < 1:
        print("bench_sessions: --sessions and --jobs: expected 1 or more", file=sys.stderr)
        return 2
    from abr import AbrError
    from emulator import EmulatorError
    from experiments.errors import ExperimentError
    from player.errors import PlayerError
    from traces import TraceError

    names = arguments.abr.split(",")
    try:
        bench = Bench(arguments.package, arguments.trace)
        for name in names:
            print(bench.line(name, arguments.sessions))
        print(spread(arguments, names))
    except (AbrError, EmulatorError, ExperimentError, PlayerError, TraceError, OSError) as error:
        print(f"bench_sessions: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


class Bench:
    """One package over one link, ready to be played again and again."""

    def __init__(self, package: Path, trace: str) -> None:
        from emulator import LinkConfig
        from experiments.shares import default_share
        from experiments.sweep_sessions import Looked
        from player.config import PlayerConfig
        from player.presentation import Presentation
        from player.programme import build_programme
        from player.record import default_rule
        from traces import load_trace

        programme = build_programme(Presentation.load(package), SESSION_S)
        self.looked = Looked("clip", "clip", programme, default_rule(programme.presentation.metrics))
        self.player, self.link = PlayerConfig(), LinkConfig()
        self.trace = load_trace(trace, share=default_share(trace))

    def line(self, name: str, sessions: int) -> str:
        """Return a controller's line."""
        from emulator import create_transport

        segments = self.looked.ladder.segments
        whole_s = cpu_s(lambda: self.play(name), sessions)
        fluid_s = cpu_s(lambda: self.simulate(name, create_transport(self.trace, self.link)), sessions)
        sabre_s = cpu_s(lambda: self.simulate(name, SabreTransport(self.trace, self.link.delay_ms)), sessions)
        return (
            f"{name:14} {1e3 * whole_s:7.2f} ms, {1 / whole_s:5.0f} sessions/s on one core; a segment: "
            f"{1e6 * fluid_s / segments:5.1f} us fluid, {1e6 * sabre_s / segments:5.1f} us Sabre's link, "
            f"ratio {fluid_s / sabre_s:.2f}"
        )

    def play(self, name: str) -> None:
        """Play a session as a study does, to its row."""
        from abr import AbrConfig
        from experiments.sweep_sessions import play

        play(AbrConfig(name), self.trace, self.looked, self.player, self.link)

    def simulate(self, name: str, transport: Transport) -> None:
        """Play a session without its row."""
        from abr import create_abr
        from experiments.simulate import simulate
        from player.session import Session

        ladder = self.looked.ladder
        controller: Abr = create_abr(name, ladder, buffer_capacity_s=self.player.buffer_s)
        simulate(Session(ladder, controller, self.player), transport, segment_frames=self.looked.segment_frames)


class SabreTransport:
    """Sabre's link in place of ours: one latency per request, then the rate of each second. No deadline ends it."""

    def __init__(self, trace: Trace, delay_ms: float) -> None:
        from experiments.compat.sabre_inputs import Period
        from experiments.compat.sabre_link import SabreLink

        rates_bps = trace.rate_bps().tolist()
        self._link = SabreLink([Period(1000.0, rate / 1000, 2 * delay_ms) for rate in rates_bps], lambda *_: None)

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """See `emulator.Transport`; the deadline is ignored, as Sabre knows none."""
        from emulator import Transfer

        link = self._link
        link.idle(max(1000 * request_s - link.time_ms, 0.0))
        first_byte_s = request_s + link.request() / 1000
        finish_s = first_byte_s + link.download(8.0 * size_bytes)[1] / 1000
        return Transfer(request_s, first_byte_s, finish_s, size_bytes, size_bytes, True)

    def begin(self, size_bytes: int, request_s: float) -> Download:
        """Refuse: a request that may be given up has to be watched on its way."""
        from experiments.errors import UsageError

        raise UsageError("--abr: Sabre's link is timed for controllers that do not give up requests")


def cpu_s(run: Callable[[], None], times: int) -> float:
    """Return the processor time of one call, the first not counted: what is computed once is not a session's cost."""
    run()
    begin_s = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - begin_s) / times


_bench: Bench | None = None  # of a worker process


def _adopt(package: Path, trace: str) -> None:
    global _bench
    _bench = Bench(package, trace)


def _work(names: Sequence[str], sessions: int) -> float:
    """Play the sessions in a worker; return the processor time that took."""
    if _bench is None:
        raise RuntimeError("a worker without a package")
    bench = _bench
    return sum(cpu_s(functools.partial(bench.play, name), sessions) * sessions for name in names)


def spread(arguments: argparse.Namespace, names: Sequence[str]) -> str:
    """Play everything on all processes at once; return the line that says how many sessions a second that was."""
    jobs, count = arguments.jobs, arguments.sessions * len(names)
    with ProcessPoolExecutor(jobs, initializer=_adopt, initargs=(arguments.package, arguments.trace)) as pool:
        list(pool.map(_work, [names[:1]] * jobs, [1] * jobs))  # workers start
        begin_s = time.perf_counter()
        spent_s = sum(pool.map(_work, [names] * jobs, [arguments.sessions] * jobs))
        wall_s = time.perf_counter() - begin_s
    return (
        f"{jobs} processes: {jobs * count / wall_s:.0f} sessions/s by wall clock, "
        f"{jobs * jobs * count / spent_s:.0f} by processor time"
    )


if __name__ == "__main__":
    sys.exit(main())
