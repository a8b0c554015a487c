"""A generator: the embedded one's architecture, small and untrained, so it renders noise. Yours brings its weights.

A package that ships the folder names it instead: FOLDER = Path(__file__).parent / "weights".
"""

import os
from pathlib import Path

import torch

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def folder():
    """Return the folder in diffusers layout, made on first use."""
    from experiments.train_models import TrainConfig, make_models
    from player.autoencoder import LatentDecoder

    path = CACHE / "promptdash-example" / "noise"
    if not (path / "promptdash.json").exists():
        config = TrainConfig(size=64, rank=4, width=16, latent_channels=8, unet_widths=(32, 32))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = make_models(config).generator
            generator.decoder = LatentDecoder(8, widths=(16, 8, 8, 8), blocks=(1, 1, 0, 0))
        generator.save(path)
    return path
