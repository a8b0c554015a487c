"""Entry points of other packages: found by name, blamed with their distribution, and each for itself."""

import logging
from importlib import metadata
from pathlib import Path

import pytest

import abr.plugins
import traces.plugins
from abr import Ladder, PluginError, create_abr

ROOT = Path(__file__).resolve().parents[1]
GROUP = "promptdash.things"


class BrokenThingError(Exception):
    """What these tests' plug-ins are blamed with."""


class OwnError(Exception):
    """What explains itself."""


def install(monkeypatch, module, folder, name, points):
    """Make a distribution `name` 1.2 with these entry points, name=value lines, and let `module` find it alone."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    found = tuple(
        point
        for distribution in metadata.distributions(path=[str(folder)])
        for point in distribution.entry_points.select(group=GROUP)
    )
    assert all(point.dist for point in found)
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == GROUP else ())
    module.warn_once.cache_clear()


@pytest.fixture(params=[abr.plugins, traces.plugins], ids=["abr", "traces"])
def module(request):
    return request.param


@pytest.fixture
def things(module):
    return module.Plugins(GROUP, "thing", frozenset({"brick"}), BrokenThingError)


def test_the_two_copies_are_equal():
    assert (ROOT / "abr/plugins.py").read_text() == (ROOT / "traces/plugins.py").read_text()


def test_a_broken_one_is_named_with_its_distribution_and_the_others_load(things, module, monkeypatch, tmp_path):
    install(monkeypatch, module, tmp_path, "toolbox", "broken = nowhere.at_all:Thing\nsqrt = math:sqrt")
    assert things.names() == ["broken", "sqrt"]
    with pytest.raises(BrokenThingError) as error:
        things.load("broken")
    assert str(error.value) == (
        "thing 'broken' (plug-in nowhere.at_all:Thing of toolbox 1.2) cannot be loaded: "
        "ModuleNotFoundError: No module named 'nowhere'"
    )
    assert things.load("sqrt")(9.0) == 3.0
    with pytest.raises(LookupError):
        things.load("absent")


def test_what_one_raises_later_is_one_line_that_blames_it(things, module, monkeypatch, tmp_path):
    install(monkeypatch, module, tmp_path, "toolbox", "sqrt = math:sqrt")
    point = things.point("sqrt")
    with pytest.raises(BrokenThingError) as error, things.blamed(point, "gave up"):
        raise ValueError("two\nlines")
    assert str(error.value) == "thing 'sqrt' (plug-in math:sqrt of toolbox 1.2) gave up: ValueError: two lines"
    with pytest.raises(OwnError, match=r"^as it is$"), things.blamed(point, "failed", passing=(OwnError,)):
        raise OwnError("as it is")


def test_two_of_one_name_are_refused_and_both_named(things, module, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    install(monkeypatch, module, tmp_path / "other", "other", "twin = math:cos")
    theirs = module.entry_points(GROUP)
    install(monkeypatch, module, tmp_path, "toolbox", "twin = math:sin")
    both = theirs + module.entry_points(GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: both)
    with pytest.raises(BrokenThingError, match=r"more than once: math:cos of other 1\.2, math:sin of toolbox 1\.2"):
        things.load("twin")


def test_a_built_in_name_cannot_be_taken(things, module, monkeypatch, tmp_path, caplog):
    install(monkeypatch, module, tmp_path, "toolbox", "brick = math:sqrt")
    with caplog.at_level(logging.WARNING):
        assert things.names() == things.names() == []
    assert caplog.messages == ["plug-in math:sqrt of toolbox 1.2 is ignored: the thing name 'brick' is built in"]
    with pytest.raises(LookupError):
        things.load("brick")


def test_a_controller_of_a_module_needs_no_installation(monkeypatch, tmp_path):
    (tmp_path / "at_hand.py").write_text(
        "from abr import Decision\n"
        "class Second:\n"
        "    def __init__(self, ladder, *, buffer_capacity_s, extra=0): self.extra = extra\n"
        "    def choose(self, observation): return Decision(1, reason='the second')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ladder = Ladder([1e5, 2e5], [[25_000, 50_000]], [2.0])
    assert create_abr("at_hand.Second", ladder, buffer_capacity_s=20.0, extra=3).extra == 3
    with pytest.raises(PluginError, match="no_such_module"):
        create_abr("no_such_module.Second", ladder, buffer_capacity_s=20.0)
