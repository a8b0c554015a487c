"""Example frames of a study's videos: the original beside each codec at about the same bitrate."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.series import CODEC_TITLES, METRICS
from packager.errors import PackagerError
from packager.video import iter_segments
from player.codecs import ordered
from player.decoder import create_decoder, load_model
from player.digests import file_sha256
from player.errors import PlayerError
from player.presentation import Presentation

METRICS_SHOWN = 3


@dataclass(frozen=True)
class FramePicture:
    """One frame, ready for a page."""

    name: str
    lines: list[str]
    source: str = field(repr=False)  # data: URL
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class FrameSet:
    """The same moment of a video in every codec."""

    title: str
    pictures: list[FramePicture]
    note: str = ""


def example_frames(
    table: pd.DataFrame, packages: Mapping[str, Path], config: Mapping[str, Any], videos: Sequence[Path], count: int
) -> list[FrameSet]:
    """Return frames of up to `count` videos, spread over those that were packaged in most codecs.

    Args:
        table: sessions, with the columns `video`, `codec` and `package`.
        packages: folders at hand, by package name.
        config: the study's configuration, as study.json holds it.
        videos: where to look for the videos themselves, besides where the study found them: files or folders.
    """
    rows = table.drop_duplicates("package")
    rows = rows[rows["package"].isin(packages)]
    by_video = {
        str(video): dict(zip(own["codec"], own["package"], strict=True)) for video, own in rows.groupby("video")
    }
    most = max((len(codecs) for codecs in by_video.values()), default=0)
    names = [video for video, codecs in by_video.items() if len(codecs) == most]
    chosen = [names[int(place)] for place in np.linspace(0, len(names) - 1, min(count, len(names)))] if names else []
    found_at = [*str(config["videos"]).split(","), config["video"]["name"], config["cache_dir"]]
    places = [*videos, *(Path(text) for text in found_at if text)]
    spec = str(config["build"]["generator"])
    return [
        _frame_set(video, {codec: packages[by_video[video][codec]] for codec in ordered(by_video[video])}, places, spec)
        for video in chosen
    ]


def _frame_set(video: str, folders: Mapping[str, Path], places: Sequence[Path], spec: str) -> FrameSet:
    loaded = {codec: Presentation.load(folder) for codec, folder in folders.items()}
    rungs = common_rate({codec: one.bitrate_bps for codec, one in loaded.items()})
    first = next(iter(loaded.values()))
    segment = first.segments // 2
    frame = first.manifest.frames[segment] // 2
    time_s = float((sum(first.manifest.frames[:segment]) + frame) / first.manifest.fps)
    pictures, notes = [], []
    try:
        original = _original(first, places, segment, frame)
    except (PackagerError, OSError, ValueError, KeyError) as error:  # also a package without, or with a broken identity
        original, reason = None, " ".join(str(error).split())
        notes.append(f"The original could not be read: {reason}.")
    if original is not None:
        pictures.append(_picture("Original", [], original))
    elif not notes:
        notes.append("The original is not at hand; --videos names its folder.")
    for codec, one in loaded.items():
        rung = rungs[codec]
        try:
            decoder = create_decoder(codec, one.read_init(rung), generator=load_model(codec, spec))
            pixels = decoder.decode(one.read_segment(segment, rung))[frame]
        except PlayerError as error:
            notes.append(f"{CODEC_TITLES[codec]} could not be decoded: {' '.join(str(error).split())}.")
            continue
        pictures.append(_picture(CODEC_TITLES[codec], _lines(one, segment, frame, rung), pixels))
    return FrameSet(f"{video}, at {time_s:.1f} s", pictures, " ".join(notes))


def common_rate(ladders: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return for each codec the representation to show: those whose bitrates differ least as ratios, the lowest such.

    Args:
        ladders: bitrates of each codec, bit/s [R], ascending.
    """
    targets = np.unique(np.concatenate(list(ladders.values())))
    distance = [
        max(np.abs(np.log(rates / target)).min() for rates in ladders.values()) for target in targets
    ]  # the codec that comes least near decides
    target = targets[int(np.argmin(distance))]
    return {codec: int(np.abs(np.log(rates / target)).argmin()) for codec, rates in ladders.items()}


def _lines(presentation: Presentation, segment: int, frame: int, rung: int) -> list[str]:
    lines = [f"{presentation.representations[rung].id}, {presentation.bitrate_bps[rung] / 1e3:.1f} kbit/s"]
    for metric in presentation.metrics[:METRICS_SHOWN]:
        value = presentation.frame_quality(segment, rung, metric)[frame]
        short = METRICS[metric].title.split(" (")[0].removesuffix(" [dB]")
        lines.append(f"{short} {value:.{METRICS[metric].digits}f}")
    return lines


def _original(presentation: Presentation, places: Sequence[Path], segment: int, frame: int) -> np.ndarray | None:
    """Return a frame uint8 [H, W, 3] of what was packaged, or None if the video is not at hand."""
    manifest = presentation.manifest
    identity = json.loads((presentation.directory / "package.json").read_text(encoding="utf-8"))["identity"]
    candidates = [inside for place in places for inside in (place, place / identity["video"])]
    path = next((one for one in candidates if one.is_file() and file_sha256(one) == identity["video_sha256"]), None)
    if path is None:
        return None
    segments = iter_segments(
        path, width=manifest.width, height=manifest.height, fit=identity["crop_or_pad"], fps=manifest.fps,
        segment_s=float(Fraction(identity["segment_frames"]) / manifest.fps),
    )  # fmt: skip
    return next(frames[frame] for number, frames in enumerate(segments) if number == segment)


def _picture(name: str, lines: list[str], pixels: np.ndarray) -> FramePicture:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, format="PNG")  # lossless: nothing is to be added to what is shown
    return FramePicture(name, lines, data_url(buffer.getvalue(), "image/png"), pixels.shape[1], pixels.shape[0])


def data_url(content: bytes, mime_type: str) -> str:
    """Return bytes as a URL that needs no network."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"
