"""The table that ends a build: every representation with its measured bitrate and mean quality. No torch."""

from __future__ import annotations

from player.presentation import Presentation

_DIGITS = {"psnr_db": 2, "ms_ssim": 4, "ssimulacra2": 1}
_LPIPS_DIGITS = 3


def quality_table(presentation: Presentation) -> str:
    """Return the table as text; means are over all frames, kbit/s count every byte of the representation."""
    manifest = presentation.manifest
    frames = manifest.frames
    header = ["representation", "rank", "kbit/s", *presentation.metrics]
    rows = [header]
    means = {
        # segments weigh by their frames, so that each frame counts once
        metric: (presentation.mean_quality(metric).T * frames).sum(axis=1) / sum(frames)
        for metric in presentation.metrics
    }
    for position, rung in enumerate(presentation.representations):
        kbps = presentation.bitrate_bps[position] / 1000
        values = [f"{means[m][position]:.{_DIGITS.get(m, _LPIPS_DIGITS)}f}" for m in presentation.metrics]
        rows.append([rung.id, "-" if rung.rank is None else str(rung.rank), f"{kbps:.1f}", *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    rate = f"{float(manifest.fps):g}"
    size = f"{manifest.width}x{manifest.height}"
    lines.append(f"{len(frames)} segments, {manifest.duration_s:.2f} s, {size}, {rate} frames/s, {manifest.codec}")
    return "\n".join(lines)
