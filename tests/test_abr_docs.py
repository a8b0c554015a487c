"""The examples of docs/controllers.md work as printed."""

import json
import re
import types
from importlib import metadata
from pathlib import Path

import pytest

import abr.plugins
from abr import AbrConfig, Ladder, Observation, ThroughputSample, known_names, known_options
from abr.__main__ import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "controllers.md").read_text(encoding="utf-8")
LADDER = Ladder([1e5, 2e5, 4e5], [[25_000, 50_000, 100_000]] * 3, [2.0] * 3)


def block(language, text=TEXT):
    """Return the first fenced block of a language."""
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1)


def test_the_example_plug_in_plugs_in(monkeypatch):
    page = (DOCS / "extending" / "controller.md").read_text(encoding="utf-8")
    group, name, value = re.search(r'entry-points\."(.+?)"\]\n(\w+) = "(.+?)"', block("toml", page)).groups()
    module = types.ModuleType(value.split(":")[0])
    exec(compile(block("python", page), "controller.py", "exec"), vars(module))
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    monkeypatch.setitem(__import__("sys").modules, module.__name__.split(".")[0], types.ModuleType("package"))
    point = metadata.EntryPoint(name, value, group)
    monkeypatch.setattr(abr.plugins, "entry_points", lambda group: (point,) if group == point.group else ())
    assert name in known_names()
    controller = AbrConfig(name=name, options={"share": 0.7}).create(LADDER, buffer_capacity_s=20.0)
    sample = ThroughputSample(25_000, 0.0, 0.04, 0.64)
    full, empty = (
        controller.choose(Observation(1.0, 0, buffer_s, 20.0, 0, (sample,), True)).representation
        for buffer_s in (10.0, 1.0)
    )
    assert (full, empty) == (1, 0)


RULES = ["bola_u", "bola_o", "bolae", "bolapl", "throughput_ibr", "dynamic", "dash_throughput", "dash_dynamic"]
LAYERED = ["layered_bola", "layered_mpc"]


PLANNERS = ["bb", "puffer_bba", "bba1", "bba2", "rb", "festive", "mpc", "robustmpc", "quality_mpc", "fastmpc", "l2a"]
PLANNERS += ["lolp", "pensieve", "fugu", "oracle", "lowest", "highest"]


@pytest.mark.parametrize("name", ["bba", "bola", "ewma", "fixed", "throughput", *RULES, *LAYERED, *PLANNERS])
def test_the_options_in_the_table_are_those_of_the_code(name):
    row = re.search(rf"^\| (?:`\w+`, )*`{name}`(?:, `\w+`)* \|.*\|(.*)\|$", TEXT, re.MULTILINE).group(1)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(known_options(name))


def test_the_example_observation_is_explained(tmp_path, capsys):
    path = tmp_path / "observation.json"
    path.write_text(block("json"), encoding="utf-8")
    assert main(["explain", "bola", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["segment"] == 1
