"""The demo clip: a short video filmed by a virtual camera in photographs that scikit-image ships in its wheel.

Four shots with hard cuts (launch pad, coffee, astronaut, cat): eased pans, zooms and rolls, handheld shake, parallax
from hand-made depth maps and from one cut-out foreground, and rising steam. Nothing is downloaded and nothing is
random: the same library versions give the same pixels and the same file. All four photographs are in the public domain
or CC0; `docs/packaging.md` names their sources.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.nn import functional

from packager.errors import PackagerError, VideoError
from packager.video import write_h264

DEMO_VERSION = 1
"""Goes up whenever the pixels change, so that caches named after it never serve an older clip."""

_CRF = 10  # x264 quality: near-lossless for the eye, about 10 Mbit/s at 512x512
_PHOTOGRAPHS = {  # file in skimage/data -> SHA-256 prefix of the picture this clip was composed for
    "rocket.jpg": "c2dd0de7c538",
    "coffee.png": "cc02f8ca188b",
    "astronaut.png": "88431cd9653c",
    "chelsea.png": "596aa1e7cb87",
}

_SHAKE = ((0.61, 1.0), (1.37, 0.5), (2.83, 0.22), (5.1, 0.08))  # (hertz, gain) of a hand that holds a camera

Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """Where the camera looks: `centre` and `view` (side of the square it sees) in photograph pixels, `roll` in degrees,
    `truck` is the camera's own sideways and vertical motion in pixels, which depth turns into parallax."""

    centre: Point
    view: float
    roll: float = 0.0
    truck: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Shot:
    """One uncut piece of the clip: a photograph, its depth and foreground, and an eased camera path through it."""

    photograph: str
    share: float  # of the clip's duration
    start: Pose
    end: Pose
    depth: tuple[tuple[tuple[Point, ...], float], ...] = ()  # (polygon, height above the ground), later ones on top
    depth_blur: float = 10.0  # pixels; depth must be smooth, or the warp tears
    foreground: tuple[Point, ...] = ()  # polygon cut out and moved by `foreground_gain` times the truck
    foreground_gain: float = 1.0
    steam: tuple[float, float, float, float] | None = None  # foot x, foot y, width, height of a plume
    shake: float = 1.0  # handheld camera; 0 is a tripod


def _ellipse(x: float, y: float, rx: float, ry: float) -> tuple[Point, ...]:
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 48, endpoint=False))


_PERSON: tuple[Point, ...] = (  # outline of the astronaut and the helmet, in photograph pixels
    (0, 512), (26, 490), (19, 400), (28, 320), (42, 288), (62, 250), (98, 215), (112, 205), (114, 190), (126, 174),
    (140, 157), (160, 149), (184, 149), (180, 130), (165, 117), (156, 100), (153, 75), (160, 55), (178, 40), (200, 24),
    (222, 15), (250, 18), (272, 28), (290, 48), (299, 70), (301, 95), (292, 118), (276, 134), (266, 150), (260, 172),
    (278, 186), (296, 212), (304, 235), (330, 246), (345, 268), (352, 295), (360, 332), (364, 346), (400, 343),
    (440, 352), (472, 378), (490, 410), (497, 452), (512, 462), (512, 512),
)  # fmt: skip

_SHOTS = (
    Shot(
        "rocket.jpg",
        share=0.29,
        start=Pose((318, 292), 262, roll=-1.0, truck=(-15, 6)),
        end=Pose((324, 224), 384, roll=0.6, truck=(15, -8)),
        depth=(
            (((0, 400), (640, 400), (640, 427), (0, 427)), 0.55),
            (((168, 120), (224, 120), (226, 400), (164, 400)), 0.35),
            (((420, 120), (474, 120), (478, 400), (416, 400)), 0.35),
            (((286, 110), (354, 110), (364, 404), (278, 404)), 0.6),
            (((-40, -40), (100, -40), (104, 467), (-40, 467)), 1.0),
            (((548, -40), (680, -40), (680, 467), (552, 467)), 1.0),
        ),
        depth_blur=16.0,
        shake=0.5,
    ),
    Shot(
        "coffee.png",
        share=0.26,
        start=Pose((250, 214), 352, roll=-5.0, truck=(-18, 5)),
        end=Pose((302, 170), 272, roll=4.0, truck=(16, -8)),
        depth=(
            (_ellipse(276, 222, 202, 166), 0.25),
            (((172, 112), (416, 112), (398, 230), (352, 296), (240, 296), (206, 230)), 0.6),
            (_ellipse(294, 110, 126, 98), 1.0),
            (_ellipse(294, 132, 84, 62), 0.45),
        ),
        depth_blur=14.0,
        steam=(292.0, 134.0, 120.0, 190.0),
    ),
    Shot(
        "astronaut.png",
        share=0.23,
        start=Pose((262, 226), 430, roll=0.8, truck=(9, 2)),
        end=Pose((236, 172), 318, roll=-0.5, truck=(-9, -3)),
        depth=(
            (_ellipse(405, 140, 66, 160), 0.25),
            (_ellipse(232, 100, 60, 90), 0.9),
            (_ellipse(232, 120, 28, 40), 1.15),
        ),
        depth_blur=20.0,
        foreground=_PERSON,
        foreground_gain=1.0,
    ),
    Shot(
        "chelsea.png",
        share=0.22,
        start=Pose((206, 146), 276, roll=2.0, truck=(8, 3)),
        end=Pose((238, 152), 204, roll=-3.0, truck=(-9, -4)),
        depth=(
            (_ellipse(200, 150, 190, 170), 0.4),
            (_ellipse(255, 190, 90, 90), 0.75),
            (_ellipse(268, 232, 40, 36), 1.2),
        ),
        depth_blur=26.0,
        shake=1.3,
    ),
)


def make_demo_clip(
    path: str | os.PathLike[str],
    *,
    seconds: float = 12.0,
    fps: int = 30,
    size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the demo clip to `path` (MP4, H.264, square) and return that path; an existing file is left as it is.

    Args:
        path: where the clip goes; it appears whole or not at all.
        seconds: duration; the four shots share it.
        size: side of the frames in pixels; the photographs carry detail for about 400.
        progress: called with (frames done, frames in all).
    Raises:
        PackagerError: the installed scikit-image ships other photographs.
    """
    target = Path(path)
    if target.exists():
        return target
    if not (seconds > 0 and fps >= 1 and size >= 16 and size % 2 == 0):
        found = f"{seconds} s, {fps} frames/s, {size} px"
        raise VideoError(f"demo clip of {found}: expected > 0 s, >= 1 frame/s and an even size >= 16")
    total = max(1, round(seconds * fps))

    def counted() -> Iterator[np.ndarray]:
        for done, frame in enumerate(render_demo_frames(total, fps=fps, size=size), start=1):
            yield frame
            if progress is not None:
                progress(done, total)

    target.parent.mkdir(parents=True, exist_ok=True)
    write_h264(target, counted(), fps=Fraction(fps), width=size, height=size, crf=_CRF)
    return target


def demo_clip_name(*, seconds: float = 12.0, fps: int = 30, size: int = 512) -> str:
    """Return a file name for a cache: another one for every version and setting of the clip."""
    return f"demo-v{DEMO_VERSION}-{seconds:g}s-{fps}fps-{size}px.mp4"


def render_demo_frames(total: int, *, fps: int = 30, size: int = 512) -> Iterator[np.ndarray]:
    """Yield the clip's `total` frames, uint8 [size, size, 3]."""
    boundaries = np.round(np.cumsum([0.0, *(shot.share for shot in _SHOTS)]) * total).astype(int)
    boundaries[-1] = total
    for shot, first, last in zip(_SHOTS, boundaries[:-1], boundaries[1:], strict=True):
        if last > first:
            stage = _Stage(shot, size)
            for index in range(first, last):
                yield stage.frame((index - first) / max(1, last - first - 1), (index - first) / fps)


@dataclass
class _Stage:
    """A shot made ready to film: its layers as tensors, and the sampling grid."""

    shot: Shot
    size: int
    picture: torch.Tensor = field(init=False)  # [1, 3, h, w] in 0..255
    depth: torch.Tensor = field(init=False)  # [1, 1, h, w]
    matte: torch.Tensor | None = field(init=False, default=None)  # [1, 1, h, w] in [0, 1]: the foreground
    backdrop: torch.Tensor = field(init=False)  # [1, 3, h, w]: the picture with the foreground painted out

    def __post_init__(self) -> None:
        array = np.asarray(_load_photograph(self.shot.photograph), dtype=np.float32)  # [h, w, 3]
        self.picture = torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()
        extent = (array.shape[1], array.shape[0])
        self.depth = _depth_map(self.shot, extent)
        self.backdrop = self.picture
        if self.shot.foreground:
            mask = _polygon_mask(self.shot.foreground, extent)
            self.matte = _to_plane(mask.filter(ImageFilter.GaussianBlur(1.6)))
            hole = _to_plane(mask.filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.GaussianBlur(2.0)))
            self.backdrop = _fill(self.picture, hole)
        step = (torch.arange(self.size, dtype=torch.float32) + 0.5) / self.size - 0.5
        self._y, self._x = torch.meshgrid(step, step, indexing="ij")  # [size, size] in (-0.5, 0.5)

    def frame(self, position: float, time_s: float) -> np.ndarray:
        """Film the frame at `position` 0..1 of the camera path, `time_s` after the cut: uint8 [size, size, 3]."""
        pose = _pose_at(self.shot, position, time_s)
        gx, gy = self._ground(pose)
        depth = _sample(self.depth, gx, gy, mode="bilinear")[0, 0]  # [size, size]
        if self.matte is None:
            filmed = _sample(self.picture, gx + depth * pose.truck[0], gy + depth * pose.truck[1])
        else:
            gain = self.shot.foreground_gain
            fx, fy = gx + (gain + 0.25 * depth) * pose.truck[0], gy + (gain + 0.25 * depth) * pose.truck[1]
            matte = _sample(self.matte, fx, fy, mode="bilinear")
            far = _sample(self.backdrop, gx - 0.35 * pose.truck[0], gy - 0.35 * pose.truck[1])
            filmed = matte * _sample(self.picture, fx, fy) + (1 - matte) * far
        if self.shot.steam is not None:
            filmed = _add_steam(filmed, self.shot.steam, gx + 0.8 * pose.truck[0], gy + 0.8 * pose.truck[1], time_s)
        return filmed[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()

    def _ground(self, pose: Pose) -> tuple[torch.Tensor, torch.Tensor]:
        """Photograph coordinates that each output pixel sees at depth 0, [size, size] each."""
        cos, sin = math.cos(math.radians(pose.roll)), math.sin(math.radians(pose.roll))
        x = pose.centre[0] + pose.view * (cos * self._x - sin * self._y)
        y = pose.centre[1] + pose.view * (sin * self._x + cos * self._y)
        return x, y


def _pose_at(shot: Shot, position: float, time_s: float) -> Pose:
    """The eased pose, with handheld shake made of a few incommensurable sinusoids."""
    # Half linear, half smoothstep: the camera is already moving at the cut, as in edited footage.
    ease = 0.5 * position + 0.5 * position * position * (3 - 2 * position)

    def mix(a: float, b: float) -> float:
        return a + (b - a) * ease

    def wobble(seed: float) -> float:
        phases = (2 * math.pi * (hertz * time_s + seed * (k + 1.7)) for k, (hertz, _) in enumerate(_SHAKE))
        return sum(gain * math.sin(phase) for phase, (_, gain) in zip(phases, _SHAKE, strict=True))

    start, end, shake = shot.start, shot.end, shot.shake
    return Pose(
        (
            mix(start.centre[0], end.centre[0]) + 1.5 * shake * wobble(0.13),
            mix(start.centre[1], end.centre[1]) + 1.2 * shake * wobble(0.57),
        ),
        math.exp(mix(math.log(start.view), math.log(end.view))),  # equal ratios, so that the zoom looks steady
        mix(start.roll, end.roll) + 0.25 * shake * wobble(0.91),
        (mix(start.truck[0], end.truck[0]), mix(start.truck[1], end.truck[1])),
    )


def _sample(plane: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, mode: str = "bicubic") -> torch.Tensor:
    """Interpolate plane [1, C, h, w] at photograph coordinates x, y [size, size]: [1, C, size, size]."""
    height, width = plane.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]  # [1, size, size, 2]
    return functional.grid_sample(plane, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _load_photograph(name: str) -> Image.Image:
    """Open a photograph inside the installed scikit-image; its download helper is not used."""
    file = resources.files("skimage.data").joinpath(name)
    if not file.is_file():
        raise PackagerError(f"the installed scikit-image has no data/{name}, which the demo clip is made from")
    with resources.as_file(file) as path:
        data = Path(path).read_bytes()
        if not hashlib.sha256(data).hexdigest().startswith(_PHOTOGRAPHS[name]):
            raise PackagerError(f"the installed scikit-image has another data/{name} than the demo clip is made from")
        with Image.open(path) as image:
            return image.convert("RGB")


def _polygon_mask(polygon: tuple[Point, ...], extent: tuple[int, int], value: int = 255) -> Image.Image:
    mask = Image.new("L", extent, 0)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in polygon], fill=value)
    return mask


def _to_plane(mask: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255.0)[None, None].contiguous()


def _depth_map(shot: Shot, extent: tuple[int, int]) -> torch.Tensor:
    """Paint the shot's polygons and blur them: [1, 1, h, w], 0 is the ground."""
    top = max((height for _, height in shot.depth), default=1.0)
    canvas = Image.new("L", extent, 0)
    for polygon, height in shot.depth:
        canvas.paste(round(255 * height / top), mask=_polygon_mask(polygon, extent))
    return _to_plane(canvas.filter(ImageFilter.GaussianBlur(shot.depth_blur))) * top


def _fill(picture: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Paint out where `hole` is 1 with what lies around it: normalised blurs of growing radius, finest known first."""
    filled, weight = picture * (1 - hole), 1 - hole
    for radius in (4, 8, 16, 32, 64, 128):
        total = _box_blur(weight, radius)
        blurred = _box_blur(filled, radius) / total.clamp_min(1e-6)
        gain = (1 - weight) * (total > 0.02)
        filled, weight = filled + gain * blurred, weight + gain
    return filled / weight.clamp_min(1e-6)


def _box_blur(plane: torch.Tensor, radius: int) -> torch.Tensor:
    kernel = 2 * radius + 1
    rows = functional.avg_pool2d(plane, (1, kernel), 1, (0, radius), count_include_pad=False)
    return functional.avg_pool2d(rows, (kernel, 1), 1, (radius, 0), count_include_pad=False)


def _add_steam(
    filmed: torch.Tensor, steam: tuple[float, float, float, float], x: torch.Tensor, y: torch.Tensor, time_s: float
) -> torch.Tensor:
    """Lay a drifting plume over the picture; x, y [size, size] are the photograph coordinates of its pixels."""
    foot_x, foot_y, width, height = steam
    rise = (foot_y - y) / height  # 0 at the cup, 1 at the top of the plume
    sway = 0.16 * torch.sin(5.0 * rise - 1.9 * time_s) + 0.07 * torch.sin(11.0 * rise - 3.3 * time_s)
    across = (x - foot_x) / width - sway * rise.clamp_min(0)
    wisps = torch.zeros_like(x)
    for octave, (frequency, speed) in enumerate(((2.1, 0.55), (4.3, 0.8), (8.9, 1.15))):
        phase = 2 * math.pi * (frequency * (rise - speed * time_s / 2.2))
        bend = 0.084 * torch.sin(phase * 0.5 + 1.3 * octave)
        wisps += torch.sin(phase + 3.1 * octave) * torch.cos(2 * math.pi * frequency * (across + bend)) / 2**octave
    fade = (rise / 0.15).clamp(0, 1) * (1 - rise).clamp(0, 1)
    shape = torch.exp(-((across / (0.16 + 0.2 * rise.clamp(0, 1))) ** 2)) * fade
    opacity = (0.34 * shape * torch.sigmoid(2.2 * wisps)).clamp(0, 0.5)
    return filmed + opacity * (238.0 - filmed)
