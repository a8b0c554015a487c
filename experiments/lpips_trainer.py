"""The training loop of lpips-embedded: distances of every tap learned from the teacher's, checkpoints, curves."""

from __future__ import annotations

import csv
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from experiments.lpips_data import Pairs, pooled
from experiments.train_data import TrainingDataError
from experiments.training import CHECKPOINT, rate_share, save_state
from player.decoder import from_pixels
from player.quality.embedded import EmbeddedNetwork
from player.quality.lpips import sum_of_means

log = logging.getLogger(__name__)

_FLOOR = 1e-4  # under the square root of a distance: below it two pictures are equal to LPIPS
_FULL_PRECISION_SHARE = 0.15  # of the steps, the last ones, taken in float32
_WARM_UP_STEPS = 200
_LOG_STEPS = 200  # between two measurements on the held-out pairs, each with a checkpoint


@dataclass
class LpipsTrainConfig:
    """How lpips-embedded is trained."""

    epochs: int = 20
    batch: int = 16
    learning_rate: float = 2e-3
    score_weight: float = 2.0
    """Weight of the whole score's error against that of the places."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate:g}, expected more than 0")


@dataclass(frozen=True)
class Agreement:
    """How closely scores follow a teacher's: about `slope` * teacher + `intercept` (least squares)."""

    frames: int
    pearson: float
    spearman: float
    mean_absolute_error: float
    teacher_mean: float
    slope: float
    intercept: float


def agreement(scores: np.ndarray, teacher: np.ndarray) -> Agreement:
    """Return the agreement of scores [N] with a teacher's [N]; correlations of constant scores are NaN."""
    error = float(np.abs(scores - teacher).mean())
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(teacher) == 0:
        return Agreement(len(scores), math.nan, math.nan, error, float(teacher.mean()), math.nan, math.nan)
    line, spearman = stats.linregress(teacher, scores), stats.spearmanr(scores, teacher).statistic
    return Agreement(
        len(scores), float(line.rvalue), float(spearman), error, float(teacher.mean()), float(line.slope),
        float(line.intercept),
    )  # fmt: skip


def distance_loss(maps: list[Tensor], target_maps: Tensor, target_taps: Tensor, score_weight: float) -> Tensor:
    """Return the mean absolute error of distances' square roots: of each tap's places, and of the whole score.

    Args:
        maps: the student's distances [B, 1, h, w] at every tap.
        target_maps: the teacher's, averaged onto the grid, [B, taps, GRID, GRID].
        target_taps: the teacher's means [B, taps].
        score_weight: of the score's error.
    """

    def error(found: Tensor, wanted: Tensor) -> Tensor:
        # square roots, as small distances matter as much as large ones
        return ((found + _FLOOR).sqrt() - (wanted + _FLOOR).sqrt()).abs().mean()

    return error(pooled(maps), target_maps) + score_weight * error(sum_of_means(maps), target_taps.sum(dim=1))


@dataclass
class LpipsTrainer:
    """Trains one network on pairs held in memory; goes on from its checkpoint."""

    config: LpipsTrainConfig
    training: Pairs
    held: Pairs
    out: Path
    device: torch.device
    start: EmbeddedNetwork | None = None
    """What training begins with; None is random weights."""
    network: EmbeddedNetwork = field(init=False)
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        first = self.start or EmbeddedNetwork()
        self.network = first.requires_grad_(True).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=1e-4, fused=True)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches the training pairs make; what is left over is left to other epochs."""
        return max(1, len(self.training.taps) // self.config.batch)

    @property
    def steps(self) -> int:
        """How many steps the whole schedule has."""
        return self.steps_per_epoch * self.config.epochs

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one; return whether there was. The number of epochs may be another."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if len(self.training.taps) != state["pairs"]:
            raise TrainingDataError(
                f"{path}: trained on {state['pairs']} pairs, not {len(self.training.taps)}; choose another --out"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"seconds": self.seconds, "pairs": len(self.training.taps)}
        save_state(self.out, state)

    def run(self, seconds: float = math.inf) -> bool:
        """Train to the end of the schedule or until about so many seconds are over; return whether it was the end.

        Between two checkpoints nothing stops it, so every call gets somewhere.
        """
        until = time.monotonic() + seconds
        while self.step < self.steps:
            began = time.monotonic()
            count = min(_LOG_STEPS, self.steps - self.step)
            self.network.train()
            loss = math.fsum(self._descend(self._batch()) for _ in range(count)) / count
            self.seconds += time.monotonic() - began
            self._log(loss)
            self.save()
            if time.monotonic() > until:
                break
        return self.step >= self.steps

    def _batch(self) -> np.ndarray:
        """Return the pairs of this step; every epoch passes over all of them in an order of its own."""
        epoch, number = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.training.taps))
        return order[number * self.config.batch : (number + 1) * self.config.batch]

    def _descend(self, chosen: np.ndarray) -> float:
        rate = self.config.learning_rate * rate_share(self.step, self.steps, _WARM_UP_STEPS)
        self.optimizer.param_groups[0]["lr"] = rate
        crops = self.training.crops[chosen]
        pair = (from_pixels(crops[:, side]).to(self.device) for side in (0, 1))
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.step / self.steps < 1 - _FULL_PRECISION_SHARE
        ):
            maps = self.network.tap_maps(*pair)
        target_maps = torch.from_numpy(self.training.maps[chosen]).float().to(self.device)
        target_taps = torch.from_numpy(self.training.taps[chosen]).to(self.device)
        loss = distance_loss([tap.float() for tap in maps], target_maps, target_taps, self.config.score_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def scores(self, pairs: Pairs) -> np.ndarray:
        """Return the network's scores [N] of pairs of crops."""
        self.network.eval()
        parts = np.array_split(pairs.crops, max(1, len(pairs.crops) // 16))
        found = [self.network(*(from_pixels(part[:, side]).to(self.device) for side in (0, 1))).cpu() for part in parts]
        return torch.cat(found).numpy()

    def _log(self, loss: float) -> None:
        held = agreement(self.scores(self.held), self.held.taps.sum(axis=1))
        row = {
            "step": self.step, "seconds": round(self.seconds, 1), "loss": round(loss, 5),
            "pearson": round(held.pearson, 5), "spearman": round(held.spearman, 5),
            "mean_absolute_error": round(held.mean_absolute_error, 5), "slope": round(held.slope, 4),
        }  # fmt: skip
        path = self.out / "log.csv"
        first = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if first:
                writer.writeheader()
            writer.writerow(row)
        log.info("%s", "  ".join(f"{name} {value}" for name, value in row.items()))
