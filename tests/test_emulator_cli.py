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


def test_any_link_setting_can_be_given(capsys):
    arguments = ["transfer", "--trace", "lte", "--size", "5000"]
    finish_s = []
    for settings in ([], ["--link", "handshake=tls13", "--link", "idle_restart=false", "--link", "ack_delay_ms=25.5"]):
        assert main([*arguments, *settings]) == 0
        finish_s.append(json.loads(capsys.readouterr().out)["finish_s"])
    assert finish_s[1] - finish_s[0] > 0.039


def test_compare_prints_a_table(capsys):
    assert main(["compare", "--traces", "lte,umts", "--rtts", "40", "--requests", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| transfers | number | median |")
    assert lines[2].startswith("| lte | 4 |")
    assert lines[-1].startswith("| all | 8 |")


def test_compare_over_queues(capsys):
    assert main(["compare", "--traces", "lte", "--rtts", "40", "--requests", "3", "--queues", "32,infinite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("| droptail 32 packets | 3 |")
    assert lines[-2].startswith("| infinite | 3 |")


def test_speed_prints_a_table(capsys):
    assert main(["speed", "--seconds", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| what | per second of one core |"
    assert any(line.startswith("| fluid: sessions of 199 segments of 28 kB |") for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["transfer", "--trace", "no such trace", "--size", "1"],
        ["transfer", "--size", "-1"],
        ["transfer", "--size", "1", "--delay-ms", "-3"],
        ["compare", "--rtts", "fast"],
        ["transfer", "--size", "1", "--link", "speed=3"],
        ["transfer", "--size", "1", "--link", "delay_ms=3"],
        ["transfer", "--size", "1", "--link", "connections=two"],
        ["transfer", "--size", "1", "--link", "idle_restart=maybe"],
        ["compare", "--requests", "0"],
        ["compare", "--queues", "0"],
        ["compare", "--queues", "32,deep"],
        ["speed", "--seconds", "0"],
    ],
)
def test_user_errors_take_one_line(capsys, arguments):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("emulator: ")
    assert captured.err.count("\n") == 1
