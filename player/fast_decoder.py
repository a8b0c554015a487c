"""The second stage of two-stage rendering: a small network that ends a decoder early, at a low resolution.

PromptMobile (arXiv 2503.16112) renders small and enlarges in a cheaper stage. Most of `LatentDecoder`'s time goes into
its high resolutions, so here it is stopped where its maps are small, and two convolutions make the picture of them.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from player.autoencoder import LatentDecoder
from player.errors import GeneratorError

FOLDER = "fast_decoder"
"""Where a generator's folder has one; what the generator's id says does not depend on it."""


class FastTail(ModelMixin, ConfigMixin):
    """Maps [N, channels, h, w] of a decoder's stage -> frames [N, 3, factor h, factor w]."""

    @register_to_config
    def __init__(self, stage: int = 1, channels: int = 96, hidden: int = 36, factor: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, 3 * factor**2, 3, padding=1),
            nn.PixelShuffle(factor),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return frames, nominally in [-1, 1]."""
        return self.body(maps)


class FastDecoder(nn.Module):
    """A `LatentDecoder` up to a stage, and a tail instead of the rest."""

    def __init__(self, decoder: LatentDecoder, tail: FastTail) -> None:
        super().__init__()
        self.head = decoder.body[: stage_start(decoder, tail.config["stage"])]
        self.tail = tail

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [N, C, h, w] to frames [N, 3, H, W] of the decoder's own size."""
        return self.tail(self.head(latents))


def stage_start(decoder: LatentDecoder, stage: int) -> int:
    """Return the index in a decoder's body of the first layer of a stage; each stage has twice the resolution."""
    return 1 + sum(count + 2 for count in decoder.config["blocks"][:stage])


def new_tail(decoder: LatentDecoder, stage: int, hidden: int) -> FastTail:
    """Return an untrained tail for a stage of a decoder."""
    widths = decoder.config["widths"]
    return FastTail(stage, widths[stage], hidden, 2 ** (len(widths) - stage))


def load_fast_decoder(decoder: nn.Module, folder: Path | None) -> FastDecoder:
    """Return the fast decoder that lies in a generator's folder.

    Raises:
        GeneratorError: there is none, or it does not belong to this decoder.
    """
    if folder is None or not (folder / FOLDER).is_dir() or not isinstance(decoder, LatentDecoder):
        raise GeneratorError(
            f"two_stage: generator {folder} has no {FOLDER}, which `python -m experiments.train_fast_decoder` makes"
        )
    try:
        tail = FastTail.from_pretrained(folder / FOLDER, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise GeneratorError(f"{folder / FOLDER}: cannot be loaded ({str(error).splitlines()[0]})") from error
    stage, widths = tail.config["stage"], decoder.config["widths"]
    if not 0 <= stage < len(widths) or tail.config["channels"] != widths[stage]:
        raise GeneratorError(f"{folder / FOLDER}: made for stage {stage} of another decoder than one of {widths}")
    return FastDecoder(decoder, tail)
