"""The clips of the studies of prompt streaming: a video, and a package of prompts made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abr import Ladder
from experiments.errors import ExperimentError
from player.presentation import Presentation

DEFAULT_CACHE = Path("outputs/cache")
CLIP_HELP = "a video, or `demo`; =PACKAGE names a finished package of prompts of it (default: packaged on first use)"
_MEASURES = ("lpips_squeeze", "lpips_embedded", "ssimulacra2", "ms_ssim", "psnr_db")


@dataclass(frozen=True)
class Clip:
    """A video and its prompts."""

    name: str
    video: Path
    prompts: Presentation

    def originals(self) -> Iterator[np.ndarray]:
        """Yield each segment's source frames, uint8 [T, H, W, 3], as the packager saw them."""
        from packager.settings import BuildConfig
        from packager.video import iter_segments

        manifest, build = self.prompts.manifest, BuildConfig()
        frames = manifest.frames
        parts = iter_segments(
            self.video, width=manifest.width, height=manifest.height, fit=build.fit,
            segment_s=frames[0] / float(manifest.fps), fps=manifest.fps,
        )  # fmt: skip
        for count, part in zip(frames, parts, strict=False):
            yield part[:count]


def obtain_clip(text: str, cache: Path) -> Clip:
    """Return the clip that `VIDEO` or `VIDEO=PACKAGE` names.

    Raises:
        ExperimentError, PackagerError, PlayerError: no such video, no such package, or one without prompts.
    """
    from experiments.prepare import obtain_package, obtain_video
    from experiments.schema import VideoConfig
    from packager.settings import BuildConfig

    name, _, package = text.partition("=")
    video = obtain_video(VideoConfig(name=name), cache)
    if package:
        prompts = Presentation.load(package)
    else:
        prompts = obtain_package(
            "prompt", video, BuildConfig(top_intervals=[]), cache, lambda title: lambda *progress: None
        ).presentation
    if prompts.manifest.codec != "prompt" or prompts.layer_bytes is not None:
        raise ExperimentError(
            f"{package or video}: found {prompts.manifest.codec}, expected an independent prompt ladder"
        )
    return Clip(Path(name).stem, video, prompts)


def layer_sizes(prompts: Presentation) -> tuple[np.ndarray, np.ndarray]:
    """Return what a layered ladder of the same prompts takes: media bytes [S, R] of each layer, init bytes [R].

    Its frames are those of the independent ladder: only how the components are spread over files differs.

    Raises:
        ExperimentError: two representations have the same rank, so that neither is a layer of the other.
    """
    from dataclasses import replace

    from player.bitstream import read_init, read_segment, write_init, write_layers

    ranks = range(len(prompts.representations))
    infos = [read_init(prompts.read_init(rank)) for rank in ranks]
    if len({info.rank for info in infos}) < len(infos):
        names = ", ".join(rung.id for rung in prompts.representations)
        raise ExperimentError(f"representations {names}: expected a rank each (packager build --top-intervals 0)")
    layers = [replace(info, base_rank=infos[i - 1].rank if i else 0) for i, info in enumerate(infos)]
    sizes = []
    for number in range(prompts.segments):
        segment = read_segment(infos[-1], prompts.read_segment(number, len(infos) - 1))
        sizes.append([len(part) for part in write_layers(layers, segment, sequence=number + 1, start_frame=0)])
    return np.array(sizes), np.array([len(write_init(info)) for info in layers])


def layered_ladder(ladder: Ladder, sizes: np.ndarray, inits: np.ndarray) -> Ladder:
    """Return a programme's ladder with its representations as layers of the sizes that `layer_sizes` gives."""
    from dataclasses import replace

    layers = sizes[np.arange(ladder.segments) % len(sizes)]
    total_s = float(ladder.segment_duration_s[: len(sizes)].sum())
    rates = (sizes.sum(axis=0).cumsum() + inits.cumsum()) * 8 / total_s
    return replace(ladder, bitrate_bps=rates, segment_bytes=layers.cumsum(axis=1), layer_bytes=layers, init_bytes=inits)


def headline(metrics: Sequence[str]) -> str:
    """Return the metric that speaks for quality: LPIPS if it was measured."""
    return next((name for name in _MEASURES if name in metrics), metrics[0])
