"""Rewritings of a UNet that change how fast it is and not what it computes; used by `player.engine`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from player.generator import Generator


def shared_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module tree that may be rewritten, with the very same parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class Constant(nn.Module):
    """Stands for a module whose output is the same for every frame."""

    value: Tensor

    def __init__(self, value: Tensor, original: nn.Module) -> None:
        """Take the output [1, ...], and the module that made it, whose weight others may ask for its dtype."""
        super().__init__()
        self.register_buffer("value", value, persistent=False)
        self.weight = getattr(original, "weight", None)

    def forward(self, first: Tensor, *others: Any, **options: Any) -> Tensor:
        """Return the output for as many frames as come in."""
        return self.value.expand(len(first), *self.value.shape[1:])


@torch.no_grad()
def constant_modules(generator: Generator, unet: nn.Module) -> dict[str, Tensor]:
    """Return the outputs [1, ...] of those modules of a UNet that no prompt reaches, the outermost of each, by name.

    Found by a prompt of values that are no numbers: whatever depends on it is no number either. With a fixed start
    latent that is all up to the first cross-attention; for SD-Turbo 5 % of the work, layers at full resolution.
    """
    outputs: dict[str, Tensor | None] = {}

    def note(name: str, output: Any) -> None:
        usable = isinstance(output, Tensor) and output.shape[:1] == (1,) and bool(torch.isfinite(output).all())
        # seen twice: one module in several places, whose outputs differ
        outputs[name] = output if usable and name not in outputs else None

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in unet.named_modules()
        if name
    ]
    try:
        unknown = torch.full((1, generator.tokens, generator.width), torch.nan, device=generator.device)
        unknown = unknown.to(generator.dtype)
        generator.predict(generator.start(unknown), unknown, unet)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: output for name, output in outputs.items() if output is not None}
    return {name: value for name, value in found.items() if not any(parent in found for parent in _parents(name))}


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def replace_modules(unet: nn.Module, constants: Mapping[str, Tensor]) -> None:
    """Put constants in the place of modules, by name."""
    for name, value in constants.items():
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, Constant(value, unet.get_submodule(name)))


class KeyedCrossAttention:
    """Attention of diffusers over keys and values that are given, all layers' side by side, instead of made."""

    def __init__(self, key_at: int, value_at: int) -> None:
        """Take the columns at which this layer's keys and values begin."""
        self.key_at, self.value_at = key_at, value_at

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *unused: Any, **options: Any
    ) -> Tensor:
        """Return [T, N, C] of hidden states [T, N, C] and the keys and values [T, L, all columns] of all layers."""
        query = attn.to_q(hidden_states)  # [T, N, heads * d]
        inner = query.shape[-1]
        key, value = (encoder_hidden_states[..., at : at + inner] for at in (self.key_at, self.value_at))
        heads = [x.unflatten(-1, (attn.heads, inner // attn.heads)).transpose(1, 2) for x in (query, key, value)]
        mixed = functional.scaled_dot_product_attention(*heads)  # [T, heads, N, d]
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))


def merge_keys_and_values(unet: nn.Module) -> Tensor | None:
    """Let all cross-attention layers take their keys and values from one product; return its matrix [D, columns].

    The caller then gives `embeddings @ matrix` [T, L, columns] in the place of the embeddings. None, and nothing is
    changed, if a layer does more than plain attention: a bias, a norm, a residual of its own.
    """
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    if not layers or not all(_is_plain(layer) for layer in layers):
        return None
    columns, at = [], 0
    for layer in layers:
        parts = [layer.to_k.weight.T, layer.to_v.weight.T]
        layer.set_processor(KeyedCrossAttention(at, at + parts[0].shape[1]))
        at += sum(part.shape[1] for part in parts)
        columns += parts
    return torch.cat([column.detach() for column in columns], dim=1).contiguous()


def _is_plain(layer: Any) -> bool:
    extras = [getattr(layer, name, None) for name in ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm")]
    if any(extra is not None for extra in extras) or not layer.is_cross_attention or not layer.scale_qk:
        return False
    shape = (layer.to_q.weight.shape[0], layer.cross_attention_dim)
    same = layer.to_k.weight.shape == layer.to_v.weight.shape == shape
    no_bias = layer.to_k.bias is None and layer.to_v.bias is None
    return same and no_bias and not layer.residual_connection and layer.rescale_output_factor == 1
