"""Sabre's published numbers from our controllers and our session, and the command's answers to bad input."""

import argparse
import csv
import json
import re
import shlex

import pytest

from experiments.compat import sabre
from experiments.compat.__main__ import main

COLUMNS = (
    "utility",
    "bitrate",
    "rebuffer_s",
    "rebuf_ratio",
    "bitrate_change",
    "score",
    "play_time",
    "rampup",
    "reaction",
)
ROWS = 30
FIXED = {  # bitrate, score and abandonments of Sabre with its misspelt variable put right
    "bola": (1359.337404, 1.705720, 14),
    "bolae": (1362.775067, 1.740547, 0),
    "throughput": (1015.099331, 1.453107, 3),
    "dynamic": (1376.229630, 1.725865, 12),
}
VERBOSE = re.compile(r"\[(\d+)-(\d+)\] +(\d+): q=(\d+) s=(\d+)/(\d+) ")
NETWORK = [
    {"duration_ms": 4000, "bandwidth_kbps": 1500, "latency_ms": 100},
    {"duration_ms": 3000, "bandwidth_kbps": 0, "latency_ms": 0},
    {"duration_ms": 3000, "bandwidth_kbps": 400, "latency_ms": 50},
]
MOVIE = {
    "segment_duration_ms": 2000,
    "bitrates_kbps": [200, 500, 1100],
    "segment_sizes_bits": [[400_001, 1_000_003, 2_200_007], [380_000, 990_001, 2_150_000]],
}


def play(*words):
    """Run the command and return the finished run's numbers."""
    parser = argparse.ArgumentParser()
    sabre.add_arguments(parser)
    return json.loads(sabre.run(parser.parse_args([*map(str, words), "--json"])))


@pytest.fixture
def inputs(shared_data):
    return shared_data / "abr_refs" / "sabre" / "inputs"


@pytest.mark.parametrize("number", range(ROWS))
def test_a_published_row(shared_data, inputs, number):
    with (shared_data / "abr_refs" / "sabre" / "results.tsv").open(encoding="utf-8") as file:
        row = list(csv.DictReader(file, delimiter="\t"))[number]
    got = play(
        "-n", inputs / row["trace"].split("/")[-1], "-m", inputs / row["movie"], "-b", row["maxbuf"],
        *shlex.split(row["args"]), "--reproduce-defects",
    )  # fmt: skip
    for column in COLUMNS:
        assert got[column] == pytest.approx(float(row[column]), rel=1e-6, abs=1e-6), column
    # Sabre also counts stops of 0 s, where rounding empties the buffer an instant before a segment arrives.
    assert abs(got["rebuf_events"] - float(row["rebuf_events"])) <= 1


@pytest.mark.parametrize("name", FIXED)
def test_without_sabres_defect(inputs, name):
    got = play("-n", inputs / "report.2010-09-13_1003CEST.json", "-m", inputs / "bbb.json", "-b", 25, "-a", name)
    bitrate, score, abandonments = FIXED[name]
    assert (got["bitrate"], got["score"]) == pytest.approx((bitrate, score), rel=1e-6)
    assert got["abandonments"] == abandonments


@pytest.mark.parametrize("name", ["bola", "bolae", "throughput", "dynamic"])
@pytest.mark.parametrize(
    ("prefix", "network", "movie"),
    [
        ("example_network_movie", "network", "movie"),
        ("3G_2010-09-13_1003__bbb__b25", "report.2010-09-13_1003CEST", "bbb"),
    ],
)
def test_segment_by_segment(shared_data, inputs, name, prefix, network, movie, capsys):
    """The same segments in the same qualities at the same times, to the millisecond that Sabre prints."""
    path = shared_data / "abr_refs" / "sabre" / "verbose" / f"{prefix}__{name}.txt"
    lines = [match.groups() for match in map(VERBOSE.match, path.read_text(encoding="utf-8").splitlines()) if match]
    expected = [tuple(map(int, line[:4])) for line in lines if line[4] == line[5]]
    assert len(expected) == 199
    words = ["sabre", "-n", f"{inputs}/{network}.json", "-m", f"{inputs}/{movie}.json", "-a", name]
    assert main([*words, "-v", "--reproduce-defects"]) == 0
    printed = re.findall(r"^\[(\d+)-(\d+)\]  (\d+): q=(\d+)$", capsys.readouterr().out, re.MULTILINE)
    got = [tuple(map(int, line)) for line in printed]
    assert [line[2:] for line in got] == [line[2:] for line in expected]
    assert all(
        abs(a - b) <= 1 for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", ["bola", "bolae", "throughput", "dynamic"])
def test_the_text_is_sabres(shared_data, inputs, name, capsys):
    """Line by line, but for what Sabre says of its estimator's errors and a debugging print."""
    words = ["sabre", "--network", f"{inputs}/network.json", "--movie", f"{inputs}/movie.json", "--abr", name]
    assert main([*words, "--reproduce-defects"]) == 0
    text = (shared_data / "abr_refs" / "sabre" / f"example_network_movie__{name}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if ":" in line and "estimate" not in line]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.fixture
def files(tmp_path):
    for name, content in (("network", NETWORK), ("movie", MOVIE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", sabre.NAMES)
@pytest.mark.parametrize("options", [[], ["-noa"], ["-r", "left"], ["-r", "right", "-ao"], ["-ma", "sliding"]])
def test_any_movie_over_a_link_with_an_outage(files, name, options):
    words = ["-n", files / "network.json", "-m", files / "movie.json", "-ml", 60, "-b", 8, "-a", name]
    got = play(*words, *options)
    assert len(got["played"]) == 30
    assert got["play_time"] >= 60 + got["rebuffer_s"]
    assert got["score"] == pytest.approx(got["utility"] - 5 * got["rebuf_ratio"])
    assert got["abandonments"] == 0 or "-noa" not in options


def test_a_constant_link_by_hand(files):
    """1000 kbit/s without latency: 200 kbit/s segments of 400 kbit take 0.4 s; 0.4 s of startup, then 2 s each."""
    (files / "network.json").write_text(
        json.dumps([{"duration_ms": 1000, "bandwidth_kbps": 1000, "latency_ms": 0}]), encoding="utf-8"
    )
    movie = {"segment_duration_ms": 2000, "bitrates_kbps": [200], "segment_sizes_bits": [[400_000]]}
    (files / "movie.json").write_text(json.dumps(movie), encoding="utf-8")
    got = play("-n", files / "network.json", "-m", files / "movie.json", "-ml", 20, "-a", "throughput")
    assert got["play_time"] == pytest.approx(20.4)
    assert got["bitrate"] == pytest.approx(200 * 20 / 20.4)
    assert (got["rebuffer_s"], got["switches"], got["utility"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("network", "[", "network.json: not JSON"),
        ("network", "{}", "network.json: found dict, expected a JSON list"),
        ("network", "[]", "found no period with bandwidth"),
        ("network", '[{"duration_ms": 10, "bandwidth_kbps": 0, "latency_ms": 1}]', "found no period with bandwidth"),
        ("network", "[3]", "row 0: expected an object"),
        ("network", '[{"duration_ms": 10}]', "row 0: bandwidth_kbps: found None"),
        ("network", '[{"duration_ms": -1, "bandwidth_kbps": 5, "latency_ms": 1}]', "row 0: duration_ms: found -1"),
        ("movie", "[]", "movie.json: found list, expected a JSON dict"),
        ("movie", "{}", "segment_duration_ms: found None"),
        ("movie", json.dumps({**MOVIE, "bitrates_kbps": [2, 2, 3]}), "expected ascending numbers"),
        ("movie", json.dumps({**MOVIE, "bitrates_kbps": []}), "bitrates_kbps: expected a list"),
        ("movie", json.dumps({**MOVIE, "segment_sizes_bits": []}), "segment_sizes_bits: expected a list"),
        ("movie", json.dumps({**MOVIE, "segment_sizes_bits": [[1, 2]]}), "segment_sizes_bits[0]: expected 3 sizes"),
        ("movie", json.dumps({**MOVIE, "segment_sizes_bits": [[1, 2, "x"]]}), "segment_sizes_bits[0]: found 'x'"),
    ],
)
def test_malformed_files_are_one_line(files, file, content, message, capsys):
    (files / f"{file}.json").write_text(content, encoding="utf-8")
    assert main(["sabre", "-n", str(files / "network.json"), "-m", str(files / "movie.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("compat: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    ["-b 2", "-b nan", "-rmp 3", "-gp 0", "-ws 0 -ma sliding", "-hl 0", "-ml 0", "-nm -1"],
)
def test_options_out_of_range_are_one_line(files, options, capsys):
    assert (
        main(
            [
                "sabre",
                "-n",
                str(files / "network.json"),
                "-m",
                str(files / "movie.json"),
                "-a",
                "bola",
                *options.split(),
            ]
        )
        == 1
    )
    assert capsys.readouterr().err.count("\n") == 1


def test_files_that_are_not_there_are_one_line(capsys):
    assert main(["sabre", "-n", "nowhere.json", "-m", "nowhere.json"]) == 1
    assert "nowhere.json" in capsys.readouterr().err
