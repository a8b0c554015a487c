"""Time every controller's decisions: `python -m experiments.bench_abr [--representations 6] [--abr mpc,fugu]`.

Each plays one session over a recorded LTE link. NAME+rendering is the controller on a ladder that says what rendering
costs (four modes, a device that just keeps up with all frames), NAME+switching the controller under FastSwitching.
Printed are the median and the 99th percentile of its decisions in microseconds of CPU on this machine, and what
building it took. `oracle` plans a session at once and is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np

from abr import Abr, AbrError, Decision, Ladder, Observation, Rendering, create_abr, known_names
from abr.render_aware import RenderAware
from abr.render_mpc import RenderMpc
from abr.replacement import FastSwitching
from emulator import LinkConfig, create_transport
from experiments.errors import ExperimentError, UsageError
from experiments.simulate import simulate
from player.config import PlayerConfig
from player.session import Session
from traces import TraceConfig, load_trace

SEGMENTS, SEGMENT_S, BUFFER_S = 120, 2.0, 20.0
RENDERING, SWITCHING = "+rendering", "+switching"
WRAPPED = (f"bola{RENDERING}", f"quality_mpc{RENDERING}", f"bola{SWITCHING}")
"""Measured besides the controllers by name."""


class Stopwatch:
    """A controller that notes how long another one takes to choose."""

    def __init__(self, controller: Abr) -> None:
        self._controller = controller
        self.spent_us: list[float] = []

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        begin_ns = time.thread_time_ns()
        decision = self._controller.choose(observation)
        self.spent_us.append((time.thread_time_ns() - begin_ns) / 1e3)
        return decision


def make_ladder(representations: int) -> Ladder:
    """Return a ladder from 0.3 to 4.3 Mbit/s, sizes varying by 20 %, with a made-up concave quality."""
    rates = np.geomspace(0.3e6, 4.3e6, representations)
    spread = np.random.default_rng(0).lognormal(0.0, 0.2, (SEGMENTS, 1))
    quality = np.tile(np.log(rates / rates[0] + 1), (SEGMENTS, 1))
    sizes = np.round(rates * SEGMENT_S / 8 * spread).astype(np.int64)
    return Ladder(rates, sizes, np.full(SEGMENTS, SEGMENT_S), quality=quality)


def with_rendering(ladder: Ladder) -> Ladder:
    """Return the ladder with four render modes: 60, 30, 20 and 8 passes for 2 s, on a device of 32 passes/s."""
    shape = (ladder.segments, ladder.representations, 4)
    passes = np.broadcast_to([60.0, 30.0, 20.0, 8.0], shape)
    if ladder.quality is None:
        raise ValueError("the ladder has no quality")
    quality = ladder.quality[:, :, None] * np.array([1.0, 0.98, 0.96, 0.9])
    return replace(ladder, rendering=Rendering(32.0, ("full", "half", "third", "keys"), passes, passes / 2, quality))


def create(name: str, ladder: Ladder) -> Abr:
    """Return a controller, wrapped if its name says so; the ladder holds what rendering costs if that is needed."""
    plain = name.removesuffix(RENDERING).removesuffix(SWITCHING)
    inner = create_abr(plain, ladder, buffer_capacity_s=BUFFER_S)
    if name.endswith(RENDERING) and not isinstance(inner, RenderMpc):
        return RenderAware(inner, ladder)
    return FastSwitching(inner, segment_s=SEGMENT_S) if name.endswith(SWITCHING) else inner


def measure(name: str, ladder: Ladder) -> str:
    """Play one session; return the controller's line."""
    ladder = with_rendering(ladder) if name.endswith(RENDERING) else ladder
    begin_s = time.thread_time()
    controller = create(name, ladder)
    build_ms = (time.thread_time() - begin_s) * 1e3
    watch = Stopwatch(controller)
    session = Session(ladder, watch, PlayerConfig(buffer_s=BUFFER_S))
    transport = create_transport(load_trace(TraceConfig(name="lte")), LinkConfig())
    simulate(session, transport, segment_frames=[1] * SEGMENTS)
    median_us, slow_us = np.percentile(watch.spent_us, [50, 99])
    return f"{name:22} {median_us:10.0f} {slow_us:10.0f} {build_ms:10.1f}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_abr", description=__doc__.split("\n")[0])
    parser.add_argument("--abr", help="names, comma-separated; default: all that choose one segment at a time")
    parser.add_argument("--representations", type=int, default=6)
    arguments = parser.parse_args(argv)
    every = [*(name for name in known_names() if name != "oracle"), *WRAPPED]
    names = arguments.abr.split(",") if arguments.abr else every
    try:
        if not 1 <= arguments.representations <= 100:
            raise UsageError(f"--representations {arguments.representations}: expected 1 to 100")
        ladder = make_ladder(arguments.representations)
        print(f"{'controller':22} {'median us':>10} {'99 % us':>10} {'build ms':>10}")
        for name in names:
            print(measure(name, ladder))
    except (AbrError, ExperimentError) as error:
        print(f"bench_abr: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
