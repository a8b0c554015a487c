"""Every configuration composes; every mistake on the command line is one line that says what was expected."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments import run
from experiments.command_line import check_arguments, compose_config, flags_first
from experiments.errors import UsageError
from experiments.overrides import rewrite_overrides
from experiments.schema import CONF, RunConfig
from experiments.shares import TARGET_MEAN_BPS, default_share, suggest_share
from traces import catalogue, load_trace

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def _config(*arguments: str) -> RunConfig:
    config = OmegaConf.to_object(compose_config(rewrite_overrides(arguments)))
    assert isinstance(config, RunConfig)
    return config


def _refusal(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        check_arguments(rewrite_overrides(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_main_job() -> None:
    config = _config()
    assert (config.trace.name, config.abr.name, config.video.name) == ("lte", "bola", "demo")
    assert config.codec == ["prompt", "h265"]
    assert config.trace.share == default_share("lte") > 1
    assert config.name == "lte-bola"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    assert _config(f"experiment={experiment}").session_s > 0


def test_the_issue_in_one_command() -> None:
    config = _config(
        "trace=umts", "abr=bba", "video=clip.mp4", "codec=prompt", "link.delay_ms=40", "player.buffer_s=30",
        "trace.share=8", "trace.offset_s=30", "session_s=60",
    )  # fmt: skip
    assert (config.trace.name, config.trace.share, config.trace.offset_s) == ("umts", 8, 30.0)
    assert (config.link.delay_ms, config.player.buffer_s) == (40.0, 30.0)
    assert config.codec == ["prompt"]
    constant = _config("trace=constant", "rate=500k")
    assert constant.trace.rate_bps == 500e3
    assert constant.trace.share == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["link.dely_ms=40"], ["unknown key link.dely_ms", "link.delay_ms", "queue_packets"]),
        (["lnk.delay_ms=40"], ["unknown key lnk", "did you mean link", "player", "rate"]),
        (["+player.foo=1"], ["unknown key player.foo", "buffer_s"]),
        (["session_s.x=1"], ["session_s is a single value"]),
        (["link.delay_ms=fast"], ["link.delay_ms", "fast"]),
        (["trace.share=1.5"], ["share", "1.5"]),
        (["trace.share=0"], ["share", ">= 1"]),
        (["build.ranks=4"], ["build.ranks", "list"]),
        (["codec=mp3"], ["codec=mp3", "prompt, h265"]),
        (["experiment=nope"], ["experiment/nope", "smoke"]),
        (["abr=bola,bba"], ["need -m"]),
        (["link.delay_ms=10,20"], ["need -m"]),
        (["-m", "link.delay_ms=10,x"], ["link.delay_ms", "x"]),
        (["lte"], ["lte", "KEY=VALUE"]),
        (["link.delay_ms=[1"], ["cannot be parsed"]),
        (["trace=lte", "rate=1M"], ["constant"]),
        (["session_s=0"], ["session_s"]),
        (["trace=constant"], ["rate_bps", "constant"]),
        (["cache_dir="], ["cache_dir", "folder"]),
        (["~link"], ["cannot be removed"]),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: list[str]) -> None:
    message = _refusal(*arguments)
    for text in expected:
        assert text in message


def test_what_is_right_passes() -> None:
    check_arguments(rewrite_overrides(["-m", "trace=lte,umts", "player.buffer_s=10,20", "hydra.sweep.dir=somewhere"]))
    check_arguments(rewrite_overrides(["abr.options.anything=3", "experiment=smoke", "hydra.run.dir=a/b"]))


def test_flags_may_stand_anywhere() -> None:
    given = ["abr.name=bola,bba", "-m", "--cfg", "job", "link.delay_ms=4"]
    assert flags_first(given) == ["-m", "--cfg", "job", "abr.name=bola,bba", "link.delay_ms=4"]


def test_exit_codes(capsys: Any) -> None:
    assert run.main(["link.dely_ms=4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run.main(["--help"]) == 0
    assert "player:" in capsys.readouterr().out


def test_every_family_has_a_share_that_leaves_a_small_rate() -> None:
    for family in catalogue.families():
        entry = catalogue.find(family.name)
        assert entry is not None
        assert entry.mean_bps / default_share(family.name) == pytest.approx(TARGET_MEAN_BPS, rel=0.1)
    assert default_share("5g/2") == default_share("5g")
    assert default_share("my/own.trace") == default_share("constant") == 1


def test_suggested_share_brings_the_mean_into_the_ladder() -> None:
    import numpy as np

    from abr import Ladder

    rates = np.array([10e3, 90e3])
    ladder = Ladder(rates, np.full((1, 2), 1000), np.array([2.0]))
    trace = load_trace("lte")
    assert trace.mean_bps / suggest_share(trace, ladder) == pytest.approx(70e3, rel=0.02)


def test_files_of_the_configuration_are_few_and_named(tmp_path: Path) -> None:
    names = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert "config.yaml" in names
    assert "hydra/job_logging/plain.yaml" in names
