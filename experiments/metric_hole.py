"""Why no loss may see a reported metric: `python -m experiments.metric_hole [--out DIR]`.

One frame of the demo clip is rendered from its prompt; then gradient descent moves the latent, and nothing else, down a
loss that LPIPS is part of. LPIPS falls below that of H.265 at 40 kbit/s, which looks better and has the better
SSIMULACRA 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from player.generator import Generator
    from player.quality import Metric
    from player.quality.lpips import LpipsNetwork

log = logging.getLogger(__name__)

METRICS = ("lpips_squeeze", "ssimulacra2", "ms_ssim", "psnr_db")

_FPS = 30
_SEGMENT_FRAMES = 60  # 2 s; what H.265 codes, and the frame lies in the middle of it
_PIXEL_WEIGHT, _LPIPS_WEIGHT = 2.0, 0.5  # of the mean squared error (range 2) and of LPIPS in the loss
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Candidate:
    """One version of the frame with its scores."""

    title: str
    pixels: np.ndarray  # uint8 [H, W, 3]
    scores: dict[str, float]  # by metric name


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.metric_hole", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/metric_hole"), help="folder for the figure")
    parser.add_argument("--second", type=float, default=7.0, help="where in the demo clip of 12 s the frame lies")
    parser.add_argument("--steps", type=int, default=60, help="steps of Adam")
    parser.add_argument("--step-size", type=float, default=0.05, help="Adam's, for latents of unit variance")
    parser.add_argument("--bitrate", type=int, default=40_000, help="of H.265, bit/s")
    parser.add_argument("--weights", type=Path, help="folder with LPIPS' weights (default: $PROMPTDASH_WEIGHTS)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # torch is imported late, so that --help answers at once
    from packager.errors import PackagerError
    from player.errors import PlayerError

    try:
        candidates, bitrate_bps = study(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw(candidates, arguments.out / "metric_hole.jpg")
    except (PackagerError, PlayerError, OSError, ValueError) as error:
        sys.stderr.write(f"metric_hole: {str(error).splitlines()[0]}\n")
        return 1
    print(table(candidates))
    log.info("H.265 at %.1f kbit/s; figure in %s", bitrate_bps / 1000, arguments.out)
    return 0


def study(arguments: argparse.Namespace) -> tuple[list[Candidate], float]:
    """Return the original, the rendered frame before and after descent, and H.265's with its bitrate in bit/s."""
    from packager.encoder import load_encoder
    from player.decoder import to_pixels
    from player.generator import EMBEDDED, load_generator
    from player.quality import load_metrics
    from player.quality.weights import load_lpips_network

    if arguments.steps < 1 or not arguments.step_size > 0:
        raise ValueError(f"--steps {arguments.steps} --step-size {arguments.step_size:g}: expected more than 0")
    network = load_lpips_network("squeeze", weights_dir=arguments.weights)
    metrics = load_metrics(METRICS, weights_dir=arguments.weights)
    generator = load_generator(EMBEDDED, device="cpu")
    encoder = load_encoder(generator)
    assert encoder is not None  # the embedded generator has one
    segment = demo_segment(arguments.second, generator.native_size[0])
    frame = segment[len(segment) // 2]
    latent = rendered_latent(frame, generator, encoder)
    moved = descend(latent, frame, generator, network, steps=arguments.steps, step_size=arguments.step_size)
    coded, bitrate_bps = code_h265(segment, arguments.bitrate)
    versions = {
        "original": frame,
        "prompt": to_pixels(generator.decode_latents(latent))[0].numpy(),
        f"prompt, {arguments.steps} steps down LPIPS": to_pixels(generator.decode_latents(moved))[0].numpy(),
        f"H.265, {bitrate_bps / 1000:.0f} kbit/s": coded[len(segment) // 2],
    }
    candidates = [Candidate(title, pixels, _scores(frame, pixels, metrics)) for title, pixels in versions.items()]
    return candidates, bitrate_bps


def demo_segment(second: float, size: int) -> np.ndarray:
    """Return 2 s of the demo clip around a moment, uint8 [60, size, size, 3]."""
    from packager.demo import render_demo_frames

    total = 12 * _FPS
    first = min(max(0, round(second * _FPS) - _SEGMENT_FRAMES // 2), total - _SEGMENT_FRAMES)
    wanted = range(first, first + _SEGMENT_FRAMES)
    frames = enumerate(render_demo_frames(total, fps=_FPS, size=size))
    return np.stack([frame for number, frame in frames if number in wanted])


def rendered_latent(frame: np.ndarray, generator: Generator, encoder: object) -> Tensor:
    """Return the latent [1, C, h, w] that the generator makes of the encoder's prompt for a frame, at full rank."""
    import torch

    from player.decoder import from_pixels

    with torch.no_grad():
        u, v = encoder(from_pixels(frame[None]))  # type: ignore[operator]
        return generator.denoise(generator.space.compose(u, v, generator.norm_rank(generator.max_rank)))


def descend(
    latent: Tensor, frame: np.ndarray, generator: Generator, network: LpipsNetwork, *, steps: int, step_size: float
) -> Tensor:
    """Return the latent after steps of Adam down 2 MSE + 0.5 LPIPS of the decoded frame: what must not be done."""
    import torch

    from player.decoder import from_pixels
    from player.quality.lpips import sum_of_means

    target = from_pixels(frame[None])
    moved = latent.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=step_size)
    for _ in range(steps):
        output = generator.decode_latents(moved)
        perceptual = sum_of_means(network.tap_maps(target, output)).sum()
        loss = _PIXEL_WEIGHT * (output - target).square().mean() + _LPIPS_WEIGHT * perceptual
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return moved.detach()


def code_h265(segment: np.ndarray, bitrate_bps: int) -> tuple[np.ndarray, float]:
    """Return the frames that decode from a segment in H.265, and its bitrate in bit/s with every byte counted."""
    from packager.baselines import INIT_NAME, SEGMENT_PATTERN, encode_video
    from packager.video_encoders import H265, VideoStream
    from player.decoder import VideoDecoder

    height, width = segment.shape[1:3]
    stream = VideoStream(width, height, Fraction(_FPS), len(segment))
    with tempfile.TemporaryDirectory(prefix="promptdash-") as scratch:
        coded = encode_video(H265, lambda: segment, stream, bitrate_bps=bitrate_bps, folder=Path(scratch))
        decoder = VideoDecoder(Path(scratch, INIT_NAME).read_bytes())
        return decoder.decode(Path(scratch, SEGMENT_PATTERN.format(1)).read_bytes()), coded.bitrate_bps


def _scores(frame: np.ndarray, pixels: np.ndarray, metrics: list[Metric]) -> dict[str, float]:
    return {metric.name: float(metric(frame[None], pixels[None])[0]) for metric in metrics}


def table(candidates: list[Candidate]) -> str:
    """Return the scores as a Markdown table."""
    from experiments.series import METRICS as STYLES

    lines = ["| | " + " | ".join(STYLES[name].title for name in METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for one in candidates[1:]:
        cells = (f"{one.scores[name]:.{STYLES[name].digits}f}" for name in METRICS)
        lines.append(f"| {one.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(candidates: list[Candidate], path: Path) -> None:
    """Write the versions side by side, twice their size, with their scores below."""
    import matplotlib.pyplot as plt

    from experiments.paper import PAGE_IN, paper_style

    with paper_style():
        figure, axes = plt.subplots(1, len(candidates), figsize=(PAGE_IN, 2.15), layout="constrained")
        for one, axis in zip(candidates, axes, strict=True):
            axis.imshow(one.pixels, interpolation="lanczos")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            axis.set_title(one.title, fontsize=7)
            if one is not candidates[0]:
                lpips, ssimulacra2 = one.scores["lpips_squeeze"], one.scores["ssimulacra2"]
                axis.set_xlabel(f"LPIPS {lpips:.3f}, SSIMULACRA2 {ssimulacra2:.1f}", fontsize=7)
        figure.savefig(path, dpi=200, pil_kwargs={"quality": _JPEG_QUALITY})
        plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
