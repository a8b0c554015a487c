"""Deep features of a UNet, computed for a few frames of a segment and reused for those between them.

From frame to frame of an interval the prompt changes little, and what lies deep in the UNet changes least. As in
DeepCache (Ma et al., CVPR 2024, arXiv 2312.00858), which reuses features from one denoising step to the next, a UNet is
cut at a depth: what lies deeper is evaluated for reference frames only, and interpolated between them, as the prompts
are; what lies above is evaluated for every frame. PromptMobile (arXiv 2503.16112) caches between frames likewise. Works
on any `UNet2DConditionModel`: its own forward runs, with the skipped blocks standing still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from player.errors import GeneratorError
from player.generator import Generator
from player.prompt import interpolate, interpolation_matrix


def choose_references(embeddings: Tensor, base: Tensor, threshold: float) -> Tensor:
    """Return the frames int64 [K], rising, that are evaluated in full: the first, the last, and as few between as keep
    every other frame's prompt near that of the reference before it. Where a prompt jumps, both sides are taken.

    Args:
        embeddings: [T, L, D] of consecutive frames.
        base: [L, D], what the generator adds to every prompt.
        threshold: largest root mean square of a prompt's change, relative to that of the prompt itself; 0 takes all.
    """
    prompts = (embeddings - base).float().flatten(1)

    def differ(frame: int, reference: int) -> bool:
        change = (prompts[frame] - prompts[reference]).square().mean()
        return bool(change > threshold**2 * prompts[reference].square().mean())

    chosen = [0]
    for frame in range(1, len(prompts)):
        if differ(frame, chosen[-1]):
            if chosen[-1] != frame - 1 and differ(frame, frame - 1):  # a cut: nothing is interpolated across it
                chosen.append(frame - 1)
            chosen.append(frame)
    if chosen[-1] != len(prompts) - 1:
        chosen.append(len(prompts) - 1)
    return torch.tensor(chosen, device=embeddings.device)


class FeatureCache:
    """Denoises frames of a segment with features that are shared between them."""

    def __init__(self, generator: Generator, *, depth: int, threshold: float) -> None:
        """Cut a generator's UNet.

        Args:
            depth: blocks from the outside that every frame passes; 0: frames share the UNet's output.
            threshold: as of `choose_references`.
        Raises:
            GeneratorError: a depth that leaves nothing to share, or a threshold below 0.
        """
        blocks = len(generator.unet.down_blocks)
        if not 0 <= depth < blocks:
            raise GeneratorError(f"cache_depth {depth}: expected 0 to {blocks - 1} for generator {generator.id}")
        if not threshold >= 0:
            raise GeneratorError(f"cache_threshold {threshold}: expected 0 or more")
        self.generator, self.depth, self.threshold = generator, depth, threshold
        self.references, self.frames = 0, 0
        """How many frames so far were references, of how many."""

    def denoise(self, embeddings: Tensor, batch: int) -> Tensor:
        """Return latents [T, C, h, w] of embeddings [T, L, D] of consecutive frames, `batch` at a time."""
        generator = self.generator
        references = choose_references(embeddings, generator.base.to(embeddings.dtype), self.threshold)
        self.references, self.frames = self.references + len(references), self.frames + len(embeddings)
        store: list[Tensor] = []
        with self._recording(store):
            known = torch.cat([generator.denoise(part) for part in embeddings[references].split(batch)])
        if len(references) == len(embeddings):
            return known
        weights = interpolation_matrix(references.cpu().numpy(), len(embeddings)).to(embeddings.device)
        others = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
        others[references] = False
        latents = known.new_empty(len(embeddings), *known.shape[1:])
        latents[references] = known
        features = torch.cat(store)
        parts = []
        for part, share in zip(embeddings[others].split(batch), weights[others].split(batch), strict=True):
            with self._replaying(interpolate(features, share)):
                parts.append(generator.denoise(part))
        latents[others] = torch.cat(parts)
        return latents

    def _source(self) -> nn.Module:
        """Return the module whose output is shared."""
        unet = self.generator.unet
        return unet.up_blocks[len(unet.up_blocks) - 1 - self.depth] if self.depth else unet

    @contextmanager
    def _recording(self, store: list[Tensor]) -> Iterator[None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            store.append(output if isinstance(output, Tensor) else output[0])

        hook = self._source().register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _replaying(self, features: Tensor) -> Iterator[None]:
        """Have the skipped blocks stand still, and the last of them answer with features [n, ...]."""
        unet = self.generator.unet
        if not self.depth:
            with _forwards({unet: lambda *inputs, **options: (features,)}):
                yield
            return
        cut = len(unet.up_blocks) - self.depth
        still: dict[nn.Module, Callable[..., Any]] = {
            block: _still_down(block) for block in unet.down_blocks[self.depth :]
        }
        # what the last evaluated block hands down is for the skipped ones only
        still |= dict.fromkeys(unet.down_blocks[self.depth - 1].downsamplers or (), _still)
        still |= {block: _still for block in (unet.mid_block, *unet.up_blocks[: cut - 1]) if block is not None}
        still[unet.up_blocks[cut - 1]] = lambda *inputs, **options: features
        with _forwards(still):
            yield


def _still(hidden_states: Tensor, *inputs: Any, **options: Any) -> Tensor:
    return hidden_states


def _still_down(block: Any) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """Return a forward that hands as many skip connections on as a block's own, for skipped blocks to take."""
    count = len(block.resnets) + len(block.downsamplers or ())

    def forward(hidden_states: Tensor, *inputs: Any, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return hidden_states, (hidden_states,) * count

    return forward


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards for a while."""
    for module, forward in replaced.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in replaced:
            del module.forward
