"""A session's tables: one row per segment, per frame and per event, and a summary. No I/O.

Rows are plain dictionaries, frames are numpy columns (a programme may have 10^5 of them). Times are session times in
seconds on the driver's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abr import Ladder, RateEstimate, ThroughputSample
from player.errors import SessionError
from player.events import Event
from player.playback import Playback, PlaybackState, Span


@dataclass
class SegmentRow:
    """What happened to one segment. Fields are None until they are known."""

    segment: int
    representation: int
    duration_s: float
    decided_s: float
    buffer_s: float
    """Media downloaded and not yet played when the controller chose."""
    wait_s: float
    """Pause the controller asked for, as far as it was granted."""
    estimate_bps: float | None
    """What the controller believed."""
    link_rate_bps: float | None = None
    """What `abr.SlowStartEstimator` says of the link at that moment, whatever the controller uses."""
    link_rate_is_bound: bool | None = None
    """Whether that is only a lower bound."""
    reason: str = ""
    request_s: float | None = None
    """When the last attempt was requested."""
    first_byte_s: float | None = None
    finish_s: float | None = None
    rendered_s: float | None = None
    render_s: float | None = None
    """Time the renderer took for all versions, its queue not counted."""
    render_mode: str | None = None
    """Which frames are rendered, a name of `Ladder.rendering`; None where rendering is free."""
    renders: int = 0
    """How often it was rendered: an upgrade of a segment that had been begun is one more time."""
    play_start_s: float | None = None
    content_start_s: float | None = None
    size_bytes: int = 0
    init_bytes: int = 0
    """Init segment fetched with it, at a representation's first use."""
    wasted_bytes: int = 0
    """Bytes of failed and abandoned attempts, and of versions that an upgrade replaced."""
    retries: int = 0
    abandonments: int = 0
    """Requests that the controller gave up."""
    upgrades: int = 0
    """Better versions, or enhancements, that came in time; `size_bytes` is all of what is shown."""
    upgraded_s: float | None = None
    """When the last of them was ready to be shown; request and arrival above are the first version's."""
    raised_to: int | None = None
    """Representation in which it was shown from the middle on: its base was shown while the rest was on its way."""
    raised_after_s: float | None = None
    """How long it had played by then."""
    throughput_bps: float | None = None
    """Of the first version, its init segment included."""
    downloaded: bool = False
    skipped: bool = False

    def note_link(self, link: RateEstimate | None) -> None:
        """Note what the player's own estimate of the link was when the controller chose."""
        if link is not None:
            self.link_rate_bps, self.link_rate_is_bound = link.rate_bps, link.is_bound

    def arrive(self, sample: ThroughputSample) -> None:
        """Note that the segment has arrived for the first time."""
        self.first_byte_s, self.finish_s = sample.first_byte_s, sample.finish_s
        spent_s = sample.finish_s - sample.request_s
        self.throughput_bps = 8 * sample.size_bytes / spent_s if spent_s > 0 else None
        self.downloaded = True

    def note_render(self, render_s: float) -> None:
        """Note that a version was rendered; one that was merged with its upgrade took no time of its own."""
        self.render_s = (self.render_s or 0.0) + render_s
        self.renders += render_s > 0

    def improve(self, representation: int, size_bytes: int, now_s: float, *, is_layer: bool) -> None:
        """Note that an upgrade, so far counted as wasted, will be shown: beside what was there, or in its place."""
        self.wasted_bytes -= size_bytes
        if not is_layer:
            self.wasted_bytes += self.size_bytes
            self.size_bytes = 0
        self.size_bytes += size_bytes
        self.representation, self.upgraded_s = representation, now_s
        self.upgrades += 1

    def raise_from(self, played_s: float, representation: int, size_bytes: int) -> bool:
        """Note that it is shown in a higher representation from content time `played_s` on; False if it is over."""
        if self.content_start_s is None or played_s >= self.content_start_s + self.duration_s:
            return False
        self.raised_to, self.raised_after_s = representation, played_s - self.content_start_s
        self.wasted_bytes -= size_bytes
        self.size_bytes += size_bytes
        self.upgrades += 1
        return True

    def carry_on(self, before: SegmentRow) -> None:
        """Take over what an earlier decision for the same segment has cost."""
        self.wasted_bytes, self.abandonments, self.retries = before.wasted_bytes, before.abandonments, before.retries

    def as_dict(self) -> dict[str, Any]:
        """Return the row as logged: the fields, and the bitrate."""
        return {**vars(self), "bitrate_bps": 8 * self.size_bytes / self.duration_s}


@dataclass(frozen=True)
class SessionLog:
    """The tables of one session."""

    segments: list[dict[str, Any]]
    """One row per segment that was asked for; see `SegmentRow`."""
    events: list[dict[str, Any]]
    """time_s, event, segment, value; in order of time."""
    summary: dict[str, float]
    """See `session_summary`."""
    spans: tuple[Span, ...]
    """The uninterrupted stretches of playback."""
    played_s: float
    ended: bool
    starts_s: tuple[float, ...]
    """Programme time at which each segment begins."""

    def wall_times_s(self, content_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when each content time was on the screen; at a stop, when playback resumed."""
        wall = np.array([span.wall_s for span in self.spans])
        content = np.array([span.content_s for span in self.spans])
        index = np.searchsorted(content, content_s, side="right") - 1
        return wall[index] + (content_s - content[index])

    def frames(self, frames_per_segment: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the frames that were shown, as columns of equal length, in order.

        Args: frames_per_segment: [S] how many frames each segment of the programme has, evenly spaced.

        Returns: segment, representation, frame (index in the segment), media_time_s (programme time), wall_time_s.
        """
        counts = np.asarray(frames_per_segment, dtype=np.int64)
        if counts.shape != (len(self.starts_s),) or np.any(counts < 1):
            raise SessionError(f"frames_per_segment: {len(self.starts_s)} counts of 1 or more expected")
        shown = [row for row in self.segments if row["content_start_s"] is not None]
        segment = np.array([row["segment"] for row in shown], dtype=np.int64)
        count = counts[segment]
        frame = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        offset_s = frame * np.repeat(_column(shown, "duration_s") / count, count)
        content_s = np.repeat(_column(shown, "content_start_s"), count) + offset_s
        raised = offset_s >= np.repeat(_column(shown, "raised_after_s"), count)  # NaN, never, for most
        before, after = (_column(shown, name) for name in ("representation", "raised_to"))
        columns = {
            "segment": np.repeat(segment, count),
            "representation": np.where(raised, np.repeat(after, count), np.repeat(before, count)).astype(np.int64),
            "frame": frame,
            "media_time_s": np.repeat(np.array(self.starts_s)[segment], count) + offset_s,
            "wall_time_s": self.wall_times_s(content_s) if self.spans else np.zeros(len(content_s)),
        }
        seen = np.full(len(content_s), bool(self.spans)) if self.ended else content_s < self.played_s
        return {name: column[seen] for name, column in columns.items()}


def build_log(rows: Sequence[SegmentRow], playback: Playback, ladder: Ladder) -> SessionLog:
    """Make the tables of a session."""
    events = playback.events
    ended = playback.state is PlaybackState.ENDED
    starts_s = np.cumsum(ladder.segment_duration_s) - ladder.segment_duration_s
    return SessionLog(
        segments=[row.as_dict() for row in rows],
        events=[_event_row(event) for event in events],
        summary=session_summary(rows, playback),
        spans=tuple(playback.spans),
        played_s=playback.played_s,
        ended=ended,
        starts_s=tuple(starts_s.tolist()),
    )


def session_summary(rows: Sequence[SegmentRow], playback: Playback) -> dict[str, float]:
    """Return a session's numbers.

    startup_delay_s + played_s + concealed_s + rebuffered_s = elapsed_s; rebuffering_ratio = rebuffered / (played +
    concealed + rebuffered); rebuffering_count; switches between segments played one after the other; mean_bitrate_bps =
    bytes of downloaded segments and their init segments * 8 / their playing time; downloaded_bytes, wasted_bytes;
    segments downloaded; skipped_segments and skipped_s; timeouts, errors, retries, abandonments, upgrades; ended (1 or
    0).
    """
    downloaded = [row for row in rows if row.downloaded]
    size_bytes = sum([row.size_bytes + row.init_bytes for row in downloaded])
    media_s = sum([row.duration_s for row in downloaded])
    rebuffered_s, concealed_s = playback.rebuffered_s, playback.concealed_s
    watched_s = playback.played_s + concealed_s + rebuffered_s
    happened = Counter([event.name for event in playback.events])
    return {
        "startup_delay_s": playback.startup_delay_s,
        "played_s": playback.played_s,
        "rebuffered_s": rebuffered_s,
        "concealed_s": concealed_s,
        "elapsed_s": playback.now_s - playback.start_s,
        "rebuffering_ratio": rebuffered_s / watched_s if watched_s > 0 else 0.0,
        "rebuffering_count": happened["rebuffering_start"],
        "switches": happened["switch"],
        "mean_bitrate_bps": 8 * size_bytes / media_s if media_s > 0 else 0.0,
        "downloaded_bytes": size_bytes,
        "wasted_bytes": sum([row.wasted_bytes for row in rows]),
        "segments": len(downloaded),
        "skipped_segments": happened["skip"],
        "skipped_s": sum([row.duration_s for row in rows if row.skipped]),
        "timeouts": happened["timeout"],
        "errors": happened["error"],
        "retries": sum([row.retries for row in rows]),
        "abandonments": sum([row.abandonments for row in rows]),
        "upgrades": sum([row.upgrades for row in rows]),
        "ended": int(playback.state is PlaybackState.ENDED),
    }


def _event_row(event: Event) -> dict[str, Any]:
    return {"time_s": event.time_s, "event": event.name, "segment": event.segment, "value": event.value}


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], dtype=np.float64)
