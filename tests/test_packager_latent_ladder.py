"""The `vae` baseline: packages that meet their bitrate, decode alone, and go on where they stopped."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from skimage.data import astronaut, chelsea

from packager import latent_ladder
from packager.errors import BuildError
from packager.latent_ladder import quantize
from packager.package import build_latents
from packager.rate_search import nearest_setting
from packager.settings import BuildConfig
from packager.video import iter_segments, write_h264
from player.decoder import create_decoder, load_model
from player.errors import DecodeError, GeneratorError, GeneratorMismatchError
from player.latents import load_autoencoder
from player.pixels import from_pixels, to_pixels
from player.presentation import Presentation

CONFIG = BuildConfig(bitrates_bps=[9_000, 12_000], metrics=["psnr_db"], device="cpu", segment_s=0.5)


@pytest.fixture(scope="module")
def video(tmp_path_factory, clip):
    path = tmp_path_factory.mktemp("video") / "disc.mp4"
    write_h264(path, [*clip, *clip[::-1]], fps=Fraction(10), width=64, height=64, crf=10)
    return path


@pytest.fixture(scope="module")
def package(video, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "vae"
    # A random decoder makes no better pictures of more bits, and the best scale would always be the cheapest.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_ladder, "SCALES", (1,))
        yield build_latents(video, folder, replace(CONFIG, generator=str(tiny_folder))).presentation


def saved(folder, model):
    model.save_pretrained(folder)
    return str(folder)


def test_a_package_meets_its_bitrates_and_says_so(package):
    assert package.manifest.codec == "vae"
    assert [rung.codecs for rung in package.representations] == ["urim.vae"] * 2
    assert package.bitrate_bps.tolist() == pytest.approx([9_000, 12_000], rel=0.06)
    reloaded = Presentation.load(package.directory)
    assert reloaded.manifest == package.manifest


def test_segments_decode_alone_to_what_was_measured(package, video, tiny_folder):
    model = load_model("vae", str(tiny_folder), device="cpu")
    decoder = create_decoder("vae", package.init_path(1).read_bytes(), generator=model)
    originals = list(iter_segments(video, width=64, height=64, segment_s=0.5))
    for segment in (2, 0):
        shown = decoder.decode(package.segment_path(segment, 1).read_bytes())
        assert shown.shape == originals[segment].shape
        error = ((shown.astype(float) - originals[segment]) ** 2).mean(axis=(1, 2, 3))
        measured = package.frame_quality(segment, 1, "psnr_db")
        np.testing.assert_allclose(10 * np.log10(255**2 / error), measured, atol=0.01)


def test_a_build_that_stopped_goes_on_to_the_same_bytes(package, video, tiny_folder, tmp_path):
    config = replace(CONFIG, generator=str(tiny_folder))

    def stop(stage, done, total):
        if stage == "packaging" and done > 1.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_latents(video, tmp_path, config, progress=stop)
    build_latents(video, tmp_path, config, resume=True)
    for path in package.directory.rglob("*"):
        if path.suffix in (".mp4", ".m4s", ".mpd"):
            assert (tmp_path / path.relative_to(package.directory)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_autoencoders_of_diffusers_serve(kind, video, tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    if kind == "tiny":
        model = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    else:
        model = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    folder = saved(tmp_path / "model", model)
    config = replace(CONFIG, generator=folder, size="60x44", bitrates_bps=[40_000])
    presentation = build_latents(video, tmp_path / "out", config).presentation
    assert (presentation.manifest.width, presentation.manifest.height) == (60, 44)
    assert presentation.bitrate_bps[0] < 60_000
    with pytest.raises(BuildError, match="size=auto"):
        build_latents(video, tmp_path / "auto", replace(config, size="auto"))


def test_the_embedded_autoencoder_gives_frames_back():
    frames = np.stack([picture[:256, 128:384] for picture in (astronaut(), chelsea())])
    autoencoder = load_autoencoder("embedded", device="cpu")
    back = to_pixels(autoencoder.decode(autoencoder.encode(from_pixels(frames)))).numpy()
    psnr_db = 10 * np.log10(255**2 / np.square(back - frames.astype(float)).mean(axis=(1, 2, 3)))
    assert psnr_db.min() > 20


@pytest.mark.parametrize("random", [True, False])
def test_halves_that_do_not_belong_together_are_told(random, video, tiny_folder, tmp_path, caplog):
    generator = str(tiny_folder) if random else "embedded"
    build_latents(video, tmp_path, replace(CONFIG, generator=generator, size="64", bitrates_bps=[40_000]))
    assert ("do its encoder and its decoder belong together?" in caplog.text) == random


def test_another_autoencoder_is_refused(package, tmp_path):
    init = package.init_path(0).read_bytes()
    folder = saved(tmp_path / "other", AutoencoderTiny(encoder_block_out_channels=(8,) * 4))
    other = load_autoencoder(folder, device="cpu")
    with pytest.raises(GeneratorMismatchError, match=other.id):
        create_decoder("vae", init, generator=other)
    with pytest.raises(DecodeError, match="needs an autoencoder"):
        create_decoder("vae", init)


@pytest.mark.parametrize("content", ["", "[]", '{"_class_name": "UNet2DConditionModel"}'])
def test_what_is_no_autoencoder_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(GeneratorError, match=r"config\.json|UNet2D"):
        load_autoencoder(str(tmp_path), device="cpu")


def test_codes_hold_while_the_latent_stays_near():
    latents = np.array([1.0, 1.4, 1.8, 2.0, 0.9], np.float32).reshape(5, 1, 1, 1)
    assert quantize(latents, 1.0).ravel().tolist() == [1, 1, 1, 2, 1]
    assert quantize(np.full((1, 1, 1, 1), 1e9, np.float32), 1.0).item() == 2**15 - 1


def test_the_search_finds_the_nearest_setting_and_ends_at_the_limits():
    def excess(setting):
        return (40.2 - setting) / 10

    assert nearest_setting(excess, best=1, worst=70, stride=12) == 40
    assert nearest_setting(lambda s: excess(s) + 9, best=1, worst=70, stride=12) == 70
    assert nearest_setting(lambda s: excess(s) - 9, best=1, worst=70, stride=12) == 1
