"""`oracle`: the plan of one who knows the future of the link, by dynamic programming. A bound, not a controller.

Forward over segments, the states are what is reachable: (when the last segment arrived, buffer, representation), each
with the best QoE so far and exact times. States that fall into one cell of the grid, `grid_s` in both time and buffer,
are merged: the one with the best QoE stays. So every plan found can really be played, and its QoE is a lower bound of
the optimum. (Pensieve's dp.cc rounds times instead, in its own favour.) Left out are plans that have rebuffered
`slack_s` longer than the least that was possible up to there.

The future is a function, given by whoever knows it: `finish_s(size_bytes, request_s)` is when the last byte of an
object would arrive if it were asked for then, with nothing else under way; it must not fall when `request_s` grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abr.base import Decision, Ladder, Observation, check_positive
from abr.errors import OptionError
from abr.qoe import Qoe, create_qoe

FinishTimes = Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]
"""(sizes in bytes [n], request times in s [n]) -> arrival times of the last bytes in s [n]."""

GRID_S = 0.2
SLACK_S = 3.0


@dataclass(frozen=True)
class Path:
    """A whole plan."""

    representations: tuple[int, ...]
    """Of each segment from the first planned on."""
    arrivals_s: tuple[float, ...]
    """When each segment arrives."""
    qoe: float
    """What the plan is worth; the wait before the first segment is startup and costs nothing."""


@dataclass
class _Layer:
    """The states after one segment, one row each."""

    now_s: NDArray[np.float64]
    buffer_s: NDArray[np.float64]
    choice: NDArray[np.int64]
    value: NDArray[np.float64]
    parent: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> _Layer:
        """Return these rows."""
        return _Layer(self.now_s[rows], self.buffer_s[rows], self.choice[rows], self.value[rows], self.parent[rows])


def best_path(
    ladder: Ladder,
    qoe: Qoe,
    finish_s: FinishTimes,
    *,
    begin: int = 0,
    now_s: float = 0.0,
    buffer_s: float = 0.0,
    capacity_s: float,
    last: int | None = None,
    playing: bool = False,
    grid_s: float = GRID_S,
    slack_s: float = SLACK_S,
) -> Path:
    """Return the best plan found from segment `begin` to the end.

    A segment is asked for when it fits under the cap. If `playing` is False, the first segment's wait is startup.
    """
    count = ladder.representations
    layer = _Layer(np.array([now_s]), np.array([buffer_s]), np.array([-1]), np.zeros(1), np.array([-1]))
    layers: list[_Layer] = []
    for index in range(begin, ladder.segments):
        duration_s = float(ladder.segment_duration_s[index])
        wait_s = np.maximum(layer.buffer_s + duration_s - max(capacity_s, duration_s), 0.0)
        request_s, level_s = np.repeat(layer.now_s + wait_s, count), np.repeat(layer.buffer_s - wait_s, count)
        choice = np.tile(np.arange(count), len(layer.now_s))
        arrival_s = finish_s(ladder.segment_bytes[index][choice], request_s)
        after_s = level_s - (arrival_s - request_s)
        utility = qoe.utility[index][choice] / qoe.unit
        value = np.repeat(layer.value, count) + utility
        if playing or index > begin:
            value -= qoe.rebuffering * np.maximum(-after_s, 0.0)
        if index > begin:
            value -= qoe.switching * np.abs(utility - np.repeat(qoe.utility[index - 1][layer.choice] / qoe.unit, count))
        elif last is not None:
            value -= qoe.switching * np.abs(utility - float(qoe.utility[max(index - 1, 0), last]) / qoe.unit)
        parent = np.repeat(np.arange(len(layer.now_s)), count)
        reached = _Layer(arrival_s, np.maximum(after_s, 0.0) + duration_s, choice, value, parent)
        ends_s = reached.now_s + reached.buffer_s  # when playback would run out: later by what was rebuffered
        reached = reached.take(np.flatnonzero(ends_s <= ends_s.min() + slack_s))
        layer = _merge(reached, qoe.utility[index] / qoe.unit, qoe, grid_s)
        layers.append(layer)
    return _trace_back(layers)


def _merge(states: _Layer, utility: NDArray[np.float64], qoe: Qoe, grid_s: float) -> _Layer:
    """Drop what cannot win, then keep the best state of each cell (time, buffer, representation)."""
    states = states.take(np.flatnonzero(~_dominated(states, utility, qoe)))
    cells = np.floor(np.stack([states.choice * grid_s, states.now_s, states.buffer_s]) / grid_s)
    order = np.lexsort((-states.value, *cells))
    ordered = cells[:, order]
    first = np.concatenate([[True], np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)])
    return states.take(order[first])


def _dominated(states: _Layer, utility: NDArray[np.float64], qoe: Qoe) -> NDArray[np.bool_]:
    """Return which states [n] another one is sure to beat.

    That is one that is no later and has, after paying for the switch between their representations, no less QoE J and
    no less J + mu (Q + t): what it may lack in buffer it can make up for by rebuffering now, and still be no worse.
    Compared are, per representation, the earlier states of highest J and of highest J + mu (Q + t).
    """
    worth = states.value + qoe.rebuffering * (states.buffer_s + states.now_s)
    beaten = np.zeros(len(worth), dtype=bool)
    for rival in np.unique(states.choice):
        rows = np.flatnonzero(states.choice == rival)
        rows = rows[np.lexsort((-worth[rows], states.now_s[rows]))]
        times_s = states.now_s[rows]
        for criterion in (states.value[rows], worth[rows]):
            leader = rows[_leaders(criterion)]  # of the states up to each one
            before = np.where(
                states.choice > rival,
                np.searchsorted(times_s, states.now_s, side="right"),
                np.searchsorted(times_s, states.now_s, side="left"),
            )  # a state must not rule itself out, nor two equal ones each other
            best = leader[np.maximum(before - 1, 0)]
            cost = qoe.switching * np.abs(utility[states.choice] - utility[rival])
            beaten |= (before > 0) & (states.value[best] - cost >= states.value) & (worth[best] - cost >= worth)
    return beaten


def _leaders(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return, for each position, that of the highest value up to it."""
    highest = np.maximum.accumulate(values)
    risen = np.concatenate([[True], highest[1:] > highest[:-1]])
    return np.maximum.accumulate(np.where(risen, np.arange(len(values)), 0))


def _trace_back(layers: list[_Layer]) -> Path:
    state = int(np.argmax(layers[-1].value))
    value, choices, arrivals = float(layers[-1].value[state]), [], []
    for layer in reversed(layers):
        choices.append(int(layer.choice[state]))
        arrivals.append(float(layer.now_s[state]))
        state = int(layer.parent[state])
    return Path(tuple(reversed(choices)), tuple(reversed(arrivals)), value)


class Oracle:
    """`oracle`: follows the plan; where reality strays from it by more than `replan_s`, it plans anew."""

    def __init__(
        self,
        ladder: Ladder,
        *,
        buffer_capacity_s: float,
        finish_s: FinishTimes | None = None,
        utility: str = "linear",
        rebuffering: float | None = None,
        switching: float = 1.0,
        grid_s: float = GRID_S,
        slack_s: float = SLACK_S,
        replan_s: float = 0.5,
    ) -> None:
        """Args: finish_s: the future; only an experiment in virtual time can give it."""
        if not callable(finish_s):
            raise OptionError("oracle needs the link's future, which a simulated run gives it and a real one cannot")
        self.ladder, self.finish_s = ladder, finish_s
        self.qoe = create_qoe(ladder, utility, rebuffering=rebuffering, switching=switching)
        self.capacity_s = check_positive("buffer_capacity_s", buffer_capacity_s)
        self.grid_s = check_positive("grid_s", grid_s)
        self.slack_s = check_positive("slack_s", slack_s)
        self.replan_s = check_positive("replan_s", replan_s)
        self._path: Path | None = None
        self._begin = 0

    def choose(self, observation: Observation) -> Decision:
        """See `abr.base.Abr`."""
        index = observation.segment_index
        path = self._path
        done = index - self._begin
        if path is None or not 0 < done < len(path.representations) or self._strayed(path, done, observation):
            path, self._begin, done = self._plan(observation), index, 0
            self._path = path
        reason = f"planned {done} segments ago, QoE {path.qoe:.4g} to the end"
        return Decision(path.representations[done], reason=reason)

    def _strayed(self, path: Path, done: int, observation: Observation) -> bool:
        sample = observation.samples[-1] if observation.samples else None
        return sample is None or abs(sample.finish_s - path.arrivals_s[done - 1]) > self.replan_s

    def _plan(self, observation: Observation) -> Path:
        started = observation.segment_index > 0
        return best_path(
            self.ladder,
            self.qoe,
            self.finish_s,
            begin=observation.segment_index,
            now_s=observation.now_s,
            buffer_s=observation.buffer_s,
            capacity_s=self.capacity_s,
            last=observation.last_representation,
            playing=started,
            grid_s=self.grid_s,
            slack_s=self.slack_s,
        )
