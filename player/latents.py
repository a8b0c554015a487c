"""The codec `vae`: an autoencoder's latents of every frame, quantized. Loads autoencoders, and decodes their streams.

An autoencoder is the `vae/` part of a generator's folder or such a folder itself: `AutoencoderTiny` or `AutoencoderKL`
of diffusers, or this project's `LatentDecoder`, whose encoder lies beside it in `encoder/latent_encoder/`. `embedded`
has weights of its own (`weights/embedded_vae`): the embedded generator's decoder was trained on from where its encoder
stood, behind the UNet, and decodes that encoder's latents no longer.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from player.autoencoder import LatentDecoder, LatentEncoder
from player.errors import DecodeError, GeneratorError, GeneratorMismatchError
from player.generator import EMBEDDED, find_folder, resolve_device
from player.latent_stream import LatentInfo, read_init, read_segment
from player.pixels import to_pixels

EMBEDDED_AUTOENCODER = Path(__file__).parent / "weights" / "embedded_vae"
_BATCH = 16  # frames at a time, which bounds memory
_CLASSES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL, "LatentDecoder": LatentDecoder}


class Autoencoder(nn.Module):
    """Frames to latents and back.

    Attributes:
        id: name and a digest of the weights; streams name it.
        channels: C of the latents.
        factor: pixels a side of one latent cell.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module | None, *, identity: str) -> None:
        """Take a decoder, or a diffusers autoencoder that is both; `encoder` is a LatentDecoder's other half."""
        super().__init__()
        self.model, self.encoder, self.id = model, encoder, identity
        config = model.config
        self.channels = int(config["latent_channels"])
        blocks = config.get("decoder_block_out_channels") or config.get("block_out_channels")
        self.factor = 2 ** (len(blocks) - 1 if blocks else len(config["widths"]))

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Return latents float32 [T, C, H / factor, W / factor] of frames [T, 3, H, W] in [-1, 1], on the CPU.

        Raises:
            GeneratorError: only the decoder is at hand.
        """
        return torch.cat([self._encode(part.to(self.device)).float().cpu() for part in frames.split(_BATCH)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return frames float32 [T, 3, H, W], nominally in [-1, 1], of latents [T, C, h, w], on the CPU."""
        return torch.cat([self._decode(part.to(self.device)).float().cpu() for part in latents.split(_BATCH)])

    def _encode(self, frames: Tensor) -> Tensor:
        if isinstance(self.model, LatentDecoder):
            if self.encoder is None:
                raise GeneratorError(f"autoencoder {self.id}: its encoder (encoder/latent_encoder) is not at hand")
            return self.encoder(frames)
        found = self.model.encode(frames)
        # KL: the distribution's mode; both: scaled to about unit variance, as diffusion models take them
        latents = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return latents * self.model.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        if isinstance(self.model, LatentDecoder):
            return self.model(latents)
        return self.model.decode(latents / self.model.config.scaling_factor, return_dict=False)[0]


def find_autoencoder(spec: str) -> Path:
    """Return the local folder of what `load_autoencoder` loads; GeneratorError if there is none."""
    return EMBEDDED_AUTOENCODER if spec == EMBEDDED else find_folder(spec)


def load_autoencoder(spec: str, *, device: str = "auto") -> Autoencoder:
    """Load an autoencoder.

    Args:
        spec: `embedded`, a generator's folder or an autoencoder's, or a hub id such as `madebyollin/taesd`.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.

    Raises:
        GeneratorError: nothing of that name, files missing or damaged, or another kind of model.
    """
    folder = find_autoencoder(spec)
    vae = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        name = json.loads((vae / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise GeneratorError(f"{vae}: no autoencoder, its config.json cannot be read ({error})") from error
    if name not in _CLASSES:
        raise GeneratorError(f"{vae}: found a {name}, expected one of {', '.join(_CLASSES)}")
    beside = folder / "encoder" / "latent_encoder"
    model = _load(_CLASSES[name], vae)
    encoder = _load(LatentEncoder, beside) if name == "LatentDecoder" and beside.is_dir() else None
    label = Path(spec).name if Path(spec).is_dir() else spec
    autoencoder = Autoencoder(model, encoder, identity=f"{label}-vae-{_digest(vae)}")
    return autoencoder.eval().requires_grad_(False).to(resolve_device(device), memory_format=torch.channels_last)


class LatentStreamDecoder:
    """Decodes segments of quantized latents with an autoencoder."""

    def __init__(self, init: bytes, autoencoder: Autoencoder) -> None:
        """Read the init segment; raise GeneratorMismatchError if its latents belong to another autoencoder."""
        self.info: LatentInfo = read_init(init)
        self.autoencoder = autoencoder
        info = self.info
        if info.autoencoder_id != autoencoder.id:
            raise GeneratorMismatchError(
                f"latents of autoencoder {info.autoencoder_id}, but {autoencoder.id} is loaded"
            )
        covered = (info.grid_width * autoencoder.factor, info.grid_height * autoencoder.factor)
        if info.channels != autoencoder.channels:
            found = f"latents of {info.channels} channels"
            raise GeneratorMismatchError(f"{found}, but {autoencoder.id} has {autoencoder.channels}")
        if info.picture_width > covered[0] or info.picture_height > covered[1]:
            raise GeneratorMismatchError(
                f"latents that cover {covered[0]}x{covered[1]} pixels of a picture of "
                f"{info.picture_width}x{info.picture_height}"
            )

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment at the display size."""
        return render_codes(self.info, read_segment(self.info, segment), self.autoencoder)


def render_codes(info: LatentInfo, codes: np.ndarray, autoencoder: Autoencoder) -> np.ndarray:
    """Return the frames uint8 [T, H, W, 3] of codes int16 [T, C, h, w].

    Raises:
        DecodeError: the autoencoder made values that are no numbers.
    """
    frames = autoencoder.decode(torch.from_numpy(codes.astype(np.float32) * np.float32(info.step)))
    frames = frames[:, :, : info.picture_height, : info.picture_width]
    size = (info.display_height, info.display_width)
    if frames.shape[2:] != size:
        frames = nn.functional.interpolate(frames, size, mode="bicubic", align_corners=False)
    if not torch.isfinite(frames).all():
        raise DecodeError(f"autoencoder {autoencoder.id} rendered values that are not finite")
    return to_pixels(frames).contiguous().numpy()


def _load(kind: type, folder: Path) -> nn.Module:
    # without low_cpu_mem_usage, diffusers asks for the accelerate package, which nothing here needs
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        raise GeneratorError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from error


def _digest(folder: Path) -> str:
    """Return 12 hex digits over every file of the autoencoder's folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
