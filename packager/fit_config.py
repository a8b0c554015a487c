"""How a fit runs: its settings, and the presets by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from packager.errors import BuildError
from packager.start import STARTS
from player.engine import COMPILE_MODES
from player.prompt_stream import MAX_MOTION_STEP_EIGHTHS

_INTERVAL, _PUBLISHED_INTERVAL = 30, 10


@dataclass
class FitConfig:
    """How one segment is fitted."""

    preset: str = "fast"
    interval: int = 0
    """Frames between key prompts, at most; 0: 30 with motion (docs/RESULTS.md), 10 without (Promptus, section 4.3)."""
    motion_interval: int = 4
    """Frames between anchors, at most: from anchor to anchor content moves evenly (player/motion.py)."""
    motion_step: float = 2.0
    """Quantization step of motion in pixels, whole eighths: what prompts of so few bytes get wrong hides more than a
    pixel (docs/RESULTS.md)."""
    iterations: int = 40
    """Steps of gradient descent on a segment, at most."""
    frames_per_step: int = 6
    """Frames rendered a step, drawn over the whole segment."""
    learning_rate: float = 0.03
    """Adam's step at the start; quantities are of unit scale."""
    schedule: str = "cosine"
    """How the learning rate falls: cosine (to a tenth over the iterations), or plateau (halved when the loss stalls, as
    published)."""
    min_learning_rate: float = 0.003
    """The fit ends when the plateau schedule falls below this."""
    patience: int = 8
    """Steps without a better smoothed loss before the learning rate is halved."""
    u_step: float = 0.35
    """Quantization step of U, in units of the generator's `step_scale` of each component (docs/RESULTS.md)."""
    v_step: float = 0.1
    """Quantization step of V."""
    repeat: float = 0.1
    """Steps beyond half a one by which a value of U may miss the code of the key prompt before and still repeat it, for
    next to no bytes. 0: codes are the nearest."""
    motion: bool = True
    """Render the key frames only, and warp and blend them into the frames between along a motion field that is sent
    with them; without it every frame is rendered from an interpolated prompt (Promptus)."""
    still_error: float = 1e-2
    """With motion: intervals are joined beyond `interval` where the true frames between are met within this mean
    squared error (26 dB for a range of 2), near what prompts cost anyway: still and steady scenes. 0: never."""
    share_v: bool = True
    """One V for all key prompts of a segment; its repetition then costs almost no bytes."""
    rank_v: bool = False
    """A V of its own for each lower rank, near that of the full rank, while U of a lower rank is a prefix of U: costs
    no bytes as long as representations stand alone, helps where a picture is full of texture and harms where it is flat
    (docs/RESULTS.md). A layered ladder goes without."""
    rate_weight: float = 0.045
    """Weight of the estimated bits a value against the frame loss (docs/RESULTS.md)."""
    feature_weight: float = 0.05
    """Weight of the distance between features of our own network (packager/features.py) against the loss of pixels and
    structure (docs/RESULTS.md). 0: those alone."""
    worst_share: float = 0.25
    """Share of each step's frames that is drawn from the worst so far."""
    embedding_weight: float = 0.0
    """Weight of mean |embedding| (Promptus: 0.1)."""
    squared: bool = False
    """Mean squared error instead of absolute error and structure (Promptus)."""
    autocast: str = "auto"
    """Arithmetic of the descent: auto (bfloat16 where the device is fast at it, else float32), bfloat16, or float32,
    which means no autocast: with weights in float16, as on CUDA, small gradients are lost then. The first and last
    losses, which decide what is kept, are always taken in the generator's own precision."""
    start: str = "auto"
    """Where it starts: encoder (one pass of the generator's encoder), empty (the generator's empty prompt and a small
    random low-rank term), random (Promptus), or auto: the encoder where there is one, else random."""
    frames_at_once: int = 0
    """Most frames that pass the generator together, the rest being computed once more for the gradient (checkpointing);
    0: as many as fit, measured on CUDA; where memory runs out all the same they are halved once, and that is said."""
    segments_at_once: int = 0
    """Segments that are fitted together, each step's frames of all in one batch; 0: on CUDA as many as fit the memory,
    one on a CPU, which gains nothing. Draws, schedules and steps are each segment's own, so prompts are those of a fit
    alone but for the rounding of products that depends on the size of a batch."""
    compile: str = "off"
    """off, default or max-autotune: torch.compile of the generator for the descent, which takes minutes once."""
    average: float = 0.85
    """How much of the running average of what is fitted stays at a step; that average is the result, since a step
    serves the rank and the frames it was drawn for first of all (docs/RESULTS.md). 0: what the last step left."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise BuildError(f"fit.interval is {self.interval}, expected 1 or more, or 0 for the usual one")
        for name in ("motion_interval", "iterations", "frames_per_step", "patience"):
            if getattr(self, name) < 1:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "min_learning_rate", "u_step", "v_step"):
            if not getattr(self, name) > 0:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected more than 0")
        if not self.feature_weight >= 0:
            raise BuildError(f"fit.feature_weight is {self.feature_weight}, expected 0 or more")
        if not (1 <= 8 * self.motion_step <= MAX_MOTION_STEP_EIGHTHS and (8 * self.motion_step).is_integer()):
            raise BuildError(f"fit.motion_step is {self.motion_step}, expected eighths of a pixel, 1/8 to 16")
        if not 0 <= self.repeat <= 1:
            raise BuildError(f"fit.repeat is {self.repeat}, expected 0 to 1")
        if self.schedule not in ("cosine", "plateau"):
            raise BuildError(f"fit.schedule is {self.schedule}, expected cosine or plateau")
        if self.autocast not in ("auto", "bfloat16", "float32"):
            raise BuildError(f"fit.autocast is {self.autocast}, expected auto, bfloat16 or float32")
        if self.start not in STARTS:
            raise BuildError(f"fit.start is {self.start}, expected one of {', '.join(STARTS)}")
        for name in ("frames_at_once", "segments_at_once"):
            if getattr(self, name) < 0:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected 1 or more, or 0 for as many as fit")
        if self.compile not in COMPILE_MODES:
            raise BuildError(f"fit.compile is {self.compile}, expected one of {', '.join(COMPILE_MODES)}")
        for name in ("worst_share", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise BuildError(f"fit.{name} is {getattr(self, name)}, expected 0 to below 1")

    @property
    def key_interval(self) -> int:
        """Frames between key prompts, at most."""
        return self.interval or (_INTERVAL if self.motion else _PUBLISHED_INTERVAL)


FAST = FitConfig()
# The published procedure (Promptus' inversion.py): random start, Adam at 0.1 halved on plateaus down to 0.001, squared
# error with weight 0.8 and mean |embedding| with 0.1. Two differences: its feature term needs VGG-19 and is left out,
# and all intervals of a segment are fitted together, so that segments stand alone.
PAPER = FitConfig(
    preset="paper",
    iterations=10_000,
    frames_per_step=10,
    learning_rate=0.1,
    schedule="plateau",
    min_learning_rate=0.001,
    patience=300,
    motion=False,
    share_v=False,
    rate_weight=0.0,
    feature_weight=0.0,
    embedding_weight=0.125,
    squared=True,
    start="random",
    average=0.0,
    repeat=0.0,
)
PRESETS = {"fast": FAST, "paper": PAPER}


def fit_preset(name: str, **changes: object) -> FitConfig:
    """Return a copy of a named preset with some fields changed; raise BuildError for an unknown name."""
    if name not in PRESETS:
        raise BuildError(f"preset {name!r} is not known: expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def descent_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `FitConfig.autocast` means on a device."""
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:  # there is no public question for this; where torch lacks the private one, float32 is only slower
            fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)
