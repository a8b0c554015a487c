"""Published Promptus prompts to a packaged folder: checked, recoded without loss, ready for `stabilityai/sd-turbo`.

A folder of them (github.com/JiangkaiWu/Promptus) holds one torch file per key frame, `frame_00010.prompt`, with 8-bit
codes of U and V and one scale and zero point for each, and `init.pth`, the latent that its first frame starts from.
Values are scale * (code - zero point), and these are kept exactly. By default every segment starts from the seeded
noise, and the latent is checked but not packaged; with `carry` the stream is chained as published, and plays in order.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packager.errors import BuildError, PackagerError
from packager.folder import SIDECAR_NAME, claim
from packager.video import as_frame_rate
from player.bitstream import KeyPrompt, Segment, StreamInfo, write_init, write_segment
from player.chain import Chain
from player.manifest import START_NUMBER, Manifest, Representation, min_buffer_s
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar

GENERATOR_ID = "stabilityai/sd-turbo"
TOKENS, WIDTH = 77, 1024  # of SD-Turbo's text embedding
FRAME_SIZE = 512
_LATENT = (1, 4, 64, 64)
_NAME = re.compile(r"frame_(\d{1,9})\.prompt", re.ASCII)
_MAX_FILE_BYTES = 16 << 20


class ImportedPromptsError(PackagerError, ValueError):
    """A folder that does not hold published prompts as they should be."""


@dataclass(frozen=True)
class PublishedPrompt:
    """One key prompt; value = scale * code."""

    frame: int
    u: np.ndarray  # [L, r] int16, codes minus zero point
    v: np.ndarray  # [r, D] int16
    u_scale: np.float32
    v_scale: np.float32


def read_prompts(folder: Path) -> list[PublishedPrompt]:
    """Return the key prompts of a folder in order: equally far apart from frame 0 on, all of one rank.

    Raises:
        ImportedPromptsError: a file is missing, is no torch file of tensors alone, or has tensors of another shape.
    """
    if not folder.is_dir():
        raise ImportedPromptsError(f"{folder}: no folder of prompts")
    found = {int(match[1]): path for path in sorted(folder.iterdir()) if (match := _NAME.fullmatch(path.name))}
    if not found:
        raise ImportedPromptsError(f"{folder}: no frame_*.prompt in it")
    frames = sorted(found)
    interval = frames[1] - frames[0] if len(frames) > 1 else 1
    for position, frame in enumerate(frames):
        if frame != position * interval:
            raise ImportedPromptsError(f"{folder}: frame {position * interval} is missing, next is frame {frame}")
    prompts = [_read_prompt(found[frame], frame) for frame in frames]
    for prompt in prompts:
        if prompt.u.shape != prompts[0].u.shape:
            raise ImportedPromptsError(
                f"{found[prompt.frame]}: rank {prompt.u.shape[1]}, but frame 0 has rank {prompts[0].u.shape[1]}"
            )
    read_latent(folder)
    return prompts


def read_latent(folder: Path) -> np.ndarray:
    """Return the latent float32 [C, h, w] that a folder's first frame starts from; errors as of `read_prompts`."""
    path = folder / "init.pth"
    latent = _load(path)
    if not isinstance(latent, torch.Tensor) or tuple(latent.shape) != _LATENT or not torch.isfinite(latent).all():
        raise ImportedPromptsError(f"{path}: expected a finite tensor {list(_LATENT)}")
    return latent[0].float().numpy()


def import_prompts(
    folder: str | Path,
    output: str | Path,
    *,
    fps: float = 30.0,
    segment_s: float = 2.0,
    carry: float = 0.0,
    force: bool = False,
) -> Presentation:
    """Package a folder of published prompts.

    Args:
        folder: what `read_prompts` takes.
        output: where the package goes.
        fps: frame rate; the files do not say it.
        segment_s: segment duration, rounded to whole intervals. The key prompt at a boundary is sent with both
            segments, so that each stands alone: the first interpolates towards it, the second starts from it.
        carry: share of the latent before that every interval starts from (published: 0.05); the stream then decodes in
            order only. 0: segments stand alone.
        force: replace what another import left in the folder.
    """
    if not 0 < fps <= 240:
        raise BuildError(f"fps={fps:g}: expected up to 240 frames/s")
    if not 0.01 <= segment_s <= 3600:
        raise BuildError(f"segment_s={segment_s:g}: expected 0.01 to 3600 seconds")
    if not 0 <= carry < 1:
        raise BuildError(f"carry={carry:g}: expected 0 (segments stand alone) to below 1 (published: 0.05)")
    folder, output = Path(folder), Path(output)
    prompts = read_prompts(folder)
    rate = as_frame_rate(fps)
    segments = _cut(prompts, float(rate) * segment_s)
    rank = prompts[0].u.shape[1]
    info = StreamInfo(
        GENERATOR_ID, TOKENS, WIDTH, rank, rank, FRAME_SIZE, FRAME_SIZE, FRAME_SIZE, FRAME_SIZE, rate, 0, 0
    )
    identity = {"prompts_sha256": _digest(prompts), "fps": str(rate), "segment_s": segment_s}
    if carry:
        chain = Chain.of(carry, read_latent(folder))
        info = replace(info, chain=chain)
        identity["chain_sha256"] = hashlib.sha256(chain.pack()).hexdigest()
    with claim(output, identity, {}, resume=True, force=force) as target:
        if target.finished:
            return Presentation.load(output)
        name = f"r{rank:02d}"
        init = write_init(info)
        target.write(target.init_path(name), init)
        sizes, start = [], 0
        for index, segment in enumerate(segments):
            data = write_segment(info, segment, sequence=index + START_NUMBER, start_frame=start)
            target.write(target.segment_path(name, index), data)
            sizes.append(len(data))
            start += segment.frames
        frames = [segment.frames for segment in segments]
        _publish(output, folder.name, name, rank, rate, frames, len(init), sizes, chained=carry > 0)
        target.finish()
    return Presentation.load(output)


def _cut(prompts: Sequence[PublishedPrompt], frames_wanted: float) -> list[Segment]:
    """Return segments of whole intervals; each but the last closes with the next one's first key prompt."""
    last = prompts[-1].frame
    interval = prompts[1].frame if len(prompts) > 1 else 1
    keys_each = max(1, round(frames_wanted / interval))
    segments = []
    for first in range(0, max(len(prompts) - 1, 1), keys_each):
        chosen = prompts[first : first + keys_each + 1]
        start, end = chosen[0].frame, chosen[-1].frame
        frames = end - start + (end == last)
        scales = (np.array([getattr(p, name) for p in chosen], np.float32)[:, None] for name in ("u_scale", "v_scale"))
        u_scale, v_scale = (np.repeat(scale, chosen[0].u.shape[1], axis=1) for scale in scales)
        keys = tuple(KeyPrompt(p.frame - start, p.u, p.v) for p in chosen)
        segments.append(Segment(frames, u_scale, v_scale, keys))
    return segments


def _publish(
    output: Path,
    title: str,
    name: str,
    rank: int,
    rate: Fraction,
    frames: list[int],
    init_bytes: int,
    sizes: list[int],
    *,
    chained: bool,
) -> None:
    bandwidth_bps = math.ceil((init_bytes + sum(sizes)) * 8 * rate / sum(frames))
    manifest = Manifest(
        title="".join(c if c.isprintable() and ord(c) < 0xD800 else "?" for c in title) or "untitled",
        codec="prompt",
        width=FRAME_SIZE,
        height=FRAME_SIZE,
        fps=rate,
        segments=tuple(count * rate.denominator for count in frames),
        representations=(Representation(name, bandwidth_bps, rank, "urim"),),
        quality_sidecar=SIDECAR_NAME,
        min_buffer_s=min_buffer_s(sizes, [count / float(rate) for count in frames], bandwidth_bps),
        chained=chained,
    )
    write_sidecar(output, manifest, {name: RepresentationQuality(tuple(sizes), {})})
    write_manifest(output, manifest)


def _read_prompt(path: Path, frame: int) -> PublishedPrompt:
    content = _load(path)
    names = ("U", "V", "U_scale", "V_scale", "U_zero_point", "V_zero_point")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), torch.Tensor) for name in names):
        raise ImportedPromptsError(f"{path}: expected tensors {', '.join(names)}")
    u, v = content["U"], content["V"]
    rank = u.shape[1] if u.ndim == 2 else 0
    if tuple(u.shape) != (TOKENS, rank) or tuple(v.shape) != (rank, WIDTH) or not 1 <= rank <= TOKENS:
        raise ImportedPromptsError(
            f"{path}: U {list(u.shape)}, V {list(v.shape)}, expected [{TOKENS}, r] and [r, {WIDTH}]"
        )
    if u.dtype != torch.uint8 or v.dtype != torch.uint8:
        raise ImportedPromptsError(f"{path}: U {u.dtype}, V {v.dtype}, expected torch.uint8")
    scales, codes = [], []
    for name, factor in (("U", u), ("V", v)):
        scale, zero = (_number(content[f"{name}_{kind}"], path) for kind in ("scale", "zero_point"))
        if not scale > 0 or zero != round(zero) or not 0 <= zero <= 255:
            raise ImportedPromptsError(f"{path}: {name} has scale {scale:g} and zero point {zero:g}")
        scales.append(np.float32(scale))
        codes.append(factor.numpy().astype(np.int16) - np.int16(zero))
    return PublishedPrompt(frame, codes[0], codes[1], scales[0], scales[1])


def _number(tensor: torch.Tensor, path: Path) -> float:
    if tensor.numel() != 1 or not math.isfinite(tensor.item()):
        raise ImportedPromptsError(
            f"{path}: scales and zero points are {list(tensor.shape)}, expected one finite number"
        )
    return float(tensor.item())


def _load(path: Path) -> Any:
    """Return a torch file's content; nothing in it is run, and what is not plain tensors is refused."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ImportedPromptsError(f"{path}: {path.stat().st_size} bytes, expected at most {_MAX_FILE_BYTES}")
        with warnings.catch_warnings():  # of pickles that are refused in the next moment
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ImportedPromptsError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise ImportedPromptsError(f"{path}: holds more than tensors, or is no torch file; nothing was run") from error
    except Exception as error:  # a hostile pickle fails in as many ways as the reader has lines
        if isinstance(error, ImportedPromptsError):
            raise
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ImportedPromptsError(f"{path}: no torch file ({reason})") from error


def _digest(prompts: Sequence[PublishedPrompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        for part in (prompt.u, prompt.v, prompt.u_scale, prompt.v_scale):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
