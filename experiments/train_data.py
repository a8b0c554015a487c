"""Training images for the embedded generator: tar files or folders of pictures, held in memory, sampled by source."""

from __future__ import annotations

import io
import logging
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from player.decoder import from_pixels

log = logging.getLogger(__name__)

_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}
# A photograph scaled to a short side of 256 is busier than a video frame of that size, so smaller copies stand in
# for coarse detail seen close up.
_SCALES = (1.0, 0.75, 0.5)
_HELD_OUT_SHARE = 32  # one picture in 32, chosen by the checksum of its name, is never trained on


class TrainingDataError(Exception):
    """Training pictures that are missing or too few."""


@dataclass(frozen=True)
class Picture:
    """One picture at several scales: `pixels` are uint8 [H, W, 3], the first with a short side of 256."""

    name: str
    source: str
    pixels: tuple[np.ndarray, ...]


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of every picture below a folder: loose files and those inside tar files."""
    for file in sorted(path.rglob("*")):
        if file.suffix == ".tar":
            with tarfile.open(file) as archive:
                for member in archive:
                    stream = archive.extractfile(member) if member.isfile() else None
                    if stream is not None and Path(member.name).suffix.lower() in _SUFFIXES:
                        yield member.name, stream.read()
        elif file.suffix.lower() in _SUFFIXES:
            yield str(file.relative_to(path)), file.read_bytes()


def _decode(item: tuple[str, bytes], short_side: int) -> Picture | None:
    name, data = item
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = short_side / min(image.size)
    if scale > 2:  # an enlarged thumbnail teaches blur
        return None
    pixels = []
    for factor in _SCALES:
        size = [max(round(side * scale * factor), round(short_side * factor)) for side in image.size]
        pixels.append(np.asarray(image.resize((size[0], size[1]), Image.Resampling.LANCZOS)))
    return Picture(name, name.split("/")[0], tuple(pixels))


@dataclass(frozen=True)
class PictureSet:
    """Pictures with a sampling weight each; sources count by the square root of their size."""

    pictures: tuple[Picture, ...]
    weights: np.ndarray  # [n] float64, sums to 1

    def crops(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """Return random crops float32 [count, 3, size, size] in [-1, 1], half of them mirrored."""
        chosen = rng.choice(len(self.pictures), size=count, p=self.weights)
        out = np.empty((count, size, size, 3), np.uint8)
        for slot, index in zip(out, chosen, strict=True):
            fitting = [p for p in self.pictures[index].pixels if min(p.shape[:2]) >= size]
            pixels = fitting[rng.integers(len(fitting))]
            top, left = (rng.integers(side - size + 1) for side in pixels.shape[:2])
            crop = pixels[top : top + size, left : left + size]
            slot[:] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return from_pixels(out)

    def centres(self, size: int, limit: int | None = None) -> Tensor:
        """Return the centre crops float32 [n, 3, size, size] of the full-size pictures, for measuring."""
        out = []
        for picture in self.pictures[:limit]:
            height, width = picture.pixels[0].shape[:2]
            top, left = (height - size) // 2, (width - size) // 2
            out.append(picture.pixels[0][top : top + size, left : left + size])
        return from_pixels(np.stack(out))


def _weighted(pictures: list[Picture]) -> PictureSet:
    sizes: dict[str, int] = {}
    for picture in pictures:
        sizes[picture.source] = sizes.get(picture.source, 0) + 1
    weights = np.array([1 / np.sqrt(sizes[p.source]) for p in pictures])
    return PictureSet(tuple(pictures), weights / weights.sum())


def load_pictures(folder: Path, *, short_side: int = 256, limit: int | None = None) -> tuple[PictureSet, PictureSet]:
    """Return (training set, held-out set) of the pictures below a folder.

    Raises:
        TrainingDataError: the folder holds fewer than two usable pictures.
    """
    items = [item for i, item in enumerate(_members(folder)) if limit is None or i < limit]
    with ThreadPoolExecutor() as pool:
        pictures = [p for p in pool.map(lambda item: _decode(item, short_side), items) if p is not None]
    held = [p for p in pictures if zlib.crc32(p.name.encode()) % _HELD_OUT_SHARE == 0] or pictures[:1]
    held_names = {p.name for p in held}
    training = [p for p in pictures if p.name not in held_names]
    if not training:
        raise TrainingDataError(f"{folder}: found {len(pictures)} usable pictures, expected at least 2")
    log.info("%d training pictures, %d held out, from %s", len(training), len(held), folder)
    return _weighted(training), _weighted(held)
