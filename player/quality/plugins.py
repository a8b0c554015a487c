"""Metrics of other packages: an entry point in the group `promptdash.metrics` names a class.

The class is called as `cls(device=...)` and has what `Metric` asks for; its `name` is the entry point's. Two attributes
more are read for tables, if there: `title`, as on an axis with its unit, and `digits` after the point.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from abr.plugins import Plugins
from player.errors import PlayerError, PluginError
from player.quality.base import Metric, check_frames

ENTRY_POINT_GROUP = "promptdash.metrics"


@dataclass
class BlamedMetric:
    """A plug-in's metric, its frames and scores checked, whose every failure is one line that names the plug-in."""

    plugins: Plugins
    point: EntryPoint
    metric: Metric
    name: str
    higher_is_better: bool
    minimum_side: int

    def __call__(self, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
        """Return the scores, float64 [T], of two uint8 [T, H, W, 3] stacks; raise QualityError or PluginError."""
        check_frames(reference, distorted, name=self.name, minimum_side=self.minimum_side)
        with self.plugins.blamed(self.point, "failed", passing=(PlayerError,)):
            scores = np.asarray(self.metric(reference, distorted), np.float64)
            if scores.shape != (len(reference),):
                raise ValueError(f"scores have shape {list(scores.shape)}, expected [{len(reference)}]")
        return scores


class MetricPlugins:
    """The metrics that other packages offer, beside the built-in ones."""

    def __init__(self, built_in: frozenset[str]) -> None:
        self.plugins = Plugins(ENTRY_POINT_GROUP, "metric", built_in, PluginError)

    def names(self) -> list[str]:
        """Return their names, in alphabetical order."""
        return self.plugins.names()

    def describe(self, name: str) -> str:
        """Return what offers a metric, if it is whole; errors as in `load`."""
        self.offered(name)
        return self.plugins.describe(self.plugins.point(name))

    def load(self, name: str, *, device: str) -> Metric:
        """Return a metric ready to be called; raise PluginError if it is broken, LookupError if there is none."""
        point = self.plugins.point(name)
        offered = self.offered(name)
        with self.plugins.blamed(point, "failed to start", passing=(PlayerError,)):
            metric = offered(device=device)
        if not callable(metric):
            raise PluginError(f"{self.plugins.describe(point)} cannot be called with frames")
        sense, side = bool(offered.higher_is_better), int(offered.minimum_side)
        return BlamedMetric(self.plugins, point, metric, name, sense, side)

    def offered(self, name: str) -> Any:
        """Return the class that an entry point names, checked but not called; errors as in `load`."""
        point = self.plugins.point(name)
        offered: Any = self.plugins.resolve(point)
        what = self.plugins.describe(point)
        if not callable(offered):
            raise PluginError(f"{what} is a {type(offered).__name__}, expected a class")
        missing = [key for key in ("name", "higher_is_better", "minimum_side") if not hasattr(offered, key)]
        if missing:
            raise PluginError(f"{what} lacks {', '.join(missing)}")
        if offered.name != point.name:
            raise PluginError(f"{what} calls itself {offered.name!r}")
        return offered
