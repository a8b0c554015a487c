"""Decoding of prompt segments, and the renderer's bookkeeping."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from player.bitstream import KeyPrompt, Segment, StreamInfo, write_init, write_segment
from player.decoder import PromptDecoder, VideoDecoder, create_decoder, from_pixels, render_segment, to_pixels
from player.errors import BitstreamError, DecodeError, GeneratorMismatchError
from player.renderer import Renderer


def make_info(generator, rank=4, **changes):
    height, width = generator.native_size
    values = {
        "generator_id": generator.id,
        "tokens": generator.tokens,
        "width": generator.width,
        "rank": rank,
        "norm_rank": 4,
        "frame_width": width,
        "frame_height": height,
        "display_width": width,
        "display_height": height,
        "fps": Fraction(30),
        "grid_height": 4,
        "grid_width": 4,
    }
    return StreamInfo(**{**values, **changes})


@pytest.fixture
def segment(tiny_generator):
    rng = np.random.default_rng(0)
    keys = tuple(
        KeyPrompt(
            at,
            rng.integers(-6, 7, (tiny_generator.tokens, 4)).astype(np.int16),
            rng.integers(-2, 3, (4, tiny_generator.width)).astype(np.int16),
        )
        for at in (0, 3, 7)
    )
    return Segment(8, np.full(4, 0.25, np.float32), np.full(4, 0.05, np.float32), keys)


def test_bytes_decode_to_what_the_segment_renders(tiny_generator, segment):
    info = make_info(tiny_generator)
    decoder = create_decoder("prompt", write_init(info), generator=tiny_generator)
    data = write_segment(info, segment, sequence=1, start_frame=0)
    frames = decoder.decode(data)
    assert frames.shape == (8, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, render_segment(segment, 4, tiny_generator))


def test_a_lower_rank_is_the_prefix_of_the_fit(tiny_generator, segment):
    info = make_info(tiny_generator, rank=2)
    data = write_segment(info, segment.truncate(2), sequence=1, start_frame=0)
    frames = PromptDecoder(write_init(info), tiny_generator).decode(data)
    zeroed = [KeyPrompt(k.frame_offset, k.u * np.array([1, 1, 0, 0], np.int16), k.v) for k in segment.keys]
    whole = Segment(segment.frames, segment.u_scale, segment.v_scale, tuple(zeroed))
    difference = np.abs(frames.astype(int) - render_segment(whole, 4, tiny_generator)).max()
    assert difference <= 1  # the sums are taken in another order


def test_display_size_is_the_centred_crop(tiny_generator, segment):
    info = make_info(tiny_generator, display_width=48, display_height=32)
    data = write_segment(info, segment, sequence=1, start_frame=0)
    frames = PromptDecoder(write_init(info), tiny_generator).decode(data)
    np.testing.assert_array_equal(frames, render_segment(segment, 4, tiny_generator)[:, 16:48, 8:56])


def test_another_generators_segments_are_refused(tiny_generator):
    init = write_init(make_info(tiny_generator, generator_id="other-123"))
    with pytest.raises(GeneratorMismatchError, match="fitted to generator other-123"):
        PromptDecoder(init, tiny_generator)


def test_a_stream_of_another_shape_is_refused(tiny_generator):
    init = write_init(make_info(tiny_generator, tokens=20, grid_height=0, grid_width=0))
    with pytest.raises(GeneratorMismatchError, match="but the generator makes"):
        PromptDecoder(init, tiny_generator)


def test_a_flipped_bit_is_an_error_not_a_picture(tiny_generator, segment):
    info = make_info(tiny_generator)
    data = bytearray(write_segment(info, segment, sequence=1, start_frame=0))
    data[-5] ^= 1
    with pytest.raises(BitstreamError):
        PromptDecoder(write_init(info), tiny_generator).decode(bytes(data))


def test_prompts_need_a_generator(tiny_generator):
    with pytest.raises(DecodeError, match="needs a generator"):
        create_decoder("prompt", write_init(make_info(tiny_generator)))


def test_garbage_video_is_a_decode_error():
    with pytest.raises(DecodeError, match="does not decode"):
        VideoDecoder(b"\0" * 64).decode(b"\1" * 64)


def test_pixels_are_clipped_and_rounded():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_from_pixels_undoes_to_pixels(clip):
    frames = from_pixels(clip)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert frames.abs().max() <= 1
    np.testing.assert_array_equal(to_pixels(frames).numpy(), clip)


def test_renderer_counts_frames_and_seconds():
    ticks = iter([0.0, 0.5, 1.0, 1.25])

    class Still:
        def decode(self, segment: bytes) -> np.ndarray:
            return np.zeros((len(segment), 2, 2, 3), np.uint8)

    renderer = Renderer(clock=lambda: next(ticks))
    assert renderer.frames_per_s is None
    assert renderer.render(Still(), b"12345").render_s == 0.5
    renderer.render(Still(), b"12345678")
    assert renderer.times_s == [0.5, 0.25]
    assert renderer.frames_per_s == pytest.approx(13 / 0.75)
