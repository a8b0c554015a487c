"""Measure a trained generator on held-out pictures: `python -m experiments.held_out EXPORT --images DIR`.

Prints a table of every rank, prompts straight from the encoder, in PSNR, MS-SSIM, SSIMULACRA2 and LPIPS (lpips-embedded
where its weights are absent), and one of frames half way between two prompts of pictures in motion; both go into the
export's model card. A command of its own: no code that trains may reach a metric (docs/metrics.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from experiments.train_data import PictureSet
    from packager.encoder import PromptEncoder
    from player.generator import Generator
    from player.quality.base import Metric

BETWEEN_PX = (2, 4, 8, 16)
"""Pixels that content moves between the two prompts."""
BETWEEN_HEADING = (
    "Half way between two prompts at full rank, unquantized, of held-out pictures in motion "
    "(experiments/moving_pictures.py):"
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.held_out", description=__doc__.split("\n")[0])
    parser.add_argument("export", type=Path, help="folder that experiments.train_generator exported")
    parser.add_argument(
        "--images", type=Path, required=True, help="the pictures of the training, loose or in tar files"
    )
    parser.add_argument("--limit", type=int, help="as in the training: it decides which pictures were held out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # torch is imported late, so that --help answers at once
    from experiments.train_data import TrainingDataError, load_pictures
    from experiments.train_models import TrainConfig
    from experiments.trainer import HELD_OUT_HEADING
    from packager.encoder import load_encoder
    from packager.errors import PackagerError
    from player.errors import PlayerError
    from player.generator import load_generator
    from player.quality.loading import load_metrics

    card = arguments.export / "MODEL_CARD.md"
    try:
        before, heading, _ = card.read_text(encoding="utf-8").partition(HELD_OUT_HEADING)
        if not heading:
            raise ValueError(f"{card} has no part that begins with {HELD_OUT_HEADING.strip()!r}")
        generator = load_generator(str(arguments.export), device=arguments.device, dtype="float32")
        encoder = load_encoder(generator)
        if encoder is None:
            raise ValueError(f"{arguments.export} has no encoder, expected an export of experiments.train_generator")
        _, held = load_pictures(arguments.images, limit=arguments.limit)
        height, width = generator.native_size
        if height != width:
            raise ValueError(f"{arguments.export} renders {width}x{height}, expected a square")
        metrics = load_metrics(device=str(generator.device), frame_size=(height, width))
        table = quality_table(generator, encoder, held.centres(height), metrics)
        table += f"\n\n{BETWEEN_HEADING}\n\n" + between_table(generator, encoder, held, metrics)
        card.write_text(
            f"{before}{HELD_OUT_HEADING}{len(held.pictures)} centre crops, prompts straight from the encoder "
            f"(no fitting), U quantized with step {TrainConfig.u_step}.\n"
            f"Written by `python -m experiments.held_out`:\n\n{table}\n",
            encoding="utf-8",
        )
    except (OSError, ValueError, TrainingDataError, PackagerError, PlayerError) as error:
        sys.stderr.write(f"held_out: {str(error).splitlines()[0]}\n")
        return 1
    print(table)
    return 0


def quality_table(
    generator: Generator, encoder: PromptEncoder, frames: Tensor, metrics: Sequence[Metric], batch: int = 16
) -> str:
    """Return a Markdown table, one row a rank (1, 2, 4, ... and the largest), one column a metric, of means.

    Args:
        generator, encoder: of one export.
        frames: pictures [n, 3, H, W] in [-1, 1], of the generator's native size.
        metrics: what to measure.
        batch: pictures that pass the generator together.
    """
    import torch

    from experiments.train_models import TrainConfig
    from experiments.trainer import octaves
    from player.pixels import to_pixels

    ranks, u_step = sorted({1, *octaves(generator.max_rank)}), TrainConfig.u_step
    scores: dict[int, list[list[np.ndarray]]] = {rank: [[] for _ in metrics] for rank in ranks}
    with torch.no_grad():
        for part in frames.split(batch):
            reference = to_pixels(part).numpy()
            u, v = encoder(part.to(generator.device))
            u = torch.round(u / u_step) * u_step
            for rank in ranks:
                embeddings = generator.space.compose(u[..., :rank], v[:, :rank], generator.settings.norm_rank)
                output = to_pixels(generator.generate(embeddings)).cpu().numpy()
                for found, metric in zip(scores[rank], metrics, strict=True):
                    found.append(metric(reference, output))
    return _table("prompt", {f"rank {rank}": found for rank, found in scores.items()}, metrics)


def between_table(
    generator: Generator, encoder: PromptEncoder, held: PictureSet, metrics: Sequence[Metric], count: int = 64
) -> str:
    """Return a Markdown table of the frame half way, of its interpolated prompt and of what that is to beat.

    Args:
        generator, encoder: of one export.
        held: pictures that are set in motion (experiments/moving_pictures.py).
        metrics: what to measure.
        count: pictures in motion a displacement.
    """
    import numpy as np
    import torch

    from experiments.moving_pictures import moving_picture
    from player.pixels import to_pixels

    size = generator.native_size[0]
    scores: dict[str, list[list[np.ndarray]]] = {}
    for displacement in BETWEEN_PX:
        rng = np.random.default_rng(0)
        ways = ("interpolated prompt", "prompts' renderings cross-faded", "a prompt of its own")
        rows = [scores.setdefault(f"{displacement} px, {way}", [[] for _ in metrics]) for way in ways]
        for _ in range(count):
            clip = moving_picture(held, size, 0.5, rng, displacement)
            with torch.no_grad():
                u, v = encoder(clip.to(generator.device))
                own = generator.space.compose(u, v, generator.settings.norm_rank)
                first, half_way, last = generator.generate(own).float()
                interpolated = generator.generate((own[:1] + own[2:]) / 2).float()
            reference = to_pixels(clip[1:2]).numpy()
            for row, output in zip(rows, (interpolated, (first + last)[None] / 2, half_way[None]), strict=True):
                for found, metric in zip(row, metrics, strict=True):
                    found.append(metric(reference, to_pixels(output).cpu().numpy()))
    return _table("frame between", scores, metrics)


def _table(heading: str, scores: Mapping[str, Sequence[Sequence[np.ndarray]]], metrics: Sequence[Metric]) -> str:
    """Return the means of what was measured, a row a name and a column a metric."""
    import numpy as np

    from experiments.series import METRICS
    from experiments.text_tables import Table, number

    styles = [METRICS[metric.name] for metric in metrics]
    table = Table([heading, *(style.title for style in styles)])
    for name, row in scores.items():
        means = (np.concatenate(found).mean() for found in row)
        table.rows.append([name, *(number(mean, style.digits) for mean, style in zip(means, styles, strict=True))])
    return table.markdown()


if __name__ == "__main__":
    raise SystemExit(main())
