"""Renderers for weak devices through the player's decoder: what they leave out, what they refuse, what they are not."""

import numpy as np
import pytest
import torch

from player.bitstream import KeyPrompt, Segment
from player.config import PlayerConfig
from player.decoder import render_segment
from player.engine import Engine, RenderOptions, Shortcut, engine_of
from player.errors import GeneratorError, SessionError
from player.generator import load_generator
from player.shortcuts import ShortcutEngine


@pytest.fixture
def generator(tiny_folder):
    return load_generator(str(tiny_folder), device="cpu")


@pytest.fixture
def segment(generator):
    """Nine frames between two key prompts, without motion."""
    rng = np.random.default_rng(2)
    keys = tuple(
        KeyPrompt(
            offset,
            rng.integers(-40, 40, (generator.tokens, 4)).astype(np.int16),
            rng.integers(-40, 40, (4, generator.width)).astype(np.int16),
        )
        for offset in (0, 8)
    )
    steps = np.full(4, 0.05, np.float32)
    return Segment(9, steps, steps, keys)


def render(segment, generator, **settings):
    generator.options = RenderOptions(shortcut=Shortcut.of(PlayerConfig(**settings)))
    generator.engine = None
    return render_segment(segment, 4, generator)


def test_the_generator_itself_is_the_default(generator, segment):
    assert Shortcut.of(PlayerConfig()) is None
    assert render(segment, generator).shape == (9, 64, 64, 3)
    assert type(engine_of(generator)) is Engine


@pytest.mark.parametrize("depth", [0, 1])
def test_cached_frames_are_near_and_fewer_are_evaluated(generator, segment, depth):
    full = render(segment, generator)
    every = render(segment, generator, renderer="cached", cache_depth=depth, cache_threshold=0)
    assert np.abs(every.astype(int) - full).max() <= 1
    few = render(segment, generator, renderer="cached", cache_depth=depth, cache_threshold=0.5)
    engine = engine_of(generator)
    assert isinstance(engine, ShortcutEngine)
    assert engine.cache is not None
    assert engine.cache.references < engine.cache.frames == 9
    assert np.abs(few[[0, 8]].astype(int) - full[[0, 8]]).max() <= 1
    between = np.square(full[0].astype(float) - full[8]).mean()
    assert np.square(few.astype(float) - full).mean() < 0.2 * between


def test_values_that_are_no_numbers_are_refused(generator, segment):
    from player.errors import DecodeError

    with torch.no_grad():
        generator.base.fill_(torch.nan)
    with pytest.raises(DecodeError, match="values that are not finite"):
        render(segment, generator, renderer="cached")


def test_wrong_settings_are_one_line(generator, segment):
    with pytest.raises(SessionError, match=r"player\.renderer is quick, expected one of full, "):
        PlayerConfig(renderer="quick")
    with pytest.raises(SessionError, match=r"player\.cache_threshold must be 0 or more"):
        PlayerConfig(cache_threshold=-1)
    with pytest.raises(GeneratorError, match="cache_depth 2: expected 0 to 1"):
        render(segment, generator, renderer="cached", cache_depth=2)
