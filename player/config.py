"""The player's settings; the same dataclass is the experiments' schema."""

from __future__ import annotations

import math
from dataclasses import dataclass

from player.errors import SessionError

RENDERERS = ("full", "cached")


@dataclass
class PlayerConfig:
    """How a session buffers, starts, resumes and retries. Times in seconds."""

    buffer_s: float = 20.0
    """Buffer cap: a segment is requested only when it fits. A longer segment is fetched once the buffer is empty."""
    startup_s: float = 2.0
    """Playback starts once this much is rendered, or the buffer is full, or nothing more is to come."""
    rebuffer_s: float = 2.0
    """Playback resumes under the same conditions with this much."""
    conceal_s: float = 0.0
    """A stop is first filled with frames made up from the last prompt for this long: logged as concealed, neither
    played nor rebuffered. Playback then goes on where it was. 0: off."""
    timeout_s: float = 60.0
    """A request is given up after this long (dash.js: 20 s, hls.js: 120 s). In an outage short times throw away partly
    fetched segments, large ones before all; giving up earlier is a controller's decision."""
    retries: int = 3
    """Further attempts at a representation after a failure (dash.js: 3); then as many at the lowest; then a gap."""
    backoff_s: float = 1.0
    """Pause before the first retry, doubled before each further one (Shaka Player: 1 s, factor 2)."""
    min_wait_s: float = 0.0
    """Least pause before each request while playing, as far as the buffer lasts; 0: ask as soon as there is room."""
    low_buffer_share: float | None = None
    """Insufficient-buffer rule over any controller: a download may take this share of the buffer by the player's own
    estimate, else a lower representation is taken (dash.js: 0.7, Sabre's rules of their own: 0.9 to 0.5); null: off."""
    reconsider_abandoned: bool = False
    """After an abandonment ask the controller afresh, instead of fetching the representation that it named."""
    render_fps: float | None = None
    """Frames per second that the simulated renderer makes; None: rendering costs no time. The driver reads it."""
    renderer: str = "full"
    """full: every frame by the generator; cached: deep features of its UNet are shared between frames, for devices that
    are too slow otherwise (docs/generator.md)."""
    cache_depth: int = 0
    """cached: blocks of the UNet, from the outside, that every frame passes; 0: frames share its output."""
    cache_threshold: float = 0.3
    """cached: how far a prompt may be from that of the frame in front that was evaluated in full, relative to it."""

    def __post_init__(self) -> None:
        for name in ("buffer_s", "timeout_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise SessionError(f"player.{name} must be positive, not {getattr(self, name)}")
        for name in ("startup_s", "rebuffer_s", "backoff_s", "min_wait_s", "conceal_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SessionError(f"player.{name} must be 0 or more, not {getattr(self, name)}")
        if self.retries < 0:
            raise SessionError(f"player.retries must be 0 or more, not {self.retries}")
        if self.low_buffer_share is not None and not 0 < self.low_buffer_share <= 1:
            raise SessionError(f"player.low_buffer_share must be in (0, 1] or null, not {self.low_buffer_share}")
        if self.renderer not in RENDERERS:
            raise SessionError(f"player.renderer is {self.renderer}, expected one of {', '.join(RENDERERS)}")
        for name in ("cache_depth", "cache_threshold"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SessionError(f"player.{name} must be 0 or more, not {getattr(self, name)}")
        if self.render_fps is not None and not (math.isfinite(self.render_fps) and self.render_fps > 0):
            raise SessionError(f"player.render_fps must be positive or null, not {self.render_fps}")
