"""The controllers' settings as one dataclass, which is also the experiments' schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from abr.base import Abr, Ladder
from abr.registry import create_abr, known_options


@dataclass
class AbrConfig:
    """Which controller, and its options; each controller reads the ones it knows."""

    name: str = "bola"
    """A built-in controller (`python -m abr list`), or the name of an installed plug-in."""
    representation: int = 0
    """fixed: index in the ladder; -1 is the highest."""
    safety: float = 0.9
    """Rate rules: share of a segment's duration its download may take (dash.js, Sabre: 0.9)."""
    estimator: str = "slow_start"
    """slow_start, or naive (bytes / time); BOLA's relatives, dynamic and throughput_ibr also take split and sliding."""
    window: int = 5
    """throughput: transfers in the harmonic mean (MPC: 5)."""
    fast_half_life_s: float = 3.0
    """ewma: half-life of the fast mean (dash.js: 3)."""
    slow_half_life_s: float = 8.0
    """ewma: half-life of the slow mean (dash.js: 8)."""
    reservoir: float = 0.375
    """bba: reservoir as a share of the buffer cap (90 s of 240 s)."""
    cushion: float = 0.525
    """bba: cushion as a share of the buffer cap (126 s of 240 s)."""
    gp: float | None = None
    """bola, bola_u, bola_o, bolapl, dynamic: the paper's gamma p (5 in the paper); None: from low_buffer."""
    low_buffer: float = 0.2
    """bola, bola_u, bola_o, dynamic: share of the cap at which the lowest two representations tie (Puffer: 0.2)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the controller, by name."""

    def create(self, ladder: Ladder, *, buffer_capacity_s: float) -> Abr:
        """Build the controller with those of these options that it takes, and all of `options`."""
        built_in = {key: value for key, value in vars(self).items() if key not in ("name", "options")}
        allowed = known_options(self.name)
        chosen = {key: value for key, value in built_in.items() if allowed is not None and key in allowed}
        return create_abr(self.name, ladder, buffer_capacity_s=buffer_capacity_s, **{**chosen, **self.options})
