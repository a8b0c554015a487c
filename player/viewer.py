"""What the viewer saw: black until playback starts, then the frames; made up, or frozen and marked, while rebuffering.

Pure functions from the segment table and a source of decoded frames; memory stays at one segment.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

FrameSource = Callable[[int, int], np.ndarray]
"""(segment of the clip, representation) -> its frames, uint8 [T, H, W, 3]."""

MadeUpFrames = Callable[[int, int, int], np.ndarray]
"""(segment of the clip, representation, n) -> n frames made up to follow it, uint8 [n, H, W, 3]."""

REJOIN_S = 0.2
"""How long the picture takes from the last made-up frame back to what was sent."""

_TURNS_PER_S = 0.8  # of the spinner
_SLACK_S = 1e-6  # times are sums of floats; a frame due at n / fps must not slip to the next tick


@dataclass(frozen=True)
class Concealment:
    """What fills a stop before it is frozen."""

    limit_s: float
    """How long, `player.conceal_s`."""
    frames_after: MadeUpFrames


def rejoined_share(since_s: np.ndarray | float, fps: float) -> np.ndarray:
    """Return the share of what was sent, in (0, 1], in a picture shown from `since_s` after a concealed stop on."""
    return np.clip((np.asarray(since_s) + 1 / fps + _SLACK_S) / REJOIN_S, 0.0, 1.0)


@dataclass(frozen=True)
class PlayedSegment:
    """One segment on the screen."""

    start_s: float
    end_s: float
    clip_segment: int
    representation: int


def played_segments(segments: pd.DataFrame) -> list[PlayedSegment]:
    """Return what was on the screen when, in order; segments that were never played are left out."""
    played = segments.dropna(subset=["play_start_s"])
    return [
        PlayedSegment(float(row.play_start_s), float(row.play_start_s + row.duration_s), int(row.clip_segment),
                      int(row.representation))
        for row in played.itertuples()
    ]  # fmt: skip


def viewed_frames(
    segments: pd.DataFrame,
    frames_of: FrameSource,
    *,
    fps: Fraction,
    width: int,
    height: int,
    concealment: Concealment | None = None,
) -> Iterator[np.ndarray]:
    """Yield the screen, uint8 [height, width, 3], at every tick of a clock of ``fps`` from the session's start.

    Args:
        segments: the session's segment table.
        frames_of: decodes a segment; asked once for each segment on the screen, in order.
        fps: ticks per second; the video's own rate shows every frame once.
        width, height: of the screen, pixels; frames must have this size.
        concealment: fills stops for a while; the picture then returns to what was sent within `REJOIN_S`.
    """
    screen = np.zeros((height, width, 3), dtype=np.uint8)
    tick = 0
    previous: PlayedSegment | None = None
    previous_end_s = 0.0
    for played in played_segments(segments):
        if previous is not None and concealment is not None:
            for frame in _made_up(concealment, previous, played.start_s, fps=float(fps), tick=tick):
                screen = frame
                yield screen
                tick += 1
        left = screen  # what the picture returns from
        stopped = concealment is not None and previous is not None and played.start_s > previous_end_s + _SLACK_S
        while tick / fps < played.start_s - _SLACK_S:
            label = "rebuffering" if previous_end_s else "starting"
            yield mark_waiting(screen, float(tick / fps) - previous_end_s, label)
            tick += 1
        frames = frames_of(played.clip_segment, played.representation)
        frames_per_s = len(frames) / (played.end_s - played.start_s)
        while tick / fps < played.end_s - _SLACK_S:
            index = math.floor((float(tick / fps) - played.start_s + _SLACK_S) * frames_per_s)
            screen = np.asarray(frames[min(max(index, 0), len(frames) - 1)])
            share = float(rejoined_share(float(tick / fps) - played.start_s, float(fps))) if stopped else 1.0
            yield screen if share == 1 else np.rint(share * screen + (1 - share) * left).astype(np.uint8)
            tick += 1
        previous, previous_end_s = played, played.end_s


def _made_up(
    concealment: Concealment, previous: PlayedSegment, until_s: float, *, fps: float, tick: int
) -> Iterator[np.ndarray]:
    """Yield the frames of a stop from `tick` on, to its end or to the limit."""
    end_s = min(until_s, previous.end_s + concealment.limit_s)
    count = max(math.ceil((end_s - _SLACK_S) * fps) - tick, 0)
    if count:
        yield from concealment.frames_after(previous.clip_segment, previous.representation, count)


def mark_waiting(screen: np.ndarray, waited_s: float, label: str) -> np.ndarray:
    """Return a copy of ``screen`` with a turning arc and a word in its middle, as players show while they wait."""
    image = Image.fromarray(screen)
    draw = ImageDraw.Draw(image, "RGBA")
    width, height = image.size
    size = max(12, min(width, height) // 8)
    x, y = width / 2, height / 2
    font = ImageFont.load_default(max(8, min(width, height) // 20))
    text_width = draw.textlength(label, font=font)
    half = max(size, text_width / 2 + size / 4)
    draw.rounded_rectangle((x - half, y - 0.8 * size, x + half, y + 1.25 * size), size / 4, fill=(0, 0, 0, 150))
    angle = 360 * (_TURNS_PER_S * waited_s % 1)
    box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
    draw.arc(box, angle, angle + 270, fill=(255, 255, 255, 255), width=max(2, size // 8))
    draw.text((x, y + 0.9 * size), label, font=font, fill=(255, 255, 255, 255), anchor="mm")
    return np.asarray(image)
