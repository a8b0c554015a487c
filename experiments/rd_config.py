"""What a rate-distortion study is configured with, and how its KEY=VALUE command line is read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import UsageError
from packager.errors import BuildError
from packager.settings import AUTO, BuildConfig, parse_bitrate
from player.codecs import is_known, known_codecs

DEMO = "demo"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".y4m")
SHORTHANDS = {
    "bitrates": "build.bitrates_bps", "ranks": "build.ranks", "seconds": "build.seconds", "size": "build.size",
    "generator": "build.generator", "preset": "build.preset", "segment": "build.segment_s", "device": "build.device",
}  # fmt: skip
"""Short key of the command line -> the key that it stands for."""

_HELP = """Package clips with several codecs, measure every representation, and compare the curves.

usage: python -m experiments.rate_distortion [KEY=VALUE ...]

  videos=a.mp4,clips/*.mp4 codecs=prompt,h265,av1,vae bitrates=8k,30k,120k seconds=4 every=3 jobs=3

Short keys:
{short}

Every key with its default (docs/rate_distortion.md says what each means):

{keys}"""

_RATE_KEYS = ("build.bitrates_bps", "sheets_bps")


def _study_build() -> BuildConfig:
    """Return the study's own packaging defaults: a wide ladder for the baselines."""
    return BuildConfig(jobs=0, bitrates_bps=[8_000, 15_000, 30_000, 60_000, 120_000, 200_000])


@dataclass
class StudyConfig:
    """One study: some clips, some codecs, each packaged and measured over its whole ladder."""

    videos: list[str] = field(default_factory=lambda: ["demo"])
    """Video files, folders of them or patterns such as clips/*.mp4; `demo` is the built-in clip."""
    packages: str = ""
    """Finished packages instead, folders or patterns such as site/*: compared as they were measured, every frame,
    when they were built. Nothing is decoded, so there are no contact sheets."""
    codecs: list[str] = field(default_factory=lambda: ["prompt", "h265", "av1", "vae"])
    """What is compared."""
    anchor: str = "h265"
    """The codec that the others are measured against."""
    metrics: list[str] = field(default_factory=lambda: [AUTO])
    """Quality metrics by name; auto is everything this machine can measure."""
    every: int = 1
    """Measure every N-th frame. Neighbours are much alike: 3 costs a third of the time and moves means little."""
    sheets_bps: list[int] = field(default_factory=lambda: [15_000, 60_000])
    """Bitrates at which contact sheets set the codecs side by side."""
    jobs: int = 1
    """Processes at work at the same time, each with its share of the processor's cores."""
    output: str = "outputs/rate_distortion"
    """Folder of the results; equal settings may use it again, and only what is missing is made."""
    cache_dir: str = "outputs/cache"
    """Where packages and their measurements are kept between studies."""
    figures: bool = True
    """Draw the figures and contact sheets."""
    build: BuildConfig = field(default_factory=_study_build)
    """How the clips are packaged; the same keys as in experiments.run."""

    def __post_init__(self) -> None:
        unknown = [codec for codec in self.codecs if not is_known(codec)]
        if unknown or not self.codecs or len(set(self.codecs)) < len(self.codecs):
            raise UsageError(f"codecs={','.join(self.codecs)}: expected some of {', '.join(known_codecs())}, each once")
        if self.anchor not in self.codecs:
            raise UsageError(f"anchor={self.anchor}: expected one of the codecs compared, {', '.join(self.codecs)}")
        if not self.videos or not self.metrics:
            raise UsageError(f"{'metrics' if self.videos else 'videos'}: expected at least one")
        for name, most in (("every", 1000), ("jobs", 256)):
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"{name}={getattr(self, name)}: expected 1 to {most}")
        if any(rate <= 0 for rate in self.sheets_bps):
            raise UsageError(f"sheets_bps={self.sheets_bps}: expected bitrates above zero")


def parse_study(arguments: Sequence[str]) -> StudyConfig:
    """Return the study that KEY=VALUE arguments ask for.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of its range, in one line.
    """
    config = OmegaConf.structured(StudyConfig())
    for argument in arguments:
        given, equals, text = argument.partition("=")
        if not equals or not text.strip():
            raise UsageError(f"{argument}: expected KEY=VALUE, such as videos=a.mp4,b.mp4")
        key = SHORTHANDS.get(given, given)
        value = _parse_value(key, text.strip(), is_list=isinstance(_default(config, given, key), ListConfig))
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            raise UsageError(f"{argument}: {str(error).splitlines()[0]}") from error
    try:
        study = OmegaConf.to_object(config)
    except BuildError as error:
        raise UsageError(str(error)) from error
    if not isinstance(study, StudyConfig):
        raise TypeError(f"the configuration is a {type(study).__name__}, not a StudyConfig")
    return study


def help_text() -> str:
    """Return what --help prints: usage, short keys, and every key with its default."""
    short = "\n".join(f"  {name:<10} {key}" for name, key in SHORTHANDS.items())
    return _HELP.format(short=short, keys=OmegaConf.to_yaml(OmegaConf.structured(StudyConfig())).rstrip())


def find_videos(names: Sequence[str]) -> list[Path]:
    """Return the files that names, folders and patterns stand for, in order; `demo` stays as it is.

    Raises:
        UsageError: a name that leads to no file, or two files of one name, which results could not tell apart.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES)
        elif path.exists() or name == DEMO:
            matches = [path]
        else:
            matches = sorted(path.parent.glob(path.name))
        if not matches:
            raise UsageError(f"videos={name}: no such file, folder of videos or pattern that matches one")
        found += [match for match in matches if match not in found]
    stems = [path.stem for path in found]
    for path in found:
        if stems.count(path.stem) > 1:
            raise UsageError(f"videos: several are called {path.stem}; results could not tell them apart")
    return found


def _default(config: DictConfig, given: str, key: str) -> object:
    """Return what a key holds; raise UsageError if there is none, or if it is a group."""
    node: object = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            known = [*SHORTHANDS, *config, *(f"build.{name}" for name in config.build)]
            close = difflib.get_close_matches(given, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"unknown key {given}: {hint}")
        node = node[part]
    if isinstance(node, DictConfig):
        raise UsageError(f"{given} is a group of keys, such as {given}.{next(iter(node))!s}")
    return node


def _parse_value(key: str, text: str, *, is_list: bool) -> object:
    """Return a value's text, or its parts between commas; bitrates may carry units."""
    if not is_list:
        return text
    parts = [text] if key == "videos" and Path(text).expanduser().exists() else text.strip("[]").split(",")
    if key not in _RATE_KEYS:
        return [part.strip() for part in parts]
    try:
        return [parse_bitrate(part) for part in parts]
    except BuildError as error:
        raise UsageError(f"{key}: {error}") from error
