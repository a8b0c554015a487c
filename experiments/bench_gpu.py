"""What a GPU does with SD-Turbo: `python -m experiments.bench_gpu [--quick]`. No weights needed: they are random.

Random weights of the exact architecture cost what real ones do. Prints what each step of rendering gave, memory by
batch with what fits common cards, and fitting against a loop as the published one; writes JSON after every row, so that
a run that is stopped leaves what it measured. Runs on a CPU too, in a tiny configuration (`--tiny`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_FULL_BUDGET_S, _QUICK_BUDGET_S = 450.0, 150.0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without the rows that compile for minutes")
    parser.add_argument("--tiny", action="store_true", help="a small model and few frames, to try the script anywhere")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"), help="half precision to measure")
    parser.add_argument("--decoder", default="taesd", choices=("taesd", "vae"), help="TAESD (default) or its own VAE")
    parser.add_argument("--frames", type=int, default=60, help="of the segment that is rendered (default 60)")
    parser.add_argument("--budget-s", type=float, help=f"default {_FULL_BUDGET_S:g}, --quick {_QUICK_BUDGET_S:g}")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench_gpu.json"), help="default %(default)s")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one row, in a process of its own that can be stopped
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    # torch is imported late, so that --help answers at once
    from experiments.gpu_rows import Bench, Plan, measure_row
    from player.errors import PlayerError
    from player.model_files import resolve_device

    budget_s = arguments.budget_s or (_QUICK_BUDGET_S if arguments.quick else _FULL_BUDGET_S)
    try:
        if arguments.frames < 1 or budget_s <= 0:
            raise ValueError(f"--frames {arguments.frames}, --budget-s {budget_s:g}: expected more than 0")
        device = resolve_device(arguments.device)
        if device.type == "cpu" and not arguments.tiny:
            raise ValueError("no CUDA device here: --tiny tries the script on a CPU, with numbers that say nothing")
        plan = Plan(device, arguments.dtype, arguments.decoder, arguments.frames, arguments.tiny, arguments.quick)
        if arguments.row:
            print(json.dumps(measure_row(plan, arguments.row)))
            return 0
        bench = Bench(plan, budget_s, arguments.json)
        bench.run(print)
    except (PlayerError, ValueError, OSError) as error:
        sys.stderr.write(f"bench_gpu: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"bench_gpu: interrupted; {arguments.json} holds what was measured\n")
        return 130
    print(arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
