"""What a run's `seed` decides: where in the trace the session starts, and which packets are lost."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from pathlib import Path

import numpy as np

from experiments.schema import RunConfig
from traces import TraceConfig, catalogue, load_trace


def apply_seed(config: RunConfig) -> RunConfig:
    """Return the configuration with what its seed draws: the start offset, and the seed of the link's losses.

    The offset is uniform over one lap of the trace, counted from `trace.offset_s`, and depends on seed and trace alone:
    sessions of equal seed and trace see the same link, whatever their codec, controller and player, and so are pairs.
    """
    if config.seed is None:
        return config
    name = canonical_name(config.trace.name)
    place = np.random.default_rng([config.seed, zlib.crc32(Path(name).name.encode())]).random()
    offset_s = round(config.trace.offset_s + place * period_s(config.trace), 3)
    return dataclasses.replace(
        config,
        trace=dataclasses.replace(config.trace, offset_s=offset_s),
        link=dataclasses.replace(config.link, seed=config.link.seed + config.seed),
    )


def canonical_name(trace: str) -> str:
    """Return the name of a vendored trace that an alias or a family's name stands for; others as they are."""
    entry = catalogue.find(trace)
    return trace if entry is None else entry.name


def period_s(trace: TraceConfig) -> float:
    """Return the length of a lap of the trace, s."""
    entry = catalogue.find(trace.name)
    if entry is not None:
        return entry.duration_s
    path = Path(trace.name)
    if path.is_file():
        return _file_period_s(trace.name, path.stat().st_mtime_ns)
    return load_trace(dataclasses.replace(trace, share=1, offset_s=0.0)).duration_s


@functools.cache
def _file_period_s(path: str, modified_ns: int) -> float:
    return load_trace(path).duration_s
