"""How closely lpips-embedded follows LPIPS (SqueezeNet) on pictures and clips that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from experiments.lpips_data import Clip
from experiments.lpips_distortions import CODECS, families, render_fits, transcode
from experiments.lpips_trainer import Agreement, agreement
from experiments.train_data import PictureSet
from packager.encoder import PromptEncoder
from packager.fit import FAST
from player.decoder import to_pixels
from player.generator import Generator
from player.quality import Metric

CRFS = {"x264": (24, 30, 36, 42, 48), "x265": (24, 30, 36, 42, 48), "av1": (30, 40, 50, 57, 63)}
RANKS = (1, 2, 4, 8, 16)

_SEED = 2
_STRIDE = 4  # every how many of a clip's coded frames are measured
_FIT_STEPS = 10  # fewer than the preset's: the start is near the end


@dataclass(frozen=True)
class Scored:
    """One kind of distortion with the scores of its frames."""

    kind: str  # pictures, clips or prompts
    name: str
    scores: np.ndarray  # float64 [N]
    teacher: np.ndarray


def score_pictures(
    held: PictureSet, generator: Generator, encoder: PromptEncoder, student: Metric, teacher: Metric, *, count: int
) -> Iterator[Scored]:
    """Yield the scores of `count` held-out pictures under every distortion of single frames."""
    height, _ = generator.native_size
    rng = np.random.default_rng(_SEED)
    for name, distort in families(generator, encoder, motion=False).items():
        frames = to_pixels(held.crops(count, height, rng)).numpy()
        # a few at a time, so that a video codec draws several rate factors
        distorted = np.concatenate([distort(part, rng) for part in np.array_split(frames, max(1, len(frames) // 8))])
        yield Scored("pictures", name, student(frames, distorted), teacher(frames, distorted))


def score_clips(
    clips: Iterable[Clip],
    generator: Generator,
    encoder: PromptEncoder,
    student: Metric,
    teacher: Metric,
    *,
    length: int,
) -> Iterator[Scored]:
    """Yield the scores of held-out clips, `length` frames of each, from video codecs and from this codec."""
    config = replace(FAST, iterations=_FIT_STEPS)
    for clip in clips:
        frames = clip.frames[:length]
        coded = {codec: [transcode(frames, codec, crf) for crf in CRFS[codec]] for codec in CODECS}
        ranks = [rank for rank in RANKS if rank <= generator.max_rank]
        coded["prompts"] = render_fits(frames, generator, encoder, config, ranks=ranks)
        for name, runs in coded.items():
            reference = np.concatenate([frames[::_STRIDE]] * len(runs))
            distorted = np.concatenate([run[::_STRIDE] for run in runs])
            kind = "prompts" if name == "prompts" else "clips"
            yield Scored(kind, f"{name}, {clip.name}", student(reference, distorted), teacher(reference, distorted))


def summarise(parts: list[Scored]) -> dict[str, Agreement]:
    """Return the agreement by kind and distortion, the totals first."""
    titles = {
        "pictures": "held-out pictures, all distortions",
        "clips": "held-out clips, video codecs",
        "prompts": "held-out clips, this codec",
    }
    groups: dict[str, list[Scored]] = {title: [] for title in titles.values()}
    for part in parts:
        groups[titles[part.kind]].append(part)
    for part in parts:
        name, _, clip = part.name.partition(", ")
        # of this codec the total is above, so clip by clip
        groups.setdefault(f"this codec: {clip}" if part.kind == "prompts" else f"{part.kind}: {name}", []).append(part)
    return {
        name: agreement(np.concatenate([p.scores for p in group]), np.concatenate([p.teacher for p in group]))
        for name, group in groups.items()
        if group
    }


def table(rows: dict[str, Agreement]) -> str:
    """Return the agreement as a Markdown table."""
    lines = [
        "| frames of | frames | Pearson | Spearman | MAE | mean LPIPS | slope | intercept |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row.frames} | {row.pearson:.3f} | {row.spearman:.3f} | {row.mean_absolute_error:.4f} "
            f"| {row.teacher_mean:.3f} | {row.slope:.2f} | {row.intercept:+.3f} |"
        )
    return "\n".join(lines)
