"""PPO on Pensieve's task: many sessions side by side, one shared scorer of representations, one critic.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017 (clipped objective, generalised advantages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from abr.pensieve import FEATURES, features
from experiments.abr_sessions import BinnedLink, TrainingSession, draw_situation

REPRESENTATIONS = 6
"""Most representations of a training ladder; shorter ones are padded and masked."""


@dataclass
class PpoConfig:
    """How a policy is trained."""

    sessions: int = 48
    steps: int = 64
    """Segments per session and iteration."""
    iterations: int = 330
    epochs: int = 3
    batch: int = 512
    learning_rate: float = 1e-3
    discount: float = 0.97
    trace_decay: float = 0.95
    clip: float = 0.2
    entropy_first: float = 0.03
    entropy_last: float = 0.001
    """Weight of the policy's entropy, falling linearly: Pensieve lowers it in training, too."""
    width: int = 64
    seed: int = 0


def make_scorer(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Return a network of two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def network_arrays(network: nn.Sequential) -> dict[str, np.ndarray]:
    """Return a network's layers as `abr.network` reads them."""
    arrays = {}
    for index, layer in enumerate(layer for layer in network if isinstance(layer, nn.Linear)):
        arrays[f"w{index}"] = layer.weight.detach().numpy().astype(np.float32)
        arrays[f"b{index}"] = layer.bias.detach().numpy().astype(np.float32)
    return arrays


class PolicyTrainer:
    """Everything that a resumed training needs is in `state()`."""

    def __init__(self, links: Sequence[BinnedLink], config: PpoConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self._links = config, links
        self._generator = np.random.default_rng(config.seed)
        self.actor = make_scorer(FEATURES, 1, config.width)
        self.critic = make_scorer(3 * FEATURES, 1, config.width)
        self._optimizer = torch.optim.Adam([*self.actor.parameters(), *self.critic.parameters()], config.learning_rate)
        self.iteration = 0
        self._sessions = [self._new() for _ in range(config.sessions)]

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes; sessions under way are not part of it and begin anew."""
        return {
            "iteration": self.iteration,
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "torch_random": torch.get_rng_state(),
            "seed": self.config.seed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of an earlier process."""
        self.iteration = int(state["iteration"])
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_random"])
        self._generator = np.random.default_rng([self.config.seed, self.iteration])
        self._sessions = [self._new() for _ in range(self.config.sessions)]

    def iterate(self) -> float:
        """Collect and learn once; return the mean reward per segment of what was collected."""
        config = self.config
        rows, masks, actions, chances, rewards, dones, values = self._collect()
        advantage = np.zeros((config.steps, config.sessions))
        running = np.zeros(config.sessions)
        for t in range(config.steps - 1, -1, -1):
            alive = 1.0 - dones[t]
            error = rewards[t] + config.discount * alive * values[t + 1] - values[t]
            running = error + config.discount * config.trace_decay * alive * running
            advantage[t] = running
        target = advantage + values[:-1]
        data = [torch.from_numpy(np.ascontiguousarray(array.reshape(-1, *array.shape[2:])))
                for array in (rows, masks, actions, chances, advantage, target)]  # fmt: skip
        self._learn(*[item.float() if item.is_floating_point() else item for item in data])
        self.iteration += 1
        return float(rewards.mean())

    def _new(self) -> TrainingSession:
        return TrainingSession(draw_situation(self._links, self._generator))

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs [sessions, 6, FEATURES] and which rows are representations [sessions, 6]."""
        rows = np.zeros((len(self._sessions), REPRESENTATIONS, FEATURES), dtype=np.float32)
        mask = np.zeros(rows.shape[:2], dtype=bool)
        for index, session in enumerate(self._sessions):
            part = features(session.situation.ladder, session.observe())
            rows[index, : len(part)], mask[index, : len(part)] = part, True
        return rows, mask

    def _collect(self) -> tuple[np.ndarray, ...]:
        """Play; return rows, masks, actions, log-chances, rewards, dones [steps, sessions, ...], values [steps + 1]."""
        record: list[list[np.ndarray]] = [[] for _ in range(7)]
        for _ in range(self.config.steps):
            rows, mask = self._rows()
            with torch.no_grad():
                policy = self._policy(torch.from_numpy(rows), torch.from_numpy(mask))
                action = policy.sample()
                chance = policy.log_prob(action).numpy()
                value = self._value(torch.from_numpy(rows), torch.from_numpy(mask)).numpy()
            rewards, dones = np.zeros(len(rows)), np.zeros(len(rows))
            for index, session in enumerate(self._sessions):
                rewards[index] = session.step(int(action[index]))
                if session.done:
                    dones[index], self._sessions[index] = 1.0, self._new()
            for store, item in zip(record, (rows, mask, action.numpy(), chance, rewards, dones, value), strict=True):
                store.append(item)
        rows, mask = self._rows()
        with torch.no_grad():
            record[6].append(self._value(torch.from_numpy(rows), torch.from_numpy(mask)).numpy())
        return tuple(np.stack(item) for item in record)

    def _policy(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.distributions.Categorical:
        scores = self.actor(rows)[..., 0].masked_fill(~mask, -1e9)
        return torch.distributions.Categorical(logits=scores, validate_args=False)

    def _value(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Judge the state by the lowest, the middle and the highest representation's rows."""
        count = mask.sum(dim=1)
        index = torch.arange(len(rows))
        picked = torch.cat([rows[:, 0], rows[index, count // 2], rows[index, count - 1]], dim=1)
        return self.critic(picked)[:, 0]

    def _learn(
        self,
        rows: torch.Tensor,
        mask: torch.Tensor,
        action: torch.Tensor,
        chance: torch.Tensor,
        advantage: torch.Tensor,
        target: torch.Tensor,
    ) -> None:
        """Take the clipped steps on one collection."""
        config = self.config
        done = min(self.iteration / config.iterations, 1.0)
        entropy_weight = config.entropy_first + (config.entropy_last - config.entropy_first) * done
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - 0.9 * done)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for _ in range(config.epochs):
            for batch in torch.randperm(len(rows)).split(config.batch):
                policy = self._policy(rows[batch], mask[batch])
                ratio = (policy.log_prob(action[batch]) - chance[batch]).exp()
                gain = advantage[batch]
                surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain).mean()
                # Unlikely actions of the mask have probability 0: p log p must be 0 there, not 0 * -inf.
                weight = policy.probs
                entropy = -(weight * weight.clamp_min(1e-12).log()).sum(dim=1).mean()
                error = nn.functional.smooth_l1_loss(self._value(rows[batch], mask[batch]), target[batch])
                loss = -surrogate - entropy_weight * entropy + 0.5 * error
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([*self.actor.parameters(), *self.critic.parameters()], 0.5)
                self._optimizer.step()
