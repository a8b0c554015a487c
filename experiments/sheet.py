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
    """Return the contact sheet of a run: at a few moments of the clip, what was filmed and what each session showed
    the first time it came there, with the representation, its bitrate and its quality."""
    manifest = next(iter(stores.values())).presentation.manifest
    results = [run.codecs[codec] for codec in stores]
    seen = set.intersection(*(set(_first_shown(result)) for result in results))
    frames = [index for index in sheet_frames(sum(manifest.frames), COLUMNS) if _place(manifest, index)[0] in seen]
    places = [_place(manifest, index) for index in frames]
    rows = [SheetRow("Original", _originals(video, build, manifest, places))]
    metric = headline_metric(results)
    for result in results:
        pictures = [_picture(result, stores[result.codec], place, metric) for place in places]
        rows.append(SheetRow(CODEC_TITLES[result.codec], pictures))
    return contact_sheet(rows, [float(index / manifest.fps) for index in frames], header_line(run.conditions))


def _place(manifest: Manifest, index: int) -> tuple[int, int]:
    """Return (segment, frame in it) of a frame of the clip."""
    ends = np.cumsum(manifest.frames)
    segment = int(np.searchsorted(ends, index, side="right"))
    return segment, index - int(ends[segment] - manifest.frames[segment])


def _first_shown(result: CodecResult) -> dict[int, int]:
    """Return segment of the clip -> programme segment in which the session first showed it."""
    shown = result.segments.dropna(subset=["play_start_s"]).drop_duplicates("clip_segment")
    return {int(row.clip_segment): int(row.segment) for row in shown.itertuples()}


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


def _picture(result: CodecResult, store: FrameStore, place: tuple[int, int], metric: str | None) -> Picture:
    segment, frame = place
    programme_segment = _first_shown(result)[segment]
    row = result.segments.set_index("segment").loc[programme_segment]
    caption = f"{row['name']}, {row['bitrate_bps'] / 1e3:.1f} kbit/s"
    if metric:
        frames = result.frames
        value = frames.loc[(frames["segment"] == programme_segment) & (frames["frame"] == frame), metric]
        short = METRICS[metric].title.split(" (")[0].removesuffix(" [dB]")
        caption += f"\n{short} {float(value.iloc[0]):.{METRICS[metric].digits}f}"
    pixels = store.frames(segment, int(row["representation"]))[frame]
    return Picture(np.asarray(pixels), caption)
