"""What the player's link replays, as a configuration, and how to load it."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from traces import catalogue, registry, synthetic
from traces.errors import TraceError
from traces.formats import read_trace
from traces.registry import SYNTHETIC as SYNTHETIC
from traces.trace import Trace


@dataclass
class TraceConfig:
    """A trace and the part of it that one user sees."""

    name: str = "lte"
    """Name in the catalogue or of another package, path of a trace file, or `constant`, `step`, `markov`."""
    share: int = 1
    """Number of users served in turn: the player gets every share-th delivery opportunity."""
    offset_s: float = 0.0
    """Time in the trace at which the session starts, in seconds, modulo the trace's period."""
    rate_bps: float | None = None
    """Rate of `constant`, in bit/s."""
    rates_bps: list[float] = field(default_factory=list)
    """Levels of `step` (visited in turn) or states of `markov` (in order of neighbourhood), bit/s; empty: built-in."""
    dwell_s: float = 30.0
    """Time spent at each level of `step`; mean time in a state of `markov`; seconds."""
    duration_s: float = 600.0
    """Length of a lap of `markov`, in seconds."""
    seed: int = 0
    """Seed of `markov`."""

    def __post_init__(self) -> None:
        """Check what does not depend on the trace, so that a bad setting fails before anything is loaded."""
        if not self.name:
            raise TraceError("trace: found an empty name, expected a catalogue name, a path or constant, step, markov")
        if isinstance(self.share, bool) or not isinstance(self.share, int) or self.share < 1:
            raise TraceError(f"share: found {self.share}, expected a whole number of users >= 1")
        if not math.isfinite(self.offset_s) or self.offset_s < 0:
            raise TraceError(f"offset_s: found {self.offset_s}, expected a time >= 0")
        if self.rate_bps is not None and self.name != "constant":
            raise TraceError(f"rate_bps: found with trace {self.name!r}, expected with 'constant' only")
        if self.rate_bps is None and self.name == "constant":
            raise TraceError("rate_bps: found nothing, expected the rate of trace 'constant' in bit/s")
        if self.rates_bps and self.name not in ("step", "markov"):
            raise TraceError(f"rates_bps: found with trace {self.name!r}, expected with 'step' or 'markov' only")


def load_trace(config: TraceConfig | str, *, share: int = 1, offset_s: float = 0.0) -> Trace:
    """Return the trace a configuration or a bare name stands for, its offset applied first and its share then.

    Args:
        config: a TraceConfig, or just a name or path.
        share: with a bare name, as TraceConfig.share.
        offset_s: with a bare name, as TraceConfig.offset_s.

    Raises:
        TraceError: one line; an unknown name lists the known ones.
    """
    if isinstance(config, str):
        config = TraceConfig(name=config, share=share, offset_s=offset_s)
    elif share != 1 or offset_s != 0:
        config = replace(config, share=share, offset_s=offset_s)
    return _whole_trace(config).starting_at(config.offset_s).share(config.share)


def _whole_trace(config: TraceConfig) -> Trace:
    """Return the trace itself, for all users and from its start."""
    if config.name == "constant":
        if config.rate_bps is None:  # only after the name was changed in place
            raise TraceError("rate_bps: found nothing, expected the rate of trace 'constant' in bit/s")
        return synthetic.constant(config.rate_bps)
    if config.name == "step":
        return synthetic.step(config.rates_bps or synthetic.STEP_RATES_BPS, dwell_s=config.dwell_s)
    if config.name == "markov":
        return synthetic.markov(
            config.rates_bps or synthetic.MARKOV_RATES_BPS,
            dwell_s=config.dwell_s,
            duration_s=config.duration_s,
            seed=config.seed,
        )
    check_trace_name(config.name)
    if catalogue.find(config.name) is not None:
        return catalogue.load(config.name)
    if (member := registry.find_member(config.name)) is not None:
        return registry.load_member(*member)
    path = Path(config.name)
    kind = registry.format_of(path)
    return read_trace(path) if kind is None else registry.read_file(path, kind)


def check_trace_name(name: str) -> None:
    """Raise TraceError, which lists what is known, if `name` is no trace and no file; nothing is loaded."""
    if name in SYNTHETIC or catalogue.find(name) is not None or registry.find_member(name) is not None:
        return
    if Path(name).is_file():
        return
    known = ", ".join([*(family.name for family in catalogue.families()), *SYNTHETIC, *registry.family_names()])
    expected = f"{known} (see: python -m traces list) or the path of a trace file"
    raise TraceError(f"trace: found {name!r}, expected {expected}")
