"""Small multilayer perceptrons, evaluated with numpy: learned controllers run without torch. Weights are .npz files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abr.errors import OptionError

MAX_WEIGHTS = 10_000_000
"""Most numbers a weights file may hold: a hundred times what any of these networks has."""


class Network:
    """Layers y = W x + b with ReLU between them."""

    def __init__(self, layers: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
        """Args: layers: (W [out, in], b [out]) in order."""
        self.layers = list(layers)

    @property
    def inputs(self) -> int:
        """Length of the input vector."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the outputs [..., out] of inputs [..., in]."""
        for weight, bias in self.layers[:-1]:
            rows = np.maximum(rows @ weight.T + bias, 0.0)
        weight, bias = self.layers[-1]
        return rows @ weight.T + bias


def load_network(name: str, path: str | None, *, inputs: int, outputs: int) -> Network:
    """Return the network in the .npz file `path`, or the shipped one called `name`.

    Raises:
        OptionError: not a readable file of weights w0, b0, w1, ... whose shapes fit each other and these lengths.
    """
    return _load(name, path, inputs, outputs)


@lru_cache(maxsize=16)
def _load(name: str, path: str | None, inputs: int, outputs: int) -> Network:
    source = resources.files("abr").joinpath("weights").joinpath(f"{name}.npz") if path is None else Path(path)
    try:
        with source.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {key: np.asarray(content[key], dtype=np.float64) for key in content.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise OptionError(f"weights {source}: cannot be read as .npz ({error})") from error
    layers: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    while f"w{len(layers)}" in arrays and f"b{len(layers)}" in arrays:
        layers.append((arrays[f"w{len(layers)}"], arrays[f"b{len(layers)}"]))
    width, total = inputs, 0
    for weight, bias in layers:
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != width:
            raise OptionError(f"weights {source}: a layer {weight.shape} with {bias.shape} behind {width} values")
        width, total = weight.shape[0], total + weight.size
    if not layers or width != outputs or total > MAX_WEIGHTS or len(arrays) != 2 * len(layers):
        raise OptionError(f"weights {source}: {len(layers)} layers to {width} values, expected {outputs}")
    if not all(np.all(np.isfinite(array)) for array in arrays.values()):
        raise OptionError(f"weights {source}: values that are not finite")
    return Network(layers)
