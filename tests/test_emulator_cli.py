"""The command line of the emulator."""

import json

import pytest

from emulator.__main__ import main


@pytest.mark.parametrize("model", ["fluid", "packet"])
def test_transfer_prints_json(capsys, model):
    assert main(["transfer", "--trace", "lte", "--size", "5000", "--at", "2.5", "--model", model]) == 0
    transfer = json.loads(capsys.readouterr().out)
    assert transfer["request_s"] == 2.5
    assert transfer["received_bytes"] == 5000
    assert transfer["complete"] is True


def test_transfer_with_a_deadline(capsys):
    arguments = ["--trace", "lte@10", "--size", "5000000", "--deadline", "3"]
    assert main(["transfer", *arguments]) == 0
    transfer = json.loads(capsys.readouterr().out)
    assert transfer["finish_s"] == 3
    assert transfer["complete"] is False


def test_compare_prints_a_table(capsys):
    assert main(["compare", "--traces", "lte,umts", "--rtts", "40", "--requests", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| transfers | number | median |")
    assert lines[2].startswith("| lte | 4 |")
    assert lines[-1].startswith("| all | 8 |")


@pytest.mark.parametrize(
    "arguments",
    [
        ["transfer", "--trace", "no such trace", "--size", "1"],
        ["transfer", "--size", "-1"],
        ["transfer", "--size", "1", "--delay-ms", "-3"],
        ["compare", "--rtts", "fast"],
        ["compare", "--requests", "0"],
    ],
)
def test_user_errors_take_one_line(capsys, arguments):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("emulator: ")
    assert captured.err.count("\n") == 1
