"""Where a fit starts: an encoder's prompt, the generator's empty prompt and a low-rank term, or noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from packager.encoder import PromptEncoder
from packager.errors import BuildError
from player.errors import GeneratorError
from player.generator import Generator
from player.model_files import find_folder, first_line, label

if TYPE_CHECKING:
    from packager.fit_config import FitConfig

AUTO, ENCODER, EMPTY, RANDOM = STARTS = ("auto", "encoder", "empty", "random")
_LOW_RANK_TERM = 0.1  # standard deviation of what is added to the empty prompt's factors
_TEXT_PARTS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


@torch.no_grad()
def first_prompts(
    key_frames: Tensor, generator: Generator, encoder: PromptEncoder | None, config: FitConfig, rank: int
) -> tuple[Tensor, Tensor]:
    """Return the first u [K, L, R], v [K, R, D] of key frames [K, 3, H, W].

    Raises:
        BuildError: the fit asks for an encoder, or for a text encoder to make an empty prompt with, that is not there.
    """
    start = config.start if config.start != AUTO else ENCODER if encoder is not None else RANDOM
    if start == ENCODER:
        if encoder is None:
            raise BuildError(f"fit.start=encoder: generator {generator.id} has no encoder")
        u, v = encoder(key_frames)
        return u[..., :rank].clone(), v[:, :rank].clone()
    source = torch.Generator().manual_seed(config.seed)
    shapes = (len(key_frames), generator.tokens, rank), (len(key_frames), rank, generator.width)
    if start == RANDOM:
        u, v = (torch.rand(shape, generator=source) for shape in shapes)
        return u.to(generator.device), v.to(generator.device)
    u, v = (_LOW_RANK_TERM * torch.randn(shape, generator=source) for shape in shapes)
    first_u, first_v = _factors(empty_prompt(generator) - generator.base.cpu(), rank, generator.norm_rank(rank))
    return (u + first_u).to(generator.device), (v + first_v).to(generator.device)


def _factors(embedding: Tensor, rank: int, norm_rank: int) -> tuple[Tensor, Tensor]:
    """Return u [L, R], v [R, D] with u v / sqrt(norm_rank) nearest to [L, D] at the rank (Eckart, Young 1936)."""
    left, sizes, right = torch.linalg.svd(embedding.float(), full_matrices=False)
    roots = (sizes[:rank] * norm_rank**0.5).sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def empty_prompt(generator: Generator) -> Tensor:
    """Return the embedding float32 [L, D] of no words at all, on the CPU.

    A generator that ships a base of its own has it there: what it renders without a prompt. Others need their text
    encoder: last hidden state of one (SD-Turbo), last but one of two, side by side (SDXL-Turbo), as diffusers has it.

    Raises:
        BuildError: no text encoder, here or on the hub, or one of another width.
    """
    if generator.base.any():
        return generator.base.detach().float().cpu()
    folder = _text_folder(generator)
    parts = [pair for pair in _TEXT_PARTS if (folder / pair[0]).is_dir()]
    try:
        found = [_encode_nothing(folder, *pair, last=len(parts) == 1, tokens=generator.tokens) for pair in parts]
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{folder}: the text encoder cannot be loaded ({first_line(error)})") from error
    embedding = torch.cat(found, dim=1)
    if embedding.shape[1] != generator.width:
        raise BuildError(f"{folder}: the text encoder is {embedding.shape[1]} wide, expected {generator.width}")
    return embedding


def _text_folder(generator: Generator) -> Path:
    folder = generator.folder
    if folder is not None and not (folder / "text_encoder").is_dir() and "/" in (name := label(str(folder))):
        try:
            folder = find_folder(name, [f"{part}*/*" for part in ("text_encoder", "tokenizer")])
        except GeneratorError as error:
            raise BuildError(f"fit.start=empty: {error}") from error
    if folder is None or not (folder / "text_encoder").is_dir():
        raise BuildError(f"fit.start=empty: generator {generator.id} has no text_encoder beside its UNet")
    return folder


def _encode_nothing(folder: Path, encoder: str, tokenizer: str, *, last: bool, tokens: int) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(folder / tokenizer)
    model = CLIPTextModel.from_pretrained(folder / encoder, torch_dtype=torch.float32)
    ids = words("", padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    return (output.last_hidden_state if last else output.hidden_states[-2])[0].float()
