"""Where fits start: the factors behind an empty prompt, its text encoder, and what is refused."""

import json

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from packager.errors import BuildError
from packager.fit import fit_preset, fit_segment
from packager.start import empty_prompt, first_prompts
from player.generator import load_generator
from player.prompt import PromptSpace

FRAMES = torch.zeros(2, 3, 64, 64)


@pytest.fixture(scope="module")
def worded(plain_folder):
    """The plain folder's generator with a small text encoder beside its UNet."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=4, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(plain_folder / "text_encoder")
    words = plain_folder / "tokenizer"
    words.mkdir()
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    (words / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 77, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    yield load_generator(str(plain_folder), device="cpu")
    for name in ("text_encoder", "tokenizer"):
        for file in (plain_folder / name).iterdir():
            file.unlink()
        (plain_folder / name).rmdir()


def test_the_empty_prompt_is_the_text_encoders(worded):
    embedding = empty_prompt(worded)
    assert embedding.shape == (77, 24)
    assert (embedding[1] - embedding[0]).abs().max() > 1e-3  # the first token opens, all others close
    config = fit_preset("fast", start="empty")
    u, v = first_prompts(FRAMES, worded, None, config, 24)
    composed = PromptSpace(worded.base, worded.dictionary).compose(u, v, 24)
    assert composed.shape == (2, 77, 24)
    assert (composed - embedding).norm() < 0.7 * (composed[0].norm() + embedding.norm()) / 2
    bare = fit_preset("fast", start="random")
    u, v = first_prompts(FRAMES, worded, None, bare, 24)
    assert (PromptSpace(worded.base, worded.dictionary).compose(u, v, 24) - embedding).norm() > embedding.norm()


def test_a_base_is_an_empty_prompt(tiny_generator):
    torch.testing.assert_close(empty_prompt(tiny_generator), tiny_generator.base)


@pytest.mark.parametrize("start", ["empty", "random", "encoder"])
def test_every_start_is_fitted(tiny_generator, tiny_encoder, start):
    config = fit_preset("fast", iterations=2, start=start)
    segment = fit_segment(FRAMES, tiny_generator, tiny_encoder, config, ranks=[2])[2]
    assert segment.rank == 2
    again = fit_segment(FRAMES, tiny_generator, tiny_encoder, config, ranks=[2])[2]
    assert segment == again


def test_what_is_not_there_is_named(plain_folder, tiny_generator):
    with pytest.raises(BuildError, match="expected one of auto, encoder, empty, random"):
        fit_preset("fast", start="zero")
    with pytest.raises(BuildError, match=r"start=encoder: generator .* has no encoder"):
        first_prompts(FRAMES, tiny_generator, None, fit_preset("fast", start="encoder"), 2)
    other = load_generator(str(plain_folder), device="cpu")
    other.folder = plain_folder / "unet"
    with pytest.raises(BuildError, match="no text_encoder beside its UNet"):
        empty_prompt(other)


def test_memory_that_runs_out_is_met_with_parts(tiny_generator, caplog):
    config = fit_preset("paper", iterations=3, frames_per_step=6, worst_share=0.0)
    frames = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = fit_segment(frames, tiny_generator, None, config, ranks=[2])[2]
    original, sizes, most = tiny_generator.generate, [], [3]

    def limited(embeddings, **options):
        sizes.append(len(embeddings))
        if len(embeddings) > most[0] and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(embeddings, **options)

    tiny_generator.generate = limited
    try:
        parts = fit_segment(frames, tiny_generator, None, config, ranks=[2])[2]
        most[0] = 2  # half of five is still too many
        with pytest.raises(BuildError, match="ran out of memory on cpu with 3 frames at once"):
            fit_segment(frames, tiny_generator, None, fit_preset("paper", iterations=1, frames_at_once=5), ranks=[2])
    finally:
        del tiny_generator.generate
    assert "ran out of memory; fitting 3 frames at once from now on" in caplog.text
    assert max(size for size in sizes if size <= 3) == 3
    for one, other in zip(whole.keys, parts.keys, strict=True):
        assert abs(one.u - other.u).max() <= 1
