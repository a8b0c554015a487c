"""Features shared between frames: exact where nothing is shared, on UNets of any depth."""

from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel

from player.errors import GeneratorError
from player.feature_cache import FeatureCache, choose_references


@pytest.fixture
def deep_generator(tiny_generator):
    """The tests' generator with a UNet of SD's layout: four blocks, one without attention at either end."""
    torch.manual_seed(3)
    channels = tiny_generator.start_latent.shape[0]
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=tiny_generator.width,
    )
    grown = tiny_generator.at_size(128, 128)
    grown.unet = unet.eval().requires_grad_(False)
    return grown


def path(generator, frames):
    """Return embeddings on a straight line between two prompts."""
    torch.manual_seed(0)
    ends = torch.randn(2, generator.tokens, generator.width)
    share = torch.linspace(0, 1, frames)[:, None, None]
    return generator.base + (1 - share) * ends[0] + share * ends[1]


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_frames_at_a_reference_are_exact_and_others_near(deep_generator, depth):
    embeddings = path(deep_generator, 9)
    full = deep_generator.denoise(embeddings)
    every = FeatureCache(deep_generator, depth=depth, threshold=0)
    assert torch.equal(every.denoise(embeddings, batch=16), full)
    assert (every.references, every.frames) == (9, 9)
    few = FeatureCache(deep_generator, depth=depth, threshold=0.6)
    shared = few.denoise(embeddings, batch=2)
    assert 2 <= few.references < 9
    torch.testing.assert_close(shared[[0, 8]], full[[0, 8]], rtol=1e-4, atol=1e-5)
    error = (shared - full).square().mean()
    assert 0 < error < 0.1 * (full[0] - full[8]).square().mean()
    torch.testing.assert_close(deep_generator.denoise(embeddings), full, rtol=0, atol=0)  # the UNet is as it was


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks_above_the_cut_are_all_that_runs_for_other_frames(deep_generator, depth):
    embeddings = path(deep_generator, 5)
    calls = {}
    unet = deep_generator.unet
    named = {f"down{i}": block for i, block in enumerate(unet.down_blocks)}
    named |= {f"up{i}": block for i, block in enumerate(unet.up_blocks)} | {"mid": unet.mid_block}
    hooks = [
        block.resnets[0].register_forward_hook(
            lambda m, i, o, name=name: calls.update({name: calls.get(name, 0) + len(o)})
        )
        for name, block in named.items()
    ]
    FeatureCache(deep_generator, depth=depth, threshold=9).denoise(embeddings, batch=16)
    for hook in hooks:
        hook.remove()
    outer = {f"down{i}" for i in range(depth)} | {f"up{3 - i}" for i in range(depth)}
    assert calls == {name: 5 if name in outer else 2 for name in named}


@torch.no_grad()
def test_features_of_the_frame_itself_give_the_frame(deep_generator):
    embeddings = path(deep_generator, 3)
    cache = FeatureCache(deep_generator, depth=1, threshold=9)
    store = []
    with cache._recording(store):
        full = deep_generator.denoise(embeddings)
    with cache._replaying(torch.cat(store)):
        again = deep_generator.denoise(embeddings)
    torch.testing.assert_close(again, full, rtol=1e-5, atol=1e-6)


def test_references_follow_the_change_of_the_prompt(tiny_generator):
    embeddings = path(tiny_generator, 21)
    base = tiny_generator.base
    still = embeddings[:1].expand(21, -1, -1)
    assert choose_references(still, base, 0.1).tolist() == [0, 20]
    assert choose_references(embeddings, base, 0).tolist() == list(range(21))
    counts = [len(choose_references(embeddings, base, threshold)) for threshold in (0.05, 0.2, 0.5, 5)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2
    assert choose_references(embeddings[:1], base, 0.1).tolist() == [0]
    cut = torch.cat([still[:6], -still[:5]])
    assert choose_references(cut, base, 0.5).tolist() == [0, 5, 6, 10]
    chosen = choose_references(embeddings, base, 0.2).tolist()
    for left, right in pairwise(chosen):
        inside = embeddings[left + 1 : right] - embeddings[left]
        assert (inside.square().mean(dim=(1, 2)).sqrt() <= 0.2 * (embeddings[left] - base).square().mean().sqrt()).all()


@pytest.mark.parametrize(
    ("change", "message"), [({"depth": 2}, "cache_depth 2: expected 0 to 1"), ({"threshold": -1}, "0 or more")]
)
def test_a_cut_that_is_none_is_refused(tiny_generator, change, message):
    with pytest.raises(GeneratorError, match=message):
        FeatureCache(tiny_generator, **{"depth": 1, "threshold": 0.1} | change)
