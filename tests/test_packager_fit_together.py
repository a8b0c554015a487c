"""Several segments in one descent: what each alone would come to, sized by the memory, written in order."""

import weakref
from functools import partial

import numpy as np
import pytest
import torch

from packager import fit_forward
from packager.errors import BuildError
from packager.fit import fit_preset, fit_segment, fit_segments, frames_in_a_step, segments_that_fit
from packager.fit_forward import Forward, frames_with_gradient


@pytest.fixture(scope="module")
def scenes(clip):
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    return [frames, frames.flip(3)[:5], -frames]


@pytest.mark.parametrize(
    "config",
    [
        fit_preset("fast", iterations=5, frames_per_step=6, interval=4),
        fit_preset("paper", iterations=5, frames_per_step=6, interval=4, patience=1, min_learning_rate=0.04),
    ],
    ids=["fast", "paper"],
)
def test_each_segment_comes_to_what_it_comes_to_alone(scenes, tiny_generator, tiny_encoder, config):
    alone = [fit_segment(frames, tiny_generator, tiny_encoder, config, ranks=[2, 4]) for frames in scenes]
    steps = []
    together = fit_segments(
        scenes, tiny_generator, tiny_encoder, config, ranks=[2, 4], progress=lambda step, _: steps.append(step)
    )
    assert steps == list(range(1, len(steps) + 1))
    pairs = [(one[rank], other[rank]) for one, other in zip(alone, together, strict=True) for rank in (2, 4)]
    for one, other in pairs:
        assert one.frames == other.frames
        for a, b in zip(one.keys, other.keys, strict=True):
            assert a.frame_offset == b.frame_offset
            for (
                name
            ) in "uv":  # batches of another size round differently: a value on an edge may fall to its other side
                codes, others = getattr(a, name), getattr(b, name)
                assert (codes != others).mean() <= 0.01
                assert np.abs(codes.astype(int) - others).max() <= 1
    assert any(not np.array_equal(alone[0][4].keys[0].u, other[4].keys[0].u) for other in together[1:])


def test_one_alone_is_the_same_bytes(scenes, tiny_generator, tiny_encoder):
    config = fit_preset("fast", iterations=3, interval=4)
    one = fit_segment(scenes[0], tiny_generator, tiny_encoder, config, ranks=[4])
    (other,) = fit_segments(scenes[:1], tiny_generator, tiny_encoder, config, ranks=[4])
    assert one == other


def test_all_segments_pass_the_generator_at_once(scenes, tiny_generator, monkeypatch):
    sizes, original = [], tiny_generator.generate

    def counted(embeddings, **options):
        sizes.append((len(embeddings), torch.is_grad_enabled()))
        return original(embeddings, **options)

    monkeypatch.setattr(tiny_generator, "generate", counted, raising=False)
    config = fit_preset("paper", iterations=2, frames_per_step=4)
    fit_segments(scenes, tiny_generator, None, config, ranks=[2])
    assert [size for size, descent in sizes if descent] == [12, 12]


def test_memory_that_runs_out_in_the_gradient_holds_nothing(scenes, tiny_generator, monkeypatch, caplog):
    """The frames of the step that failed are gone before the next try begins."""
    kept, sizes, original = [], [], tiny_generator.generate

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, frames, fails):
            ctx.fails = fails
            return frames.clone()

        @staticmethod
        def backward(ctx, gradient):
            if ctx.fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return gradient, None

    def limited(embeddings, **options):
        if not torch.is_grad_enabled():
            return original(embeddings, **options)
        if not sizes:
            first = Fails.apply(original(embeddings, **options), True)
            kept.append(weakref.ref(first))
            sizes.append(len(embeddings))
            return first
        assert kept[0]() is None
        sizes.append(len(embeddings))
        return original(embeddings, **options)

    monkeypatch.setattr(tiny_generator, "generate", limited, raising=False)
    config = fit_preset("paper", iterations=1, frames_per_step=4)
    fit_segments(scenes, tiny_generator, None, config, ranks=[2])
    assert "fitting 6 frames at once from now on" in caplog.text
    assert sizes[0] == 12
    assert set(sizes[1:]) == {6}


def test_a_cpu_fits_one_at_a_time_unless_told(tiny_generator):
    config = fit_preset("fast")
    assert segments_that_fit(tiny_generator, config, 60) == (1, config)
    assert segments_that_fit(tiny_generator, fit_preset("fast", segments_at_once=3), 60)[0] == 3


def test_frames_in_a_step_count_what_the_generator_renders():
    assert frames_in_a_step(fit_preset("paper"), 60) == 10
    assert frames_in_a_step(fit_preset("paper"), 4) == 4
    assert frames_in_a_step(fit_preset("fast"), 60) == 2
    assert frames_in_a_step(fit_preset("fast"), 1) == 1


@pytest.mark.parametrize(
    ("most", "changes", "together", "at_once"),
    [
        (64, {}, 6, 0),
        (18, {}, 1, 0),
        (4, {}, 1, 4),
        (18, {"segments_at_once": 3}, 3, 18),
        (64, {"frames_at_once": 20}, 2, 20),
        (64, {"frames_at_once": 5, "segments_at_once": 4}, 4, 5),
    ],
)
def test_a_gpu_takes_what_fits(monkeypatch, most, changes, together, at_once):
    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr("packager.fit.frames_with_gradient", lambda generator, config: most)
    found, config = segments_that_fit(OnGpu(), fit_preset("paper", **changes), 60)
    assert (found, config.frames_at_once) == (together, at_once)


def test_the_gradient_of_a_frame_that_does_not_fit_is_one_line(tiny_generator, monkeypatch):
    def none_fits(device, work):
        work(2)  # the work itself runs
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fit_forward, "most_frames", none_fits)
    with pytest.raises(BuildError, match=r"the gradient of one frame does not fit .* \(--decoder\)"):
        frames_with_gradient(tiny_generator, fit_preset("fast"))


def test_attention_of_plain_products_has_the_gradient_of_the_fused_one(tiny_generator, monkeypatch):
    monkeypatch.setattr(fit_forward, "descent_dtype", lambda *_: torch.bfloat16)
    embeddings = torch.randn(2, tiny_generator.tokens, tiny_generator.width, generator=torch.Generator().manual_seed(3))
    frames, gradients = [], []
    for most in (0, fit_forward._MOST_PLAIN_PLACES):
        monkeypatch.setattr(fit_forward, "_MOST_PLAIN_PLACES", most)
        forward = Forward(tiny_generator, fit_preset("fast"))
        assert ("unet" in getattr(forward._descend, "keywords", {})) == bool(most)
        given = embeddings.clone().requires_grad_(True)
        frames.append(forward.descent(given))
        frames[-1].square().sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*frames, atol=0.02, rtol=0.02)
    assert torch.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.999


@pytest.mark.filterwarnings("ignore")  # torch's compiler meets its own warnings
def test_a_compiled_fit_is_the_same_fit(scenes, tiny_generator, monkeypatch):
    """The compiler's front end alone: graphs of any size without a break, run by plain torch."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    plain = fit_preset("paper", iterations=2, frames_per_step=4)
    wanted = fit_segment(scenes[0], tiny_generator, None, plain, ranks=[2])[2]
    config = fit_preset("paper", iterations=2, frames_per_step=4, compile="default", frames_at_once=2)
    assert Forward(tiny_generator, config)._descend != tiny_generator.generate
    found = fit_segment(scenes[0], tiny_generator, None, config, ranks=[2])[2]
    for one, other in zip(wanted.keys, found.keys, strict=True):
        assert (one.u != other.u).mean() <= 0.01


def test_a_build_groups_what_is_not_done_yet(tmp_path, tiny_generator, monkeypatch):
    """Groups of two of five segments; a build that stopped goes on behind what is whole."""
    from packager.segments import build_segments

    frames = [np.full((2, 4, 4, 3), index, np.uint8) for index in range(5)]
    groups, shares = [], []

    class Entry:
        frames = 2

    first = Entry()

    class Folder:
        def recorded(self, index):
            return first if index == 0 else None

    class Tools:
        codec = None

        def together(self):
            return 2

        def fit_together(self, segments, progress):
            groups.append([int(segment[0, 0, 0, 0]) for segment in segments])
            progress(1.0)
            return segments

        def measure(self, index, segment, coded, progress):
            progress(1.0)
            return index

    monkeypatch.setattr("packager.segments._write", lambda index, fitted, folder, codec: {})
    monkeypatch.setattr("packager.segments._record", lambda index, count, coded, quality, folder: quality)
    records = build_segments(iter(frames), Folder(), Tools(), workers=None, progress=shares.append)
    assert groups == [[1, 2], [3, 4]]
    assert records[1:] == [1, 2, 3, 4]
    assert records[0] is first
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(5)
