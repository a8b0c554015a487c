"""Video to packaged folder: encode every segment, measure what the player will decode from it, write the manifest.

Every codec goes through `build`. What a segment is coded to is written and read back, decoded by the player's own
decoder and measured against the source, so the quality sidecar speaks of the bytes on disk (see `packager.segments`).
Work that is done survives being killed (see `packager.folder`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packager.encoder import load_encoder
from packager.errors import BuildError, PackagerError, VideoError
from packager.fit import fit_preset
from packager.folder import SIDECAR_NAME, BuildFolder, SegmentRecord, claim
from packager.ladder import LadderCodec, PromptLadder, SourceStream, VideoLadder, expected_segments
from packager.latent_ladder import LatentLadder
from packager.ray_workers import Cluster, RayWorkers, connect
from packager.segments import Tools, build_segments
from packager.settings import AUTO, NOT_IN_BYTES, BuildConfig, parse_size
from packager.versions import library_versions, version
from packager.video import VideoInfo, as_frame_rate, cut_segments, iter_frames, probe, segment_frame_count
from packager.video_encoders import VIDEO_ENCODERS
from packager.workers import Workers
from player.bitstream import FORMAT_VERSION
from player.codecs import PLUGINS, load_codec
from player.digests import file_sha256
from player.errors import PlayerError
from player.generator import find_folder, load_generator, resolve_device
from player.latents import load_autoencoder
from player.manifest import Manifest, Representation, min_buffer_s
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar
from player.quality import Metric, load_metrics

log = logging.getLogger(__name__)

BuildProgress = Callable[[str, float, float | None], None]
"""Called with (what is being done, how much of it is done, how much there is or None); units are segments."""

_FIT_SETTINGS = ("interval", "seed", "frames_at_once", "segments_at_once", "compile")
_TARGET_TOLERANCE = 0.05  # how far from its target a bitrate may be before it is said


@dataclass(frozen=True)
class BuildResult:
    """A finished folder."""

    presentation: Presentation
    reused: bool  # True where it had been finished before and nothing was done


@dataclass(frozen=True)
class Source:
    """A video and how its frames are taken from it."""

    path: Path
    stream: SourceStream
    fit: str
    digest: str  # SHA-256 of the file
    frames_taken: int | None = None  # from the start; None: all

    def frames(self) -> Iterator[np.ndarray]:
        """Start the video: uint8 [H, W, 3] each."""
        s = self.stream
        frames = iter_frames(self.path, width=s.width, height=s.height, fit=self.fit, fps=s.fps)
        return islice(frames, self.frames_taken)

    def segments(self) -> Iterator[np.ndarray]:
        """Start the video: uint8 [T, H, W, 3] each."""
        return cut_segments(self.frames(), self.stream.segment_frames)


def build_prompts(
    video: str | Path,
    folder: str | Path,
    config: BuildConfig | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Package a video as a ladder of prompts.

    Args:
        video: any file PyAV opens.
        folder: where the package goes; made if needed. If it already holds this very package, nothing is done.
        config: settings; the defaults need no download.
        resume: continue an unfinished build of the same settings.
        force: replace what another build left in the folder.
        progress: called often; see `BuildProgress`.
    Raises:
        PackagerError, player.errors.PlayerError: bad input, in one line.
    """
    config = config or BuildConfig()
    generator = load_generator(config.generator, decoder=config.decoder or None, device=config.device)
    changes: dict[str, object] = {name: getattr(config, name) for name in _FIT_SETTINGS}
    if config.start != AUTO:
        changes["start"] = config.start
    if not config.motion:
        changes["motion"] = False
    changes |= {name: value for name in ("iterations", "frames_per_step") if (value := getattr(config, name))}
    fit = fit_preset(config.preset, **changes)
    codec = PromptLadder(
        generator,
        load_encoder(generator),
        ranks=config.ranks,
        fit=fit,
        layered=config.layered,
        bitrates_bps=config.prompt_bitrates_bps,
        top_intervals=config.top_intervals if fit.motion else (),
    )
    height, width = generator.native_size
    source = open_source(video, config, native_size=(width, height))
    result = build(source, Path(folder), codec, config, resume=resume, force=force, progress=progress)
    _warn_of_missed_targets(result.presentation, codec.targets_bps)
    return result


def build_video(
    codec: str,
    video: str | Path,
    folder: str | Path,
    config: BuildConfig | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Package a video as a ladder of a pixel codec's bitrates: h264, h265, av1 or vp9; others as in `build_prompts`.

    With `config.size` at auto the frames get the size of the generator that the config names, for a fair comparison.
    """
    config = config or BuildConfig()
    if config.ray:
        raise BuildError(f"ray={config.ray}: {codec} is encoded in one process; a cluster is for prompt and vae")
    source = open_source(video, config, native_size=_generators_size(config))
    ladder = VideoLadder(codec, config.bitrates_bps)
    config = replace(config, jobs=1)  # the encoder sees the whole video at once; what is left is soon measured
    return build(source, Path(folder), ladder, config, resume=resume, force=force, progress=progress)


build_h265 = partial(build_video, "h265")


def build_plugin(
    codec: str,
    video: str | Path,
    folder: str | Path,
    config: BuildConfig | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Package a video with a codec of another package (`player.codecs.Codec`); frames sized as in `build_video`.

    Raises:
        player.errors.PluginError: what the codec's own code raises, in one line that names its distribution.
    """
    config = config or BuildConfig()
    point, offered = load_codec(codec)
    source = open_source(video, config, native_size=_generators_size(config))
    with PLUGINS.blamed(point, "failed to build", passing=(PackagerError, PlayerError, OSError)):
        ladder = offered.ladder(config)
        if ladder.name != codec:
            raise BuildError(f"{PLUGINS.describe(point)}: its ladder is called {ladder.name!r}, expected {codec!r}")
        return build(source, Path(folder), ladder, config, resume=resume, force=force, progress=progress)


def build_latents(
    video: str | Path,
    folder: str | Path,
    config: BuildConfig | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Package a video as a ladder of quantized latents; arguments as in `build_prompts`.

    `config.generator` names a generator, whose autoencoder is used, or an autoencoder alone, which has no frame size of
    its own: `config.size` must say one then.
    """
    config = config or BuildConfig()
    autoencoder = load_autoencoder(config.decoder or config.generator, device=config.device)
    if parse_size(config.size) is None and not (find_folder(config.generator) / "unet").is_dir():
        raise BuildError(f"size=auto: {config.generator} is an autoencoder without frame size; give one such as 256")
    source = open_source(video, config, native_size=_generators_size(config))
    ladder = LatentLadder(autoencoder, config.bitrates_bps)
    return build(source, Path(folder), ladder, config, resume=resume, force=force, progress=progress)


BUILDERS: dict[str, Callable[..., BuildResult]] = {
    "prompt": build_prompts,
    "vae": build_latents,
    **{codec: partial(build_video, codec) for codec in VIDEO_ENCODERS},
}


def builder(codec: str) -> Callable[..., BuildResult]:
    """Return what packages videos with a codec by its name; its arguments are those of `build_prompts`."""
    return BUILDERS.get(codec) or partial(build_plugin, codec)


def _generators_size(config: BuildConfig) -> tuple[int, int]:
    """Return (width, height) of the generator's frames, which `config.size` at auto stands for; (0, 0) otherwise."""
    if parse_size(config.size) is not None:
        return 0, 0
    height, width = load_generator(config.generator, decoder=config.decoder or None, device="cpu").native_size
    return width, height


def folder_stem(video: str | Path, codec: str) -> str:
    """Return what a build's folder is called for people: the video's name in plain characters, and the codec."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in Path(video).stem)[:40]
    return f"{stem}-{codec}"


def folder_name(video: str | Path, codec: str, config: BuildConfig) -> str:
    """Return a folder name that differs whenever video content, codec or settings do; for caches of builds."""
    versions = [version("promptdash"), FORMAT_VERSION]
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_IN_BYTES}
    content = json.dumps([_video_digest(Path(video)), codec, settings, versions], sort_keys=True)
    return f"{folder_stem(video, codec)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def open_source(video: str | Path, config: BuildConfig, *, native_size: tuple[int, int]) -> Source:
    """Look at a video and fix how it is read; raise VideoError for what is none."""
    info = probe(video)
    width, height = parse_size(config.size) or native_size
    fps = as_frame_rate(config.fps) if config.fps else info.fps
    count = segment_frame_count(config.segment_s, fps)
    taken = max(1, round(config.seconds * fps)) if config.seconds else None
    expected = _expected_frames(info, fps)
    if taken is not None:
        expected = taken if expected is None else min(expected, taken)
    stream = SourceStream(width, height, fps, count, expected)
    return Source(Path(video), stream, config.fit, _video_digest(Path(video)), taken)


def build(
    source: Source,
    path: Path,
    codec: LadderCodec,
    config: BuildConfig,
    *,
    resume: bool = False,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Package a video with any codec; `build_prompts` and `build_video` are this with their codecs."""
    stream = source.stream
    metrics = load_metrics(
        config.metrics,
        device=config.device,
        frame_size=(stream.height, stream.width),
    )
    identity = _identity(source, codec, config)
    environment = _environment(config, metrics)
    cluster = connect(config.ray, config.device) if config.ray else nullcontext()
    with cluster as ray, claim(path, identity, environment, resume=resume, force=force) as folder:
        if folder.finished:
            return BuildResult(Presentation.load(path), reused=True)
        report = progress or _silent
        codec.prepare(folder, stream, source.frames, lambda share: report(f"encoding {codec.name}", share, 1.0))
        total = expected_segments(stream)
        tools = Tools.of(codec, folder, metrics)
        with _workers(tools, ray, config.jobs, total) as workers:
            records = build_segments(
                source.segments(),
                folder,
                tools,
                workers=workers,
                progress=lambda done: report("packaging", float(done), total),
            )
        report("packaging", float(len(records)), float(len(records)))
        _publish(source, folder, codec, [metric.name for metric in metrics], records)
        folder.finish()
    return BuildResult(Presentation.load(path), reused=False)


def _workers(
    tools: Tools, cluster: Cluster | None, jobs: int, segments: int | None
) -> AbstractContextManager[Workers | RayWorkers | None]:
    """Return who works on the segments: a cluster, processes, or nobody but this process."""
    if cluster is not None:
        return RayWorkers(tools, cluster)
    if not jobs:
        planned = tools.processes(segments)
        return Workers(tools, *planned) if planned else nullcontext()
    jobs = min(jobs, segments or jobs)
    return Workers(tools, jobs) if jobs > 1 else nullcontext()


def _publish(
    source: Source, folder: BuildFolder, codec: LadderCodec, metrics: Sequence[str], records: Sequence[SegmentRecord]
) -> None:
    """Write the sidecar, then the manifest that makes the folder a finished one."""
    if not records:
        raise VideoError(f"{source.path}: holds no frame")
    fps = source.stream.fps
    durations_s = [record.frames / float(fps) for record in records]
    rungs, buffers_s = [], []
    for name in codec.ranks:
        below = tuple(codec.dependencies(name))
        inits = [folder.init_path(part).read_bytes() for part in (*below, name)]
        sizes = [sum(record.sizes_bytes[part] for part in (*below, name)) for record in records]
        total_bytes = sum(map(len, inits)) + sum(sizes)
        bandwidth_bps = math.ceil(total_bytes * 8 * fps / sum(record.frames for record in records))
        rungs.append(Representation(name, bandwidth_bps, codec.ranks[name], codec.codecs(inits[-1]), below))
        buffers_s.append(min_buffer_s(sizes, durations_s, bandwidth_bps))
    manifest = Manifest(
        title=_printable(source.path.stem),
        codec=codec.name,
        width=source.stream.width,
        height=source.stream.height,
        fps=fps,
        segments=tuple(record.frames * fps.denominator for record in records),
        representations=tuple(sorted(rungs, key=lambda rung: rung.bandwidth_bps)),
        quality_sidecar=SIDECAR_NAME,
        min_buffer_s=max(buffers_s),
    )
    quality = {
        name: RepresentationQuality(
            tuple(record.sizes_bytes[name] for record in records),
            {metric: tuple(np.array(record.quality[name][metric]) for record in records) for metric in metrics},
        )
        for name in codec.ranks
    }
    write_sidecar(folder.path, manifest, quality)
    write_manifest(folder.path, manifest)


def _warn_of_missed_targets(presentation: Presentation, targets_bps: Mapping[str, int]) -> None:
    reached_bps = {
        rung.id: rate for rung, rate in zip(presentation.representations, presentation.bitrate_bps, strict=True)
    }
    for name, target_bps in targets_bps.items():
        if abs(reached_bps[name] / target_bps - 1) > _TARGET_TOLERANCE:
            limit = "most" if reached_bps[name] < target_bps else "least"
            log.warning("%s: %.1f kbit/s is the %s that this fit takes here", name, reached_bps[name] / 1000, limit)


def _identity(source: Source, codec: LadderCodec, config: BuildConfig) -> dict[str, Any]:
    stream = source.stream
    return {
        "video": source.path.name,
        "video_sha256": source.digest,
        "codec": codec.name,
        "representations": list(codec.ranks),
        "size": f"{stream.width}x{stream.height}",
        "crop_or_pad": source.fit,
        "fps": str(stream.fps),
        "segment_frames": stream.segment_frames,
        "frames_taken": source.frames_taken,
        "metrics": list(config.metrics),
        "device": config.device,
        **codec.identity(),
    }


def _environment(config: BuildConfig, metrics: Sequence[Metric]) -> dict[str, Any]:
    device = resolve_device(config.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": library_versions(),
        "metrics": [metric.name for metric in metrics],
    }


def _video_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error


def _expected_frames(info: VideoInfo, fps: Fraction) -> int | None:
    return None if info.duration_s is None else max(1, round(info.duration_s * float(fps)))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else "?" for c in text) or "untitled"


def _silent(stage: str, done: float, total: float | None) -> None:
    """Report nothing."""
