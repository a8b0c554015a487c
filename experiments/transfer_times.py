"""Training of Fugu's predictor: transfers of random objects over the training links, and a cross-entropy fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from abr import ThroughputSample
from abr.fugu import BINS, FEATURES, bin_of, features
from abr.mpc import HORIZON
from emulator import LinkConfig, create_transport
from experiments.abr_sessions import HISTORY, SEGMENTS, BinnedLink, draw_situation
from experiments.ppo import make_scorer
from traces import Trace, TraceConfig, load_trace

FASTEST_BPS = 4e6
"""Faster links are shared down to this in training: sizes are relative, and small rates are quick to emulate."""


@dataclass
class PredictorConfig:
    """How the predictor is trained."""

    iterations: int = 160
    """Each: `sessions` fresh sessions join the data, then `batches` steps on all of it."""
    sessions: int = 12
    batches: int = 100
    batch: int = 512
    learning_rate: float = 2e-3
    width: int = 64
    seed: int = 0


class PredictorTrainer:
    """Everything that a resumed training needs is in `state()`; the data is played again from other seeds."""

    def __init__(self, names: list[str], config: PredictorConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self._traces = [slow_down(load_trace(TraceConfig(name=name))) for name in names]
        self._links = [BinnedLink(trace) for trace in self._traces]
        self._generator = np.random.default_rng(config.seed)
        self.network = make_scorer(FEATURES, BINS, config.width)
        self._optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.iteration = 0
        self._rows: list[np.ndarray] = []
        self._bins: list[np.ndarray] = []

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "torch_random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of an earlier process."""
        self.iteration = int(state["iteration"])
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_random"])
        self._generator = np.random.default_rng([self.config.seed, self.iteration])

    def iterate(self) -> float:
        """Add data and learn; return the cross-entropy of the fresh data before it was learnt from, in nats."""
        config = self.config
        played = [self._play() for _ in range(config.sessions)]
        fresh_rows, fresh_bins = (np.concatenate(part) for part in zip(*played, strict=True))
        with torch.no_grad():
            loss = nn.functional.cross_entropy(self.network(torch.from_numpy(fresh_rows)), torch.from_numpy(fresh_bins))
        self._rows.append(fresh_rows)
        self._bins.append(fresh_bins)
        rows, bins = torch.from_numpy(np.concatenate(self._rows)), torch.from_numpy(np.concatenate(self._bins))
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - 0.95 * min(self.iteration / config.iterations, 1.0))
        for _ in range(config.batches):
            batch = torch.randint(len(rows), (config.batch,))
            error = nn.functional.cross_entropy(self.network(rows[batch]), bins[batch])
            self._optimizer.zero_grad()
            error.backward()
            self._optimizer.step()
        self.iteration += 1
        return float(loss)

    def _play(self) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs [n, FEATURES] and bins [n] of a session over the emulator that chooses at random walks."""
        number = int(self._generator.integers(len(self._traces)))
        situation = draw_situation([self._links[number]], self._generator)
        ladder = situation.ladder
        transport = create_transport(
            self._traces[number].starting_at(situation.start_s), LinkConfig(delay_ms=situation.rtt_s * 500)
        )
        choices = np.clip(np.cumsum(self._generator.integers(-1, 2, SEGMENTS)), 0, None) % ladder.representations
        sizes = ladder.segment_bytes[np.arange(SEGMENTS), choices]  # [S]
        now_s, samples = 0.0, []
        pause_s = float(self._generator.choice([0.0, 0.5])) * float(ladder.segment_duration_s[0])
        for size in sizes.tolist():
            transfer = transport.request(size, now_s)
            samples.append(ThroughputSample(size, transfer.request_s, transfer.first_byte_s, transfer.finish_s))
            now_s = transfer.finish_s + float(self._generator.exponential()) * pause_s
        rows, bins = [], []
        for index in range(1, SEGMENTS):
            ahead = slice(index, min(index + HORIZON, SEGMENTS))
            durations_s = ladder.segment_duration_s[ahead]
            known = tuple(samples[max(index - HISTORY, 0) : index])
            rows.append(features(known, sizes[ahead, None], durations_s)[:, 0])
            spent_s = np.array([sample.finish_s - sample.request_s for sample in samples[ahead]])
            bins.append(bin_of(spent_s / durations_s))
        return np.concatenate(rows).astype(np.float32), np.concatenate(bins)


def slow_down(trace: Trace) -> Trace:
    """Return the share of a trace that does not exceed `FASTEST_BPS` on average."""
    return trace.share(max(1, round(trace.mean_bps / FASTEST_BPS)))
