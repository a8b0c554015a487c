"""What lpips-embedded is trained and tested on: frames and what codecs, filters and the generator make of them.

Every distortion takes a run of frames uint8 [T, H, W, 3] and a random generator and returns frames of the same shape.
Still distortions draw their strength for each frame, the others for the run.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import av
import numpy as np
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage
from torch import Tensor

from packager.encoder import PromptEncoder
from packager.fit import FAST, FitConfig, fit_segment, key_offsets
from packager.video_encoders import own_scheduling
from player.decoder import from_pixels, render_segment, to_pixels
from player.generator import Generator
from player.prompt import interpolation_matrix

Distortion = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# SVT-AV1 logs to stderr past FFmpeg's own log level; this is its switch.
os.environ.setdefault("SVT_LOG", "1")

# One thread each, for the same bytes every time; of x265 also units narrower than the frame (packager.video_encoders).
_OPTIONS = {
    "libx264": {"preset": "veryfast", "x264-params": "threads=1:sliced-threads=0"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none:pools=none:frame-threads=1:ctu=32"},
    "libsvtav1": {"preset": "9", "svtav1-params": "lp=1"},
}
CODECS = {"x264": ("libx264", 20, 50), "x265": ("libx265", 20, 50), "av1": ("libsvtav1", 25, 63)}
"""FFmpeg's encoder and the range of constant rate factors, from good to the worst it does."""
TOP_RANK = 16
"""Of a ladder of this codec, by default."""
_U_STEPS = (0.2, 1.0)  # quantization steps of U, around those of a ladder of prompts
_KEY_INTERVALS = (2, 16)  # frames between key prompts, of runs no longer than that
_FIT_STEPS = 20  # two thirds of the preset's: with four, many fits ended above their start and kept it
_LADDER = (1, 2, 4, 8, TOP_RANK)


def transcode(frames: np.ndarray, codec: str, crf: int) -> np.ndarray:
    """Return what decodes from frames uint8 [T, H, W, 3] encoded at a constant rate factor, 4:2:0."""
    encoder, _, _ = CODECS[codec]
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(encoder, rate=30, options={"crf": str(crf), **_OPTIONS[encoder]})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        with own_scheduling():
            stream.codec_context.open(strict=False)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def video_codec(frames: np.ndarray, rng: np.random.Generator, *, codec: str) -> np.ndarray:
    """Encode the run by a video codec at a random rate factor."""
    _, best, worst = CODECS[codec]
    return transcode(frames, codec, int(rng.integers(best, worst + 1)))


def _each(frames: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a change of single frames float [H, W, 3] in 0..255, and round."""
    return np.stack([np.clip(np.rint(change(frame.astype(np.float32))), 0, 255) for frame in frames]).astype(np.uint8)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def picture_codec(frames: np.ndarray, rng: np.random.Generator, *, kind: str) -> np.ndarray:
    """Encode each frame as a picture of random quality."""
    out = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, kind, quality=round(_log_uniform(rng, 3, 95)))
        out.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(out)


def blur(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian, round or along one axis."""

    def change(frame: np.ndarray) -> np.ndarray:
        sigma = _log_uniform(rng, 0.4, 7)
        other = sigma if rng.random() < 0.7 else 0.0
        sigmas = (sigma, other) if rng.random() < 0.5 else (other, sigma)
        return ndimage.gaussian_filter(frame, (*sigmas, 0))

    return _each(frames, change)


def resample(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink and enlarge again, smoothly or in squares."""
    kinds = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    out = []
    for frame in frames:
        factor = _log_uniform(rng, 1.3, 12)
        height, width = frame.shape[:2]
        small = Image.fromarray(frame).resize(
            (max(1, round(width / factor)), max(1, round(height / factor))), Image.Resampling.BOX
        )
        out.append(np.asarray(small.resize((width, height), kinds[rng.integers(3)])))
    return np.stack(out)


def noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, of each channel or of luma, fine or in grains."""

    def change(frame: np.ndarray) -> np.ndarray:
        shape = (*frame.shape[:2], 3 if rng.random() < 0.5 else 1)
        grain = rng.standard_normal(shape, dtype=np.float32)
        if rng.random() < 0.4:
            grain = ndimage.gaussian_filter(grain, (1, 1, 0)) * 3.5  # of about unit variance again
        return frame + _log_uniform(rng, 1, 50) * grain

    return _each(frames, change)


def ghosting(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend each frame with itself moved, as a cross-fade between key prompts does."""

    def change(frame: np.ndarray) -> np.ndarray:
        share, reach = rng.uniform(0.15, 0.6), _log_uniform(rng, 1, 20)
        rows, columns = rng.uniform(-reach, reach, 2)
        moved = ndimage.shift(frame, (rows, columns, 0), order=1, mode="nearest")
        return (1 - share) * frame + share * moved

    return _each(frames, change)


def shift(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the frame by up to 8 px, all of it or its waves."""

    def change(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        reach = _log_uniform(rng, 0.3, 8)
        if rng.random() < 0.5:
            return ndimage.shift(frame, (*rng.uniform(-reach, reach, 2), 0), order=1, mode="nearest")
        flow = [ndimage.zoom(rng.uniform(-reach, reach, (6, 6)), (height / 6, width / 6), order=1) for _ in range(2)]
        rows, columns = np.mgrid[0:height, 0:width]
        places = [rows + flow[0][:height, :width], columns + flow[1][:height, :width]]
        return np.stack([ndimage.map_coordinates(frame[..., c], places, order=1, mode="nearest") for c in range(3)], -1)

    return _each(frames, change)


def colour(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation, gamma and the balance of channels."""
    out = []
    for frame in frames:
        strength = _log_uniform(rng, 0.05, 1)
        picture = Image.fromarray(frame)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = enhance(picture).enhance(float(np.exp(rng.normal(0, 0.5 * strength))))
        values = (np.asarray(picture, np.float32) / 255) ** np.exp(rng.normal(0, 0.4 * strength))
        out.append(values * 255 * np.exp(rng.normal(0, 0.25 * strength, 3)) + rng.normal(0, 25 * strength, 3))
    return np.clip(np.rint(np.stack(out)), 0, 255).astype(np.uint8)


def blocks(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fade random blocks of 4 to 32 px into their means, or coarsen the values of the frame."""

    def change(frame: np.ndarray) -> np.ndarray:
        if rng.random() < 0.3:
            step = _log_uniform(rng, 8, 90)
            return np.floor(frame / step) * step + step / 2
        height, width = frame.shape[:2]
        side = int(rng.choice([4, 8, 16, 32]))
        rows, columns = np.arange(height) // side, np.arange(width) // side
        sums = np.add.reduceat(np.add.reduceat(frame, np.arange(0, height, side)), np.arange(0, width, side), axis=1)
        area = np.outer(np.bincount(rows), np.bincount(columns))[..., None]
        flat = (sums / area)[rows][:, columns]
        amount = rng.uniform(0.1, 1) * (rng.random(area.shape) < rng.uniform(0.2, 1))
        amount = amount[rows][:, columns]
        return (1 - amount) * frame + amount * flat

    return _each(frames, change)


def still_run(frame: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return a run of `length` frames that pans over one picture [H, W, 3] and ends on the picture as it is."""
    rows, columns = rng.integers(-4, 5, 2)
    places = range(length - 1, -1, -1)
    return np.stack([np.roll(frame, (rows * k, columns * k), axis=(0, 1)) for k in places])


def slideshow(frames: np.ndarray, rng: np.random.Generator, *, codec: str, length: int = 3) -> np.ndarray:
    """Encode pictures as one video, each a short pan, and return the last frame of each."""
    runs = np.concatenate([still_run(frame, length, rng) for frame in frames])
    return video_codec(runs, rng, codec=codec)[length - 1 :: length]


def crossfade(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend the frames of a run linearly between key frames some frames apart."""
    keys = key_offsets(len(frames), int(rng.integers(2, _KEY_INTERVALS[1])))
    weights = interpolation_matrix(keys, len(frames)).numpy()
    blend = np.tensordot(weights, frames[keys].astype(np.float32), axes=1)
    return np.clip(np.rint(blend), 0, 255).astype(np.uint8)


@torch.no_grad()
def render_stills(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, *, ranks: np.ndarray, u_step: float
) -> np.ndarray:
    """Return the generator's frames for the encoder's prompts of single frames, each cut to its own rank [T] and
    quantized, without any fitting."""
    u, v = encoder(from_pixels(frames).to(generator.device))
    top = int(ranks.max())
    kept = torch.arange(top) < torch.from_numpy(ranks)[:, None]  # [T, R]
    steps = u_step * generator.step_scale[:top]
    u = torch.round(u[..., :top] / steps) * steps * kept[:, None, :].to(generator.device)
    embeddings = generator.space.compose(u, v[:, :top], generator.norm_rank(TOP_RANK))
    out: list[Tensor] = [generator.generate(part) for part in embeddings.split(8)]
    return to_pixels(torch.cat(out)).cpu().numpy()


def render_fits(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, config: FitConfig, *, ranks: Sequence[int]
) -> list[np.ndarray]:
    """Return what a player shows of a run at each of the ranks, which are fitted together as a packager does."""
    fitted = fit_segment(from_pixels(frames), generator, encoder, config, ranks=ranks)
    norm_rank = generator.norm_rank(max(ranks))
    return [render_segment(fitted[rank], norm_rank, generator) for rank in ranks]


def prompts(
    frames: np.ndarray, rng: np.random.Generator, *, generator: Generator, encoder: PromptEncoder, motion: bool
) -> np.ndarray:
    """Render each frame of the run from a prompt at a random rank; a run of `motion` from a fit, warped between key
    frames."""
    ladder = [rank for rank in _LADDER if rank <= generator.max_rank]
    ranks, u_step = rng.choice(ladder, len(frames)), float(rng.uniform(*_U_STEPS))
    if not motion:
        return render_stills(frames, generator, encoder, ranks=ranks, u_step=u_step)
    config = replace(FAST, iterations=_FIT_STEPS, interval=int(rng.integers(*_KEY_INTERVALS)), u_step=u_step)
    fitted = dict(zip(ladder, render_fits(frames, generator, encoder, config, ranks=ladder), strict=True))
    return np.stack([fitted[rank][t] for t, rank in enumerate(ranks)])


STILL: dict[str, Distortion] = {
    "jpeg": partial(picture_codec, kind="jpeg"),
    "webp": partial(picture_codec, kind="webp"),
    "blur": blur,
    "resample": resample,
    "noise": noise,
    "ghosting": ghosting,
    "shift": shift,
    "colour": colour,
    "blocks": blocks,
}
"""Distortions of single frames, by name."""


def mixture(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply two different still distortions after each other."""
    first, second = rng.choice(list(STILL), size=2, replace=False)
    return STILL[second](STILL[first](frames, rng), rng)


def families(generator: Generator, encoder: PromptEncoder, *, motion: bool) -> dict[str, Distortion]:
    """Return every distortion by name; `motion` says whether runs are consecutive frames of a clip."""
    codec = video_codec if motion else slideshow
    return {
        **STILL,
        "mixture": mixture,
        **({"crossfade": crossfade} if motion else {}),
        **{name: partial(codec, codec=name) for name in CODECS},
        "prompts": partial(prompts, generator=generator, encoder=encoder, motion=motion),
    }
