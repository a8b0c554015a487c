"""Controllers by name, their options, plug-ins of other packages, the settings and the command line."""

import json
import logging
from importlib import metadata

import pytest

import abr.plugins
import abr.registry
from abr import (
    AbrConfig,
    Decision,
    Ladder,
    Observation,
    OptionError,
    PluginError,
    UnknownControllerError,
    create_abr,
    known_names,
    known_options,
)
from abr.__main__ import main

LADDER = Ladder([1e5, 2e5, 4e5], [[25_000, 50_000, 100_000]] * 3, [2.0] * 3)
OBSERVATION = Observation(0.0, 0, 10.0, 20.0)


class Cautious:
    """The example of docs/controllers.md: the highest representation that fits the buffer by a margin."""

    def __init__(self, ladder, *, buffer_capacity_s, margin=2.0):
        self.ladder, self.margin = ladder, margin

    def choose(self, observation):
        wanted = int(observation.buffer_s / self.margin)
        return Decision(min(wanted, self.ladder.representations - 1), reason="buffer / margin")


class Anything:
    """Takes any option."""

    def __init__(self, ladder, **options):
        self.options = options

    def choose(self, observation):
        return Decision(0)


def explode(ladder, *, buffer_capacity_s):
    raise RuntimeError("no model file")


def no_controller(ladder, *, buffer_capacity_s):
    return object()


NOT_CALLABLE = 5


@pytest.fixture
def install(monkeypatch):
    """Pretend that packages offer these entry points, given as name=value."""

    def pretend(*points):
        found = [metadata.EntryPoint(name, value, abr.registry.ENTRY_POINT_GROUP) for name, value in points]
        monkeypatch.setattr(abr.plugins, "entry_points", lambda group: tuple(found))
        abr.plugins.warn_once.cache_clear()
        targets = {
            "mine": globals(),
        }

        def load(point):
            module, _, attribute = point.value.partition(":")
            if module not in targets:
                raise ModuleNotFoundError(f"No module named {module!r}")
            return targets[module][attribute]

        monkeypatch.setattr(metadata.EntryPoint, "load", load)

    return pretend


@pytest.mark.parametrize("name", ["bba", "bola", "ewma", "fixed", "throughput"])
def test_every_built_in_controller_starts(name):
    decision = create_abr(name, LADDER, buffer_capacity_s=20.0).choose(OBSERVATION)
    assert 0 <= decision.representation < 3
    assert decision.reason


def test_unknown_names_list_the_known_ones(install):
    install(("cautious", "mine:Cautious"))
    with pytest.raises(UnknownControllerError) as error:
        create_abr("bolla", LADDER, buffer_capacity_s=20.0)
    known = ", ".join(sorted([*abr.registry.BUILT_IN, "cautious"]))
    assert str(error.value) == f"unknown controller 'bolla'; known: {known}, or module.Class"


def test_unknown_options_list_the_known_ones():
    with pytest.raises(OptionError, match="controller 'bola' has no option safety; known: gp, low_buffer"):
        create_abr("bola", LADDER, buffer_capacity_s=20.0, safety=0.5)


@pytest.mark.parametrize(("index", "expected"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_fixed(index, expected):
    controller = create_abr("fixed", LADDER, buffer_capacity_s=20.0, representation=index)
    assert controller.choose(OBSERVATION).representation == expected


@pytest.mark.parametrize("index", [3, -4])
def test_fixed_outside_the_ladder(index):
    with pytest.raises(OptionError, match=r"the ladder has 0\.\.2"):
        create_abr("fixed", LADDER, buffer_capacity_s=20.0, representation=index)


def test_a_plug_in_is_found_and_takes_its_options(install):
    install(("cautious", "mine:Cautious"))
    assert "cautious" in known_names()
    assert known_options("cautious") == ["margin"]
    controller = create_abr("cautious", LADDER, buffer_capacity_s=20.0, margin=10.0)
    assert controller.choose(OBSERVATION).representation == 1
    with pytest.raises(OptionError, match="known: margin"):
        create_abr("cautious", LADDER, buffer_capacity_s=20.0, margins=10.0)


def test_a_plug_in_may_take_any_option(install):
    install(("anything", "mine:Anything"))
    assert known_options("anything") is None
    controller = create_abr("anything", LADDER, buffer_capacity_s=20.0, depth=3)
    assert controller.options == {"buffer_capacity_s": 20.0, "depth": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("absent:Controller", r"plug-in absent:Controller\) cannot be loaded: ModuleNotFoundError: No module named"),
        ("mine:NOT_CALLABLE", "is a int, not callable"),
        ("mine:explode", "failed to start: RuntimeError: no model file"),
        ("mine:no_controller", "made a object without a choose method"),
    ],
)
def test_a_broken_plug_in_says_what_is_wrong(install, value, message):
    install(("broken", value))
    with pytest.raises(PluginError, match=message) as error:
        create_abr("broken", LADDER, buffer_capacity_s=20.0)
    assert "\n" not in str(error.value)
    assert create_abr("bola", LADDER, buffer_capacity_s=20.0)  # the others go on working


def test_two_plug_ins_of_one_name_are_refused(install):
    install(("twin", "mine:Cautious"), ("twin", "mine:Anything"))
    with pytest.raises(PluginError, match="offered more than once: mine:Anything, mine:Cautious"):
        create_abr("twin", LADDER, buffer_capacity_s=20.0)


def test_a_plug_in_cannot_take_a_built_in_name(install, caplog):
    install(("bola", "mine:Cautious"))
    with caplog.at_level(logging.WARNING):
        assert known_names().count("bola") == 1
    assert "is ignored" in caplog.text
    assert not isinstance(create_abr("bola", LADDER, buffer_capacity_s=20.0), Cautious)


def test_settings_reach_the_controller_that_knows_them():
    assert AbrConfig().create(LADDER, buffer_capacity_s=20.0).choose(OBSERVATION)
    assert AbrConfig(name="fixed", representation=-1).create(LADDER, buffer_capacity_s=20.0).representation == 2
    assert AbrConfig(name="ewma", safety=0.5).create(LADDER, buffer_capacity_s=20.0).safety == 0.5
    assert AbrConfig(name="bba", reservoir=0.2).create(LADDER, buffer_capacity_s=20.0).reservoir_s == 4.0
    assert AbrConfig(name="bola", gp=5.0).create(LADDER, buffer_capacity_s=20.0).gp == 5.0
    with pytest.raises(OptionError, match="has no option depth"):
        AbrConfig(name="bola", options={"depth": 1}).create(LADDER, buffer_capacity_s=20.0)


def test_settings_of_a_plug_in(install):
    install(("cautious", "mine:Cautious"))
    config = AbrConfig(name="cautious", options={"margin": 4.0})
    assert config.create(LADDER, buffer_capacity_s=20.0).margin == 4.0


def test_list_names_every_controller_and_the_broken_plug_in(install, capsys):
    install(("broken", "absent:Controller"))
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*abr.registry.BUILT_IN, "broken"])
    assert "ModuleNotFoundError" in next(line for line in lines if line.startswith("broken"))


def observation_file(tmp_path, **change):
    ladder = {"bitrate_bps": [1e5, 2e5], "segment_bytes": [[25000, 50000]], "segment_duration_s": [2.0]}
    sample = {"size_bytes": 25_000, "request_s": 0.0, "first_byte_s": 0.04, "finish_s": 0.24}
    observation = {"now_s": 1.0, "segment_index": 0, "buffer_s": 8.0, "buffer_capacity_s": 20.0, "samples": [sample]}
    path = tmp_path / "observation.json"
    path.write_text(json.dumps({"ladder": ladder, "observation": {**observation, **change}}))
    return path


def test_explain_prints_decision_and_reason(tmp_path, capsys):
    assert main(["explain", "throughput", str(observation_file(tmp_path))]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["controller"], answer["representation"]) == ("throughput", 1)
    assert "kbit/s" in answer["reason"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bolla", {}, "unknown controller"),
        ("bola", {"segment_index": 7}, "segment_index 7"),
        ("bola", {"colour": "red"}, "colour"),
        ("bola", {"buffer_s": "8"}, "str"),
        ("bba", {"buffer_capacity_s": "20"}, "str"),
        ("bola", {"segment_index": 0.5}, "float"),
        ("bola", {"samples": [1]}, "a sample is a int"),
    ],
)
def test_explain_says_what_is_wrong_in_one_line(tmp_path, capsys, name, change, message):
    assert main(["explain", name, str(observation_file(tmp_path, **change))]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "{}"])
def test_explain_refuses_files_that_are_not_observations(tmp_path, capsys, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["explain", "bola", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"abr: {path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the file is a list"),
        ('{"ladder": [1], "observation": {}}', "ladder is a list"),
        ('{"ladder": {}, "observation": []}', "missing 3 required"),
    ],
)
def test_explain_names_the_part_that_is_no_object(tmp_path, capsys, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["explain", "bola", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_explain_without_a_file(tmp_path, capsys):
    assert main(["explain", "bola", str(tmp_path / "absent.json")]) == 1
    assert "absent.json" in capsys.readouterr().err
