"""Pick the frames of a run's contact sheet: originals from the video, the others from what the sessions showed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.contact_sheet import Picture, SheetRow, contact_sheet, sheet_frames
from experiments.playback import FrameStore
from experiments.results import CodecResult, RunResult
from experiments.series import CODEC_TITLES, METRICS, header_line, headline_metric
from packager.settings import BuildConfig
from packager.video import iter_segments
from player.manifest import Manifest

COLUMNS = 5
"""Moments on a sheet."""


def draw_sheet(run: RunResult, video: Path, build: BuildConfig, stores: Mapping[str, FrameStore]) -> Figure:
    """Return the contact sheet of a run: at a few moments of the clip, what was filmed and what each codec makes of it
    in the representation that its session showed longest."""
    manifest = next(iter(stores.values())).presentation.manifest
    frames = sheet_frames(sum(manifest.frames), COLUMNS)
    places = [_place(manifest, index) for index in frames]
    rows = [SheetRow("Original", _originals(video, build, manifest, places))]
    metric = headline_metric([run.codecs[codec] for codec in stores])
    for codec, store in stores.items():
        representation = longest_shown(run.codecs[codec])
        name = store.presentation.representations[representation].id
        rate = store.presentation.bitrate_bps[representation] / 1e3
        pictures = [_picture(store, place, representation, metric) for place in places]
        rows.append(SheetRow(f"{CODEC_TITLES[codec]}\n{name}, {rate:.1f} kbit/s", pictures))
    return contact_sheet(rows, [float(index / manifest.fps) for index in frames], header_line(run.conditions))


def longest_shown(result: CodecResult) -> int:
    """Return the representation that a session showed longest; the lowest of those with equal times."""
    shown = result.segments.dropna(subset=["play_start_s"])
    return int(shown.groupby("representation")["duration_s"].sum().idxmax()) if len(shown) else 0


def _place(manifest: Manifest, index: int) -> tuple[int, int]:
    """Return (segment, frame in it) of a frame of the clip."""
    ends = np.cumsum(manifest.frames)
    segment = int(np.searchsorted(ends, index, side="right"))
    return segment, index - int(ends[segment] - manifest.frames[segment])


def _originals(video: Path, build: BuildConfig, manifest: Manifest, places: Sequence[tuple[int, int]]) -> list[Picture]:
    wanted = dict(places)
    pictures = {}
    segments = iter_segments(
        video, width=manifest.width, height=manifest.height, fit=build.fit, segment_s=build.segment_s, fps=manifest.fps
    )
    for number, frames in enumerate(segments):
        for segment, frame in places:
            if segment == number:
                pictures[segment, frame] = Picture(frames[frame].copy())
        if number >= max(wanted):
            break
    return [pictures[place] for place in places]


def _picture(store: FrameStore, place: tuple[int, int], representation: int, metric: str | None) -> Picture:
    segment, frame = place
    caption = ""
    if metric:
        value = store.presentation.frame_quality(segment, representation, metric)[frame]
        short = METRICS[metric].title.split(" (")[0].removesuffix(" [dB]")
        caption = f"{short} {value:.{METRICS[metric].digits}f}"
    return Picture(np.asarray(store.frames(segment, representation)[frame]), caption)
