"""Train lpips-embedded, the shipped estimate of LPIPS, or measure how closely it follows LPIPS.

    python -m experiments.train_lpips --images DIR [--videos DIR] [--out DIR]
    python -m experiments.train_lpips evaluate --images DIR [--videos DIR] [--network FILE]

The teacher is LPIPS with SqueezeNet, so its weights must be at hand (docs/metrics.md). Training makes pairs of frames
first (codecs, filters, the embedded generator), each with the teacher's distances, then learns from them. Both parts go
on where an interrupted command stopped; curves are in `log.csv`, and `export` holds network and model card. One picture
in 32 and one clip in four are held out, chosen by the checksums of their names.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.lpips_trainer import LpipsTrainer

log = logging.getLogger(__name__)

_HELD_SHARDS = 4
_FILE = "lpips_embedded.safetensors"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.train_lpips", description=__doc__.split("\n")[0])
    parser.add_argument("action", nargs="?", choices=("train", "evaluate"), default="train")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, loose or in tar files")
    parser.add_argument("--videos", type=Path, help="folder of clips; without it, pictures alone")
    parser.add_argument("--weights", type=Path, help="folder with LPIPS' weights (default: $PROMPTDASH_WEIGHTS)")
    parser.add_argument("--limit", type=int, default=3000, help="read at most this many pictures")
    parser.add_argument("--threads", type=int, help="CPU threads")
    training = parser.add_argument_group("train")
    training.add_argument("--out", type=Path, default=Path("outputs/lpips_embedded"), help="pairs, checkpoint, curves")
    training.add_argument("--shards", type=int, default=64, help="shards of 256 pairs to learn from")
    training.add_argument("--epochs", type=int, help="passes over the pairs")
    training.add_argument("--start", type=Path, help="network to go on from (default: random weights)")
    training.add_argument("--learning-rate", type=float, help="Adam's at the start (default: 0.002)")
    training.add_argument("--minutes", type=float, help="stop after this many minutes of training, to be resumed")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="auto", help="auto, cpu, cuda")
    measuring = parser.add_argument_group("evaluate")
    measuring.add_argument("--network", type=Path, help="network to measure (default: the one that is shipped)")
    measuring.add_argument("--pictures", type=int, default=48, help="held-out pictures of each distortion")
    measuring.add_argument("--frames", type=int, default=48, help="frames of a held-out clip that are coded")
    measuring.add_argument("--json", type=Path, help="write the table as JSON, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch is imported late, so that --help answers at once
    import torch

    from experiments.train_data import TrainingDataError
    from packager.errors import PackagerError
    from player.errors import PlayerError

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return {"train": _train, "evaluate": _evaluate}[arguments.action](arguments)
    except (TrainingDataError, PackagerError, PlayerError, OSError, ValueError) as error:
        sys.stderr.write(f"train_lpips: {str(error).splitlines()[0]}\n")
        return 1


def _check_folders(arguments: argparse.Namespace) -> None:
    from experiments.train_data import TrainingDataError

    for name in ("images", "videos"):
        folder = getattr(arguments, name)
        if folder is not None and not folder.is_dir():
            raise TrainingDataError(f"--{name} {folder}: not a folder")


def _train(arguments: argparse.Namespace) -> int:
    from experiments.lpips_data import PairMaker, Pairs, build_pairs, load_clips
    from experiments.lpips_trainer import LpipsTrainConfig, LpipsTrainer
    from experiments.train_data import load_pictures
    from packager.encoder import load_encoder
    from player.generator import EMBEDDED, load_generator, resolve_device
    from player.quality.embedded import load_network
    from player.quality.weights import load_lpips_network

    _check_folders(arguments)
    changes = {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    given = {name: value for name, value in changes.items() if value is not None}
    config = LpipsTrainConfig(seed=arguments.seed, **given)
    start = load_network(arguments.start) if arguments.start else None
    teacher = load_lpips_network("squeeze", weights_dir=arguments.weights)
    training, held = load_pictures(arguments.images, limit=arguments.limit)

    def maker(held_out: bool) -> PairMaker:
        generator = load_generator(EMBEDDED, device="cpu")
        encoder = load_encoder(generator)
        assert encoder is not None  # the embedded generator has one
        clips = load_clips(arguments.videos, held_out=held_out) if arguments.videos else []
        return PairMaker(held if held_out else training, clips, generator, encoder, teacher)

    def pairs(name: str, shards: int, seed: int, held_out: bool) -> Pairs:
        def progress(done: int) -> None:
            if done % 10 == 0 or done == shards:
                log.info("%s: %d of %d shards", name, done, shards)

        return build_pairs(lambda: maker(held_out), arguments.out / name, shards, seed=seed, progress=progress)

    parts = pairs("pairs", arguments.shards, config.seed, False), pairs("held", _HELD_SHARDS, config.seed + 1, True)
    trainer = LpipsTrainer(config, *parts, arguments.out, resolve_device(arguments.device), start)
    if trainer.resume():
        log.info("resuming at step %d of %d", trainer.step, trainer.steps)
    if not trainer.run(seconds=60 * arguments.minutes if arguments.minutes else math.inf):
        log.info("time is up at step %d of %d; the same command goes on from there", trainer.step, trainer.steps)
        return 0
    folder = arguments.out / "export"
    export(trainer, folder, training_pictures=len(training.pictures), command=_command(arguments))
    log.info("written to %s", folder)
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """Return the command of this training, folders by their last names."""
    words = ["python -m experiments.train_lpips"]
    for name in ("images", "videos", "limit", "shards", "epochs", "start", "learning_rate", "seed"):
        value = getattr(arguments, name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')} {value.name if isinstance(value, Path) else value}")
    return " ".join(words)


def export(trainer: LpipsTrainer, folder: Path, *, training_pictures: int, command: str) -> None:
    """Write the trained network and its model card."""
    import torch

    from experiments.lpips_data import CROP_SIDE
    from experiments.lpips_distortions import TOP_RANK
    from experiments.lpips_trainer import agreement
    from player.quality.embedded import save_network

    folder.mkdir(parents=True, exist_ok=True)
    save_network(trainer.network, folder / _FILE)
    held = agreement(trainer.scores(trainer.held), trainer.held.taps.sum(axis=1))
    parameters = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    size = (folder / _FILE).stat().st_size / 1e6
    (folder / "MODEL_CARD.md").write_text(
        f"""# lpips-embedded

An estimate of LPIPS v0.1 with SqueezeNet, trained by this project to reproduce its scores. It is not LPIPS, and is
printed as `lpips-embedded`. For measurement only: never in a loss of training or fitting (docs/metrics.md).
Written by

    {command}

- Network: {parameters:.2f} million parameters in float16, {size:.2f} MB; SqueezeNet's geometry at half its width.
  Licence: this project's own.
- Start: {"an earlier generation of this network" if trainer.start else "random weights"}.
- Teacher: LPIPS v0.1, SqueezeNet 1.1, published weights.
- Data: {len(trainer.training.taps)} pairs of {CROP_SIDE}x{CROP_SIDE} crops, from {training_pictures} pictures and,
  where given, three clips in four; distorted by JPEG, WebP, x264, x265, AV1, blur, resampling, noise, ghosting, shifts,
  colour, blocks, two of them in a row, cross-fades, and in every second run this codec at ranks 1 to {TOP_RANK}:
  prompts from the encoder for pictures, fits and motion between key frames for clips.
- Loss: mean absolute error of the square roots of distances, at every tap's places and of the whole score.
- Steps: {trainer.step} of {trainer.config.batch} pairs ({trainer.config.epochs} epochs), seed {trainer.config.seed};
  {trainer.seconds / 60:.0f} minutes on {trainer.device} with {torch.get_num_threads()} threads
  ({platform.machine()}), torch {torch.__version__}.
- Held-out pictures and clips, {held.frames} crops: Pearson {held.pearson:.3f}, Spearman {held.spearman:.3f}, mean
  absolute error {held.mean_absolute_error:.4f} at a mean of {held.teacher_mean:.3f}; score = {held.slope:.2f} LPIPS
  {held.intercept:+.3f}. Whole frames: `python -m experiments.train_lpips evaluate`.
""",
        encoding="utf-8",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from experiments.lpips_data import load_clips
    from experiments.lpips_evaluate import score_clips, score_pictures, summarise, table
    from experiments.train_data import load_pictures
    from packager.encoder import load_encoder
    from player.generator import EMBEDDED, load_generator
    from player.quality import load_metrics
    from player.quality.embedded import WEIGHTS_FILE, EmbeddedLpips, load_network

    _check_folders(arguments)
    for name in ("pictures", "frames"):
        if getattr(arguments, name) < 2:
            raise ValueError(f"--{name} {getattr(arguments, name)}: expected 2 or more")
    student = EmbeddedLpips(network=load_network(arguments.network or WEIGHTS_FILE))
    teacher = load_metrics(["lpips_squeeze"], weights_dir=arguments.weights)[0]
    generator = load_generator(EMBEDDED, device="cpu")
    encoder = load_encoder(generator)
    assert encoder is not None  # the embedded generator has one
    _, held = load_pictures(arguments.images, limit=arguments.limit)
    parts = []
    for scored in score_pictures(held, generator, encoder, student, teacher, count=arguments.pictures):
        log.info("pictures: %s", scored.name)
        parts.append(scored)
    clips = load_clips(arguments.videos, held_out=True) if arguments.videos else []
    for scored in score_clips(clips, generator, encoder, student, teacher, length=arguments.frames):
        log.info("clips: %s", scored.name)
        parts.append(scored)
    rows = summarise(parts)
    print(table(rows))
    if arguments.json:
        content = {name: asdict(row) for name, row in rows.items()}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
