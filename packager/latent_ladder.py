"""The `vae` baseline: latents of every frame, quantized at the step and spatial scale that serve a bitrate best.

For each target and scale the quantization step is searched whose files meet the target; the scale whose decoded frames
have the least squared error is taken. A code keeps its value from one frame to the next while the latent stays near it,
which costs no bits and averages noise away.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from packager.folder import BuildFolder
from packager.ladder import OpenFrames, SourceStream, StepProgress, short_rate
from packager.rate_search import TOLERANCE, nearest_setting
from packager.video import cut_segments
from player.decoder import VAE, Decoder, create_decoder
from player.latent_stream import LatentInfo, read_init, write_init, write_segment
from player.latents import Autoencoder, render_codes
from player.manifest import START_NUMBER
from player.pixels import from_pixels

log = logging.getLogger(__name__)

SCALES = (1, 2, 4)  # frames are scaled down by these before they are encoded
_HOLD = 0.9  # steps that a latent may lie from the code of the frame before and still keep it; found on two clips
_STEPS_PER_OCTAVE = 16
_FINEST, _COARSEST = (octave * _STEPS_PER_OCTAVE for octave in (-10, 4))  # of latents of about unit variance
_JUDGED_EVERY = 5  # frames by whose error the scale is chosen
_WARN_FROM = 0.1  # a bitrate further off the target is said in a warning
_LEAST_PSNR_DB = 15.0  # of a frame whose latents were hardly quantized; an encoder of another decoder stays below 11
_LATENT_TYPE = np.float16  # on disk while building


def quantize(latents: np.ndarray, step: float) -> np.ndarray:
    """Return codes int16 [T, C, h, w] of latents: rounded, but held while they stay within _HOLD of the code before."""
    scaled = latents.astype(np.float32) / np.float32(step)
    codes = np.rint(scaled)
    for t in range(1, len(codes)):
        held = np.abs(scaled[t] - codes[t - 1]) <= _HOLD
        codes[t][held] = codes[t - 1][held]
    return np.clip(codes, -(1 << 15), (1 << 15) - 1).astype(np.int16)


class LatentLadder:
    """Quantized latents at several bitrates."""

    name = VAE

    def __init__(self, autoencoder: Autoencoder, bitrates_bps: Sequence[int]) -> None:
        self.autoencoder = autoencoder
        self.bitrates_bps = {f"{VAE}-{short_rate(rate)}": rate for rate in sorted(bitrates_bps)}
        self.ranks: Mapping[str, int | None] = dict.fromkeys(self.bitrates_bps)
        self._infos: dict[str, LatentInfo] = {}

    def identity(self) -> dict[str, Any]:
        return {"bitrates_bps": list(self.bitrates_bps.values()), "autoencoder": self.autoencoder.id}

    def prepare(self, folder: BuildFolder, stream: SourceStream, frames: OpenFrames, progress: StepProgress) -> None:
        self._stream = stream
        paths = {name: folder.init_path(name) for name in self.ranks}
        if not all(path.exists() for path in paths.values()):
            plan = _Plan(self.autoencoder, stream, folder.work, frames, progress)
            chosen = plan.choose(list(self.bitrates_bps.values()))
            for path, info in zip(paths.values(), chosen, strict=True):
                folder.write(path, write_init(info))
        self._infos = {name: read_init(path.read_bytes()) for name, path in paths.items()}
        progress(1.0)

    def fit(self, frames: np.ndarray, progress: StepProgress) -> dict[str, np.ndarray]:
        """Return the codes int16 [T, C, h, w] of every representation."""
        latents: dict[int, np.ndarray] = {}
        codes = {}
        for name, info in self._infos.items():
            if info.grid_width not in latents:
                latents[info.grid_width] = encode_scaled(self.autoencoder, frames, info)
            codes[name] = quantize(latents[info.grid_width], info.step)
            progress(len(codes) / len(self._infos))
        return codes

    def encode(self, index: int, fitted: Mapping[str, np.ndarray], folder: BuildFolder) -> dict[str, bytes]:
        place = {"sequence": index + START_NUMBER, "start_frame": index * self._stream.segment_frames}
        return {name: write_segment(info, fitted[name], **place) for name, info in self._infos.items()}

    def dependencies(self, representation: str) -> Sequence[str]:
        return ()

    def decoder(self, representation: str, init: bytes) -> Decoder:
        return create_decoder(self.name, init, generator=self.autoencoder)

    def codecs(self, init: bytes) -> str:
        return "urim.vae"


def scaled_info(autoencoder: Autoencoder, stream: SourceStream, scale: int, step: float) -> LatentInfo:
    """Return the description of a stream of frames scaled down by `scale`, and padded to whole latent cells."""
    width, height = (max(1, math.ceil(side / scale)) for side in (stream.width, stream.height))
    return LatentInfo(
        channels=autoencoder.channels,
        grid_height=math.ceil(height / autoencoder.factor),
        grid_width=math.ceil(width / autoencoder.factor),
        picture_width=width,
        picture_height=height,
        display_width=stream.width,
        display_height=stream.height,
        fps=stream.fps,
        step=float(np.float32(step)),
        autoencoder_id=autoencoder.id,
    )


def encode_scaled(autoencoder: Autoencoder, frames: np.ndarray, info: LatentInfo) -> np.ndarray:
    """Return latents float16 [T, C, h, w] of frames uint8 [T, H, W, 3] at the size that a stream's description says."""
    pictures = from_pixels(frames)
    size = (info.picture_height, info.picture_width)
    if pictures.shape[2:] != size:
        pictures = nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)
    below = info.grid_height * autoencoder.factor - info.picture_height
    right = info.grid_width * autoencoder.factor - info.picture_width
    if below or right:
        pictures = nn.functional.pad(pictures, (0, right, 0, below), mode="replicate")
    return autoencoder.encode(pictures).numpy().astype(_LATENT_TYPE)


class _Plan:
    """Chooses scale and step for each target; latents of every scale lie on disk meanwhile."""

    def __init__(
        self, autoencoder: Autoencoder, stream: SourceStream, work: Path, frames: OpenFrames, progress: StepProgress
    ) -> None:
        self._autoencoder, self._stream, self._frames, self._progress = autoencoder, stream, frames, progress
        self._folder = work
        self._sizes: dict[tuple[int, int], int] = {}  # (scale, step index) -> bytes of the whole representation
        self._segments = 0
        self._count = 0  # frames

    def choose(self, bitrates_bps: Sequence[int]) -> list[LatentInfo]:
        """Return the description of each target's representation."""
        self._store_latents()
        candidates = [[self._candidate(scale, rate) for scale in SCALES] for rate in bitrates_bps]
        self._progress(0.7)
        errors = self._squared_errors({candidate for row in candidates for candidate in row})
        chosen = []
        for rate_bps, row in zip(bitrates_bps, candidates, strict=True):
            limit = rate_bps * self._duration_s / 8 * (1 + TOLERANCE)
            fitting = [candidate for candidate in row if self._size(*candidate) <= limit]
            best = min(fitting, key=lambda one: errors[one]) if fitting else min(row, key=lambda one: self._size(*one))
            chosen.append(self._info(*best))
            share = self._size(*best) * 8 / (rate_bps * self._duration_s)
            if abs(share - 1) > _WARN_FROM:
                found, asked = f"{rate_bps * share / 1000:.1f}", f"{rate_bps / 1000:.1f}"
                log.warning("vae gives %s kbit/s where %s were asked for (all bytes counted)", found, asked)
        return chosen

    @property
    def _duration_s(self) -> float:
        return self._count / float(self._stream.fps)

    def _info(self, scale: int, index: int) -> LatentInfo:
        return scaled_info(self._autoencoder, self._stream, scale, 2 ** (index / _STEPS_PER_OCTAVE))

    def _path(self, scale: int, segment: int) -> Path:
        return self._folder / f"latents-{scale}-{segment:05d}.npy"

    def _store_latents(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        total = self._stream.expected_frames
        for segment, frames in enumerate(cut_segments(self._frames(), self._stream.segment_frames)):
            for scale in SCALES:
                np.save(self._path(scale, segment), encode_scaled(self._autoencoder, frames, self._info(scale, 0)))
            if segment == 0:
                self._check_halves(frames[:1])
            self._segments, self._count = segment + 1, self._count + len(frames)
            self._progress(0.3 * min(1.0, self._count / total) if total else 0.0)

    def _check_halves(self, frame: np.ndarray) -> None:
        """Warn if the autoencoder does not give back a frame [1, H, W, 3]: then no bitrate will."""
        info = self._info(1, _FINEST)
        codes = quantize(np.load(self._path(1, 0))[:1], info.step)
        error = np.square(render_codes(info, codes, self._autoencoder) - frame.astype(np.float64)).mean()
        psnr_db = 10 * math.log10(255**2 / max(error, 1e-9))
        if psnr_db < _LEAST_PSNR_DB:
            log.warning(
                "autoencoder %s gives the first frame back at %.1f dB before any quantization: do its encoder and its "
                "decoder belong together?", self._autoencoder.id, psnr_db,
            )  # fmt: skip

    def _candidate(self, scale: int, rate_bps: int) -> tuple[int, int]:
        wanted_bytes = rate_bps * self._duration_s / 8

        def excess(index: int) -> float:
            return math.log(self._size(scale, index) / wanted_bytes)

        return scale, nearest_setting(excess, best=_FINEST, worst=_COARSEST, stride=_STEPS_PER_OCTAVE)

    def _size(self, scale: int, index: int) -> int:
        """Return the bytes of the whole representation at a scale and step."""
        if (scale, index) not in self._sizes:
            info = self._info(scale, index)
            total = len(write_init(info))
            for segment in range(self._segments):
                codes = quantize(np.load(self._path(scale, segment)), info.step)
                total += len(write_segment(info, codes, sequence=START_NUMBER, start_frame=0))
            self._sizes[scale, index] = total
        return self._sizes[scale, index]

    def _squared_errors(self, candidates: set[tuple[int, int]]) -> dict[tuple[int, int], float]:
        """Return the summed squared error of every candidate over some frames of every segment."""
        errors = dict.fromkeys(sorted(candidates), 0.0)
        for segment, frames in enumerate(cut_segments(self._frames(), self._stream.segment_frames)):
            judged = frames[::_JUDGED_EVERY].astype(np.float64)
            for scale, index in errors:
                info = self._info(scale, index)
                codes = quantize(np.load(self._path(scale, segment)), info.step)[::_JUDGED_EVERY]
                shown = render_codes(info, codes, self._autoencoder)
                errors[scale, index] += float(((shown - judged) ** 2).sum())
            self._progress(0.7 + 0.3 * (segment + 1) / self._segments)
        return errors
