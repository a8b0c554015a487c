"""The packages that a sweep streams: finished folders, or videos packaged on first use."""

from __future__ import annotations

import glob
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import ExperimentError, UsageError
from experiments.expand import Point
from experiments.schema import RunConfig, VideoConfig
from packager.errors import PackagerError
from player.digests import folder_sha256
from player.errors import PlayerError
from player.presentation import MANIFEST_NAME, Presentation

if TYPE_CHECKING:
    from experiments.prepare import Package

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".y4m", ".ts", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """A packaged video."""

    video: str
    """Name of the clip, without folder and suffix."""
    presentation: Presentation

    @property
    def package(self) -> str:
        """Name of the package's folder."""
        return self.presentation.directory.resolve().name

    @cached_property
    def sha256(self) -> str:
        """Hash of the package's files."""
        return folder_sha256(self.presentation.directory)


class Sources:
    """Finds and makes packages, each once, and remembers which could not be made."""

    def __init__(self) -> None:
        self.failures: list[dict[str, str]] = []
        """Videos that could not be packaged: `video`, `codec`, `reason`."""
        self._known: dict[str, list[Source]] = {}
        self._folders: dict[str, Path] = {}

    def of(self, point: Point) -> list[Source]:
        """Return what the point's sessions stream.

        Raises:
            ExperimentError: no such video or package, or two packages of one name.
        """
        config = point.config
        key = repr((config.video, config.videos, config.build, config.package, point.codecs, point.any_codec))
        if key not in self._known:
            if config.package:
                self._known[key] = find_packages(config.package, None if point.any_codec else point.codecs)
            else:
                self._known[key] = self._made(config, point.codecs)
            for source in self._known[key]:
                self._check_name(source)
        return self._known[key]

    def _check_name(self, source: Source) -> None:
        folder = source.presentation.directory.resolve()
        if self._folders.setdefault(source.package, folder) != folder:
            raise UsageError(f"package={folder}: the folders' names must differ, as {source.package} does not")

    def _made(self, config: RunConfig, codecs: Sequence[str]) -> list[Source]:
        from experiments.prepare import obtain_package, obtain_video  # torch: finished packages do without

        made = []
        videos = list_videos(config)
        for number, video in enumerate(videos, start=1):
            if len(videos) > 1:
                log.info("video %d of %d: %s", number, len(videos), video.name)
            path = obtain_video(video, Path(config.cache_dir))
            packages = []
            for codec in codecs:
                try:
                    packages.append(obtain_package(codec, path, config.build, Path(config.cache_dir), _quietly))
                except (PackagerError, PlayerError) as error:  # one bad clip must not sink the others
                    self.failures.append({"video": path.name, "codec": codec, "reason": " ".join(str(error).split())})
            made += _as_sources(path, packages)
        return made


def _as_sources(video: Path, packages: list[Package]) -> list[Source]:
    if packages:
        from experiments.prepare import check_same_time_line

        check_same_time_line(packages)
    return [Source(video.stem, package.presentation) for package in packages]


def list_videos(config: RunConfig) -> list[VideoConfig]:
    """Return the videos of a sweep: those of `videos=`, else the one of `video=`; UsageError if there is none."""
    from dataclasses import replace

    if not config.videos:
        return [config.video]
    paths: list[Path] = []
    for part in config.videos.split(","):
        path = Path(part).expanduser()
        if path.is_dir():
            found = sorted(one for one in path.iterdir() if one.suffix.lower() in VIDEO_SUFFIXES)
            if not found:
                raise UsageError(f"videos={part}: no video in this folder; expected {', '.join(VIDEO_SUFFIXES)}")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise UsageError(f"videos={part}: no such folder or file")
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise UsageError(f"videos={config.videos}: {twice[0]} is there twice; names without suffix must differ")
    return [replace(config.video, name=str(path)) for path in paths]


def find_packages(text: str, codecs: Sequence[str] | None) -> list[Source]:
    """Return the packages that `package=` names, of these codecs if they were asked for."""
    sources: dict[Path, Source] = {}
    for part in text.split(","):
        folders = [Path(one) for one in sorted(glob.glob(str(Path(part).expanduser())))]  # noqa: PTH207, may be absolute
        finished = [folder for folder in folders if (folder / MANIFEST_NAME).is_file()]
        if not finished:
            raise UsageError(f"package={part}: no finished package (a folder with {MANIFEST_NAME})")
        if len(finished) < len(folders):
            print(f"package={part}: {len(folders) - len(finished)} without {MANIFEST_NAME} left out", file=sys.stderr)
        for folder in finished:
            presentation = Presentation.load(folder)
            if codecs is None or presentation.manifest.codec in codecs:
                sources.setdefault(folder.resolve(), Source(video_name(presentation), presentation))
    if not sources:
        raise ExperimentError(f"package={text}: none of {', '.join(codecs or ())} among them")
    return list(sources.values())


def video_name(presentation: Presentation) -> str:
    """Return the clip's name: as the packager wrote it down, else the folder's without the codec."""
    try:
        identity = json.loads((presentation.directory / "package.json").read_text(encoding="utf-8"))["identity"]
        return Path(identity["video"]).stem
    except (OSError, ValueError, KeyError, TypeError):  # made by another tool
        return presentation.directory.resolve().name.removesuffix(f"-{presentation.manifest.codec}")


def _quietly(title: str) -> Callable[[str, float, float | None], None]:
    """Return a progress callback that says nothing: the log has a line for each package made, enough for many clips."""
    return lambda stage, done, total: None
