"""Train the embedded generator: `python -m experiments.train_generator --images DIR [--out DIR] [--steps A,B,C]`.

Four stages, as one network at once is slow to learn where each token belongs: (1) the autoencoder on crops, (2) the
UNet and the amortised encoder in latent space, ranks nested by dropout, (3) all together on pixels, with quantization
noise on the prompts, (4) the same against a discriminator, for texture. The losses are pixel and structural terms
(packager/losses.py), features of our own network and a discriminator trained along, never a network that is reported.
Resumes from its last checkpoint, logs its curves to `log.csv`, and writes sample grids and a model card. `--start
FOLDER` grows the networks out of an earlier export, with more ranks or latent channels.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

from experiments.training import add_run_arguments

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.train_generator", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, loose or in tar files")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/generator"), help="checkpoint, curves, samples, export"
    )
    parser.add_argument("--steps", help="steps of the four stages, comma-separated; 0 leaves one out")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="an earlier export to begin from")
    parser.add_argument("--latent-noise", metavar="LOW,HIGH", help="half-width of the noise on stage 1's latents")
    parser.add_argument(
        "--moving-share", type=float, help="share of the frames of stages 3 and 4 that are ends of pictures in motion"
    )
    parser.add_argument("--size", type=int, help="side of a frame in pixels, a multiple of 32")
    parser.add_argument("--rank", type=int, help="largest rank")
    add_run_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch is imported late, so that --help answers at once
    import torch

    from experiments.train_data import TrainingDataError, load_pictures
    from experiments.train_models import TrainConfig, make_models, warm_start
    from experiments.trainer import Trainer
    from packager.errors import PackagerError
    from player.errors import PlayerError
    from player.generator import resolve_device

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        given = {name: getattr(arguments, name) for name in ("size", "rank", "seed", "moving_share")}
        config = TrainConfig(**{name: value for name, value in given.items() if value is not None})
        if arguments.steps:
            steps = tuple(int(count) for count in arguments.steps.split(","))
            if len(steps) != 4:
                raise ValueError(f"--steps {arguments.steps}: expected four numbers")
            config.steps = steps
        if arguments.latent_noise:
            low, high = (float(part) for part in arguments.latent_noise.split(","))
            if not 0 < low <= high:
                raise ValueError(f"--latent-noise {arguments.latent_noise}: expected 0 < LOW <= HIGH")
            config.latent_noise = (low, high)
        config.crop = min(config.crop, config.size)
        device = resolve_device(arguments.device)
        training, held = load_pictures(arguments.images, limit=arguments.limit)
    except (ValueError, TrainingDataError, PlayerError) as error:
        sys.stderr.write(f"train_generator: {error}\n")
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    models = make_models(config)
    start = arguments.start.name if arguments.start else ""
    trainer = Trainer(config, models, training, held, arguments.out, device, start)
    try:
        resumed = trainer.resume()
        if arguments.start and not resumed:
            warm_start(models, arguments.start, training.crops(256, config.size, trainer.rng))
            models.to(device)
    except (TrainingDataError, PlayerError, PackagerError) as error:
        sys.stderr.write(f"train_generator: {error}\n")
        return 1
    if resumed:
        log.info("resuming at stage %d, step %d", trainer.stage, trainer.step)
    if not trainer.run(seconds=60 * arguments.minutes if arguments.minutes else math.inf):
        log.info("time is up at stage %d, step %d; the same command goes on from there", trainer.stage, trainer.step)
        return 0
    export = arguments.out / "export"
    trainer.export(export)
    log.info(
        "written to %s; python -m experiments.held_out %s --images %s measures it", export, export, arguments.images
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
