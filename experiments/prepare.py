"""What a run streams: the clip, and its packages, made on first use and kept in a cache.

A package's folder name holds a hash of everything that decides its bytes and its measurements: the video's content, the
settings, the generator's files, this project's code, library versions, machine and available weights. A finished folder
of that name is used as it is; an unfinished one is continued.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments import plugins
from experiments.errors import ExperimentError
from experiments.provenance import library_versions
from experiments.schema import RunConfig, VideoConfig
from packager.demo import demo_clip_name, make_demo_clip
from packager.package import BuildProgress, builder, folder_stem
from packager.settings import NOT_IN_BYTES, BuildConfig, parse_size
from player.codecs import PROMPT, VAE
from player.digests import file_sha256, folder_sha256
from player.generator import find_folder, load_generator, resolve_device
from player.latents import find_autoencoder
from player.manifest import Manifest
from player.presentation import MANIFEST_NAME, Presentation
from player.quality.embedded import WEIGHTS_FILE, EmbeddedLpips

log = logging.getLogger(__name__)

DEMO = "demo"
_WEIGHTS_VARIABLE = "PROMPTDASH_WEIGHTS"
_SOURCES = Path(__file__).resolve().parent.parent

_LIBRARIES = ("python", "promptdash", "torch", "diffusers", "av", "numpy", "scikit-image")
"""What fitted, encoded and measured values may depend on."""
_FIT_SPEED = ("frames_per_step", "frames_at_once", "segments_at_once", "compile")
_PROMPT_ONLY = frozenset(
    ("ranks", "interval", "top_intervals", "start", "layered", "preset", "motion", "iterations", "seed", *_FIT_SPEED)
)
"""Settings that only prompts are fitted with."""
_BASELINE_ONLY = frozenset(("bitrates_bps",))
"""Settings that prompts do not read; the generator sets the frame size of every codec."""

ProgressFactory = Callable[[str], BuildProgress]
"""Makes the progress callback of one package, given what it is called."""


@dataclass(frozen=True)
class Package:
    """A packaged video ready to be streamed."""

    codec: str
    presentation: Presentation
    key: str
    """Hash of what made it; equal keys are equal packages."""


def check_video(config: VideoConfig) -> None:
    """Raise ExperimentError unless the video is the demo clip or a file that is there."""
    if config.name != DEMO and not Path(config.name).expanduser().is_file():
        raise ExperimentError(f"video={config.name}: no such file; give a path, or `demo` for the built-in clip")


def obtain_video(config: VideoConfig, cache: Path) -> Path:
    """Return the video's path; the demo clip is filmed on first use.

    Raises:
        ExperimentError: no such file.
    """
    check_video(config)
    if config.name != DEMO:
        return Path(config.name).expanduser()
    path = cache / demo_clip_name(seconds=config.seconds, size=config.size)
    if not path.exists():
        log.info("filming the demo clip (%g s), once", config.seconds)
        make_demo_clip(path, seconds=config.seconds, size=config.size)
    return path


def obtain_package(codec: str, video: Path, config: BuildConfig, cache: Path, progress: ProgressFactory) -> Package:
    """Return the video's package for ``codec``, built if the cache has none.

    Raises:
        PackagerError, PlayerError: bad input, in one line.
    """
    key = package_key(codec, video, config)
    reused = True
    folder = cache / f"{folder_stem(video, codec)}-{key[:12]}"
    if not (folder / MANIFEST_NAME).exists():
        reused = False
        log.info("packaging %s as %s into %s", video.name, codec, folder)
        began = time.monotonic()
        builder(codec)(video, folder, config, resume=True, progress=progress(f"{video.name} as {codec}"))
        log.info("packaged in %.0f s", time.monotonic() - began)
    presentation = Presentation.load(folder)
    if reused and EmbeddedLpips.name in presentation.metrics:
        _tell_of_estimate(cache)
    return Package(codec, presentation, key)


@functools.cache
def _tell_of_estimate(cache: Path) -> None:
    """Say once what stands for perceptual quality in packages that were measured without LPIPS' weights."""
    log.info(
        "perceptual quality was measured by lpips-embedded, an estimate of LPIPS, when this was packaged; to measure "
        "LPIPS itself, get its weights (docs/metrics.md) and delete the packages in %s",
        cache,
    )


def package_key(codec: str, video: Path, config: BuildConfig) -> str:
    """Return a hash of everything that a package's bytes and its measured quality depend on."""
    versions = library_versions()
    ignored = NOT_IN_BYTES | (_BASELINE_ONLY if codec == PROMPT else _PROMPT_ONLY)
    content = {
        "video": file_sha256(video),
        "codec": codec,
        "settings": {name: value for name, value in asdict(config).items() if name not in ignored},
        "generator": _generator_part(codec, config),
        "device": str(resolve_device(config.device)),
        "code": [folder_sha256(_SOURCES / name, suffixes=(".py",)) for name in ("packager", "player")],
        "versions": {name: versions[name] for name in _LIBRARIES},
        "machine": platform.machine(),
        "plugins": plugins.of_package(codec, config),
        "weights": [os.environ.get(_WEIGHTS_VARIABLE, ""), file_sha256(WEIGHTS_FILE)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _generator_part(codec: str, config: BuildConfig) -> object:
    """Return what a package depends on in the generator: its files, or for pixel codecs its frame size alone."""
    if codec not in (PROMPT, VAE):
        return (
            load_generator(config.generator, decoder=config.decoder or None, device="cpu").native_size
            if parse_size(config.size) is None
            else None
        )
    if codec == VAE:
        return [folder_sha256(find_folder(config.generator)), folder_sha256(find_autoencoder(config.generator))]
    return folder_sha256(find_folder(config.generator))


def check_same_time_line(packages: list[Package]) -> None:
    """Raise ExperimentError unless all packages have the same segments, frame rate and size."""
    first = packages[0]
    for other in packages[1:]:
        if _time_line(other.presentation.manifest) != _time_line(first.presentation.manifest):
            raise ExperimentError(f"the packages for {first.codec} and {other.codec} differ in size or segment times")


def _time_line(manifest: Manifest) -> tuple[object, ...]:
    return manifest.width, manifest.height, manifest.fps, manifest.segments


def input_hashes(config: RunConfig, video: Path, packages: list[Package]) -> dict[str, object]:
    """Return names and hashes of everything a run read, for its provenance."""
    return {
        "video": {"name": config.video.name, "path": str(video), "sha256": file_sha256(video)},
        "packages": {
            package.codec: {
                "folder": str(package.presentation.directory),
                "key": package.key,
                "sha256": folder_sha256(package.presentation.directory),
            }
            for package in packages
        },
        "plugins": plugins.of_run(config),
        "generator": {"name": config.build.generator, "sha256": folder_sha256(find_folder(config.build.generator))},
    }
