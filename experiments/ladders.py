"""The packages behind a study: found again by name and hash, and their ladders as points of rate and distortion."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.rd_study import Study, average_ladders
from experiments.series import ordered_metrics
from player.codecs import ordered
from player.digests import folder_sha256
from player.presentation import Presentation
from player.quality import SEVERE_DISTORTION, severely_distorted_share


def find_packages(study: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Return the folders of a study's packages that are at hand, by name; each has the hash that the study recorded.

    Looked for where the study's command and settings say, and in `folders`: a package, or a folder of packages.
    """
    hashes: Mapping[str, str] = study["packages"]
    places = [place for start in (study["provenance"], *study["resumed"]) for place in _places(start["config"])]
    places += [inside for folder in folders for inside in (folder, *sorted(folder.glob("*")))]
    found: dict[str, Path] = {}
    for place in places:
        name = place.resolve().name
        if name in hashes and name not in found and place.is_dir() and folder_sha256(place) == hashes[name]:
            found[name] = place
    return found


def _places(config: Mapping[str, Any]) -> list[Path]:
    """Return where a sweep with this configuration finds its packages, if it runs in this folder."""
    if config["package"]:
        return [Path(match) for text in config["package"].split(",") for match in sorted(glob.glob(text))]  # noqa: PTH207, may be absolute
    return sorted(Path(config["cache_dir"]).glob("*"))


def missing_text(study: Mapping[str, Any], found: Mapping[str, Path]) -> str:
    """Return a sentence that names the packages of a study that are not at hand; "" where all are."""
    names = [name for name in sorted(study["packages"]) if name not in found]
    if not names:
        return ""
    named = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    return f"{len(names)} of {len(study['packages'])} packages are not at hand, or have changed since: {named}."


def ladder_study(packages: Mapping[str, Path], videos: Mapping[str, str]) -> Study:
    """Return the ladders of packages as a rate-distortion study without comparisons.

    Args:
        packages: folders by package name.
        videos: the video of each package, by package name.
    """
    loaded = {name: Presentation.load(path) for name, path in packages.items()}
    held = [dict.fromkeys(one.metrics) for one in loaded.values()]
    metrics = [name for name in ordered_metrics(held) if all(name in one for one in held)]
    points = pd.DataFrame(
        [row for name, one in loaded.items() for row in _points(videos.get(name, name), one, metrics)]
    )
    codecs = tuple(ordered(set(points["codec"])))
    nothing = pd.DataFrame()
    mean = average_ladders(points, codecs)
    return Study(codecs[0], codecs, tuple(metrics), points, mean, nothing, nothing, {})


def _points(video: str, presentation: Presentation, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each representation: its bitrate, and each metric's mean and severe share over all frames."""
    rows = []
    for rung, bitrate_bps in enumerate(presentation.bitrate_bps):
        row: dict[str, Any] = {
            "clip": video, "codec": presentation.manifest.codec,
            "representation": presentation.representations[rung].id, "bitrate_bps": float(bitrate_bps),
        }  # fmt: skip
        for metric in metrics:
            values = pd.concat(
                [pd.Series(presentation.frame_quality(s, rung, metric)) for s in range(presentation.segments)]
            )
            row[metric] = float(values.mean())
            if metric in SEVERE_DISTORTION:
                row[f"severe_{metric}"] = severely_distorted_share(values, metric)
        rows.append(row)
    return rows
