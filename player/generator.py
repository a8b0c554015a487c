"""Generators: cross-attention embeddings in, frames out, in one denoising step.

A generator is a folder (or hub id) in diffusers layout: `unet/`, `vae/` and `scheduler/`, and, for models trained by
this project, `promptdash.json` and `promptdash.safetensors` with what the prompts stand on. One class serves the
embedded model, SD-Turbo and the random models of the tests.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from player.autoencoder import LatentDecoder
from player.errors import GeneratorError
from player.model_files import EMBEDDED as EMBEDDED
from player.model_files import EMBEDDED_FOLDER as EMBEDDED_FOLDER
from player.model_files import (
    SETTINGS_FILE,
    TENSORS_FILE,
    cast,
    check_memory,
    digest,
    label,
    load_decoder,
    load_unet,
    quiet_diffusers,
)
from player.model_files import find_folder as find_folder
from player.model_files import resolve_device as resolve_device
from player.model_files import resolve_dtype as resolve_dtype
from player.one_step import GeneratorSettings as GeneratorSettings
from player.one_step import check_unet, load_prompt_space
from player.one_step import one_step_constants as one_step_constants
from player.prompt import PromptSpace

if TYPE_CHECKING:
    from player.engine import Engine, RenderOptions

log = logging.getLogger(__name__)

MAX_TOKENS = 1 << 16
"""Tokens of the largest frame that `Generator.at_size` allows: 4096x4096 pixels at 16 pixels a token."""
_ADDED = ("text_embeds", "time_ids")  # SDXL's conditions beside the embedding


class Generator(nn.Module):
    """A one-step latent diffusion model driven by prompts.

    Attributes:
        id: name and a digest of everything that decides what it renders; segments name it.
        tokens, width: L and D of the embeddings.
        max_rank: largest rank that a prompt for it can have.
        native_size: (height, width) of its frames in pixels.
        step_scale: [R], the unit of each component of U: quantization steps in proportion to it cost equal errors.
        folder: where it was loaded from.
        options: how it renders; None: as `player.engine.RenderOptions` has it.
        engine: what renders with it, made by `player.engine.engine_of`.
    """

    step_scale: Tensor
    timestep: Tensor

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
        layout [C, D] (a 1x1 convolution that lays the tokens on the latent grid), step_scale [R], and what SDXL's UNets
        take beside the embedding, text_embeds [P] and time_ids [6]."""
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
        # a tensor, so that it lies on the device: CUDA graphs cannot copy from the host
        self.register_buffer("timestep", torch.tensor(settings.timestep), persistent=False)
        for name in _ADDED:
            self.register_buffer(name, tensors[name].float() if name in tensors else None)
        self.id = identity
        self.folder = folder
        self.options: RenderOptions | None = None
        self.engine: Engine | None = None
        self.tokens, self.width, self.max_rank = settings.tokens, settings.width, settings.max_rank
        _, height, width = self.start_latent.shape
        factor = _upsampling(decoder)
        self.native_size = (height * factor, width * factor)

    def __getstate__(self) -> dict[str, object]:
        """Leave the engine behind: it is made of this, and its graphs live in one process."""
        return self.__dict__ | {"engine": None}

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
        tensors |= {name: getattr(self, name) for name in _ADDED if getattr(self, name) is not None}
        settings = replace(self.settings, tokens=grid[0] * grid[1], grid=grid)
        with torch.no_grad():
            resized = Generator(self.unet, self.decoder, settings, tensors, identity=self.id, folder=self.folder)
        resized.options = self.options
        return resized.to(self.device).train(self.training).requires_grad_(self.base.requires_grad)

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return next(self.unet.parameters()).dtype

    def denoise(self, embeddings: Tensor, start: Tensor | None = None, unet: nn.Module | None = None) -> Tensor:
        """Return the clean latents [T, C, h, w] that embeddings [T, L, D] describe; one evaluation of the UNet.

        Args:
            start: the latent [C, h, w] of all, or [T, C, h, w] of each, to start from; default: the generator's own.
            unet: as of `predict`.
        """
        embeddings = embeddings.to(self.dtype)
        latents = self.start(embeddings, start)
        return self.combine(latents, self.predict(latents, embeddings, unet))

    def start(self, embeddings: Tensor, start: Tensor | None = None) -> Tensor:
        """Return what the UNet starts from [T, C, h, w], in the embeddings' dtype; arguments as of `denoise`."""
        start = (self.start_latent if start is None else start).to(embeddings.dtype)
        latents = start.expand(embeddings.shape[0], *start.shape[-3:])
        if self.layout is not None:
            rows, columns = self.settings.grid
            grid = (embeddings @ self.layout.to(embeddings.dtype).T).transpose(1, 2)  # [T, C, L]
            latents = latents + grid.unflatten(2, (rows, columns))
        return latents.contiguous(memory_format=torch.channels_last)

    def predict(self, latents: Tensor, conditions: Tensor, unet: nn.Module | None = None) -> Tensor:
        """Return the UNet's output [T, C, h, w] for latents likewise.

        Args:
            conditions: what its cross-attention sees; the embeddings [T, L, D].
            unet: evaluated instead of the generator's own (player.engine).
        """
        found = {name: getattr(self, name) for name in _ADDED}
        added = {name: value.expand(len(latents), -1) for name, value in found.items() if value is not None}
        evaluate = unet or self.unet
        return evaluate(latents, self.timestep, conditions, added_cond_kwargs=added or None, return_dict=False)[0]

    def combine(self, latents: Tensor, output: Tensor) -> Tensor:
        """Return the clean latents float32 of a UNet's input and output."""
        # the very latents that the UNet saw: what it predicts of their rounding cancels here
        return self.settings.c_out * output.float() + self.settings.c_skip * latents.float()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return frames [T, 3, H, W] of latents [T, C, h, w]."""
        latents = latents.to(next(self.decoder.parameters()).dtype)
        if isinstance(self.decoder, LatentDecoder):
            return self.decoder(latents)
        scaling = self.decoder.config.scaling_factor
        return self.decoder.decode(latents / scaling, return_dict=False)[0]

    def generate(self, embeddings: Tensor, start: Tensor | None = None, unet: nn.Module | None = None) -> Tensor:
        """Render frames [T, 3, H, W], nominally in [-1, 1], of embeddings [T, L, D]; differentiable.

        `start` and `unet` are as for `denoise`.
        """
        return self.decode_latents(self.denoise(embeddings, start, unet))

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the generator in diffusers layout; weights in `dtype`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("unet", self.unet), ("vae", self.decoder)):
            cast(part, dtype).save_pretrained(folder / name)
            part.float()
        tensors = {"base": self.base, "dictionary": self.dictionary, "start_latent": self.start_latent}
        if self.layout is not None:
            tensors["layout"] = self.layout
        tensors["step_scale"] = self.step_scale
        tensors |= {name: getattr(self, name) for name in _ADDED if getattr(self, name) is not None}
        save_file({k: v.detach().to(dtype).contiguous().cpu() for k, v in tensors.items()}, folder / TENSORS_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")


def load_generator(spec: str, *, decoder: str | None = None, device: str = "auto", dtype: str = "auto") -> Generator:
    """Load a generator.

    Args:
        spec: `embedded`, a folder in diffusers layout, or a hub id such as `stabilityai/sd-turbo`.
        decoder: folder or hub id of another latent decoder, such as `madebyollin/taesd`; default: the model's own.
        device: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`...
        dtype: `auto` (float32 on a CPU, float16 on CUDA), `float32`, `float16`, `bfloat16`.

    Raises:
        GeneratorError: nothing of that name here or on the hub, files missing, an architecture that is no one-step
            UNet with cross-attention, a decoder of other latents, or too little memory.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    with quiet_diffusers():
        folder = find_folder(spec)
        other = find_folder(decoder) if decoder else None
        unet = load_unet(folder, spec)
        check_unet(unet.config, str(folder / "unet"))
        vae = load_decoder(other or folder, decoder or spec)
        _check_channels(unet, vae, decoder or spec)
        side = unet.config["sample_size"]
        settings, tensors = load_prompt_space(folder, unet.config, _upsampling(vae) * side if side else 0)
        generator = Generator(
            unet, vae, settings, tensors, identity=f"{label(spec)}-{digest(folder, other)}", folder=folder
        )
    check_memory(sum(p.numel() for p in generator.parameters()), precision, where, spec)
    generator.eval().requires_grad_(False)
    set_precision(generator, precision)
    try:
        return generator.to(where).to(memory_format=torch.channels_last)
    except torch.OutOfMemoryError as error:
        raise GeneratorError(f"generator {spec!r}: its weights do not fit the memory that {where} has free") from error


def set_precision(generator: Generator, dtype: torch.dtype) -> None:
    """Let the networks compute in a dtype, their last layers in float32.

    The step multiplies the UNet's output by c_out (14.6 for SD-Turbo) and most of that cancels against c_skip times the
    start latent, so a rounded output would be 14.6 times as wrong in the latent. Autoencoders that overflow float16
    (`force_upcast`, as SDXL's) take bfloat16 instead, or float32 where the device has no bfloat16.
    """
    decoder_dtype, full = dtype, isinstance(generator.decoder, AutoencoderKL)
    if dtype == torch.float16 and full and generator.decoder.config.force_upcast:
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        decoder_dtype = torch.bfloat16 if fast else torch.float32
    cast(generator.unet, dtype)
    cast(generator.decoder, decoder_dtype)
    last = [generator.unet.conv_out]
    if full:
        last.append(generator.decoder.decoder.conv_out)
    for layer in last:
        layer.float()
        if dtype != torch.float32 and not layer._forward_pre_hooks:
            layer.register_forward_pre_hook(_to_own_dtype)


def _to_own_dtype(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(layer.weight.dtype),)


def _check_channels(unet: nn.Module, decoder: nn.Module, spec: str) -> None:
    found, expected = decoder.config["latent_channels"], unet.config["in_channels"]
    if found != expected:
        raise GeneratorError(f"decoder {spec!r}: decodes latents of {found} channels, but the UNet makes {expected}")


def _upsampling(decoder: nn.Module) -> int:
    """Return how many pixels a side of one latent cell a decoder makes."""
    if isinstance(decoder, LatentDecoder):
        return 2 ** len(decoder.config["widths"])
    channels = decoder.config.get("decoder_block_out_channels") or decoder.config["block_out_channels"]
    return 2 ** (len(channels) - 1)
