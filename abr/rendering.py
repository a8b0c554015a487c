"""What rendering costs: render modes, passes of the generator per segment, and what the device does per second.

A device that makes F pictures a second with the whole generator cannot show 30 frames/s of a representation that takes
a pass for every frame if F < 30. A *render mode* shows fewer different frames of a segment, each for longer. Costs are
in *passes*: one pass makes one frame with the whole generator; what is cheaper, such as warping, is a fraction of it.

M render modes, R representations, S segments. No I/O and no clock.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abr.errors import LadderError


@dataclass(frozen=True, eq=False)
class Rendering:
    """Cost and quality of every way to render a segment. Arrays are copied and made read-only."""

    passes_per_s: float
    """Passes that the device makes in a second, as its profile says, > 0. Players measure it as they go."""
    modes: tuple[str, ...]
    """M names, the first shows every frame."""
    passes: NDArray[np.float64]
    """[S, R, M] cost of each segment, > 0; the first mode costs most."""
    frame_rate: NDArray[np.float64]
    """[S, R, M] different frames shown per second."""
    quality: NDArray[np.float64] | None = None
    """[S, R, M] measured mean quality of what is shown, repeats against the true frames, in the ladder's metric."""

    def __post_init__(self) -> None:
        if isinstance(self.passes_per_s, bool) or not isinstance(self.passes_per_s, int | float):
            raise LadderError(f"rendering: passes_per_s must be a number, not {self.passes_per_s!r}")
        if not (math.isfinite(self.passes_per_s) and self.passes_per_s > 0):
            raise LadderError(f"rendering: passes_per_s must be positive, not {self.passes_per_s:g}")
        modes = tuple(self.modes)
        if not modes or len(set(modes)) < len(modes):
            raise LadderError(f"rendering: one or more different modes expected, not {', '.join(modes) or 'none'}")
        values: dict[str, Any] = {"modes": modes}
        for name in ("passes", "frame_rate", "quality"):
            if getattr(self, name) is not None:
                values[name] = _table(getattr(self, name), name, len(modes))
        if any(values[name].shape != values["passes"].shape for name in values if name != "modes"):
            raise LadderError("rendering: passes, frame_rate and quality must have the same shape")
        if np.any(values["passes"] <= 0) or np.any(values["frame_rate"] <= 0):
            raise LadderError("rendering: passes and frame_rate must be positive")
        if np.any(values["passes"] > values["passes"][:, :, :1]):
            raise LadderError(f"rendering: {modes[0]}, the first mode, must cost most")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int]:
        """Segments S and representations R."""
        return self.passes.shape[0], self.passes.shape[1]

    def on(self, passes_per_s: float) -> Rendering:
        """Return the same on another device."""
        return dataclasses.replace(self, passes_per_s=passes_per_s)


def _table(value: Any, name: str, modes: int) -> NDArray[np.float64]:
    """Return a read-only copy of `value` [S, R, M] as float64."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LadderError(f"rendering: {name} is not a regular array of numbers") from error
    if array.ndim != 3 or array.shape[2] != modes:
        raise LadderError(f"rendering: {name} has shape {array.shape}, but (S, R, {modes}) expected")
    if not np.all(np.isfinite(array)):
        raise LadderError(f"rendering: {name} holds values that are not finite")
    array.setflags(write=False)
    return array
