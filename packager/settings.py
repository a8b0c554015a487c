"""How a video is packaged: one dataclass for all codecs, and the schema of the experiments' build group. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from packager.errors import BuildError
from packager.machine import MOST_PROCESSES
from player.codecs import CODECS as CODECS

AUTO = "auto"
NOT_IN_BYTES = frozenset(("jobs", "ray"))
"""Settings that decide how fast a package is made, not what it holds."""
_FROM_ZERO = ("interval", "iterations", "seed", "frames_per_step", "frames_at_once", "segments_at_once")
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kM]?)", re.ASCII)
_UNIT_BPS = {"": 1, "k": 1000, "M": 1_000_000}


@dataclass
class BuildConfig:
    """Everything that decides what a packaged folder holds, but for video and codec; and who works on it."""

    segment_s: float = 2.0
    """Segment duration in seconds, rounded to whole frames; the last segment may be shorter."""
    size: str = AUTO
    """Frame size shown: auto (the generator's own), one side of a square such as 256, or 256x144."""
    fit: str = "crop"
    """How other shapes are fitted: crop (cut to the centre) or pad (black borders)."""
    fps: float = 0.0
    """Constant frame rate; 0 keeps the video's own. NTSC rates such as 29.97 mean the exact fraction, 30000/1001."""
    seconds: float = 0.0
    """How much of the video is packaged, from its start, in seconds; 0 is all of it."""
    metrics: list[str] = field(default_factory=lambda: [AUTO])
    """Quality metrics by name; auto is everything this machine can measure."""
    device: str = AUTO
    """Where fitting, rendering and measuring run: auto (CUDA if there is one), cpu, cuda or cuda:N."""
    jobs: int = 1
    """Prompts and vae: processes that work on a segment each; 0: for prompts as many as use this machine best, for vae
    one. How fast a package is made, not what it is. More than one needs a main module that can be imported."""
    ray: str = ""
    """Prompts and vae: a Ray cluster that works on the segments: auto, local or host:port; empty is none."""

    ranks: list[int] = field(default_factory=lambda: [4, 8, 16])
    """Prompts: ranks of the ladder (Promptus, section 4.3: rank sets the bitrate)."""
    layered: bool = False
    """Prompts: each representation holds only what the one below lacks, and is fetched with those below."""
    prompt_bitrates_bps: list[int] = field(default_factory=list)
    """Prompts: target bitrates in bit/s instead of the ranks, met by dropping components and by larger steps."""
    interval: int = 0
    """Prompts: frames between key prompts, at most; 0: 30 with motion, 10 without (Promptus: 10)."""
    top_intervals: list[int] = field(default_factory=lambda: [20, 10])
    """Prompts with motion, not layered: of each a representation more, of the highest rank, with key prompts at most
    this many frames apart; 0, or no fewer than `interval`: none."""
    generator: str = "embedded"
    """Prompts: embedded, a folder in diffusers layout, or a hub id such as stabilityai/sd-turbo."""
    decoder: str = ""
    """Prompts and vae: another latent decoder than the generator's own, such as madebyollin/taesd; empty: its own."""
    preset: str = "fast"
    """Prompts: fast, or paper (the published schedule; hours on a CPU)."""
    start: str = AUTO
    """Prompts: where a fit starts; auto, encoder, empty or random (docs/generator.md)."""
    motion: bool = True
    """Prompts: false lets every frame pass the generator, as the published system and preset paper do; true warps the
    frames between key prompts along motion, as far as the preset does."""
    iterations: int = 0
    """Prompts: most gradient steps on a segment; 0 takes the preset's."""
    frames_per_step: int = 0
    """Prompts: frames of a segment that a step renders; 0 takes the preset's."""
    frames_at_once: int = 0
    """Prompts: most frames that pass the generator together in a fit, the rest being computed once more for the
    gradient; 0: as many as fit the memory."""
    segments_at_once: int = 0
    """Prompts: segments fitted together in one process; 0: on CUDA as many as fit the memory, one on a CPU."""
    compile: str = "off"
    """Prompts: torch.compile of the generator for fitting: off, default or max-autotune; minutes once."""
    seed: int = 0
    """Prompts: seed of the fit's random draws."""

    bitrates_bps: list[int] = field(default_factory=lambda: [10_000, 20_000, 40_000, 80_000])
    """Baselines: target bitrates in bit/s, every byte counted."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.segment_s <= 60:
            raise BuildError(f"segment_s={self.segment_s:g}: expected 0.01 to 60 seconds")
        if self.fit not in ("crop", "pad"):
            raise BuildError(f"fit={self.fit}: expected crop or pad")
        if not 0 <= self.fps <= 240:
            raise BuildError(f"fps={self.fps:g}: expected up to 240 frames/s, or 0 for the video's own")
        if not 0 <= self.seconds <= 1e6:
            raise BuildError(f"seconds={self.seconds:g}: expected a length above zero, or 0 for the whole video")
        for name in _FROM_ZERO:
            if getattr(self, name) < 0:
                raise BuildError(f"{name}={getattr(self, name)}: expected 0 or more")
        for name, most in (("ranks", 4096), ("bitrates_bps", 100_000_000), ("prompt_bitrates_bps", 100_000_000)):
            values = getattr(self, name)
            if not (values or name.startswith("prompt")) or any(not 1 <= value <= most for value in values):
                raise BuildError(f"{name}={_listed(values)}: expected one or more numbers from 1 to {most}")
            if len(set(values)) < len(values):
                raise BuildError(f"{name}={_listed(values)}: each can be given once")
        if any(value < 0 for value in self.top_intervals):
            raise BuildError(f"top_intervals={_listed(self.top_intervals)}: expected numbers of frames, or 0 for none")
        if not self.metrics:
            raise BuildError("metrics: expected auto or at least one name")
        if not 0 <= self.jobs <= MOST_PROCESSES:
            expected = f"expected 1 to {MOST_PROCESSES} processes, or 0 for as many as suit the machine"
            raise BuildError(f"jobs={self.jobs}: {expected}")
        if self.ray and self.jobs > 1:
            raise BuildError(f"jobs={self.jobs}: a Ray cluster decides itself how many segments it works on")
        parse_size(self.size)


def parse_size(text: str) -> tuple[int, int] | None:
    """Return (width, height) in pixels of 256 or 256x144, or None for auto."""
    if text == AUTO:
        return None
    match = _SIZE.fullmatch(text)
    if match is None or not all(8 <= int(side) <= 8192 for side in match.groups() if side is not None):
        raise BuildError(f"size={text}: expected auto, a side such as 256, or 256x144 (8 to 8192 pixels)")
    return int(match[1]), int(match[2] or match[1])


def parse_bitrate(text: str) -> int:
    """Return the bit/s that 20k, 1.5M or 20000 mean."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise BuildError(f"bitrate {text!r}: expected bit/s such as 20k, 1.5M or 20000")
    return round(float(match[1]) * _UNIT_BPS[match[2]])


def _listed(values: list[int]) -> str:
    return ",".join(str(value) for value in values) or "(none)"
