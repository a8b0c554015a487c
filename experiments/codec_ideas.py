"""What was tried on the prompt codec: `python -m experiments.codec_ideas interpolation sam2_dog.mp4 sky_sunset.mp4`.

Four ideas, each on the first seconds of clips: other interpolations between key prompts, a start latent carried from
the frame before, fewer tokens or no V, and an adapter of the decoder for each title. Prints a Markdown table of means
over the clips. docs/RESULTS.md has what came of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from packager.encoder import PromptEncoder
    from player.generator import Generator
    from player.quality import Metric

RANK = 16
GRID_RANKS, COARSE_RANKS = (2, 4, 8, 16), (8, 16, 32)  # of U on all tokens, and on a quarter of them
_INTERVAL = 10  # frames
_U_STEP, _V_STEP, _MOTION_STEP_PX = 0.35, 0.05, 0.5  # the preset's when these were tried
_CARRIES = (0.0, 0.05, 0.1, 0.3)
_STEPS = 30  # of a fit of key frames
_RATE_WEIGHT = 0.04

Row = tuple[str, dict[str, float]]
"""What was tried, and its numbers."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.codec_ideas", description=__doc__.split("\n")[0])
    parser.add_argument("idea", choices=sorted(IDEAS))
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each clip, from its start")
    parser.add_argument("--generator", default="embedded", help="one with a token grid and an encoder")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    # imported late, so that --help answers at once
    from experiments.fit_study import read_segment_frames
    from packager.encoder import load_encoder
    from packager.errors import PackagerError
    from player.errors import PlayerError
    from player.generator import load_generator
    from player.quality import load_metrics

    found: dict[str, list[dict[str, float]]] = {}
    try:
        generator = load_generator(arguments.generator, device="cpu")
        encoder = load_encoder(generator)
        if encoder is None:
            raise PackagerError(f"--generator {arguments.generator}: has no encoder to start from")
        metrics = [m for m in load_metrics(frame_size=generator.native_size) if m.name != "ms_ssim"]
        for video in arguments.videos:
            frames = read_segment_frames(video, 0, arguments.seconds, generator.native_size)
            for name, numbers in IDEAS[arguments.idea](frames, generator, encoder, metrics):
                found.setdefault(name, []).append(numbers)
                print(f"{video.stem}: {name}: {numbers}", file=sys.stderr, flush=True)
    except (PackagerError, PlayerError, OSError) as error:
        print(f"codec_ideas: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(_table(found))
    return 0


def _table(found: dict[str, list[dict[str, float]]]) -> str:
    columns = list(dict.fromkeys(name for rows in found.values() for row in rows for name in row))
    lines = [f"| tried | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, rows in found.items():
        cells = [f"{np.mean([row[c] for row in rows]):.4g}" if all(c in row for row in rows) else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(metrics: Sequence[Metric], true: np.ndarray, output: Tensor) -> dict[str, float]:
    from player.decoder import to_pixels

    shown = to_pixels(output).numpy()
    return {metric.name: float(metric(true, shown).mean()) for metric in metrics}


def _render(generator: Generator, embeddings: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([generator.generate(part) for part in embeddings.split(10)])


# ---- interpolation: the encoder's prompts as they are, the frames between key frames ---------------------------------


def interpolation(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, metrics: Sequence[Metric]
) -> Iterator[Row]:
    """Yield the quality of the frames between key frames under each way to make them; nothing is fitted."""
    import torch

    from packager.fit import key_offsets
    from packager.motion import TrueMotion
    from player.decoder import from_pixels
    from player.motion import Between, frames_between
    from player.prompt import interpolate, interpolation_matrix

    offsets = key_offsets(len(frames), _INTERVAL)
    inner = np.array([t for t in range(0, len(frames), 2) if t not in offsets])
    weights = interpolation_matrix(offsets, len(frames))[inner]
    with torch.no_grad():
        u, v = encoder(from_pixels(frames[offsets]))
    u, v = u[..., :RANK], v[:, :RANK]
    steps = _U_STEP * generator.step_scale[:RANK]
    u, v = torch.round(u / steps) * steps, torch.round(v / _V_STEP) * _V_STEP
    norm_rank = generator.norm_rank(RANK)
    keys = generator.space.compose(u, v, norm_rank)
    linear = generator.space.compose(interpolate(u, weights), interpolate(v, weights), norm_rank)
    yield "U and V (the paper)", _scores(metrics, frames[inner], _render(generator, linear))
    yield "the embedding", _scores(metrics, frames[inner], _render(generator, interpolate(keys, weights)))
    offset = keys - generator.base
    yield (
        "the embedding, spherical",
        _scores(metrics, frames[inner], _render(generator, generator.base + spherical(offset, weights))),
    )
    shown = _render(generator, keys)
    yield "rendered key frames, cross-faded", _scores(metrics, frames[inner], interpolate(shown, weights))
    motion = torch.round(TrueMotion(from_pixels(frames)).estimate(offsets) / _MOTION_STEP_PX) * _MOTION_STEP_PX
    between = Between.of(offsets, len(frames))[torch.from_numpy(inner)]
    yield (
        "rendered key frames, moved and cross-faded",
        _scores(metrics, frames[inner], frames_between(shown, motion, between)),
    )


def spherical(keys: Tensor, weights: Tensor) -> Tensor:
    """Return vectors [T, L, D] between key vectors [K, L, D]: their directions along great circles, lengths linearly.

    Shoemake 1985; `weights` [T, K] hold the two linear shares of each row.
    """
    import torch

    left, right = weights.topk(2, dim=1).indices.sort(dim=1).values.unbind(dim=1)
    share = weights.gather(1, right[:, None])[..., None]  # [T, 1, 1]
    a, b = keys[left], keys[right]
    length = torch.lerp(a.norm(dim=2, keepdim=True), b.norm(dim=2, keepdim=True), share)
    a, b = torch.nn.functional.normalize(a, dim=2), torch.nn.functional.normalize(b, dim=2)
    angle = (a * b).sum(dim=2, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return length * (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


# ---- carry and tokens: key frames alone, fitted ----------------------------------------------------------------------


def carry(frames: np.ndarray, generator: Generator, encoder: PromptEncoder, metrics: Sequence[Metric]) -> Iterator[Row]:
    """Yield the quality and bytes of fitted key frames, each started from a share of the latent before."""
    for share in _CARRIES:
        yield f"carry {share:g}", _fit_keys(frames, generator, encoder, metrics, rank=RANK, share=share)


def tokens(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, metrics: Sequence[Metric]
) -> Iterator[Row]:
    """Yield the quality and bytes of fitted key frames with U on the whole token grid, on a coarser one, without V."""
    for rank in GRID_RANKS:
        yield f"16x16 tokens, rank {rank}", _fit_keys(frames, generator, encoder, metrics, rank=rank)
    for rank in COARSE_RANKS:
        yield f"8x8 tokens, rank {rank}", _fit_keys(frames, generator, encoder, metrics, rank=rank, pool=2)
    yield f"16x16 tokens, rank {RANK}, no V", _fit_keys(frames, generator, encoder, metrics, rank=RANK, with_v=False)


def _fit_keys(
    frames: np.ndarray,
    generator: Generator,
    encoder: PromptEncoder,
    metrics: Sequence[Metric],
    *,
    rank: int,
    share: float = 0.0,
    pool: int = 1,
    with_v: bool = True,
) -> dict[str, float]:
    """Fit the key frames of a clip with V shared, as the packager does; return their quality and their bytes.

    Args:
        share: of the start latent that comes from the latent of the key frame before.
        pool: tokens of U that one value stands for, along each axis; they are stretched bilinearly.
        with_v: whether V is fitted and sent, or zero.
    """
    import torch
    from torch.nn import functional

    from packager.fit import key_offsets
    from packager.losses import frame_loss, sequence_rate
    from player.decoder import from_pixels
    from player.prompt import quantize_ste

    rows, columns = generator.settings.grid
    small = rows // pool, columns // pool
    true = frames[key_offsets(len(frames), _INTERVAL)]
    targets = from_pixels(true)
    with torch.no_grad():
        u, v = encoder(targets)
    scale = generator.step_scale[:rank]
    maps = (u[..., :rank] / scale).transpose(1, 2).unflatten(2, (rows, columns))
    u = functional.avg_pool2d(maps, pool).flatten(2).transpose(1, 2).clone().requires_grad_(True)  # [K, L, R]
    v = v[:, :rank].mean(dim=0, keepdim=True).clone() * with_v
    v.requires_grad_(with_v)
    optimizer = torch.optim.Adam([u, v] if with_v else [u], lr=0.03, betas=(0.9, 0.95))

    def embeddings() -> Tensor:
        coarse = quantize_ste(u, torch.tensor(_U_STEP)).transpose(1, 2).unflatten(2, small)
        whole = functional.interpolate(coarse, size=(rows, columns), mode="bilinear") if pool > 1 else coarse
        quantized = quantize_ste(v, torch.tensor(_V_STEP)).expand(len(u), -1, -1)
        return generator.space.compose(
            whole.flatten(2).transpose(1, 2) * scale, quantized, generator.norm_rank(max(rank, RANK))
        )

    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = 0.03 * (0.1 + 0.45 * (1 + np.cos(np.pi * step / _STEPS)))
        loss = frame_loss(_chained(generator, embeddings(), share), targets).mean()
        loss = loss + _RATE_WEIGHT * sequence_rate(u, small, _U_STEP)
        if with_v:
            loss = loss + _RATE_WEIGHT * v.numel() / u.numel() * torch.log2(1 + 2 * v.abs() / _V_STEP).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shown = _chained(generator, embeddings(), share)
    codes = (torch.round(x.detach() / y).to(torch.int16).numpy() for x, y in ((u, _U_STEP), (v, _V_STEP)))
    return {"bytes": _key_bytes(generator, *codes, grid=small), **_scores(metrics, true, shown)}


def _chained(generator: Generator, embeddings: Tensor, share: float) -> Tensor:
    """Return the frames of embeddings [K, L, D], each started from a share of the latent before; no gradient passes
    from one to the next."""
    import torch

    if not share:
        return generator.generate(embeddings)
    own, frames = generator.start_latent.detach().clone(), []
    try:
        for one in embeddings.split(1):
            latents = generator.denoise(one)
            frames.append(generator.decode_latents(latents))
            generator.start_latent.data = torch.lerp(own, latents[0].detach(), share)
    finally:
        generator.start_latent.data = own
    return torch.cat(frames)


def _key_bytes(generator: Generator, u: np.ndarray, v: np.ndarray, *, grid: tuple[int, int]) -> int:
    """Return the bytes of key prompts u [K, L, R], v [1, R, D] as one segment."""
    from fractions import Fraction

    from player.bitstream import KeyPrompt, Segment, StreamInfo, write_segment

    count, cells, rank = u.shape
    keys = tuple(KeyPrompt(_INTERVAL * k, np.ascontiguousarray(u[k]), np.ascontiguousarray(v[0])) for k in range(count))
    steps = np.full(rank, _U_STEP, np.float32), np.full(rank, _V_STEP, np.float32)
    segment = Segment(_INTERVAL * (count - 1) + 1, *steps, keys)
    height, width = generator.native_size
    info = StreamInfo(
        generator.id, cells, generator.width, rank, max(rank, RANK), width, height, width, height, Fraction(30), *grid
    )
    return len(write_segment(info, segment, sequence=1, start_frame=0))


def adapter(
    frames: np.ndarray, generator: Generator, encoder: PromptEncoder, metrics: Sequence[Metric]
) -> Iterator[Row]:
    """Yield what low-rank updates of the decoder gain (experiments.title_adapter)."""
    from experiments.title_adapter import adapter as study

    yield from study(frames, generator, encoder, metrics)


IDEAS = {"adapter": adapter, "carry": carry, "interpolation": interpolation, "tokens": tokens}


if __name__ == "__main__":
    raise SystemExit(main())
