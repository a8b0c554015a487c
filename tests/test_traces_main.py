"""The command line of traces: a success and a user error each, and what it must not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from traces import TraceConfig, read_trace
from traces.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "* lte-att-driving-down           786.1 s     5.187 Mbit/s  p5    0.689  ATT-LTE-driving.down" in out
    assert "starlink-12" in out
    assert main(["list", "fcc"]) == 0
    assert "starlink" not in capsys.readouterr().out
    assert main(["list", "6g"]) == 1
    assert capsys.readouterr().err == (
        "error: family: found '6g', expected one of lte, umts, evdo, hsdpa, fcc, 4g, 5g, starlink\n"
    )


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "lte", "--share", "50"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["opportunities"] == 6778  # of 338895
    assert (figures["share"], figures["period_s"]) == (50, 786.112)
    assert figures["licence"] == "GPL-3.0 (repo COPYING)"
    assert main(["info", "constant", "--rate", "2.5"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_bps"] == 2.5e6
    assert main(["info", "constant"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "step.mm"
    command = ["convert", "step", str(target), "--rates", "1,2", "--dwell", "1"]
    assert main(command) == 0
    assert read_trace(target).opportunities_ms.size == round(3e6 / 8 / 1504)
    assert capsys.readouterr().err.startswith("note: the last opportunity was moved by ")
    assert main(command) == 1
    assert capsys.readouterr().err == f"error: {target}: found an existing file, expected a new name or --force\n"
    for kind in ("cooked", "sabre"):
        assert main([*command, "--force", "--to", kind, "--bin", "0.5"]) == 0
        assert read_trace(target).period_ms == 2000
    assert main(["convert", "step", str(target), "--rates", "1;2", "--force"]) == 1
    assert capsys.readouterr().err == "error: --rates: found '1;2', expected numbers (Mbit/s) with commas between\n"


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "lte/2016", "-o", str(tmp_path / "a.png")]) == 1
    capsys.readouterr()
    assert main(["plot", "lte/verizon", "umts", "-o", str(tmp_path / "a.png"), "--share", "5"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "lte", "-o", str(tmp_path / "a.pdf"), "--log", "--duration", "60"]) == 0
    assert main(["plot", "lte", "-o", str(tmp_path / "a.xyz")]) == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path / 'a.xyz'}: found suffix '.xyz', expected .pdf or .png or .svg\n"
    )


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", "lte"])
    assert caught.value.code == 2
    assert "required: output" in capsys.readouterr().err


def test_the_package_is_light() -> None:
    heavy = ("torch", "matplotlib", "pandas", "hydra", "scipy")
    code = f"import sys, traces, traces.__main__; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_module_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "traces", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "list|info|plot|convert" in run.stdout


def test_config_is_a_hydra_schema() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    schema = omegaconf.OmegaConf.structured(TraceConfig)
    merged = omegaconf.OmegaConf.merge(schema, {"name": "step", "rates_bps": [1e6, 2e6]})
    assert omegaconf.OmegaConf.to_object(merged) == TraceConfig(name="step", rates_bps=[1e6, 2e6])
    with pytest.raises(omegaconf.errors.ConfigKeyError):
        omegaconf.OmegaConf.merge(schema, {"shares": 3})
