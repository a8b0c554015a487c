"""What a prompt stream is made of: its description, its segments and their key prompts; checked as they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from player.chain import Chain
from player.errors import BitstreamError

MAX_RANK = 4096
MAX_SEGMENT_CODES = 1 << 22  # codes of one segment; bounds the memory and the time that hostile bytes can cost a reader
MAX_MOTION_STEP_EIGHTHS = 128  # of a pixel
MAX_SEGMENT_FRAMES = 1 << 16  # likewise; a minute at 240 frames/s has a quarter of them


@dataclass(frozen=True)
class StreamInfo:
    """What every segment of one representation shares; carried by the init segment.

    The prompt of a key frame is u = u_scale * unit * u_codes [L, r], v = v_scale * v_codes [r, D], `unit` [r] being the
    generator's `step_scale`; its embedding is the generator's base plus u v / sqrt(norm_rank).
    """

    generator_id: str  # the generator that the prompts were fitted to
    tokens: int  # L, rows of the embedding
    width: int  # D, columns of the embedding
    rank: int  # r of this representation, together with those that it depends on
    norm_rank: int  # rank of the whole nested fit, the same in every prefix of it
    frame_width: int  # pixels of a generated frame
    frame_height: int
    display_width: int  # pixels shown: the centred crop of the generated frame
    display_height: int
    fps: Fraction  # frames per second; the timescale is its numerator, a frame lasts its denominator
    grid_height: int = 0  # the tokens' layout in rows, grid_height * grid_width == tokens; 0, 0: no layout
    grid_width: int = 0
    base_rank: int = 0  # components that another representation carries; 0: this one stands alone
    chain: Chain | None = None  # segments build on each other and decode in order only; None: each stands alone

    def __post_init__(self) -> None:
        _check_info(self)


@dataclass(frozen=True, eq=False)
class KeyPrompt:
    """A quantized prompt at one frame of a segment; value = scale * code, in U times the generator's `step_scale`."""

    frame_offset: int  # frame of the segment, 0-based
    u: np.ndarray  # [L, r] int16
    v: np.ndarray  # [r, D] int16

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyPrompt):
            return NotImplemented
        same = self.frame_offset == other.frame_offset
        return same and np.array_equal(self.u, other.u) and np.array_equal(self.v, other.v)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Segment:
    """The key prompts of one segment.

    Without motion the first stands at frame 0 and the last at frame T - 1, or at T, where it is the next segment's
    first, and here only interpolated towards. With motion they stand where they like, and it is the anchors, theirs
    among them, that go from frame 0 to the last; every scene has a key prompt.
    """

    frames: int  # T
    u_scale: np.ndarray  # float32, finite: [r], or [K, r] if key prompts differ
    v_scale: np.ndarray  # likewise
    keys: tuple[KeyPrompt, ...]
    motion: np.ndarray | None = None  # [A - 1, 2, rows, columns] int16 codes of the motion from anchor to anchor
    anchors: tuple[int, ...] = ()  # frames beside the key prompts that motion fields start and end at, rising
    cuts: tuple[int, ...] = ()  # frames that open a new scene, rising: with motion, frames are made within their scene
    motion_step_px: float = 1.0  # pixels of the generated frame a code of motion, in eighths

    def __post_init__(self) -> None:
        _check_segment(self)

    @property
    def rank(self) -> int:
        """r, the number of components of every key prompt."""
        return self.u_scale.shape[-1]

    @property
    def u_scales(self) -> np.ndarray:
        """The scale of every code of U [K, L, r]: float32 [K, 1, r]."""
        return np.broadcast_to(self.u_scale, (len(self.keys), self.rank))[:, None, :]

    @property
    def v_scales(self) -> np.ndarray:
        """The scale of every code of V [K, r, D]: float32 [K, r, 1]."""
        return np.broadcast_to(self.v_scale, (len(self.keys), self.rank))[:, :, None]

    @property
    def offsets(self) -> np.ndarray:
        """Frame of each key prompt, int64 [K]."""
        return np.array([key.frame_offset for key in self.keys], np.int64)

    @property
    def all_anchors(self) -> np.ndarray:
        """Frames that motion fields start and end at, the key prompts' among them: int64 [A]."""
        return np.sort(np.concatenate([self.offsets, np.array(self.anchors, np.int64)]))

    def truncate(self, rank: int) -> Segment:
        """Return the segment of the first `rank` components, the lower rank of a nested fit."""
        if not 1 <= rank <= self.rank:
            raise BitstreamError(f"rank {rank} of a segment of rank {self.rank}, expected 1 to {self.rank}")
        keys = tuple(
            KeyPrompt(k.frame_offset, np.ascontiguousarray(k.u[:, :rank]), np.ascontiguousarray(k.v[:rank]))
            for k in self.keys
        )
        u_scale, v_scale = self.u_scale[..., :rank].copy(), self.v_scale[..., :rank].copy()
        return Segment(self.frames, u_scale, v_scale, keys, self.motion, self.anchors, self.cuts, self.motion_step_px)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return (
            self.frames == other.frames
            and self.keys == other.keys
            and self.anchors == other.anchors
            and self.cuts == other.cuts
            and np.array_equal(self.u_scales, other.u_scales)
            and np.array_equal(self.v_scales, other.v_scales)
            and (self.motion is None) == (other.motion is None)
            and (self.motion is None or self.motion_step_px == other.motion_step_px)
            and (self.motion is None or other.motion is None or np.array_equal(self.motion, other.motion))
        )

    __hash__ = None  # type: ignore[assignment]


def key_neighbours(
    offsets: np.ndarray, positions: np.ndarray, last_anchor: int, cuts: Sequence[int] | np.ndarray = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return which key prompts the frames at `positions` [n] lie between, within their scenes.

    Args:
        offsets: frames of the key prompts [K].
        last_anchor: where the last motion field ends.
        cuts: frames that open a new scene, rising; every scene has a key prompt.

    Returns:
        Indices int64 [n]: of the key prompt at or before each frame (before it at the last anchor, where no field
        begins), and of the one behind it; where a scene has none there, the other one twice.
    """
    scene, scene_of_key = (np.searchsorted(cuts, at, side="right") for at in (positions, offsets))
    left = np.searchsorted(offsets, positions, side="right") - 1
    left[positions >= last_anchor] -= offsets[-1] >= last_anchor
    right = left + 1
    has_left = (left >= 0) & (scene_of_key[left] == scene)
    has_right = (right < len(offsets)) & (scene_of_key[np.minimum(right, len(offsets) - 1)] == scene)
    return np.where(has_left, left, right), np.where(has_right, right, left)


def motion_anchors(offsets: np.ndarray, frames: int, interval: int, cuts: Sequence[int] = ()) -> np.ndarray:
    """Return anchors int64 [A]: the key frames `offsets` [K], the ends of all scenes, and frames evenly between,
    `interval` apart at most. `cuts` are the frames that open a new scene, among frames 0 .. frames - 1."""
    ends = [0, *(end for cut in cuts for end in (cut - 1, cut)), frames - 1]
    stops = np.union1d(offsets, ends)
    parts = []
    for first, last in pairwise(stops):  # whole numbers only: players work out what packagers do not list
        count = -(-(last - first) // interval)
        parts.append(first + (2 * (last - first) * np.arange(count) + count) // (2 * count))
    return np.concatenate([*parts, stops[-1:]]).astype(np.int64)


def _check_info(info: StreamInfo) -> None:
    limits = {"tokens": 1 << 20, "width": 1 << 20, "rank": MAX_RANK, "norm_rank": MAX_RANK}
    limits |= dict.fromkeys(("frame_width", "frame_height", "display_width", "display_height"), 0xFFFF)
    for name, limit in limits.items():
        value = getattr(info, name)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise BitstreamError(f"stream description: {name} {value!r}, expected a whole number from 1 to {limit}")
    if info.rank * (info.tokens + info.width) > MAX_SEGMENT_CODES:
        raise BitstreamError(f"stream description: {info.rank} x ({info.tokens} + {info.width}) codes a key prompt")
    if not isinstance(info.base_rank, int) or not 0 <= info.base_rank < info.rank:
        raise BitstreamError(f"stream description: base rank {info.base_rank!r}, expected 0 to {info.rank - 1}")
    if info.chain and info.base_rank:
        raise BitstreamError("stream description: a chained stream cannot be a layer on top of another")
    if info.display_width > info.frame_width or info.display_height > info.frame_height:
        raise BitstreamError(
            f"stream description: {info.display_width}x{info.display_height} shown of a frame of "
            f"{info.frame_width}x{info.frame_height}"
        )
    fps = info.fps
    if not isinstance(fps, Fraction) or fps <= 0 or max(fps.numerator, fps.denominator) >= 1 << 32:
        raise BitstreamError(f"stream description: frame rate {fps!r}, expected a positive Fraction of 32-bit numbers")
    rows, columns = info.grid_height, info.grid_width
    if (rows, columns) != (0, 0) and (min(rows, columns) < 1 or rows * columns != info.tokens):
        raise BitstreamError(f"stream description: a {rows} x {columns} grid of {info.tokens} tokens")
    if max(rows, columns) > 0xFFFF:
        raise BitstreamError(f"stream description: a {rows} x {columns} grid, expected sides under 65536")
    if not isinstance(info.generator_id, str) or not 1 <= len(info.generator_id.encode()) <= 255:
        raise BitstreamError(f"stream description: generator id {info.generator_id!r}, expected 1 to 255 bytes")


def _check_segment(segment: Segment) -> None:
    if not segment.keys:
        raise BitstreamError("a segment without key prompts")
    K, rank = len(segment.keys), segment.u_scale.shape[-1] if segment.u_scale.ndim else 0
    for name, scale in (("u_scale", segment.u_scale), ("v_scale", segment.v_scale)):
        if scale.shape not in ((rank,), (K, rank)) or scale.dtype != np.float32 or not np.isfinite(scale).all():
            raise BitstreamError(
                f"{name}: {scale.dtype} {list(scale.shape)}, expected finite float32 [{rank}] or [{K}, {rank}]"
            )
    offsets = [key.frame_offset for key in segment.keys]
    if any(a >= b for a, b in pairwise(offsets)) or segment.frames < 1:
        raise BitstreamError(f"key prompts at frames {offsets[:8]} of {segment.frames}, expected to rise")
    L, D = len(segment.keys[0].u), segment.keys[0].v.shape[-1]
    for key in segment.keys:
        if key.u.shape != (L, rank) or key.v.shape != (rank, D) or {key.u.dtype, key.v.dtype} != {np.dtype(np.int16)}:
            raise BitstreamError(
                f"key prompt at frame {key.frame_offset}: u {key.u.dtype} {list(key.u.shape)}, v {key.v.dtype} "
                f"{list(key.v.shape)}, expected int16 [{L}, {rank}] and [{rank}, {D}]"
            )
    _check_motion(segment, offsets)


def _check_motion(segment: Segment, offsets: list[int]) -> None:
    motion, anchors = segment.motion, segment.anchors
    places = sorted({*offsets, *anchors})
    if anchors and (motion is None or len(places) < len(offsets) + len(anchors) or list(anchors) != sorted(anchors)):
        raise BitstreamError(f"anchors at frames {list(anchors[:8])} beside key prompts at frames {offsets[:8]}")
    if places[0] != 0 or segment.frames - places[-1] not in (0, 1):
        raise BitstreamError(
            f"{'key prompts' if motion is None else 'anchors'} from frame {places[0]} to {places[-1]}, expected from 0 "
            f"to {segment.frames - 1} or {segment.frames}"
        )
    _check_cuts(segment, offsets)
    eighths = 8 * segment.motion_step_px
    if eighths != int(eighths) or not 1 <= eighths <= MAX_MOTION_STEP_EIGHTHS:
        raise BitstreamError(f"motion in steps of {segment.motion_step_px} pixels, expected eighths, 1/8 to 16")
    fields = len(places) - 1
    if motion is not None and (
        motion.dtype != np.int16 or motion.ndim != 4 or motion.shape[:2] != (fields, 2) or not motion.size
    ):
        raise BitstreamError(f"motion {motion.dtype} {list(motion.shape)}, expected int16 [{fields}, 2, rows, columns]")


def _check_cuts(segment: Segment, offsets: list[int]) -> None:
    cuts = segment.cuts
    if not cuts:
        return
    edges = [0, *cuts, segment.frames]
    if segment.motion is None or any(a >= b for a, b in pairwise(edges)):
        raise BitstreamError(f"cuts at frames {list(cuts[:8])} of {segment.frames}, expected to rise, and with motion")
    if (np.histogram(offsets, edges)[0] < 1).any():
        raise BitstreamError(f"cuts at frames {list(cuts[:8])}: a scene has none of the key prompts at {offsets[:8]}")
