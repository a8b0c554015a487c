"""Pairs of frames with their teacher's scores, from which lpips-embedded learns: made once, kept in shards on disk.

A shard is decided by the seed and its number alone (but for what x264 varies from run to run), so that an interrupted
build goes on where it stopped.
"""

from __future__ import annotations

import itertools
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from experiments.lpips_distortions import families
from experiments.train_data import PictureSet, TrainingDataError
from packager.encoder import PromptEncoder
from packager.errors import VideoError
from packager.video import iter_frames
from player.decoder import from_pixels, to_pixels
from player.generator import Generator
from player.quality.lpips import LpipsNetwork

log = logging.getLogger(__name__)

FRAME_SIDE = 256  # px; what is distorted
CROP_SIDE = 128  # px; what is learned from
GRID = 7  # places a side at which the taps' distances are compared

_RUNS, _FRAMES, _CROPS = 16, 8, 2  # of a shard, of a run, of a frame
PAIRS_PER_SHARD = _RUNS * _FRAMES * _CROPS
_STRIDE = 2  # a run of a clip is this many times longer than what is kept of it: neighbours are much alike
_CLIP_SHARE = 0.5  # of runs that come from clips, where there are clips
_PROMPT_SHARE = 0.5  # of runs that show this codec; the other distortions share the rest
_HELD_OUT_SHARE = 4  # one clip in four, chosen by the checksum of its name, is never trained on


@dataclass(frozen=True)
class Pairs:
    """References and distorted crops with the teacher's distances."""

    crops: np.ndarray  # uint8 [N, 2, CROP_SIDE, CROP_SIDE, 3], the reference first
    maps: np.ndarray  # float16 [N, taps, GRID, GRID], averages over places
    taps: np.ndarray  # float32 [N, taps], each tap's share of the score


@dataclass(frozen=True)
class Clip:
    """The frames uint8 [T, 256, 256, 3] of a clip, centre-cropped."""

    name: str
    frames: np.ndarray


def is_held_out(name: str) -> bool:
    """Return whether the clip of that name (the file's, without its suffix) is kept from training."""
    return zlib.crc32(name.encode()) % _HELD_OUT_SHARE == 0


def load_clips(folder: Path, *, held_out: bool, limit: int = 150) -> list[Clip]:
    """Return the training clips or those held out of a folder of videos, at most `limit` frames of each.

    Raises:
        TrainingDataError: no video of that part, or one that cannot be read.
    """
    paths = [p for p in sorted(folder.iterdir()) if p.suffix in {".mp4", ".mkv", ".webm", ".mov"}]
    clips = []
    for path in (p for p in paths if is_held_out(p.stem) == held_out):
        try:
            frames = iter_frames(path, width=FRAME_SIDE, height=FRAME_SIDE)
            clips.append(Clip(path.stem, np.stack(list(itertools.islice(frames, limit)))))
        except VideoError as error:
            raise TrainingDataError(str(error)) from error
    if not clips:
        part = "held out" if held_out else "for training"
        raise TrainingDataError(f"{folder}: no clip {part} among {len(paths)} videos")
    return clips


@torch.no_grad()
def teach(teacher: LpipsNetwork, crops: np.ndarray) -> Pairs:
    """Return crops uint8 [N, 2, S, S, 3] with the teacher's distances."""
    maps, taps = [], []
    for part in np.array_split(crops, max(1, len(crops) // 8)):
        found = teacher.tap_maps(from_pixels(part[:, 0]), from_pixels(part[:, 1]))
        maps.append(pooled(found).half().numpy())
        taps.append(torch.stack([tap.mean(dim=(1, 2, 3)) for tap in found], dim=1).numpy())
    return Pairs(crops, np.concatenate(maps), np.concatenate(taps))


def pooled(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return distances [N, 1, h, w] of every tap averaged onto one grid, [N, taps, GRID, GRID]."""
    return torch.cat([functional.adaptive_avg_pool2d(tap, GRID) for tap in maps], dim=1)


@dataclass
class PairMaker:
    """Draws runs of frames, distorts them and asks the teacher."""

    pictures: PictureSet
    clips: list[Clip]  # may be empty
    generator: Generator
    encoder: PromptEncoder
    teacher: LpipsNetwork

    def shard(self, number: int, seed: int) -> Pairs:
        """Return PAIRS_PER_SHARD pairs, the same for the same arguments."""
        rng = np.random.default_rng([seed, number])
        return teach(self.teacher, np.concatenate([self._run(rng) for _ in range(_RUNS)]))

    def _run(self, rng: np.random.Generator) -> np.ndarray:
        """Return the crops [_FRAMES * _CROPS, 2, S, S, 3] of one run of frames under one distortion."""
        motion = bool(self.clips) and rng.random() < _CLIP_SHARE
        frames = self._clip_run(rng) if motion else self._picture_run(rng)
        known = families(self.generator, self.encoder, motion=motion)
        prompts = known.pop("prompts")
        distort = prompts if rng.random() < _PROMPT_SHARE else known[str(rng.choice(list(known)))]
        distorted = distort(frames, rng)
        kept = slice(None, None, _STRIDE) if motion else slice(None)
        pairs = np.stack([frames[kept], distorted[kept]], axis=1)  # [_FRAMES, 2, H, W, 3]
        crops = []
        for pair in np.repeat(pairs, _CROPS, axis=0):
            top, left = rng.integers(0, FRAME_SIDE - CROP_SIDE + 1, 2)
            crops.append(pair[:, top : top + CROP_SIDE, left : left + CROP_SIDE])
        return np.stack(crops)

    def _picture_run(self, rng: np.random.Generator) -> np.ndarray:
        return to_pixels(self.pictures.crops(_FRAMES, FRAME_SIDE, rng)).numpy()

    def _clip_run(self, rng: np.random.Generator) -> np.ndarray:
        frames = self.clips[rng.integers(len(self.clips))].frames
        length = _FRAMES * _STRIDE
        start = rng.integers(max(1, len(frames) - length + 1))
        run = frames[start : start + length]
        return np.concatenate([run, np.repeat(run[-1:], length - len(run), axis=0)])  # a short clip's end stands still


def build_pairs(
    maker: Callable[[], PairMaker], folder: Path, shards: int, *, seed: int, progress: Callable[[int], None]
) -> Pairs:
    """Return the pairs of `shards` shards in a folder, making those that it lacks; `maker` is called if any is."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"seed{seed}-{number:04d}.npz" for number in range(shards)]
    made = None
    for number, path in enumerate(paths):
        if not path.exists():
            made = made or maker()
            pairs = made.shard(number, seed)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, crops=pairs.crops, maps=pairs.maps, taps=pairs.taps)
            partial.replace(path)
        progress(number + 1)
    return _load(paths)


def _load(paths: Sequence[Path]) -> Pairs:
    """Read shards into memory, once each."""
    crops = np.empty((len(paths) * PAIRS_PER_SHARD, 2, CROP_SIDE, CROP_SIDE, 3), np.uint8)
    maps, taps = [], []
    for number, path in enumerate(paths):
        try:
            with path.open("rb") as file, np.load(file) as shard:
                crops[number * PAIRS_PER_SHARD : (number + 1) * PAIRS_PER_SHARD] = shard["crops"]
                maps.append(shard["maps"])
                taps.append(shard["taps"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingDataError(f"{path}: not a whole shard ({error}); delete it") from error
    return Pairs(crops, np.concatenate(maps), np.concatenate(taps))
