"""Header of a media segment's sample: what stands before the entropy-coded codes. No I/O and no torch.

Whole numbers are LEB128, floats are big-endian IEEE 754. docs/format.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from player.errors import BitstreamError

FORMAT_VERSION = 4
# Flags: all key prompts have the same V; motion follows the codes; it has anchors beside the key prompts; cuts.
V_SHARED, MOTION, ANCHORS, CUTS = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_LONGEST = 5  # bytes of a number; 35 bits are more than any needs


class ScaleForm(IntEnum):
    """Which scales are written; the others repeat them."""

    ONE = 0
    PER_COMPONENT = 1
    PER_KEY = 2
    EACH = 3


@dataclass(frozen=True)
class BaseHeader:
    """What only the layer that stands alone says."""

    offsets: tuple[int, ...]  # frame of each key prompt, rising; from 0 without anchors
    motion_grid: tuple[int, int]  # rows and columns of the motion field; (0, 0): none
    anchors: tuple[int, ...] = ()  # frames beside the key prompts that motion fields start and end at
    cuts: tuple[int, ...] = ()  # frames that open a new scene
    motion_step: int = 0  # eighths of a pixel a code of motion; only with motion
    interval: int = 0  # of anchors that lie evenly, which are not listed then (`motion_anchors`); 0: they are


def write_header(
    u_scales: np.ndarray, v_scales: np.ndarray, *, v_shared: bool = False, base: BaseHeader | None = None
) -> bytes:
    """Return the header of a layer with these scales [K, r]; `base` only for the layer that stands alone."""
    forms = [_form(scales) for scales in (u_scales, v_scales)]
    flags = forms[0] | forms[1] << 2
    numbers: list[int] = []
    if base is not None:
        motion = any(base.motion_grid)
        anchored = bool(base.anchors or base.interval)
        flags |= V_SHARED * v_shared | MOTION * motion | ANCHORS * anchored | CUTS * bool(base.cuts)
        cuts = [len(base.cuts), *np.diff(base.cuts, prepend=0).tolist()] if base.cuts else []
        numbers = [*_places(base), *((*base.motion_grid, base.motion_step) if motion else ()), *cuts]
    parts = [_chosen(scales, form) for scales, form in zip((u_scales, v_scales), forms, strict=True)]
    return bytes([FORMAT_VERSION, flags]) + _write_numbers(numbers) + b"".join(parts)


class HeaderReader:
    """Reads a header from its first byte on; every method raises BitstreamError where the sample ends early."""

    def __init__(self, sample: bytes) -> None:
        self._sample = sample
        self._at = 0
        version, self.flags = self._take(2)
        if version != FORMAT_VERSION:
            raise BitstreamError(f"segment: version {version}, but this build reads version {FORMAT_VERSION}")

    def base(self) -> BaseHeader:
        """Read what only the layer that stands alone says."""
        anchored = bool(self.flags & ANCHORS)
        interval = self._number() if anchored else 0
        listed = anchored and not interval
        places_of = "anchors" if listed else "key prompts"
        count = self._count(places_of)
        gaps = [0] * (not anchored)
        gaps += [self._number() for _ in range(count - len(gaps))]
        is_key = np.ones(count, bool)
        if anchored and not self.flags & MOTION:
            raise BitstreamError("anchors of motion, expected with motion")
        if listed:
            is_key, gaps = np.array(gaps) % 2 == 1, [gap >> 1 for gap in gaps]
            if is_key.all() or not is_key.any():
                raise BitstreamError("a list of anchors, expected beside key prompts, and these as well")
        if (gaps[0] and not interval) or 0 in gaps[1:]:
            raise BitstreamError(f"two {places_of} at one frame, or the first not at frame 0")
        places = np.cumsum(gaps)
        offsets, anchors = (tuple(places[is_key == kind].tolist()) for kind in (True, False))
        grid = (self._number(), self._number()) if self.flags & MOTION else (0, 0)
        step = self._number() if self.flags & MOTION else 0
        if self.flags & MOTION and not (min(grid) and (count > 1 or interval)):
            raise BitstreamError(f"a motion field of {grid[0]} x {grid[1]} between {count} {places_of}")
        cuts: tuple[int, ...] = ()
        if self.flags & CUTS:
            cuts = tuple(np.cumsum([self._number() for _ in range(self._count("cuts"))]).tolist())
        return BaseHeader(offsets, grid, anchors, cuts, step, interval)

    def refuse_base(self) -> None:
        """Refuse flags of what only the layer that stands alone says."""
        if found := self.flags & (V_SHARED | MOTION | ANCHORS | CUTS):
            raise BitstreamError(f"segment: flags {found:#04x} in a layer above the first")

    def scales(self, keys: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the scales of U and V: float32 [rank], or [keys, rank] where key prompts differ."""
        return self._scales(self.flags & 3, keys, rank), self._scales(self.flags >> 2 & 3, keys, rank)

    def rest(self) -> bytes:
        """Return the codes: whatever is left."""
        return self._sample[self._at :]

    def _scales(self, form: int, keys: int, rank: int) -> np.ndarray:
        shape = {
            ScaleForm.ONE: (1,),
            ScaleForm.PER_COMPONENT: (rank,),
            ScaleForm.PER_KEY: (keys, 1),
            ScaleForm.EACH: (keys, rank),
        }[ScaleForm(form)]
        values = np.frombuffer(self._take(4 * int(np.prod(shape))), ">f4").astype(np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise BitstreamError("scales that are not finite")
        return np.broadcast_to(values, (*shape[:-1], rank)).copy()

    def _count(self, what: str) -> int:
        count = self._number()
        if not 1 <= count <= len(self._sample):  # each costs a byte or more
            raise BitstreamError(f"{count} {what} in a sample of {len(self._sample)} bytes")
        return count

    def _number(self) -> int:
        value = 0
        for position in range(_LONGEST):
            (byte,) = self._take(1)
            value |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                return value
        raise BitstreamError(f"a number of more than {_LONGEST} bytes in the sample's header")

    def _take(self, count: int) -> bytes:
        taken = self._sample[self._at : self._at + count]
        if len(taken) < count:
            raise BitstreamError(f"sample of {len(self._sample)} bytes ends within its header")
        self._at += count
        return taken


def _places(base: BaseHeader) -> list[int]:
    """Return the numbers that say where key prompts and anchors are."""
    if base.interval:
        return [base.interval, len(base.offsets), *np.diff(base.offsets, prepend=0).tolist()]
    if not base.anchors:
        return [len(base.offsets), *np.diff(base.offsets).tolist()]
    places = sorted((*base.offsets, *base.anchors))
    gaps = np.diff(places, prepend=0).tolist()
    return [0, len(places), *(gap << 1 | (at in base.offsets) for gap, at in zip(gaps, places, strict=True))]


def _form(scales: np.ndarray) -> ScaleForm:
    alike = (scales == scales[:1]).all()
    if (scales == scales[:, :1]).all():
        return ScaleForm.ONE if alike else ScaleForm.PER_KEY
    return ScaleForm.PER_COMPONENT if alike else ScaleForm.EACH


def _chosen(scales: np.ndarray, form: ScaleForm) -> bytes:
    rows = scales if form in (ScaleForm.PER_KEY, ScaleForm.EACH) else scales[:1]
    return (rows if form in (ScaleForm.PER_COMPONENT, ScaleForm.EACH) else rows[:, :1]).astype(">f4").tobytes()


def _write_numbers(numbers: Iterable[int]) -> bytes:
    out = bytearray()
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)
