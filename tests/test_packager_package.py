"""Packaging: what is measured is what was written, a killed build goes on, and the same input gives the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from packager import ladder
from packager.errors import BuildError, FolderError, PackagerError, VideoError
from packager.fit import fit_preset
from packager.ladder import PromptLadder
from packager.package import build, build_h265, build_prompts, folder_name, open_source
from packager.settings import BuildConfig
from packager.video import iter_segments, write_h264
from player.bitstream import read_init, read_segment
from player.decoder import create_decoder
from player.quality import load_metrics

RATE = Fraction(20)
CONFIG = BuildConfig(segment_s=0.4, size="64x48", metrics=["psnr_db"], device="cpu")


class KilledError(Exception):
    """Stands for the process dying at this point."""


class CoarseCodec:
    """A codec for tests: frames with their low bits cut off, deflated. Dies at segment `dies_at` of `dies_in`."""

    name = "prompt"
    ranks = {"r02": 2, "r08": 8}  # noqa: RUF012

    def __init__(self, dies_in="", dies_at=1):
        self.dies_in, self.dies_at, self.encoded = dies_in, dies_at, []

    def identity(self):
        return {"ranks": list(self.ranks.values())}

    def prepare(self, folder, stream, frames, progress):
        for name in self.ranks:
            folder.write(folder.init_path(name), b"init " + name.encode())

    def fit(self, frames, progress):
        progress(0.5)
        return frames

    def encode(self, index, fitted, folder):
        if (self.dies_in, self.dies_at) == ("encode", index):
            raise KilledError
        self.encoded.append(index)
        shape = np.array(fitted.shape, np.int32).tobytes()
        return {n: shape + zlib.compress((fitted >> 7 - r // 2).tobytes()) + n.encode() for n, r in self.ranks.items()}

    def dependencies(self, representation):
        return ()

    def decoder(self, representation, init):
        assert init == b"init " + representation.encode()
        return CoarseDecoder(7 - self.ranks[representation] // 2, self)

    def codecs(self, init):
        return "urim"


class CoarseDecoder:
    def __init__(self, shift, codec):
        self.shift, self.codec = shift, codec

    def decode(self, segment):
        if self.codec.dies_in == "decode" and self.codec.encoded[-1] == self.codec.dies_at and self.shift == 3:
            raise KilledError
        frames = np.frombuffer(zlib.decompressobj().decompress(segment[16:]), np.uint8)
        return frames.reshape(np.frombuffer(segment[:16], np.int32)) << self.shift


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """21 frames at 20 frames/s: segments of 8, 8 and 5 frames."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    texture = np.random.default_rng(5).integers(0, 200, (48, 160, 3)).astype(np.uint8)
    write_h264(path, [texture[:, 3 * k : 3 * k + 64] for k in range(21)], fps=RATE, width=64, height=48, crf=10)
    return path


@pytest.fixture(scope="module")
def source(video):
    return open_source(video, CONFIG, native_size=(0, 0))


def digest_of(folder):
    """Names and content of everything in a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "out"
    return build(source, folder, CoarseCodec(), CONFIG).presentation


def test_folder_holds_manifest_segments_and_settings(finished):
    names = set(digest_of(finished.directory))
    segments = {
        f"{rung}/{name}" for rung in ("r02", "r08") for name in ("init.mp4", *(f"seg-{k:05d}.m4s" for k in (1, 2, 3)))
    }
    assert names == segments | {"manifest.mpd", "quality.json", "package.json"}
    assert finished.manifest.frames == (8, 8, 5)
    assert (finished.manifest.title, finished.manifest.fps) == ("noise", RATE)
    assert [rung.rank for rung in finished.representations] == [2, 8]


def test_bitrate_counts_every_byte(finished):
    for position, rung in enumerate(finished.representations):
        size = sum(path.stat().st_size for path in (finished.directory / rung.id).iterdir())
        assert finished.bitrate_bps[position] == pytest.approx(size * 8 / (21 / 20))
        assert 0 <= rung.bandwidth_bps - size * 8 / (21 / 20) < 1


def test_quality_is_measured_from_the_written_bytes(finished, video):
    psnr = load_metrics(["psnr_db"])[0]
    for index, reference in enumerate(iter_segments(video, width=64, height=48, segment_s=0.4)):
        for position, shift in enumerate((6, 3)):
            data = finished.segment_path(index, position).read_bytes()
            decoded = CoarseDecoder(shift, CoarseCodec()).decode(data)
            np.testing.assert_allclose(
                finished.frame_quality(index, position, "psnr_db"), psnr(reference, decoded), atol=1e-6
            )


@pytest.mark.parametrize("dies_in", ["encode", "decode"])
@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_killed_build_goes_on_where_it_stopped(finished, source, tmp_path, dies_in, dies_at):
    folder = tmp_path / "out"
    with pytest.raises(KilledError):
        build(source, folder, CoarseCodec(dies_in, dies_at), CONFIG)
    assert not (folder / "manifest.mpd").exists()
    with pytest.raises(FolderError, match="--resume"):
        build(source, folder, CoarseCodec(), CONFIG)
    again = CoarseCodec()
    result = build(source, folder, again, CONFIG, resume=True)
    assert again.encoded == list(range(dies_at, 3))
    assert not result.reused
    assert digest_of(folder) == digest_of(finished.directory)


def test_death_while_publishing_loses_no_segment(finished, source, tmp_path, monkeypatch):
    def dies(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("packager.package.write_manifest", dies)
        with pytest.raises(KilledError):
            build(source, tmp_path / "out", CoarseCodec(), CONFIG)
    again = CoarseCodec()
    build(source, tmp_path / "out", again, CONFIG, resume=True)
    assert again.encoded == []
    assert digest_of(tmp_path / "out") == digest_of(finished.directory)


def test_a_segment_damaged_between_runs_is_made_again(finished, source, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KilledError):
        build(source, folder, CoarseCodec("encode", 2), CONFIG)
    (folder / "r08" / "seg-00001.m4s").write_bytes(b"torn")
    again = CoarseCodec()
    build(source, folder, again, CONFIG, resume=True)
    assert again.encoded == [0, 2]
    assert digest_of(folder) == digest_of(finished.directory)


def test_a_finished_folder_is_reused_or_refused_or_replaced(source, video, tmp_path):
    folder = tmp_path / "out"
    build(source, folder, CoarseCodec(), CONFIG)
    before = digest_of(folder)
    idle = CoarseCodec()
    assert build(source, folder, idle, CONFIG).reused
    assert idle.encoded == []
    assert digest_of(folder) == before
    longer = BuildConfig(segment_s=0.8, size="64x48", metrics=["psnr_db"], device="cpu")
    other = open_source(video, longer, native_size=(0, 0))
    with pytest.raises(FolderError, match=r"segment_frames 8 there, 16 asked for.*--force"):
        build(other, folder, CoarseCodec(), longer)
    assert build(other, folder, CoarseCodec(), longer, force=True).presentation.manifest.frames == (16, 5)
    assert len(list((folder / "r02").glob("*.m4s"))) == 2


def test_a_decoder_that_disagrees_is_an_error(source, tmp_path):
    class Short(CoarseCodec):
        def decoder(self, representation, init):
            decoder = super().decoder(representation, init)
            original = decoder.decode
            decoder.decode = lambda segment: original(segment)[:-1]
            return decoder

    with pytest.raises(PackagerError, match=r"r02, segment 1: decodes to \[7, 48, 64, 3\], expected \[8, 48, 64, 3\]"):
        build(source, tmp_path / "out", Short(), CONFIG)


def test_progress_rises_to_the_total(source, tmp_path):
    seen = []
    build(source, tmp_path / "out", CoarseCodec(), CONFIG, progress=lambda *state: seen.append(state))
    done = [state[1] for state in seen if state[0] == "packaging"]
    assert done == sorted(done)
    assert seen[-1] == ("packaging", 3.0, 3.0)


_SUICIDE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_packager_package as t
class Suicidal(t.CoarseCodec):
    def decoder(self, representation, init):
        decoder = super().decoder(representation, init)
        original = decoder.decode
        def decode(segment):
            if self.encoded[-1] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(segment)
        decoder.decode = decode
        return decoder
source = t.open_source({video!r}, t.CONFIG, native_size=(0, 0))
t.build(source, t.Path({folder!r}), Suicidal(), t.CONFIG)
"""


@pytest.mark.slow
def test_sigkill_leaves_whole_segments_only(finished, source, video, tmp_path):
    folder = tmp_path / "out"
    script = _SUICIDE.format(tests=str(Path(__file__).parent), video=str(video), folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    again = CoarseCodec()
    build(source, folder, again, CONFIG, resume=True)
    assert again.encoded == [1, 2]
    assert digest_of(folder) == digest_of(finished.directory)


@pytest.fixture(scope="module")
def prompt_config(tiny_folder):
    return BuildConfig(
        segment_s=0.4,
        metrics=["psnr_db"],
        device="cpu",
        ranks=[4, 1],
        interval=4,
        generator=str(tiny_folder),
        iterations=2,
    )


@pytest.fixture(scope="module")
def prompts(video, prompt_config, tmp_path_factory):
    return build_prompts(video, tmp_path_factory.mktemp("prompts") / "out", prompt_config).presentation


def test_prompt_ladder_decodes_to_what_was_measured(prompts, video, tiny_generator):
    assert [rung.id for rung in prompts.representations] == ["r01", "r04"]
    psnr = load_metrics(["psnr_db"])[0]
    for index, reference in enumerate(iter_segments(video, width=64, height=64, segment_s=0.4)):
        for position in range(2):
            decoder = create_decoder("prompt", prompts.init_path(position).read_bytes(), generator=tiny_generator)
            decoded = decoder.decode(prompts.segment_path(index, position).read_bytes())
            np.testing.assert_allclose(
                prompts.frame_quality(index, position, "psnr_db"), psnr(reference, decoded), atol=1e-6
            )


def test_layers_decode_to_the_frames_of_whole_representations(video, prompt_config, tmp_path):
    layered = build_prompts(
        video, tmp_path / "layered", replace(prompt_config, layered=True, iterations=6)
    ).presentation
    prompts = build_prompts(
        video, tmp_path / "whole", replace(prompt_config, top_intervals=[0], iterations=6)
    ).presentation
    ladder = layered.ladder()
    np.testing.assert_array_equal(ladder.layer_bytes.cumsum(axis=1), ladder.segment_bytes)
    assert [rung.dependencies for rung in layered.representations][-1] == tuple(ladder.names[:-1])
    for metric in prompts.metrics:
        np.testing.assert_array_equal(layered.mean_quality(metric), prompts.mean_quality(metric))
    files = [layered.init_bytes.sum(), layered.layer_bytes.sum()]
    assert sum(files) * 8 / layered.manifest.duration_s == pytest.approx(layered.bitrate_bps[-1])
    assert layered.representations[-1].bandwidth_bps == np.ceil(layered.bitrate_bps[-1])


def test_one_representation_more_has_more_key_prompts(video, prompt_config, tmp_path, tiny_generator):
    config = replace(prompt_config, interval=8, top_intervals=[2, 4])
    built = build_prompts(video, tmp_path / "out", config).presentation
    assert sorted(rung.id for rung in built.representations) == ["r01", "r04", "r04k2", "r04k4"]
    offsets = {}
    for rung, representation in enumerate(built.representations):
        segment = read_segment(read_init(built.read_init(rung)), built.read_segment(0, rung))
        offsets[representation.id] = segment.offsets.tolist()
    assert len(offsets["r04"]) < len(offsets["r04k4"]) < len(offsets["r04k2"])
    assert offsets["r01"] == offsets["r04"]
    bitrates = dict(zip((rung.id for rung in built.representations), built.bitrate_bps, strict=True))
    assert bitrates["r04k2"] > bitrates["r04k4"] > bitrates["r04"]
    target = round((bitrates["r04"] + bitrates["r04k4"]) / 2)
    met = build_prompts(video, tmp_path / "met", replace(config, prompt_bitrates_bps=[target])).presentation
    assert met.bitrate_bps[0] == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize(
    "change", [{"layered": True}, {"motion": False}, {"preset": "paper"}, {"top_intervals": [9, 0]}]
)
def test_no_such_representation_without_use(video, prompt_config, tmp_path, change):
    config = replace(prompt_config, interval=8, seconds=0.4, **{"top_intervals": [4], **change})
    built = build_prompts(video, tmp_path, config).presentation
    assert [rung.id for rung in built.representations] == ["r01", "r04"]


def test_bitrates_of_prompts_are_met(prompts, video, prompt_config, tmp_path, caplog):
    low, high = prompts.bitrate_bps[[0, -1]]
    target = round((low + high) / 2)
    config = replace(prompt_config, prompt_bitrates_bps=[target, 10_000_000])
    built = build_prompts(video, tmp_path, config).presentation
    assert built.bitrate_bps[0] == pytest.approx(target, rel=0.05)
    assert "prompt-10M" in caplog.text
    assert "is the most that this fit takes here" in caplog.text


def test_prompt_builds_repeat_byte_for_byte(prompts, video, prompt_config, tmp_path):
    build_prompts(video, tmp_path / "out", prompt_config)
    assert digest_of(tmp_path / "out") == digest_of(prompts.directory)


def test_frames_between_the_generators_sizes_are_cropped_out_of_the_next(video, tiny_generator, tiny_encoder, tmp_path):
    fit = fit_preset("fast", iterations=1)
    codec = PromptLadder(tiny_generator, tiny_encoder, ranks=[2], fit=fit)
    config = replace(CONFIG, size="60x40")
    result = build(open_source(video, config, native_size=(0, 0)), tmp_path / "out", codec, config).presentation
    info = read_init(result.init_path(0).read_bytes())
    assert (info.display_width, info.display_height) == (60, 40)
    assert (info.frame_width, info.frame_height, info.tokens) == (64, 48, 12)
    assert (result.manifest.width, result.manifest.height) == (60, 40)


def test_a_generator_of_one_size_crops_smaller_frames_and_refuses_larger(video, tiny_generator, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_generator, "settings", replace(tiny_generator.settings, grid=(0, 0)))
    monkeypatch.setitem(tiny_generator._parameters, "layout", None)
    fit = fit_preset("fast", iterations=1)
    for size, expected in (("64x48", (64, 64)), ("80x64", None)):
        config = replace(CONFIG, size=size)
        source = open_source(video, config, native_size=(0, 0))
        codec = PromptLadder(tiny_generator, None, ranks=[2], fit=fit)
        if expected is None:
            with pytest.raises(BuildError, match=r"size 80x64: generator .* makes frames of 64x64"):
                build(source, tmp_path / size, codec, config)
        else:
            info = read_init(build(source, tmp_path / size, codec, config).presentation.init_path(0).read_bytes())
            assert (info.frame_width, info.frame_height) == expected


def test_ranks_beyond_the_generator_are_refused(video, prompt_config, tmp_path):
    with pytest.raises(BuildError, match=r"rank 9: generator .* has ranks 1 to 4"):
        build_prompts(video, tmp_path / "out", replace(prompt_config, ranks=[2, 9]))


def test_h265_ladder_has_the_same_segments(video, prompts, prompt_config, tmp_path):
    config = replace(prompt_config, bitrates_bps=[60_000, 150_000])
    result = build_h265(video, tmp_path / "out", config).presentation
    assert [rung.id for rung in result.representations] == ["h265-60k", "h265-150k"]
    assert result.manifest.segments == prompts.manifest.segments
    assert (result.manifest.width, result.manifest.height) == (64, 64)
    low, high = result.mean_quality("psnr_db").mean(axis=0)
    assert low < high
    assert build_h265(video, tmp_path / "out", config).reused


def test_h265_keeps_whole_representations_when_killed(video, prompt_config, tmp_path, monkeypatch):
    config = replace(prompt_config, bitrates_bps=[60_000, 150_000])
    build_h265(video, tmp_path / "whole", config)
    original, calls = ladder.encode_video, []

    def dies_second(*args, bitrate_bps, **options):
        calls.append(bitrate_bps)
        result = original(*args, bitrate_bps=bitrate_bps, **options)
        if len(calls) == 2:
            raise KilledError
        return result

    monkeypatch.setattr(ladder, "encode_video", dies_second)
    with pytest.raises(KilledError):
        build_h265(video, tmp_path / "out", config)
    build_h265(video, tmp_path / "out", config, resume=True)
    assert calls == [60_000, 150_000, 150_000]
    assert digest_of(tmp_path / "out") == digest_of(tmp_path / "whole")


def test_folder_names_follow_content_and_settings(video, tmp_path):
    name = folder_name(video, "prompt", CONFIG)
    assert name.startswith("noise-prompt-")
    copy = tmp_path / "noise.mp4"
    copy.write_bytes(video.read_bytes())
    assert folder_name(copy, "prompt", CONFIG) == name
    copy.write_bytes(video.read_bytes() + b"x")
    others = {
        folder_name(copy, "prompt", CONFIG),
        folder_name(video, "h265", CONFIG),
        folder_name(video, "prompt", BuildConfig()),
    }
    assert len(others | {name}) == 4
    with pytest.raises(VideoError, match="No such file"):
        folder_name(tmp_path / "missing.mp4", "prompt", CONFIG)


def test_settings_name_the_input_and_the_versions(finished, video):
    content = json.loads((finished.directory / "package.json").read_text())
    assert content["identity"]["video_sha256"] == hashlib.sha256(video.read_bytes()).hexdigest()
    assert content["environment"]["versions"]["torch"]
    assert content["environment"]["metrics"] == ["psnr_db"]


def test_only_the_first_seconds_are_packaged(video, prompt_config, tmp_path):
    config = replace(prompt_config, seconds=0.5, bitrates_bps=[60_000])
    presentation = build_h265(video, tmp_path / "start", config).presentation
    assert presentation.manifest.duration_s == pytest.approx(0.5, abs=0.5 / float(presentation.manifest.fps))
    with pytest.raises(FolderError, match="frames_taken"):
        build_h265(video, tmp_path / "start", replace(config, seconds=0.0))


@pytest.mark.parametrize("change", [{"layered": True}, {"bitrates_bps": [20_000]}])
def test_layers_and_target_bitrates_are_made_of_one_v(tiny_generator, change):
    """Layers could not carry another one, and nothing but the highest rank is coded for targets."""
    fit = fit_preset("fast", rank_v=True)
    assert PromptLadder(tiny_generator, None, ranks=[1, 4], fit=fit).fit_config.rank_v
    assert not PromptLadder(tiny_generator, None, ranks=[1, 4], fit=fit, **change).fit_config.rank_v
