"""Time a study's sessions: `python -m experiments.bench_sessions PACKAGE [--abr throughput,bba,bola] [--trace lte]`.

Printed are milliseconds of processor time for each session of 180 s, and how many that makes a second on one core: what
else the machine does is left out. A study runs as many processes as there are cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_sessions", description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path, help="a packaged folder")
    parser.add_argument("--abr", default="throughput,bba,bola")
    parser.add_argument("--trace", default="lte")
    parser.add_argument("--sessions", type=int, default=20, help="of each controller")
    arguments = parser.parse_args(argv)
    from abr import AbrConfig, AbrError
    from emulator import LinkConfig
    from experiments.errors import ExperimentError
    from experiments.shares import default_share
    from experiments.sweep_sessions import Looked, play
    from player.config import PlayerConfig
    from player.errors import PlayerError
    from player.presentation import Presentation
    from player.programme import build_programme
    from player.record import default_rule
    from traces import TraceError, load_trace

    try:
        programme = build_programme(Presentation.load(arguments.package), 180.0)
        rule = default_rule(programme.presentation.metrics)
        looked, player, link = Looked("clip", "clip", programme, rule), PlayerConfig(), LinkConfig()
        trace = load_trace(arguments.trace, share=default_share(arguments.trace))
        for name in arguments.abr.split(","):
            play(AbrConfig(name), trace, looked, player, link)  # what is computed once is not a session's cost
            begin_s = time.process_time()
            for _ in range(arguments.sessions):
                play(AbrConfig(name), trace, looked, player, link)
            each_s = (time.process_time() - begin_s) / arguments.sessions
            print(f"{name:14} {1e3 * each_s:8.2f} ms  {1 / each_s:8.0f} sessions/s on one core")
    except (AbrError, ExperimentError, PlayerError, TraceError) as error:
        print(f"bench_sessions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
