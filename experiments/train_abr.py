"""Train the learned controllers on one half of the vendored traces, and test controllers on the other.

    python -m experiments.train_abr pensieve|fugu|test

Resumes from `OUT/NAME.pt` if it is there, logs its curve to `OUT/NAME.csv`, and writes the weights to `OUT/NAME.npz`,
which `abr.options={weights: OUT/NAME.npz}` uses and `abr/weights/` ships. `test` plays controllers on the other half.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("pensieve", "fugu")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.train_abr", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in NAMES:
        command = commands.add_parser(name, help=f"train {name}")
        command.add_argument("--out", type=Path, default=Path("outputs/abr"), help="checkpoint, curve, weights")
        command.add_argument("--iterations", type=int, help="in all, those of an earlier call included")
        command.add_argument("--minutes", type=float, help="stop after this long, to be resumed by the same command")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=1)
    test = commands.add_parser("test", help="play controllers on the test half")
    test.add_argument("--abr", default="pensieve,fugu,robustmpc,mpc,bola,bba,throughput,lowest", help="names")
    test.add_argument("--weights", type=Path, help="folder of NAME.npz to use instead of the shipped weights")
    test.add_argument("--limit", type=int, help="play only this many traces")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    from abr import AbrError
    from experiments.errors import ExperimentError

    try:
        if arguments.command == "test":
            from experiments.abr_scores import score_table

            names = arguments.abr.split(",")
            print(score_table(names, weights=arguments.weights, limit=arguments.limit))
        else:
            train(arguments)
    except (AbrError, ExperimentError, OSError) as error:
        print(f"train_abr: {error}", file=sys.stderr)
        return 1
    return 0


def train(arguments: argparse.Namespace) -> None:
    """Train one network until its iterations or the minutes are over; write checkpoint, curve and weights."""
    # torch is imported late, so that --help answers at once
    import numpy as np
    import torch

    from experiments.abr_sessions import BinnedLink, half
    from experiments.ppo import PolicyTrainer, PpoConfig, network_arrays
    from experiments.transfer_times import PredictorConfig, PredictorTrainer
    from traces import catalogue

    torch.set_num_threads(arguments.threads)
    begin_s = time.monotonic()
    given = {name: getattr(arguments, name) for name in ("seed", "iterations") if getattr(arguments, name) is not None}
    trainer: PolicyTrainer | PredictorTrainer
    config: PpoConfig | PredictorConfig
    if arguments.command == "pensieve":
        config = PpoConfig(**given)
        trainer = PolicyTrainer([BinnedLink(catalogue.load(name)) for name in half(training=True)], config)
        network = trainer.actor
    else:
        config = PredictorConfig(**given)
        trainer = PredictorTrainer(half(training=True), config)
        network = trainer.network
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint, curve = (arguments.out / f"{arguments.command}{suffix}" for suffix in (".pt", ".csv"))
    if checkpoint.exists():
        trainer.restore(_load_state(checkpoint))
        print(f"resuming at iteration {trainer.iteration} of {config.iterations}", file=sys.stderr)
    minutes = arguments.minutes if arguments.minutes is not None else float("inf")
    while trainer.iteration < config.iterations and time.monotonic() - begin_s < 60 * minutes:
        value = trainer.iterate()
        with curve.open("a", newline="", encoding="ascii") as file:
            csv.writer(file).writerow([trainer.iteration, f"{value:.6f}", f"{time.monotonic() - begin_s:.1f}"])
        if trainer.iteration % 10 == 0 or trainer.iteration == config.iterations:
            _save_state(trainer.state(), checkpoint)
            print(f"iteration {trainer.iteration} of {config.iterations}: {value:.4f}", file=sys.stderr)
    _save_state(trainer.state(), checkpoint)
    arrays: dict[str, Any] = network_arrays(network)
    np.savez(arguments.out / f"{arguments.command}.npz", **arrays)


def _save_state(state: dict[str, object], path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    import torch

    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _load_state(path: Path) -> dict[str, object]:
    """Read a checkpoint; ExperimentError if it is none."""
    import torch

    from experiments.errors import ExperimentError

    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds on a broken file
        raise ExperimentError(f"{path}: not a checkpoint of this training ({type(error).__name__})") from error
    if not isinstance(state, dict) or "iteration" not in state:
        raise ExperimentError(f"{path}: not a checkpoint of this training")
    return state


if __name__ == "__main__":
    raise SystemExit(main())
