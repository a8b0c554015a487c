"""What the commands that train networks share: arguments of a run, its schedule, its checkpoints."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.pt"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how a training that resumes by the same command is run."""
    parser.add_argument("--limit", type=int, help="read at most this many pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--minutes", type=float, help="stop after this many minutes, to be resumed by the same command")
    parser.add_argument("--seed", type=int)


def rate_share(step: int, steps: int, warm_up: int) -> float:
    """Return the share of the peak learning rate at a step of so many: linear warm-up, cosine to zero."""
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a training's whole state into its folder, whole or not at all."""
    import torch  # late, so that --help answers at once

    partial = folder / f"{CHECKPOINT}.part"
    torch.save(state, partial)
    partial.replace(folder / CHECKPOINT)
