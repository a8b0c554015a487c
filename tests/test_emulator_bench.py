"""The bench of the shaper: that it measures, not how fast this machine is."""

import json

import pytest

from emulator.__main__ import main
from emulator.bench import Errors, RateResult


def test_it_prints_what_it_measured(capsys):
    assert main(["bench", "--devices", "sockets", "--rates", "5", "--seconds", "0.2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (rate,) = report["rates"]
    assert rate["rate_bps"] == 5e6
    assert 0 < rate["departures"] <= 84  # 0.2 s of opportunities
    assert 0 <= rate["written"]["p50_us"] <= rate["written"]["p99_us"] <= rate["written"]["max_us"]
    assert report["devices"] == "sockets"
    assert set(report["machine"]) == {"cpu", "cores", "kernel", "python"}


def test_a_rate_counts_as_sustained_by_both_conditions():
    def result(utilisation, p99_us):
        return RateResult(1e6, 100, utilisation, Errors(0, 0, p99_us, 0, 0), None, 1.0, 0.1)

    assert result(1.0, 1000).is_sustained
    assert not result(0.98, 1000).is_sustained
    assert not result(1.0, 1001).is_sustained


@pytest.mark.parametrize(
    "arguments", [["--rates", "fast"], ["--rates", "0"], ["--seconds", "0"], ["--seconds", "nan"], ["--rates", "nan"]]
)
def test_user_errors_take_one_line(capsys, arguments):
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("emulator: ")
    assert captured.err.count("\n") == 1
