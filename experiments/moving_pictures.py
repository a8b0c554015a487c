"""Pictures set in motion: what teaches a generator where content is between two frames, without any video.

A picture shifts, grows and turns behind up to two others, cut out in random shapes that go their own ways (parallax).
Motion is even, as interpolation between two prompts is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.train_data import PictureSet
from player.pixels import from_pixels, to_pixels

DISPLACEMENTS = (1.0, 24.0)
"""Least and greatest distance in pixels that content moves from the first frame to the last, drawn by its logarithm."""


def moving_picture(
    pictures: PictureSet, size: int, share: float, rng: np.random.Generator, displacement: float | None = None
) -> Tensor:
    """Return the first frame, the one at `share` of the way, and the last: float32 [3, 3, size, size] in [-1, 1].

    Args:
        pictures: what moves.
        size: side of the frames in pixels.
        share: where between the first frame (0) and the last (1) the middle one lies.
        rng: what everything is drawn from.
        displacement: how far content moves in pixels; default: drawn, up to `DISPLACEMENTS`.
    """
    low, high = DISPLACEMENTS
    times = torch.tensor([-0.5, share - 0.5, 0.5])
    frames = torch.zeros(3, 3, size, size)
    for layer in range(1 + int(rng.integers(3))):
        far = low * (high / low) ** rng.random() if displacement is None else displacement
        places = _places(size, times, far, rng)
        picture = _read(pictures.crops(1, size, rng)[0], places)
        covers = _read(_blob(size, rng), places, outside="zeros") if layer else torch.ones(3, 1, size, size)
        frames = covers * picture + (1 - covers) * frames
    return from_pixels(to_pixels(frames).numpy())


def moving_pictures(pictures: PictureSet, count: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return (frames float32 [count, 3, 3, size, size] as of `moving_picture`, their shares [count])."""
    shares = rng.choice([0.25, 0.5, 0.75], size=count)
    clips = [moving_picture(pictures, size, float(share), rng) for share in shares]
    return torch.stack(clips), torch.from_numpy(shares.astype(np.float32))


def _places(size: int, times: Tensor, displacement: float, rng: np.random.Generator) -> Tensor:
    """Return where each frame reads a still picture: [T, size, size, 2] in [-1, 1]; at time 0 it is as it was."""
    x, y = _grid(size)
    way, direction = 2 * displacement / size, rng.uniform(0, 2 * math.pi)  # half sides
    zoom, turn = (0.5 * way * float(amount) * times for amount in rng.normal(size=2))
    at = (..., None, None)
    cos, sin = (((1 + zoom) * part)[at] for part in (turn.cos(), turn.sin()))
    dx, dy = (way * part * times[at] for part in (math.cos(direction), math.sin(direction)))
    return torch.stack([cos * x - sin * y + dx, sin * x + cos * y + dy], dim=-1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Return the x and y of pixels, [size, size] each, in [-1, 1]."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def _read(picture: Tensor, places: Tensor, outside: str = "reflection") -> Tensor:
    """Return a still picture [C, h, w] as frames [T, C, size, size] read at places."""
    every = picture[None].expand(len(places), -1, -1, -1)
    return functional.grid_sample(every, places, mode="bicubic", padding_mode=outside, align_corners=False)


def _blob(size: int, rng: np.random.Generator) -> Tensor:
    """Return a random shape with a more or less soft edge, [1, size, size] in [0, 1]."""
    x, y = _grid(size)
    x, y = x - rng.uniform(-0.6, 0.6), (y - rng.uniform(-0.6, 0.6)) * rng.uniform(0.6, 1.6)
    angle, radius = torch.atan2(y, x), torch.hypot(x, y)
    waves = [0.25 * rng.normal() / k * torch.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in range(2, 6)]
    edge = rng.uniform(0.15, 0.6) * (1 + torch.stack(waves).sum(dim=0))
    return torch.sigmoid((edge - radius) * size / 2 * rng.uniform(0.3, 1.5))[None]
