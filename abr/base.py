"""What every controller sees and says: ladder, observation, decision, and the protocol between player and controller.

Times in seconds, sizes in bytes, rates in bit/s. R representations, S segments. No I/O and no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from abr.errors import LadderError, ObservationError, OptionError
from abr.rendering import Rendering


@dataclass(frozen=True, eq=False)
class Ladder:
    """The representations of one programme, lowest bitrate first. Arrays are copied and made read-only."""

    bitrate_bps: NDArray[np.float64]
    """[R] average bitrate of each representation, ascending, > 0."""
    segment_bytes: NDArray[np.int64]
    """[S, R] size of each segment on disk, > 0."""
    segment_duration_s: NDArray[np.float64]
    """[S] playing time of each segment, > 0."""
    quality: NDArray[np.float64] | None = None
    """[S, R] measured mean quality of each segment in a metric of the caller's choice, or None."""
    names: tuple[str, ...] = ()
    """R identifiers, as in the manifest; "0", "1", ... if not given."""
    init_bytes: NDArray[np.int64] | None = None
    """[R] size of the init segment that must be fetched before a representation's first segment, or None."""
    layer_bytes: NDArray[np.int64] | None = None
    """[S, R] of a layered ladder: bytes of layer r of each segment, > 0. Representation r is the layers 0..r, so that
    its `segment_bytes` are their sum, and a segment held in one representation is upgraded by the layers above it."""
    rendering: Rendering | None = None
    """What rendering costs on the viewer's device, and in which modes it can be done; None: it is free."""

    def __post_init__(self) -> None:
        bitrate = _read_only(self.bitrate_bps, np.float64, "bitrate_bps", 1)
        sizes = _read_only(self.segment_bytes, np.int64, "segment_bytes", 2)
        duration = _read_only(self.segment_duration_s, np.float64, "segment_duration_s", 1)
        count, segments = len(bitrate), len(duration)
        if count == 0 or segments == 0:
            raise LadderError(f"a ladder needs at least one representation and one segment, not {count} and {segments}")
        if sizes.shape != (segments, count):
            raise LadderError(f"segment_bytes: shape {sizes.shape}, but ({segments}, {count}) expected")
        if not (np.all(np.isfinite(bitrate)) and np.all(bitrate > 0) and np.all(np.diff(bitrate) >= 0)):
            raise LadderError(f"bitrate_bps must be positive and ascending, not {bitrate.tolist()}")
        if np.any(sizes <= 0):
            raise LadderError("segment_bytes: every segment must hold at least one byte")
        if not (np.all(np.isfinite(duration)) and np.all(duration > 0)):
            raise LadderError("segment_duration_s: every segment must last longer than 0 s")
        names = tuple(self.names) or tuple(str(index) for index in range(count))
        if len(names) != count:
            raise LadderError(f"{len(names)} names for {count} representations")
        values: dict[str, Any] = {"bitrate_bps": bitrate, "segment_bytes": sizes, "segment_duration_s": duration}
        if self.quality is not None:
            values["quality"] = _read_only(self.quality, np.float64, "quality", 2)
            if values["quality"].shape != sizes.shape:
                raise LadderError(f"quality: shape {values['quality'].shape}, but segment_bytes has {sizes.shape}")
        if self.init_bytes is not None:
            values["init_bytes"] = _read_only(self.init_bytes, np.int64, "init_bytes", 1)
            if values["init_bytes"].shape != (count,) or np.any(values["init_bytes"] < 0):
                raise LadderError(f"init_bytes: {count} non-negative sizes expected, not {self.init_bytes}")
        if self.layer_bytes is not None:
            values["layer_bytes"] = _read_only(self.layer_bytes, np.int64, "layer_bytes", 2)
            if not (values["layer_bytes"].shape == sizes.shape and np.all(values["layer_bytes"] > 0)):
                raise LadderError("layer_bytes: a positive size for every segment and representation expected")
            if not np.array_equal(np.cumsum(values["layer_bytes"], axis=1), sizes):
                raise LadderError("layer_bytes: segment_bytes must be the sums of the layers up to each representation")
        if self.rendering is not None and self.rendering.shape != sizes.shape:
            raise LadderError(f"rendering: for {self.rendering.shape} segments and representations, not {sizes.shape}")
        for name, value in {**values, "names": names}.items():
            object.__setattr__(self, name, value)

    @property
    def segments(self) -> int:
        """Number of segments S."""
        return len(self.segment_duration_s)

    @property
    def representations(self) -> int:
        """Number of representations R."""
        return len(self.bitrate_bps)

    def upgrade_bytes(self, segment: int, representation: int, held: int | None = None) -> int:
        """Bytes to fetch for a segment in `representation` by a player that holds it in `held` (None: not at all)."""
        if self.layer_bytes is None or held is None:
            return int(self.segment_bytes[segment, representation])
        return int(self.layer_bytes[segment, held + 1 : representation + 1].sum())

    def highest_within(self, rate_bps: float) -> int:
        """Index of the highest representation whose average bitrate is at most `rate_bps`; 0 if none is."""
        return max(int(np.searchsorted(self.bitrate_bps, rate_bps, side="right")) - 1, 0)


@dataclass(frozen=True)
class ThroughputSample:
    """What the player measured of one transfer."""

    size_bytes: int
    """Payload bytes received, > 0."""
    request_s: float
    """When the request was sent."""
    first_byte_s: float
    """When the first bytes of the answer arrived."""
    finish_s: float
    """When the last byte arrived."""
    complete: bool = True
    """False for a transfer that was cut short; `size_bytes` is then what had arrived."""

    def __post_init__(self) -> None:
        request_s, first_byte_s, finish_s = times = self.request_s, self.first_byte_s, self.finish_s
        finite = math.isfinite(request_s) and math.isfinite(first_byte_s) and math.isfinite(finish_s)
        if self.size_bytes <= 0 or not finite:
            raise ObservationError(f"a sample needs bytes > 0 and finite times, not {self}")
        if not request_s <= first_byte_s <= finish_s:
            raise ObservationError(f"a sample's times must ascend (request, first byte, finish), not {times}")


class Buffered(NamedTuple):
    """A downloaded segment that has not begun to play, so that it can still be replaced by a better version."""

    segment: int
    representation: int
    starts_in_s: float
    """Playing time until its first frame."""


@dataclass(frozen=True)
class Observation:
    """Everything a controller may look at when it chooses the next segment's representation."""

    now_s: float
    """Session time of the decision."""
    segment_index: int
    """The segment to choose for, 0-based; indexes the ladder's rows."""
    buffer_s: float
    """Media downloaded and not yet played, rendered or not."""
    buffer_capacity_s: float
    """The most media the player will hold."""
    last_representation: int | None = None
    """Representation of the segment downloaded before, or None at the start."""
    samples: tuple[ThroughputSample, ...] = field(default=())
    """The latest transfers, oldest first."""
    playing: bool = False
    """Whether playback runs: False at startup and while rebuffering."""
    render_speed: float | None = None
    """How many times faster than real time segments are rendered; None if unknown or free."""
    held_back_s: float = 0.0
    """How long this request has just been held back because the buffer was full."""
    buffered: tuple[Buffered, ...] = field(default=())
    """What may be upgraded, in order of playback."""
    passes_per_s: float | None = None
    """Speed of the device (`abr.rendering`), measured on the last segment, at first its profile's; None: not known."""
    render_queue_s: float = 0.0
    """What the device still needs, at that speed, to render all that has arrived."""


@dataclass(frozen=True)
class Decision:
    """What a controller answers."""

    representation: int
    """Index into the ladder, 0 = lowest bitrate."""
    wait_s: float = 0.0
    """How long to wait before the request, >= 0. The player cuts it so that waiting alone never drains the buffer."""
    estimate_bps: float | None = None
    """The rate the controller believed in, for the log; None if it used none."""
    reason: str = ""
    """One line for the log: which rule decided and on what numbers."""
    segment: int | None = None
    """A buffered segment to fetch again in a higher `representation`, before the one that was asked for; None: that."""
    mode: int = 0
    """How to render it: index into the modes of `Ladder.rendering`, 0 = every frame. An upgrade keeps its segment's."""


@dataclass(frozen=True)
class Progress:
    """How far the request in flight has come."""

    observation: Observation
    """What the player sees now; `segment_index` is the segment being fetched."""
    representation: int
    """The representation being fetched."""
    size_bytes: int
    """All of the answer."""
    received_bytes: int
    """What of it has arrived, < size_bytes."""
    request_s: float
    """When the request was sent."""
    first_byte_s: float | None
    """When the first bytes of the answer arrived; None: not yet."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended."""

    observation: Observation
    """What the player sees now; `segment_index` is the segment that was fetched."""
    representation: int
    """The representation that was fetched."""
    request_s: float
    is_upgrade: bool
    """Whether a buffered segment was fetched again, or an enhancement of it."""
    abandoned_for: int | None = None
    """The representation to fetch instead, if the controller gave up; None: the segment has arrived."""


class Abr(Protocol):
    """A controller. One instance serves one session; it may keep state, and it never reads a clock."""

    def choose(self, observation: Observation) -> Decision:
        """Choose the representation of `observation.segment_index`."""
        ...


@runtime_checkable
class Abandoning(Abr, Protocol):
    """A controller that may give up a request in flight for a smaller one."""

    def abandon(self, progress: Progress) -> int | None:
        """Return the lower representation to fetch the segment in instead, or None to go on."""
        ...


@runtime_checkable
class Learning(Abr, Protocol):
    """A controller that keeps account of what became of its decisions."""

    def learn(self, outcome: Outcome) -> None:
        """Take in how a request ended. Called when it ends, before the next choice; not after failures."""
        ...


@runtime_checkable
class Upgrading(Abr, Protocol):
    """A controller that uses an idle link to improve what is buffered."""

    def upgrade(self, observation: Observation) -> Decision | None:
        """Name a buffered segment and a higher representation for it; None: leave the link idle.

        Asked while nothing else can be fetched: the buffer is full, or the whole programme is downloaded. Then
        `segment_index` is the number of segments.
        """
        ...


def check_fraction(name: str, value: float, *, above: float = 0.0, most: float = 1.0) -> float:
    """Return `value` if above < value <= most; raise OptionError naming the option otherwise."""
    if not (math.isfinite(value) and above < value <= most):
        raise OptionError(f"{name} must be in ({above:g}, {most:g}], not {value:g}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """Return `value` if it is finite and > 0; raise OptionError naming the option otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be positive, not {value:g}")
    return float(value)


def _read_only(value: Any, dtype: type, name: str, dimensions: int) -> NDArray[Any]:
    """Return a read-only copy of `value` as an array of `dtype`; integers must be whole."""
    try:
        raw = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LadderError(f"{name}: not a regular array of numbers") from error
    if raw.ndim != dimensions:
        raise LadderError(f"{name}: {raw.ndim} dimensions, but {dimensions} expected")
    if dtype is np.int64 and not (np.all(np.isfinite(raw)) and np.array_equal(raw, np.floor(raw))):
        raise LadderError(f"{name}: whole numbers expected")
    array: NDArray[Any] = raw.astype(dtype)
    array.setflags(write=False)
    return array
