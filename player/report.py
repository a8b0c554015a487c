"""What the player shows of a session: a line while it runs and a table at its end. Strings only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from player.playback import PlaybackState
from player.session import Session

_DIGITS = {"psnr_db": 2, "ms_ssim": 3, "ssimulacra2": 1}
_LPIPS_DIGITS = 3


def progress_line(session: Session, now_s: float, programme_s: float, representation: str) -> str:
    """Return where a session stands, in one line."""
    summary = session.summary()
    state = "" if session.state is PlaybackState.PLAYING else f" ({session.state.value})"
    return (
        f"{now_s:6.1f} s  played {summary['played_s']:.1f} of {programme_s:.1f} s{state}"
        f"  buffer {session.buffer_s:.1f} s"
        f"  {representation}  {summary['mean_bitrate_bps'] / 1000:.4g} kbit/s"
        f"  rebuffered {summary['rebuffered_s']:.1f} s  failed {summary['timeouts'] + summary['errors']:.0f}"
    )


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return a session's numbers, one per line."""
    rows = [
        (f"{name}, mean", _number(value, _DIGITS.get(name, _LPIPS_DIGITS)))
        for name, value in summary["quality"].items()
    ]
    if summary["severe_metric"] is not None:
        rule = f"{summary['severe_metric']} worse than {summary['severe_threshold']:g}"
        rows.append((f"Severely distorted frames, {rule} [%]", _number(summary["severe_share"], 1, 100)))
    failures = f"{summary['timeouts']} timeouts, {summary['errors']} errors, {summary['abandonments']} abandoned"
    rows += [
        ("Bitrate of what was played [kbit/s]", _number(summary["media_bitrate_bps"], 2, 1e-3)),
        ("Received, failed attempts included [kB]", _number(summary["received_bytes"], 1, 1e-3)),
        ("Startup delay [s]", _number(summary["startup_delay_s"], 2)),
        ("Played [s]", _number(summary["played_s"], 2)),
        ("Rebuffering ratio [%]", _number(summary["rebuffering_ratio"], 2, 100)),
        ("Rebuffering periods", str(summary["rebuffering_count"])),
        ("Switches", str(summary["switches"])),
        ("Segments fetched, skipped", f"{summary['segments']}, {summary['skipped_segments']}"),
        ("Requests that failed", failures),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in rows)


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
