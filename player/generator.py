"""Generators: cross-attention embeddings in, frames out, in one denoising step.

A generator is a folder (or hub id) in diffusers layout: `unet/`, `vae/` and `scheduler/`, and, for models trained by
this project, `promptdash.json` and `promptdash.safetensors` with what the prompts stand on. One class serves the
embedded model, SD-Turbo and the random models of the tests.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from player.autoencoder import LatentDecoder
from player.errors import GeneratorError
from player.generators import known_generators, plugin_folder
from player.prompt import PromptSpace

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "weights" / "embedded"
FORMAT_VERSION = 1
# Of the published system (Promptus, github.com/JiangkaiWu/Promptus): the seed of its noise, its single timestep and
# CLIP's number of tokens.
PAPER_SEED = 88
PAPER_TIMESTEP = 999
CLIP_TOKENS = 77
MAX_TOKENS = 1 << 16
"""Tokens of the largest frame that `Generator.at_size` allows: 4096x4096 pixels at 16 pixels a token."""
_SETTINGS, _TENSORS = "promptdash.json", "promptdash.safetensors"
_DECODERS = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL, "LatentDecoder": LatentDecoder}


@dataclass(frozen=True)
class GeneratorSettings:
    """What a generator needs beside its networks; stored as `promptdash.json`.

    c_skip and c_out are the one-step preconditioning, denoised = c_out * unet(x) + c_skip * x (Karras et al. 2022,
    section 5, with x the already scaled input).
    """

    tokens: int
    width: int
    max_rank: int
    grid: tuple[int, int]  # rows and columns the tokens are laid out in; (0, 0) if they have no layout
    timestep: int
    c_skip: float
    c_out: float
    norm_rank: int = 0  # what U V is divided by the square root of; 0: the rank of the fit (Promptus)
    version: int = FORMAT_VERSION


class Generator(nn.Module):
    """A one-step latent diffusion model driven by prompts.

    Attributes:
        id: name and a digest of everything that decides what it renders; segments name it.
        tokens, width: L and D of the embeddings.
        max_rank: largest rank that a prompt for it can have.
        native_size: (height, width) of its frames in pixels.
        step_scale: [R], the unit of each component of U: quantization steps in proportion to it cost equal errors.
        folder: where it was loaded from.
    """

    step_scale: Tensor

    def __init__(
        self,
        unet: nn.Module,
        decoder: nn.Module,
        settings: GeneratorSettings,
        tensors: dict[str, Tensor],
        *,
        identity: str,
        folder: Path | None = None,
    ) -> None:
        """Assemble from parts; `tensors` holds base [L, D], dictionary [R, D], start_latent [C, h, w], and optionally
        layout [C, D] (a 1x1 convolution that lays the tokens on the latent grid) and step_scale [R]."""
        super().__init__()
        self.unet = unet
        self.decoder = decoder
        self.settings = settings
        self.base = nn.Parameter(tensors["base"].float())
        self.dictionary = nn.Parameter(tensors["dictionary"].float())
        self.start_latent = nn.Parameter(tensors["start_latent"].float())
        self.layout = nn.Parameter(tensors["layout"].float()) if "layout" in tensors else None
        steps = tensors["step_scale"].float() if "step_scale" in tensors else torch.ones(settings.max_rank)
        self.register_buffer("step_scale", steps)
        self.id = identity
        self.folder = folder
        self.tokens, self.width, self.max_rank = settings.tokens, settings.width, settings.max_rank
        _, height, width = self.start_latent.shape
        factor = _upsampling(decoder)
        self.native_size = (height * factor, width * factor)

    @property
    def device(self) -> torch.device:
        """Where the generator's parameters lie."""
        return self.base.device

    @property
    def space(self) -> PromptSpace:
        """What prompts are composed with."""
        return PromptSpace(self.base, self.dictionary)

    def norm_rank(self, rank: int) -> int:
        """Return the norm_rank of a fit whose largest rank is `rank`: the generator's own if it has one."""
        return self.settings.norm_rank or rank

    @property
    def cell_px(self) -> int:
        """Side in pixels of the square of a frame that one token lies on; 0 if the tokens have no layout."""
        return self.native_size[0] // self.settings.grid[0] if self.settings.grid[0] else 0

    def at_size(self, height: int, width: int) -> Generator:
        """Return this generator for frames of another size, sharing its networks.

        Token grid, base and start latent are stretched bilinearly, which their sinusoids allow; the weights are the
        same, and so is `id`.

        Raises:
            GeneratorError: sides that are no multiple of a latent cell's, or tokens that are not laid out in a grid.
        """
        if (height, width) == self.native_size:
            return self
        rows, columns = self.settings.grid
        cell = self.cell_px
        if not cell:
            native = "x".join(str(side) for side in reversed(self.native_size))
            raise GeneratorError(f"frames of {width}x{height}: generator {self.id} makes {native} only")
        if height % cell or width % cell or min(height, width) < cell:
            raise GeneratorError(f"frames of {width}x{height}: expected sides that are multiples of {cell} pixels")
        grid = (height // cell, width // cell)
        if grid[0] * grid[1] > MAX_TOKENS:
            raise GeneratorError(f"frames of {width}x{height} have more than {MAX_TOKENS} tokens")

        def stretch(maps: Tensor) -> Tensor:
            return nn.functional.interpolate(maps[None], size=grid, mode="bilinear", align_corners=False)[0]

        tensors = {
            "base": stretch(self.base.T.unflatten(1, (rows, columns))).flatten(1).T,
            "dictionary": self.dictionary,
            "start_latent": stretch(self.start_latent),
            "step_scale": self.step_scale,
        }
        if self.layout is not None:
            tensors["layout"] = self.layout
        settings = replace(self.settings, tokens=grid[0] * grid[1], grid=grid)
        with torch.no_grad():
            resized = Generator(self.unet, self.decoder, settings, tensors, identity=self.id, folder=self.folder)
        return resized.to(self.device).train(self.training).requires_grad_(self.base.requires_grad)

    def denoise(self, embeddings: Tensor) -> Tensor:
        """Return the clean latents [T, C, h, w] that embeddings [T, L, D] describe; one evaluation of the UNet."""
        embeddings = embeddings.to(next(self.unet.parameters()).dtype)
        start = self.start_latent.to(embeddings.dtype)
        latents = start.expand(embeddings.shape[0], *start.shape)
        if self.layout is not None:
            rows, columns = self.settings.grid
            grid = (embeddings @ self.layout.to(embeddings.dtype).T).transpose(1, 2)  # [T, C, L]
            latents = latents + grid.unflatten(2, (rows, columns))
        latents = latents.contiguous(memory_format=torch.channels_last)
        output = self.unet(latents, self.settings.timestep, embeddings, return_dict=False)[0]
        return self.settings.c_out * output + self.settings.c_skip * latents

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return frames [T, 3, H, W] of latents [T, C, h, w]."""
        if isinstance(self.decoder, LatentDecoder):
            return self.decoder(latents)
        scaling = self.decoder.config.scaling_factor
        return self.decoder.decode(latents / scaling, return_dict=False)[0]

    def generate(self, embeddings: Tensor) -> Tensor:
        """Render frames [T, 3, H, W], nominally in [-1, 1], of embeddings [T, L, D]; differentiable."""
        return self.decode_latents(self.denoise(embeddings))

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the generator in diffusers layout; weights in `dtype`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("unet", self.unet), ("vae", self.decoder)):
            part.to(dtype).save_pretrained(folder / name)
            part.float()
        tensors = {"base": self.base, "dictionary": self.dictionary, "start_latent": self.start_latent}
        if self.layout is not None:
            tensors["layout"] = self.layout
        tensors["step_scale"] = self.step_scale
        save_file({k: v.detach().to(dtype).contiguous().cpu() for k, v in tensors.items()}, folder / _TENSORS)
        (folder / _SETTINGS).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")


def _upsampling(decoder: nn.Module) -> int:
    """Return how many pixels a side of one latent cell a decoder makes."""
    if isinstance(decoder, LatentDecoder):
        return 2 ** len(decoder.config["widths"])
    channels = decoder.config.get("decoder_block_out_channels") or decoder.config["block_out_channels"]
    return 2 ** (len(channels) - 1)


def load_generator(spec: str, *, decoder: str | None = None, device: str = "auto", dtype: str = "auto") -> Generator:
    """Load a generator.

    Args:
        spec: `embedded`, a folder in diffusers layout, or a hub id such as `stabilityai/sd-turbo`.
        decoder: folder or hub id of another latent decoder, such as `madebyollin/taesd`; default: the model's own.
        device: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`...
        dtype: `auto` (float32 on a CPU, float16 on CUDA), `float32`, `float16`, `bfloat16`.

    Raises:
        GeneratorError: nothing of that name here or on the hub, files missing, or an architecture that is no
            one-step UNet with cross-attention.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    with _quiet_diffusers():
        folder = find_folder(spec)
        unet = _load_unet(folder, spec)
        vae = _load_decoder(find_folder(decoder) if decoder else folder, decoder or spec)
        settings, tensors = _load_prompt_space(folder, unet)
        identity = f"{Path(spec).name if Path(spec).is_dir() else spec}-{_digest(folder, decoder)}"
        generator = Generator(unet, vae, settings, tensors, identity=identity, folder=folder)
        generator.unet.to(precision)
        generator.decoder.to(precision)
    generator.eval().requires_grad_(False)
    return generator.to(where).to(memory_format=torch.channels_last)


def resolve_device(device: str) -> torch.device:
    """Return the device a user's word means; `auto` is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise GeneratorError(f"device {device!r} is not known: expected auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise GeneratorError(f"device {device!r} was asked for, but this machine has no CUDA device")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype a user's word means; `auto` is float32 on a CPU and float16 on CUDA."""
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in known:
        raise GeneratorError(f"dtype {dtype!r} is not known: expected auto, {', '.join(known)}")
    return known[dtype]


def find_folder(spec: str) -> Path:
    """Return the local folder of a generator, downloading a hub id if need be."""
    if spec == EMBEDDED:
        return EMBEDDED_FOLDER
    if (offered := plugin_folder(spec)) is not None:
        return offered
    if Path(spec).is_dir():
        return Path(spec)
    if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
        known = ", ".join(known_generators())
        raise GeneratorError(f"generator {spec!r}: no such folder; expected {known}, a folder or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["unet/*", "vae/*", "scheduler/*", "promptdash.*", "config.json", "*.safetensors"]
    try:
        return Path(snapshot_download(spec, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "sd_turbo*"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GeneratorError(
            f"generator {spec!r}: not on this machine and not to be had from the hub ({reason})"
        ) from error


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Hold back diffusers' remarks on casting; what matters is raised."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _read_json(path: Path, spec: str) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise GeneratorError(f"generator {spec!r}: {path} is missing") from error
    except (OSError, json.JSONDecodeError) as error:
        raise GeneratorError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise GeneratorError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def _load_part(kind: Any, folder: Path) -> nn.Module:
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise GeneratorError(f"{folder}: cannot be loaded ({str(error).strip().splitlines()[0]})") from error


def _load_unet(folder: Path, spec: str) -> UNet2DConditionModel:
    config = _read_json(folder / "unet" / "config.json", spec)
    name = config.get("_class_name")
    if name != "UNet2DConditionModel":
        raise GeneratorError(f"{folder / 'unet'}: found a {name}, expected a UNet2DConditionModel")
    return _load_part(UNet2DConditionModel, folder / "unet")


def _load_decoder(folder: Path, spec: str) -> nn.Module:
    vae = folder / "vae" if (folder / "vae").is_dir() else folder
    name = _read_json(vae / "config.json", spec).get("_class_name")
    if name not in _DECODERS:
        raise GeneratorError(f"{vae}: found a {name}, expected one of {', '.join(_DECODERS)}")
    return _load_part(_DECODERS[name], vae)


def _load_prompt_space(folder: Path, unet: UNet2DConditionModel) -> tuple[GeneratorSettings, dict[str, Tensor]]:
    if not (folder / _SETTINGS).is_file():
        return _published_prompt_space(folder, unet)
    found = _read_json(folder / _SETTINGS, str(folder))
    if found.get("version") != FORMAT_VERSION:
        raise GeneratorError(f"{folder / _SETTINGS}: version {found.get('version')}, this build reads {FORMAT_VERSION}")
    try:
        found["grid"] = tuple(found["grid"])
        settings = GeneratorSettings(**found)
        tensors = load_file(folder / _TENSORS)
    except (KeyError, TypeError, OSError, SafetensorError) as error:
        raise GeneratorError(f"{folder}: {_SETTINGS} or {_TENSORS} cannot be read ({error})") from error
    expected: dict[str, tuple[int, ...]] = {
        "base": (settings.tokens, settings.width),
        "dictionary": (settings.max_rank, settings.width),
    }
    if "step_scale" in tensors:
        expected["step_scale"] = (settings.max_rank,)
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise GeneratorError(f"{folder / _TENSORS}: expected {name} of shape {shape}")
    return settings, tensors


def _published_prompt_space(folder: Path, unet: UNet2DConditionModel) -> tuple[GeneratorSettings, dict[str, Tensor]]:
    """Return the published system's settings for a plain diffusers model: no base, no dictionary, seeded noise."""
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", str(folder))
    c_skip, c_out = one_step_constants(scheduler)
    width = unet.config["cross_attention_dim"]
    if not isinstance(width, int):
        raise GeneratorError(f"{folder / 'unet'}: cross_attention_dim is {width!r}, expected one width")
    channels, size = unet.config["in_channels"], unet.config["sample_size"]
    max_rank = min(CLIP_TOKENS, width)
    settings = GeneratorSettings(CLIP_TOKENS, width, max_rank, (0, 0), PAPER_TIMESTEP, c_skip, c_out)
    noise = np.random.RandomState(PAPER_SEED).randn(1, channels, size, size)[0]
    tensors = {
        "base": torch.zeros(CLIP_TOKENS, width),
        "dictionary": torch.zeros(max_rank, width),
        "start_latent": torch.from_numpy(noise).float(),
    }
    return settings, tensors


def one_step_constants(scheduler: dict, timestep: int = PAPER_TIMESTEP) -> tuple[float, float]:
    """Return (c_skip, c_out) of one denoising step from `timestep`, with x the scaled input.

    With a = alphas_cumprod[timestep]: epsilon prediction gives denoised = x / sqrt(a) - sqrt((1 - a) / a) unet(x).
    For SD-Turbo that is c_in = sqrt(a) = 0.0683 and c_out = -14.6146, the published system's constants.
    """
    kind = scheduler.get("prediction_type", "epsilon")
    if kind == "sample":
        return 0.0, 1.0
    if kind != "epsilon":
        raise GeneratorError(f"prediction_type {kind!r} is not supported: expected epsilon or sample")
    steps = scheduler.get("num_train_timesteps", 1000)
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    schedule = scheduler.get("beta_schedule", "linear")
    if schedule == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float32)
    else:
        raise GeneratorError(f"beta_schedule {schedule!r} is not supported: expected linear or scaled_linear")
    alpha = torch.cumprod(1 - betas, dim=0)[timestep].item()
    return 1 / alpha**0.5, -(((1 - alpha) / alpha) ** 0.5)


def _digest(folder: Path, decoder: str | None) -> str:
    """Return 12 hex digits over every file that decides what a generator renders."""
    digest = hashlib.sha256((decoder or "").encode())
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if relative.parts[0] in {"unet", "vae", "scheduler", _SETTINGS, _TENSORS} and file.is_file():
            digest.update(str(relative).encode())
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 22), b""):
                    digest.update(block)
    return digest.hexdigest()[:12]
