"""The viewer's device in a simulated session: how fast it renders, and whether the controller knows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments.errors import UsageError

if TYPE_CHECKING:
    from abr import Abr, AbrConfig, Ladder
    from player.presentation import Presentation

PROMPT = "prompt"


@dataclass
class DeviceConfig:
    """How fast the viewer's device renders prompts; pixels are decoded in hardware."""

    passes_per_s: float | None = None
    """Frames per second that it makes with the whole generator. What a segment costs then follows from its package:
    frames that are warped are cheaper than a pass. null: rendering is free, or as player.render_fps says."""
    warp_cost: float = 0.12
    """Cost of a warped frame in passes (embedded generator, docs/RESULTS.md)."""
    render_modes: bool = True
    """The controller is put under the device's speed, and segments may be shown with fewer different frames; false: it
    is not told, and every frame is rendered."""

    def __post_init__(self) -> None:
        speed = self.passes_per_s
        if speed is not None and not (math.isfinite(speed) and speed > 0):
            raise UsageError(f"device.passes_per_s={speed:g}: expected a number above zero, or null")
        if not 0 <= self.warp_cost <= 1:
            raise UsageError(f"device.warp_cost={self.warp_cost:g}: expected 0 to 1 passes")


def ladder_on(device: DeviceConfig, presentation: Presentation, ladder: Ladder) -> Ladder:
    """Return a programme's ladder with what rendering it costs on the device; pixels cost nothing."""
    from player.render_modes import Device, rendering_of, with_rendering

    if device.passes_per_s is None or presentation.manifest.codec != PROMPT:
        return ladder
    profile = Device(device.passes_per_s, device.warp_cost)
    return with_rendering(ladder, rendering_of(presentation, profile, None))


def controller_on(device: DeviceConfig, abr: AbrConfig, ladder: Ladder, buffer_s: float) -> Abr:
    """Return the controller of a session, under the device's speed if it is to know it.

    How good the reduced render modes look is in no package, so that none plans with it (`experiments.devices` does).
    """
    from abr.render_aware import RenderAware

    inner = abr.create(replace(ladder, rendering=None), buffer_capacity_s=buffer_s)
    return RenderAware(inner, ladder) if ladder.rendering is not None and device.render_modes else inner
