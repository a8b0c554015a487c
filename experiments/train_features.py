"""Train the feature network of the fit's loss: `python -m experiments.train_features --images DIR [--out DIR]`.

It learns from pictures alone, by four tasks at once: which source a picture is from, how it was distorted (blur, noise,
JPEG, rescaling, the embedded generator, or not at all), how much, and which two crops show the same picture
(contrastively). To tell distortions it must see texture; to tell pictures, what texture stands for. No network that is
reported has a part in it. Goes on where an interrupted command stopped; curves are in `log.csv`, and `export` holds the
weights and a model card.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.training import CHECKPOINT, add_run_arguments, rate_share, save_state

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.train_data import PictureSet
    from packager.encoder import PromptEncoder
    from packager.features import FeatureNetwork
    from player.generator import Generator

log = logging.getLogger(__name__)

FILE = "features.safetensors"
KINDS = ("none", "blur", "noise", "JPEG", "rescaled", "generator")
_WARM_UP_STEPS = 100
_NONE, _GENERATOR = KINDS.index("none"), KINDS.index("generator")


@dataclass
class FeatureTrainConfig:
    """Settings of one training run."""

    steps: int = 1500
    pictures: int = 96
    """Pictures a step, two crops of each."""
    crop: int = 96
    """Side of a crop in pixels, a multiple of 16."""
    learning_rate: float = 2e-3
    """At the start; linear warm-up over 100 steps, cosine to zero."""
    temperature: float = 0.15
    """Of the contrastive task (Chen et al. 2020)."""
    generator_share: float = 0.15
    """Of the crops that are rendered by the embedded generator, at a random rank."""
    seed: int = 0
    save_every: int = 100


class Crops(NamedTuple):
    """Two crops of each picture, one after the other."""

    pixels: np.ndarray  # uint8 [2 n, side, side, 3]
    source: np.ndarray  # int64 [2 n]
    kind: np.ndarray  # int64 [2 n], index into KINDS
    level: np.ndarray  # float32 [2 n], 0 to 1


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.train_features", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, loose or in tar files")
    parser.add_argument("--out", type=Path, default=Path("outputs/features"), help="checkpoint, curves, export")
    parser.add_argument("--steps", type=int, help=f"steps of training (default: {FeatureTrainConfig.steps})")
    add_run_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch is imported late, so that --help answers at once
    import torch

    from experiments.train_data import TrainingDataError, load_pictures
    from packager.errors import PackagerError
    from player.errors import PlayerError
    from player.generator import resolve_device

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = {name: value for name in ("steps", "seed") if (value := getattr(arguments, name)) is not None}
    config = FeatureTrainConfig(**given)
    try:
        if config.steps < 1:
            raise ValueError(f"--steps {config.steps}: expected 1 or more")
        device = resolve_device(arguments.device)
        training, _ = load_pictures(arguments.images, limit=arguments.limit)
        arguments.out.mkdir(parents=True, exist_ok=True)
        trainer = FeatureTrainer(config, training, arguments.out, device)
        if not trainer.run(60 * arguments.minutes if arguments.minutes else math.inf):
            log.info("time is up at step %d; the same command goes on from there", trainer.step)
            return 0
        trainer.export(arguments.out / "export")
    except (ValueError, OSError, TrainingDataError, PackagerError, PlayerError) as error:
        sys.stderr.write(f"train_features: {str(error).splitlines()[0]}\n")
        return 1
    log.info("written to %s", arguments.out / "export")
    return 0


def distorted(pixels: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """Return a crop uint8 [h, w, 3] distorted by a kind of `KINDS` but the generator, from hardly (0) to badly (1)."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    height, width = pixels.shape[:2]
    if kind == "blur":
        return gaussian_filter(pixels, (0.4 + 2.2 * level, 0.4 + 2.2 * level, 0))
    if kind == "noise":
        return np.clip(pixels + rng.normal(size=pixels.shape) * (3 + 25 * level), 0, 255).astype(np.uint8)
    if kind == "JPEG":
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=round(60 - 52 * level))
        return np.asarray(Image.open(stream))
    if kind == "rescaled":
        small = [max(1, int(side / (1 + 3 * level))) for side in (width, height)]
        image = Image.fromarray(pixels).resize((small[0], small[1]), Image.Resampling.BICUBIC)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return pixels


def draw_crops(pictures: PictureSet, config: FeatureTrainConfig, rng: np.random.Generator) -> Crops:
    """Return crops of random pictures, distorted but for those that the generator is to render (`KINDS`)."""
    sources = {name: number for number, name in enumerate(sorted({p.source for p in pictures.pictures}))}
    side, near = config.crop, config.crop // 4
    crops = []
    for index in rng.choice(len(pictures.pictures), size=config.pictures, p=pictures.weights):
        picture = pictures.pictures[index]
        pixels = picture.pixels[int(rng.integers(len(picture.pixels)))]
        room = np.array(pixels.shape[:2]) - side
        corner = rng.integers(room + 1)
        for _ in range(2):
            top, left = np.clip(corner + rng.integers(-near, near + 1, size=2), 0, room)
            crop = pixels[top : top + side, left : left + side, :]
            crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
            kind = _GENERATOR if rng.random() < config.generator_share else int(rng.integers(_GENERATOR))
            level = 0.0 if kind == _NONE else float(rng.random())
            crops.append((distorted(crop, KINDS[kind], level, rng), sources[picture.source], kind, level))
    pixels, source, kinds, levels = zip(*crops, strict=True)
    return Crops(np.stack(pixels), np.array(source), np.array(kinds), np.array(levels, np.float32))


class FeatureTrainer:
    """Trains the network and its heads, with checkpoints."""

    def __init__(self, config: FeatureTrainConfig, pictures: PictureSet, out: Path, device: torch.device) -> None:
        """Start afresh, or from the last checkpoint of `out`."""
        import torch
        from torch import nn

        from packager.encoder import load_encoder
        from packager.features import WIDTHS, FeatureNetwork
        from player.generator import EMBEDDED, load_generator

        torch.manual_seed(config.seed)
        self.config, self.pictures, self.out, self.device = config, pictures, out, device
        self.rng = np.random.default_rng(config.seed)
        self.step, self.seconds = 0, 0.0
        self.network: FeatureNetwork = FeatureNetwork()
        taps, sources = WIDTHS[1:], len({p.source for p in pictures.pictures})
        self.heads = nn.ModuleDict(
            {
                "source": nn.Linear(taps[-1], sources),
                "kind": nn.Linear(sum(taps), len(KINDS)),
                "level": nn.Linear(sum(taps), len(KINDS)),
                "picture": nn.Sequential(nn.Linear(taps[-1], 128), nn.ReLU(), nn.Linear(128, 64)),
            }
        )
        self.network.to(device).to(memory_format=torch.channels_last)
        self.heads.to(device)
        generator = load_generator(EMBEDDED, device=str(device), dtype="float32")
        encoder = load_encoder(generator)
        assert encoder is not None  # the embedded generator has one
        self.encoder: PromptEncoder = encoder
        self.generator: Generator = generator.at_size(config.crop, config.crop)
        parameters = [*self.network.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-4, fused=True)
        self._resume()

    def run(self, seconds: float) -> bool:
        """Train for at most so many seconds; return whether all steps are done."""
        import torch
        from tqdm import tqdm

        began = last = time.monotonic()
        self.network.train()
        bar = tqdm(total=self.config.steps, initial=self.step, desc="features", disable=None)
        with ThreadPoolExecutor(1) as pool:  # the next crops are drawn while these are learnt from
            upcoming = pool.submit(draw_crops, self.pictures, self.config, self.rng)
            while self.step < self.config.steps:
                crops = upcoming.result()
                upcoming = pool.submit(draw_crops, self.pictures, self.config, self.rng)
                rate = rate_share(self.step, self.config.steps, _WARM_UP_STEPS)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * rate
                with torch.autocast(self.device.type, torch.bfloat16):
                    terms = self._losses(self._as_seen(crops), crops)
                self.optimizer.zero_grad(set_to_none=True)
                torch.stack(list(terms.values())).sum().backward()
                self.optimizer.step()
                self.step += 1
                bar.update()
                late = time.monotonic() - began > seconds
                if late or self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self.seconds, last = self.seconds + time.monotonic() - last, time.monotonic()
                    self._log({name: term.item() for name, term in terms.items()})
                    self._save()
                if late and self.step < self.config.steps:
                    return False
        return True

    def _as_seen(self, crops: Crops) -> Tensor:
        """Return what the network sees [2 n, 3, side, side]: with the generator's renderings, and other lights."""
        import torch

        from player.pixels import from_pixels

        frames = from_pixels(crops.pixels).to(self.device)
        chosen = torch.from_numpy(np.flatnonzero(crops.kind == _GENERATOR)).to(self.device)
        if len(chosen):
            top = self.generator.settings.norm_rank
            with torch.no_grad():
                u, v = self.encoder(frames[chosen])
                # the level says how few components are left of the full prompt, on a logarithmic scale
                rank = top ** (1 - torch.from_numpy(crops.level).to(self.device)[chosen])
                kept = torch.arange(u.shape[-1], device=self.device) < rank.round()[:, None]
                embeddings = self.generator.space.compose(u * kept[:, None], v, top)
                frames[chosen] = self.generator.generate(embeddings).float().clamp(-1, 1)
        gain = 1 + 0.4 * (torch.rand(len(frames), 3, 1, 1, device=self.device) - 0.5)
        shift = 0.3 * (torch.rand(len(frames), 1, 1, 1, device=self.device) - 0.5)
        return (frames * gain + shift).contiguous(memory_format=torch.channels_last)

    def _losses(self, frames: Tensor, crops: Crops) -> dict[str, Tensor]:
        """Return the loss of each task."""
        import torch
        from torch.nn import functional

        source, kind, level = (torch.from_numpy(x).to(self.device) for x in (crops.source, crops.kind, crops.level))
        pooled = [features.mean(dim=(2, 3)) for features in self.network(frames)]
        every = torch.cat(pooled, dim=1)
        levels = self.heads["level"](every).float().gather(1, kind[:, None])[:, 0]
        shown = functional.normalize(self.heads["picture"](pooled[-1]).float(), dim=1)
        alike = (shown @ shown.T / self.config.temperature).fill_diagonal_(-1e4)
        other = torch.arange(len(shown), device=self.device) ^ 1
        return {
            "source": functional.cross_entropy(self.heads["source"](pooled[-1]).float(), source),
            "kind": functional.cross_entropy(self.heads["kind"](every).float(), kind),
            "level": 4 * (levels - level).square().mean(),
            "picture": functional.cross_entropy(alike, other),
        }

    def _log(self, terms: dict[str, float]) -> None:
        path = self.out / "log.csv"
        if not path.exists():
            path.write_text(f"step,{','.join(terms)}\n")
        with path.open("a") as stream:
            stream.write(f"{self.step},{','.join(f'{value:.4f}' for value in terms.values())}\n")
        log.info("step %d: %s", self.step, ", ".join(f"{name} {value:.3f}" for name, value in terms.items()))

    def _save(self) -> None:
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.out, state)

    def _resume(self) -> None:
        import torch

        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rng = np.random.default_rng([self.config.seed, self.step])
        log.info("resuming at step %d", self.step)

    def export(self, folder: Path) -> None:
        """Write the weights and a model card."""
        import torch

        from packager.features import save_features

        save_features(self.network, folder / FILE)
        sources = len({p.source for p in self.pictures.pictures})
        config = self.config
        where = "CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        (folder / "MODEL_CARD.md").write_text(
            f"""# Feature network

What a fit compares pictures by beside their pixels (packager/features.py). Written by
`python -m experiments.train_features`; never reported, and trained without anything that is.

- Data: {len(self.pictures.pictures)} pictures of {sources} sources, no video.
- Tasks: source, kind of distortion ({", ".join(KINDS)}), its strength, which crops show the same picture.
- Steps: {self.step}, {2 * config.pictures} crops of {config.crop}x{config.crop} each; seed {config.seed}.
- Hardware: {where}, {torch.get_num_threads()} threads ({platform.machine()}), torch {torch.__version__};
  {self.seconds / 60:.0f} minutes of training.
- Parameters: {sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} million.
"""
        )


if __name__ == "__main__":
    raise SystemExit(main())
