"""Loading and running generators: ours, plain diffusers folders, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from experiments.random_models import SD_TURBO
from player.errors import GeneratorError
from player.generator import (
    EMBEDDED_FOLDER,
    find_folder,
    load_generator,
    one_step_constants,
    resolve_device,
    resolve_dtype,
)
from player.model_files import check_memory, label
from player.one_step import check_unet

SD_TURBO_SCHEDULER = json.loads((SD_TURBO / "scheduler" / "scheduler_config.json").read_text())


def test_constants_are_the_published_ones():
    c_skip, c_out = one_step_constants(SD_TURBO_SCHEDULER)
    assert 1 / c_skip == pytest.approx(0.0683, abs=5e-5)
    assert c_out == pytest.approx(-14.6146, abs=5e-4)


@pytest.mark.parametrize(("key", "value"), [("prediction_type", "v_prediction"), ("beta_schedule", "cosine")])
def test_other_schedules_are_refused(key, value):
    with pytest.raises(GeneratorError, match=value):
        one_step_constants({**SD_TURBO_SCHEDULER, key: value})


def test_renders_frames_of_its_native_size(tiny_generator):
    torch.manual_seed(0)
    frames = tiny_generator.generate(torch.randn(3, tiny_generator.tokens, tiny_generator.width))
    assert frames.shape == (3, 3, 64, 64)
    assert torch.isfinite(frames).all()
    assert tiny_generator.native_size == (64, 64)


def test_a_frame_depends_on_its_own_embedding(tiny_generator):
    torch.manual_seed(0)
    embeddings = torch.randn(2, tiny_generator.tokens, tiny_generator.width)
    both = tiny_generator.generate(embeddings)
    alone = tiny_generator.generate(embeddings[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_gradients_reach_the_embeddings(tiny_generator):
    embeddings = torch.zeros(1, tiny_generator.tokens, tiny_generator.width, requires_grad=True)
    tiny_generator.generate(embeddings).square().mean().backward()
    assert embeddings.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny_generator.parameters())


def test_identity_follows_the_weights(tiny_folder, tiny_generator, tmp_path):
    copy = tmp_path / tiny_folder.name
    shutil.copytree(tiny_folder, copy)
    assert load_generator(str(copy), device="cpu").id == tiny_generator.id
    settings = json.loads((copy / "promptdash.json").read_text())
    settings["c_out"] = 0.5
    (copy / "promptdash.json").write_text(json.dumps(settings))
    assert load_generator(str(copy), device="cpu").id != tiny_generator.id


@pytest.fixture
def own_folder(plain_folder, tmp_path):
    """A copy of the plain folder that a test may spoil."""
    return Path(shutil.copytree(plain_folder, tmp_path / "sd-turbo"))


def test_a_plain_diffusers_folder_gets_the_published_prompt_space(plain_folder):
    generator = load_generator(str(plain_folder), device="cpu")
    assert (generator.tokens, generator.width, generator.max_rank) == (77, 24, 24)
    assert generator.native_size == (64, 64)
    noise = np.random.RandomState(88).randn(1, 4, 8, 8)[0]
    np.testing.assert_allclose(generator.start_latent.numpy(), noise, rtol=1e-6)
    embeddings = torch.randn(1, 77, 24)
    x = generator.start_latent[None]
    expected = generator.settings.c_out * generator.unet(x, 999, embeddings).sample + generator.settings.c_skip * x
    torch.testing.assert_close(generator.denoise(embeddings), expected)
    assert generator.generate(embeddings).shape == (1, 3, 64, 64)


def test_another_decoder_can_be_named(plain_folder, tiny_folder):
    with pytest.raises(GeneratorError, match="no such folder"):
        load_generator(str(plain_folder), decoder="missing", device="cpu")


def test_missing_files_are_named(own_folder):
    (own_folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(GeneratorError, match=r"scheduler_config\.json is missing"):
        load_generator(str(own_folder), device="cpu")


def test_wrong_architecture_is_named(own_folder):
    config = own_folder / "unet" / "config.json"
    content = json.loads(config.read_text())
    content["_class_name"] = "FluxTransformer2DModel"
    config.write_text(json.dumps(content))
    with pytest.raises(GeneratorError, match="found a FluxTransformer2DModel, expected a UNet2DConditionModel"):
        load_generator(str(own_folder), device="cpu")


def test_corrupt_weights_are_one_line(own_folder):
    weights = next((own_folder / "unet").glob("*.safetensors"))
    weights.write_bytes(b"not a safetensors file")
    with pytest.raises(GeneratorError) as caught:
        load_generator(str(own_folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["no-such-model", "./nowhere", "a/b/c"])
def test_unknown_specs_say_what_was_expected(spec):
    with pytest.raises(GeneratorError, match="expected `embedded`, a folder or a hub id"):
        find_folder(spec)


def test_device_and_dtype_words():
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(GeneratorError, match="expected auto"):
        resolve_dtype("float8", torch.device("cpu"))
    with pytest.raises(GeneratorError, match="not known"):
        resolve_device("quantum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(GeneratorError, match="no CUDA device"):
        resolve_device("cuda")


def test_the_embedded_model_is_small_and_fast():
    from torch.utils.flop_counter import FlopCounterMode

    generator = load_generator("embedded", device="cpu")
    assert generator.id.startswith("embedded-")
    shipped = [f for part in ("unet", "vae") for f in (EMBEDDED_FOLDER / part).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in shipped) <= 20e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frames = generator.generate(generator.base[None])
    assert frames.shape == (1, 3, 256, 256)
    assert counter.get_total_flops() <= 3e9


def test_another_size_shares_the_networks(tiny_generator):
    wide = tiny_generator.at_size(32, 96)
    assert wide.native_size == (32, 96)
    assert wide.tokens == 12
    assert wide.id == tiny_generator.id
    assert wide.unet is tiny_generator.unet
    assert wide.generate(torch.zeros(2, 12, wide.width)).shape == (2, 3, 32, 96)
    assert tiny_generator.at_size(*tiny_generator.native_size) is tiny_generator


@pytest.mark.parametrize(("height", "width", "reason"), [(40, 64, "multiples of 16"), (1 << 14, 1 << 14, "more than")])
def test_a_size_that_cannot_be_is_refused(tiny_generator, height, width, reason):
    with pytest.raises(GeneratorError, match=reason):
        tiny_generator.at_size(height, width)


def change(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None},
            "no cross-att",
        ),
        ({"in_channels": 9}, "takes 9 channels and makes 4"),
        ({"in_channels": 8, "out_channels": 8}, "decodes latents of 4 channels, but the UNet makes 8"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ({"addition_embed_type": "image"}, "expected none or text_time"),
        ({"cross_attention_dim": [24, 24]}, "expected one width"),
    ],
)
def test_architectures_that_prompts_cannot_drive_are_named(own_folder, values, reason):
    change(own_folder / "unet" / "config.json", **values)
    config = json.loads((own_folder / "unet" / "config.json").read_text())
    if values.get("in_channels") == 8:
        UNet2DConditionModel.from_config(config).save_pretrained(own_folder / "unet")
        with pytest.raises(GeneratorError, match=reason):
            load_generator(str(own_folder), device="cpu")
    else:
        with pytest.raises(GeneratorError, match=reason):
            check_unet(config, "unet")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler with 'trailing' timesteps belongs to a model of many steps"),
        ({"timestep_spacing": "leading"}, "expected one made for a single step"),
        ({"rescale_betas_zero_snr": True}, "leaves nothing to predict"),
        ({"trained_betas": [0.1]}, "trained_betas are not supported"),
        ({"num_train_timesteps": 4}, "expected more than 999"),
    ],
)
def test_models_of_many_steps_are_named(own_folder, values, reason):
    change(own_folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(GeneratorError, match=reason) as caught:
        load_generator(str(own_folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_sdxl_conditions_are_constants(own_folder):
    torch.manual_seed(0)
    unet = UNet2DConditionModel.load_config(own_folder / "unet") | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    }
    UNet2DConditionModel.from_config(unet).save_pretrained(own_folder / "unet")
    generator = load_generator(str(own_folder), device="cpu")
    assert generator.text_embeds.shape == (16,)
    assert generator.time_ids.tolist() == [64, 64, 0, 0, 64, 64]
    embeddings = torch.randn(2, 77, 24)
    added = {"text_embeds": torch.zeros(2, 16), "time_ids": generator.time_ids.expand(2, -1)}
    x = generator.start(embeddings)
    expected = generator.unet(x, 999, embeddings, added_cond_kwargs=added).sample
    torch.testing.assert_close(generator.predict(x, embeddings), expected)
    generator.save(own_folder / "saved", dtype=torch.float32)
    assert load_generator(str(own_folder / "saved"), device="cpu").time_ids.tolist() == [64, 64, 0, 0, 64, 64]


def test_the_step_is_combined_in_full_precision(plain_folder):
    half = load_generator(str(plain_folder), device="cpu", dtype="bfloat16")
    settings = half.settings
    latents = half.start(torch.zeros(1, 77, 24, dtype=torch.bfloat16))
    clean = torch.randn(1, 4, 8, 8)
    # what a trained UNet predicts: nearly its own input, so that most of both terms cancels
    output = (clean - settings.c_skip * latents.float()) / settings.c_out
    torch.testing.assert_close(half.combine(latents, output), clean, rtol=1e-4, atol=1e-4)
    rounded = half.combine(latents, output.bfloat16())
    assert (rounded - clean).norm() / clean.norm() > 1e-2  # so the last layer's output must not be rounded


def test_another_decoder_decides_what_is_rendered(own_folder, plain_folder):
    own = load_generator(str(own_folder), device="cpu")
    other = load_generator(str(own_folder), decoder=str(plain_folder), device="cpu")
    assert own.id != other.id
    change(own_folder / "vae" / "config.json", scaling_factor=0.5)  # not used, and not part of the identity
    assert load_generator(str(own_folder), decoder=str(plain_folder), device="cpu").id == other.id


def test_labels_are_hub_ids_where_they_can_be(tmp_path):
    snapshot = tmp_path / "models--stabilityai--sd-turbo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert label(str(snapshot)) == label("stabilityai/sd-turbo") == "stabilityai/sd-turbo"
    assert label(str(tmp_path)) == tmp_path.name


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*unused, **options):
        raise LocalEntryNotFoundError("no network\nmany lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(GeneratorError) as caught:
        load_generator("stabilityai/sd-turbo", device="cpu")
    assert "the hub is out of reach; a copy on another machine works as a folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_is_checked_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000_000, 8_000_000_000))
    cuda = torch.device("cuda")
    check_memory(868_000_000, torch.float16, cuda, "sd")
    message = r"3.5 GB of weights in float32, but cuda has 3.0 of 8.0 GB free \(float16 needs half: --dtype float16\)"
    with pytest.raises(GeneratorError, match=message):
        check_memory(868_000_000, torch.float32, cuda, "sd")


def test_casts_are_silent(tiny_folder, tmp_path, caplog, capfd):
    """diffusers remarks on every cast of its models; a user need not see that."""
    generator = load_generator(str(tiny_folder), device="cpu", dtype="bfloat16")
    load_generator(str(tiny_folder), device="cpu").save(tmp_path / "copy", torch.float16)
    assert next(generator.unet.parameters()).dtype == torch.bfloat16
    assert capfd.readouterr().err == ""
    assert "float32" not in caplog.text
