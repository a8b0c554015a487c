"""What one session streams: a packaged clip, looped or cut to the wanted length in whole segments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from abr import Ladder
from player.presentation import Presentation


@dataclass(frozen=True)
class Programme:
    """The clip's segments in the order in which they are streamed."""

    presentation: Presentation
    ladder: Ladder  # of all segments of the programme
    clip_segment: np.ndarray  # [S] which segment of the clip each one is
    segment_frames: np.ndarray  # [S] frames of each

    @property
    def duration_s(self) -> float:
        """Playing time of the programme."""
        return float(self.ladder.segment_duration_s.sum())


PLANNED_METRICS = ("lpips_vgg", "lpips_alex", "lpips_squeeze", "lpips_embedded", "ssimulacra2", "ms_ssim")
"""The first of these that the package holds is the quality that controllers plan with."""


def build_programme(presentation: Presentation, session_s: float) -> Programme:
    """Return the shortest programme of whole segments that lasts `session_s`, the clip looped if need be."""
    clip_s = presentation.manifest.duration_s
    repeats = max(1, math.ceil(session_s / clip_s - 1e-9))
    ends_s = np.cumsum(np.tile(presentation.manifest.segment_duration_s, repeats))
    segments = min(int(np.searchsorted(ends_s, session_s - 1e-6)) + 1, len(ends_s))
    clip_segment = np.arange(segments) % presentation.segments
    metric = next((name for name in PLANNED_METRICS if name in presentation.metrics), None)
    return Programme(
        presentation=presentation,
        ladder=presentation.ladder(metric, repeats=repeats, segments=segments),
        clip_segment=clip_segment,
        segment_frames=np.array(presentation.manifest.frames)[clip_segment],
    )
