"""Runs in real time, in miniature: the same record as a simulation's, and what cannot be had is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abr.config import AbrConfig
from emulator import LinkConfig
from experiments import run
from experiments.errors import ExperimentError
from experiments.real import after_lead, check_real, play_real
from experiments.schema import RealConfig, RunConfig
from experiments.series import header_line
from experiments.stream import stream
from player.config import PlayerConfig
from player.presentation import Presentation
from player.programme import Programme, build_programme
from traces import Trace, TraceConfig, load_trace

PLAYER = PlayerConfig(buffer_s=0.6, startup_s=0.2, rebuffer_s=0.2)


@pytest.fixture
def programme(box_package: Path) -> Programme:
    return build_programme(Presentation.load(box_package), 0.8)


@pytest.fixture
def trace() -> Trace:
    return load_trace(TraceConfig("constant", rate_bps=1e6))


def config(shaper: str) -> RunConfig:
    return RunConfig(
        abr=AbrConfig("fixed"),
        player=PLAYER,
        link=LinkConfig(delay_ms=30.0),
        mode="real",
        real=RealConfig(shaper, lead_s=1.0),
    )


def test_a_session_over_the_proxy_has_the_record_of_a_simulated_one(
    programme: Programme, trace: Trace, tmp_path: Path
) -> None:
    real = play_real("h265", programme, trace, config("proxy"), tmp_path)
    simulated = stream("h265", programme, trace, config("proxy"))
    assert list(real.result.summary) == list(simulated.summary)
    for name in ("segments", "frames", "events"):
        assert dict(getattr(real.result, name).dtypes) == dict(getattr(simulated, name).dtypes)
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "h265" / f"{name}.parquet"), getattr(real.result, name)
        )
    assert real.result.summary["segments"] == 4
    assert real.connections == 1
    # 60 ms for the connection, the init segment and the segment each: no less in real time than in virtual.
    assert real.result.segments["finish_s"][0] >= 0.18
    assert real.lead_s >= 0


def test_a_session_in_the_shell_begins_with_the_trace(programme: Programme, trace: Trace, tmp_path: Path) -> None:
    shell = [sys.executable, "-m", "emulator", "shell", "--trace", "lte", "--", "true"]
    tried = subprocess.run(shell, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no emulator shell here: {tried.stderr.strip()}")
    real = play_real("h265", programme, trace, config("shell"), tmp_path)
    assert real.result.summary["segments"] == 4
    assert real.result.segments["finish_s"][0] >= 0.18
    assert real.lead_s >= -0.001


def test_the_trace_follows_its_lead_unchanged() -> None:
    uneven = Trace("uneven", np.array([0, 30, 30, 100]), 100)
    led = after_lead(uneven, 0.5, 0.25)
    assert led.period_ms == 800
    times = led.opportunities_ms
    assert times[times < 500].tolist() == list(range(1, 500))
    assert (times[times >= 500] - 500).tolist() == [0, 30, 30, 100, 100, 130, 130, 200, 200, 230, 230, 300]


@pytest.mark.parametrize("setting", ["mss_bytes", "initial_window_packets"])
def test_a_link_of_virtual_time_only_is_refused(setting: str) -> None:
    wanted = config("proxy")
    setattr(wanted.link, setting, 5)
    with pytest.raises(ExperimentError, match=rf"link\.{setting}=5: in real time"):
        check_real(wanted)


def test_tables_and_figures_say_that_it_was_real_time() -> None:
    conditions = {
        "mode": "real time over the emulator's proxy", "video": "demo", "trace": "lte", "share": 1, "offset_s": 0.0,
        "mean_rate_bps": 1e6, "session_rate_bps": 1e6, "delay_ms": 20.0, "loss": 0.0, "buffer_s": 20.0, "abr": "bola",
        "session_s": 20.0, "clip_s": 12.0, "loops": 2.0, "render_fps": None,
    }  # fmt: skip
    assert header_line(conditions).startswith("real time over the emulator's proxy, demo")


@pytest.mark.parametrize(("key", "value"), [("mode", "virtual"), ("real.shaper", "tc")])
def test_unknown_modes_list_the_known_ones(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([f"{key}={value}"]) == 2
    assert f"{key}={value}: expected one of" in capsys.readouterr().err
