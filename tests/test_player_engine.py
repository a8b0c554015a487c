"""The engine against the plain generator: same pixels, fewer operations, memory that runs out."""

import logging

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from player.device_memory import frames_that_fit
from player.engine import Engine, RenderOptions, engine_of
from player.engine_parts import constant_modules, merge_keys_and_values, shared_copy
from player.errors import DecodeError, GeneratorError
from player.generator import load_generator
from player.pixels import to_pixels


@pytest.fixture(scope="module")
def plain(plain_folder):
    return load_generator(str(plain_folder), device="cpu")


def prompts(generator, count, seed=0):
    return torch.randn(count, generator.tokens, generator.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"reuse": False}, {"merge_keys": False}, {"batch": 3}])
def test_pixels_are_those_of_the_generator(plain, options):
    embeddings = prompts(plain, 7)
    expected = to_pixels(plain.generate(embeddings)).numpy()
    shown = Engine(plain, RenderOptions(**options)).render(embeddings)
    assert shown.shape == (7, 64, 64, 3)
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1
    assert expected.std() > 1


def test_the_embedded_layout_is_kept(tiny_generator):
    embeddings = prompts(tiny_generator, 3)
    expected = to_pixels(tiny_generator.generate(embeddings)).numpy()
    engine = Engine(tiny_generator)
    assert np.abs(engine.render(embeddings).astype(int) - expected.astype(int)).max() <= 1
    assert not any("attn" in name or name == "conv_in" for name in engine.reused)  # prompts reach all of these


def test_what_no_prompt_reaches_is_computed_once(plain):
    engine = Engine(plain)
    assert "conv_in" in engine.reused
    assert any(name.endswith("attn1") for name in engine.reused)
    assert not any(name.endswith(("attn2", "conv_out")) for name in engine.reused)
    up = [name for name in engine.reused if name.startswith("up_blocks")]
    assert all(name.endswith("time_emb_proj") for name in up)
    counts = []
    for options in (RenderOptions(reuse=False), RenderOptions()):
        other = Engine(plain, options)
        with FlopCounterMode(display=False) as counter:
            other.render(prompts(plain, 1))
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0]


def test_keys_of_all_layers_come_from_one_product(plain):
    unet = shared_copy(plain.unet)
    matrix = merge_keys_and_values(unet)
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    assert matrix.shape == (plain.width, 2 * sum(layer.to_q.weight.shape[0] for layer in layers))
    assert unet.conv_in.weight is plain.unet.conv_in.weight
    embeddings = prompts(plain, 2)
    latents = plain.start(embeddings)
    found = plain.predict(latents, embeddings @ matrix, unet)
    torch.testing.assert_close(found, plain.predict(latents, embeddings), rtol=1e-4, atol=1e-5)


def test_layers_that_do_more_are_left_alone(plain):
    unet = shared_copy(plain.unet)
    next(m for name, m in unet.named_modules() if name.endswith("attn2")).rescale_output_factor = 2
    assert merge_keys_and_values(unet) is None
    assert constant_modules(plain, unet)


# a decoder of 16 channels averages less of bfloat16's rounding away than TAESD's 64 (test_experiments_gpu.py)
@pytest.mark.parametrize(("dtype", "frames_within"), [("bfloat16", 2e-2), ("float16", 1e-2)])
def test_half_precision_is_within_a_hundredth(plain_folder, plain, dtype, frames_within):
    half = load_generator(str(plain_folder), device="cpu", dtype=dtype)
    embeddings = prompts(plain, 4)
    for exact, rounded, within in (
        (plain.denoise(embeddings), half.denoise(embeddings), 1e-2),
        (plain.generate(embeddings), half.generate(embeddings).float(), frames_within),
    ):
        assert (rounded - exact).norm() / exact.norm() <= within
    assert half.unet.conv_out.weight.dtype == torch.float32  # its output is multiplied by c_out
    assert half.denoise(embeddings).dtype == torch.float32
    shown, expected = Engine(half).render(embeddings), Engine(plain).render(embeddings)
    assert np.abs(shown.astype(float) - expected).mean() <= 2


def test_memory_that_runs_out_halves_the_batch_once(plain, caplog):
    engine, sizes = Engine(plain, RenderOptions(batch=8)), []
    step = engine._step

    def limited(latents, conditions):
        sizes.append(len(latents))
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(latents, conditions)

    engine._step = limited
    with caplog.at_level(logging.WARNING):
        shown = engine.render(prompts(plain, 8))
    assert sizes == [8, 4, 4]
    assert "ran out of memory; rendering 4 frames at a time from now on" in caplog.text
    np.testing.assert_array_equal(shown, Engine(plain, RenderOptions(batch=4)).render(prompts(plain, 8)))
    engine.batch = 8
    with pytest.raises(DecodeError, match="8 frames at a time do not fit the memory that cpu has free"):
        engine.render(prompts(plain, 8))


def test_batches_follow_the_memory():
    assert frames_that_fit(10_000, 1_100, 1_200) == 64
    assert frames_that_fit(3_000, 1_100, 1_200) == 15
    assert frames_that_fit(10, 1_100, 1_200) == 1


def test_values_that_are_no_numbers_are_refused(plain):
    embeddings = prompts(plain, 2)
    embeddings[1] = torch.nan
    with pytest.raises(DecodeError, match="not finite"):
        Engine(plain).render(embeddings)
    with pytest.raises(DecodeError, match="not finite"):
        Engine(plain).generate(embeddings)


def test_options_are_checked_and_used(plain_folder):
    for wrong in ({"compile": "fast"}, {"batch": -1}):
        with pytest.raises(GeneratorError, match="expected"):
            RenderOptions(**wrong)
    generator = load_generator(str(plain_folder), device="cpu")
    generator.options = RenderOptions(batch=2, reuse=False)
    assert engine_of(generator).batch == 2
    assert engine_of(generator) is generator.engine
    assert not generator.engine.reused
