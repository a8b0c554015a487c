"""What `packager.package` needs of a codec; the ladders of prompts, fitted segment by segment, and of pixel codecs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from packager.baselines import EncodeProgress, KnownSizes, encode_video
from packager.cmaf import codecs_parameter
from packager.encoder import PromptEncoder
from packager.errors import BuildError
from packager.fit import FitConfig, Ladder, fit_segments, frames_in_a_step, segments_that_fit
from packager.folder import BuildFolder
from packager.motion import TrueMotion
from packager.requantize import meet_bytes
from packager.video_encoders import VIDEO_ENCODERS, VideoStream
from packager.workers import plan
from player.autoencoder import count_parameters
from player.bitstream import FORMAT_VERSION, Segment, StreamInfo, write_init, write_layers, write_segment
from player.decoder import Decoder, create_decoder
from player.generator import Generator
from player.manifest import START_NUMBER
from player.pixels import from_pixels

_SMALL_GENERATOR = 50_000_000  # parameters; the embedded one has 6 million
_TOP_STEPS = 3 / 4  # of the others, of which two in three go to lower ranks
_TOP_MOTION_STEP_PX = 1.0  # at most; the coarse steps of the others would show
_TOP_STILL_ERROR = 0.25  # of the fit's `still_error`: who asks for more key prompts wants fewer of them joined

StepProgress = Callable[[float], None]
"""Called with the share (0 to 1) of the step at hand that is done."""

OpenFrames = Callable[[], Any]
"""Starts the source video from its first frame; iterates over uint8 [H, W, 3]."""


@dataclass(frozen=True)
class SourceStream:
    """The video as every codec gets it: frame size in pixels, constant rate, frames of every full segment."""

    width: int
    height: int
    fps: Fraction
    segment_frames: int
    expected_frames: int | None  # by the file's declared duration; progress and the number of processes rely on it


class LadderCodec(Protocol):
    """A codec that turns a video into a ladder of representations."""

    @property
    def name(self) -> str:
        """The codec as the manifest names it."""
        ...

    @property
    def ranks(self) -> Mapping[str, int | None]:
        """Representation ids, each with its rank where it has one."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What decides the bytes, beside source and size: plain JSON values."""
        ...

    def prepare(self, folder: BuildFolder, stream: SourceStream, frames: OpenFrames, progress: StepProgress) -> None:
        """Write the init segments, and whatever can only be made from the whole video at once."""
        ...

    def fit(self, frames: np.ndarray, progress: StepProgress) -> Any:
        """Return what `encode` needs of frames uint8 [T, H, W, 3]: the long work, perhaps in another process."""
        ...

    def encode(self, index: int, fitted: Any, folder: BuildFolder) -> dict[str, bytes]:
        """Return the media segment `index` of every representation; those before it lie in the folder."""
        ...

    def dependencies(self, representation: str) -> Sequence[str]:
        """Return the representations that this one is a layer on top of, lowest first; none if it stands alone."""
        ...

    def decoder(self, representation: str, init: bytes) -> Decoder:
        """Return the player's decoder of a representation, from its init segment behind those of its dependencies."""
        ...

    def codecs(self, init: bytes) -> str:
        """Return the RFC 6381 codecs string of a representation."""
        ...


@runtime_checkable
class JointCodec(Protocol):
    """A codec that may fit several segments at once; beside `LadderCodec`."""

    def together(self) -> int:
        """Return how many segments are best fitted together."""
        ...

    def fit_together(self, segments: Sequence[np.ndarray], progress: StepProgress) -> list[Any]:
        """Return what `fit` returns for each of several segments, uint8 [T, H, W, 3]."""
        ...


@runtime_checkable
class IndependentCodec(Protocol):
    """A codec whose segments may be coded in any order; beside `LadderCodec`."""

    def code_segment(self, index: int, fitted: Any) -> dict[str, bytes] | None:
        """Return what `encode` does, or None if that depends on the segments before this one."""
        ...


@runtime_checkable
class DividedCodec(Protocol):
    """A codec that knows by how many processes its segments are best fitted; beside `LadderCodec`."""

    def processes(self, segments: int | None) -> tuple[int, int] | None:
        """Return how many processes of how many threads fit so many segments, or an unknown number, best; None: this
        one alone."""
        ...


@dataclass(frozen=True)
class FittedSegment:
    """A segment as a ladder of prompts has it."""

    usual: Ladder
    tops: tuple[Segment, ...] = ()
    """Of the highest rank, with more and more key prompts."""


class PromptLadder:
    """Prompts at several ranks or bitrates, all from one nested fit per segment."""

    name = "prompt"

    def __init__(
        self,
        generator: Generator,
        encoder: PromptEncoder | None,
        *,
        ranks: Sequence[int],
        fit: FitConfig,
        layered: bool = False,
        bitrates_bps: Sequence[int] = (),
        top_intervals: Sequence[int] = (),
    ) -> None:
        """Make the ladder.

        Args:
            ranks: of the representations; the largest is that of the fit.
            layered: each representation holds only what the one below lacks.
            bitrates_bps: if given, representations are made for these targets instead, of the fit's rank each.
            top_intervals: of each a representation more, of the highest rank, with at most so many frames between the
                key prompts and a fit of its own; of 0, no fewer than the others have, or a layered ladder: none.
        """
        if max(ranks) > generator.max_rank:
            raise BuildError(f"rank {max(ranks)}: generator {generator.id} has ranks 1 to {generator.max_rank}")
        if layered and bitrates_bps:
            raise BuildError("a layered ladder is made of ranks, not of bitrates")
        self.generator, self.encoder, self.layered = generator, encoder, layered
        self.fit_config = replace(fit, rank_v=False) if layered or bitrates_bps else fit
        self._ladder = sorted(ranks)
        self.targets_bps = {f"prompt-{short_rate(rate)}": rate for rate in sorted(bitrates_bps)}
        top = self._ladder[-1]
        by_rank = {f"r{rank:02d}": rank for rank in self._ladder}
        more = sorted({interval for interval in top_intervals if 0 < interval < fit.key_interval}, reverse=True)
        self._tops = {} if layered else {f"r{top:02d}k{interval}": interval for interval in more}
        by_rank |= dict.fromkeys(self._tops, top)
        self.ranks: Mapping[str, int | None] = dict.fromkeys(self.targets_bps, top) or by_rank
        self._infos: dict[str, StreamInfo] = {}
        self._segment_frames = 1  # until `prepare` knows
        self._sized: tuple[int, FitConfig] | None = None

    def identity(self) -> dict[str, Any]:
        choices = {"generator": self.generator.id, "ranks": self._ladder, "fit": vars(self.fit_config)}
        return choices | {
            "tops": list(self._tops),
            "top_steps": [_TOP_STEPS, _TOP_MOTION_STEP_PX],
            "layered": self.layered,
            "targets_bps": list(self.targets_bps.values()),
            "format": FORMAT_VERSION,
        }

    def prepare(self, folder: BuildFolder, stream: SourceStream, frames: OpenFrames, progress: StepProgress) -> None:
        self.generator = _fitting(self.generator, stream)
        height, width = self.generator.native_size
        rows, columns = self.generator.settings.grid
        below = 0
        for name, rank in self.ranks.items():
            assert rank is not None
            self._infos[name] = StreamInfo(
                generator_id=self.generator.id,
                tokens=self.generator.tokens,
                width=self.generator.width,
                rank=rank,
                norm_rank=self.generator.norm_rank(self._ladder[-1]),
                frame_width=width,
                frame_height=height,
                display_width=stream.width,
                display_height=stream.height,
                fps=stream.fps,
                grid_height=rows,
                grid_width=columns,
                base_rank=below,
            )
            below = rank if self.layered else 0
            folder.write(folder.init_path(name), write_init(self._infos[name]))
        self._segment_frames = stream.segment_frames

    def together(self) -> int:
        """Return how many segments are best fitted together; on CUDA as many as fit the memory."""
        return self._size()[0]

    def fit(self, frames: np.ndarray, progress: StepProgress) -> FittedSegment:
        return self.fit_together([frames], progress)[0]

    def fit_together(self, segments: Sequence[np.ndarray], progress: StepProgress) -> list[FittedSegment]:
        """Return what `fit` returns for each of several segments, uint8 [T, H, W, 3], fitted at once."""
        size, device = self.generator.native_size, self.generator.device
        motions = [TrueMotion(from_pixels(_grow(frames, size)).to(device)) for frames in segments]
        at_once = self._size()[1].frames_at_once
        fits = [(replace(config, frames_at_once=at_once), ranks) for config, ranks in self._fits()]
        fitted = []
        for number, (config, ranks) in enumerate(fits):

            def told(step: int, steps: int, done: int = number) -> None:
                progress((done + step / steps) / len(fits))

            fitted.append(fit_segments(motions, self.generator, self.encoder, config, ranks=ranks, progress=told))
        top = self._ladder[-1]
        return [FittedSegment(usual, tuple(more[top] for more in tops)) for usual, *tops in zip(*fitted, strict=True)]

    def processes(self, segments: int | None) -> tuple[int, int] | None:
        """Return by what so many segments are best fitted.

        CUDA is kept busy by one process. A large generator, whose memory nobody knows, is loaded once unless asked.
        """
        if self.generator.device.type != "cpu" or count_parameters(self.generator) > _SMALL_GENERATOR:
            return None
        height, width = self.generator.native_size
        steps = sum(config.iterations for config, _ in self._fits())
        return plan(segments, steps, self._segment_frames, height * width)

    def _size(self) -> tuple[int, FitConfig]:
        """Look at the memory once, in the process that fits."""
        if self._sized is None:
            configs = [config for config, _ in self._fits()]
            largest = max(configs, key=lambda config: frames_in_a_step(config, self._segment_frames))
            self._sized = segments_that_fit(self.generator, largest, self._segment_frames)
        return self._sized

    def _fits(self) -> list[tuple[FitConfig, list[int]]]:
        """Return the fits of a segment, one after the other: their settings and ranks."""
        config = self.fit_config
        top = replace(
            config,
            still_error=config.still_error * _TOP_STILL_ERROR,
            motion_step=min(config.motion_step, _TOP_MOTION_STEP_PX),
            iterations=math.ceil(config.iterations * _TOP_STEPS),
        )
        tops = [(replace(top, interval=interval), self._ladder[-1:]) for interval in self._tops.values()]
        return [(config, self._ladder), *tops]

    def encode(self, index: int, fitted: FittedSegment, folder: BuildFolder) -> dict[str, bytes]:
        return self.code_segment(index, fitted) or {
            name: self._meet(name, index, fitted, folder) for name in self._infos
        }

    def code_segment(self, index: int, fitted: FittedSegment) -> dict[str, bytes] | None:
        """Return the media segment of every representation; None if there are targets, which bytes so far count to."""
        if self.targets_bps:
            return None
        place = self._place(index)
        if self.layered:
            infos = list(self._infos.values())
            return dict(zip(self._infos, write_layers(infos, fitted.usual[self._ladder[-1]], **place), strict=True))
        segments = {name: fitted.usual[info.rank] for name, info in self._infos.items()}
        segments |= zip(self._tops, fitted.tops, strict=True)
        return {name: write_segment(info, segments[name], **place) for name, info in self._infos.items()}

    def dependencies(self, representation: str) -> Sequence[str]:
        names = list(self.ranks)
        return names[: names.index(representation)] if self.layered else ()

    def decoder(self, representation: str, init: bytes) -> Decoder:
        return create_decoder(self.name, init, generator=self.generator)

    def codecs(self, init: bytes) -> str:
        return "urim"

    def _place(self, index: int) -> dict[str, int]:
        return {"sequence": index + START_NUMBER, "start_frame": index * self._segment_frames}

    def _meet(self, name: str, index: int, fitted: FittedSegment, folder: BuildFolder) -> bytes:
        """Return the segment in what its target leaves after the bytes so far, so that deviations do not add up.

        More key prompts are worth it only whole: coarsened to less they are worse than fewer of them.
        """
        info, place = self._infos[name], self._place(index)
        usual = fitted.usual[info.rank]
        frames = place["start_frame"] + usual.frames
        paths = [folder.init_path(name), *(folder.segment_path(name, before) for before in range(index))]
        allowed_bytes = self.targets_bps[name] / 8 * float(frames / info.fps) - sum(
            path.stat().st_size for path in paths
        )

        def write(coarse: Segment) -> bytes:
            return write_segment(info, coarse, **place)

        for top in reversed(fitted.tops):
            if len(whole := write(top)) <= allowed_bytes:
                return whole
        return meet_bytes(usual, allowed_bytes, write)


class VideoLadder:
    """A pixel codec at several bitrates; each representation is encoded over the whole video before any is measured."""

    def __init__(self, codec: str, bitrates_bps: Sequence[int]) -> None:
        self.name = codec
        self.encoder = VIDEO_ENCODERS[codec]
        self.bitrates_bps = {f"{codec}-{short_rate(rate)}": rate for rate in sorted(bitrates_bps)}
        self.ranks: Mapping[str, int | None] = dict.fromkeys(self.bitrates_bps)

    def identity(self) -> dict[str, Any]:
        return {"bitrates_bps": list(self.bitrates_bps.values()), "encoder": self.encoder.description}

    def prepare(self, folder: BuildFolder, stream: SourceStream, frames: OpenFrames, progress: StepProgress) -> None:
        video = VideoStream(stream.width, stream.height, stream.fps, stream.segment_frames)
        known: KnownSizes = {}
        for position, (name, bitrate_bps) in enumerate(self.bitrates_bps.items()):
            if folder.init_path(name).parent.exists():
                continue  # moved here whole by an earlier run
            scratch = folder.work / name
            shutil.rmtree(scratch, ignore_errors=True)
            report = partial(self._report, progress, position)
            counter = EncodeProgress(stream.expected_frames, report)
            encode_video(
                self.encoder, frames, video, bitrate_bps=bitrate_bps, folder=scratch, known=known, progress=counter
            )
            scratch.rename(folder.init_path(name).parent)
        progress(1.0)

    def fit(self, frames: np.ndarray, progress: StepProgress) -> None:
        """Do nothing: `prepare` has encoded the whole video."""

    def encode(self, index: int, fitted: None, folder: BuildFolder) -> dict[str, bytes]:
        return {name: folder.segment_path(name, index).read_bytes() for name in self.ranks}

    def dependencies(self, representation: str) -> Sequence[str]:
        return ()

    def decoder(self, representation: str, init: bytes) -> Decoder:
        return create_decoder(self.name, init)

    def codecs(self, init: bytes) -> str:
        return codecs_parameter(init)

    def _report(self, progress: StepProgress, position: int, share: float) -> None:
        progress((position + share) / len(self.ranks))


def _fitting(generator: Generator, stream: SourceStream) -> Generator:
    """Return the generator at the least size it has that holds the stream's frames."""
    height, width = generator.native_size
    cell = generator.cell_px
    if cell:
        return generator.at_size(-(-stream.height // cell) * cell, -(-stream.width // cell) * cell)
    if stream.width > width or stream.height > height:
        asked = f"{stream.width}x{stream.height}"
        raise BuildError(f"size {asked}: generator {generator.id} makes frames of {width}x{height}")
    return generator


def short_rate(bps: int) -> str:
    """Return a bitrate as it stands in names: 20k, 1M or 12345."""
    for unit, factor in (("M", 1_000_000), ("k", 1000)):
        if bps >= factor and bps % factor == 0:
            return f"{bps // factor}{unit}"
    return str(bps)


def _grow(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Surround frames [T, h, w, 3] with copies of their border pixels up to size (H, W); the decoder crops them off."""
    margins = [(0, 0)]
    for have, want in zip(frames.shape[1:3], size, strict=True):
        before = (want - have) // 2
        margins.append((before, want - have - before))
    return frames if frames.shape[1:3] == size else np.pad(frames, [*margins, (0, 0)], mode="edge")


def expected_segments(stream: SourceStream) -> int | None:
    """Segments that the source's declared duration makes."""
    return None if stream.expected_frames is None else max(1, math.ceil(stream.expected_frames / stream.segment_frames))
