"""What happened in a session, as small dataclasses in order of time. No I/O and no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Anything that happened; `segment` is the segment it concerns, or None."""

    time_s: float
    """Session time, on the caller's clock."""
    segment: int | None

    @property
    def name(self) -> str:
        """The event's name in the log."""
        return _NAMES[type(self)]

    @property
    def value(self) -> float | None:
        """The one number the log keeps of it."""
        return None


@dataclass(frozen=True)
class PlaybackStarted(Event):
    """The first frame is shown."""

    startup_delay_s: float
    """Seconds since the session began."""

    @property
    def value(self) -> float:
        """The startup delay in seconds."""
        return self.startup_delay_s


@dataclass(frozen=True)
class SegmentPlayed(Event):
    """The first frame of a segment is shown."""

    representation: int
    """What was downloaded of it."""

    @property
    def value(self) -> float:
        """The representation."""
        return float(self.representation)


@dataclass(frozen=True)
class RepresentationSwitched(Event):
    """A segment starts to play in another representation than the one before it."""

    previous: int
    """Representation of the segment played before."""
    representation: int
    """Representation from here on."""

    @property
    def value(self) -> float:
        """The new representation."""
        return float(self.representation)


@dataclass(frozen=True)
class RebufferingStarted(Event):
    """Playback ran out of rendered media; `segment` is the one it waits for."""


@dataclass(frozen=True)
class RebufferingEnded(Event):
    """Playback goes on."""

    duration_s: float
    """How long it stood still."""

    @property
    def value(self) -> float:
        """The duration in seconds."""
        return self.duration_s


@dataclass(frozen=True)
class ConcealmentStarted(Event):
    """Media is late, and the player goes on with frames it makes up; `segment` is the one it waits for."""


@dataclass(frozen=True)
class ConcealmentEnded(Event):
    """The late media is there, or the player has made up frames for as long as it may and stands still."""

    duration_s: float
    """How long frames were made up."""

    @property
    def value(self) -> float:
        """The duration in seconds."""
        return self.duration_s


@dataclass(frozen=True)
class RequestFailed(Event):
    """A request brought no whole segment."""

    reason: str
    """In the driver's words; "timeout" for a request that took too long."""
    received_bytes: int
    """What had arrived, and is thrown away."""

    @property
    def name(self) -> str:
        """`timeout` or `error`."""
        return "timeout" if self.reason == TIMEOUT else "error"

    @property
    def value(self) -> float:
        """The bytes that had arrived."""
        return float(self.received_bytes)


@dataclass(frozen=True)
class RequestAbandoned(Event):
    """A request in flight was given up: by the controller for a smaller one, or as an upgrade that came too late."""

    representation: int
    """What was being fetched."""
    received_bytes: int
    """What had arrived, and is thrown away."""

    @property
    def value(self) -> float:
        """The bytes that had arrived."""
        return float(self.received_bytes)


@dataclass(frozen=True)
class SegmentUpgraded(Event):
    """A buffered segment will be shown in a better representation than it was downloaded in at first."""

    representation: int
    """What it will be shown in."""

    @property
    def value(self) -> float:
        """The new representation."""
        return float(self.representation)


@dataclass(frozen=True)
class SegmentSkipped(Event):
    """Every attempt failed: playback will jump over the segment."""


@dataclass(frozen=True)
class PlaybackEnded(Event):
    """The last frame has been shown, or nothing was left to show."""


TIMEOUT = "timeout"
"""The reason a driver gives for a request that exceeded its timeout."""

_NAMES: dict[type[Event], str] = {
    PlaybackStarted: "startup",
    SegmentPlayed: "play",
    RepresentationSwitched: "switch",
    RebufferingStarted: "rebuffering_start",
    RebufferingEnded: "rebuffering_end",
    ConcealmentStarted: "concealment_start",
    ConcealmentEnded: "concealment_end",
    RequestAbandoned: "abandon",
    SegmentUpgraded: "upgrade",
    SegmentSkipped: "skip",
    PlaybackEnded: "end",
}
