"""Pensieve's published runs, and cases of its link and QoE worked by hand."""

import json

import numpy as np
import pytest

from experiments.compat.__main__ import main
from experiments.compat.pensieve import BITRATES_BPS, PensieveLink, evaluate, read_link, read_sizes
from traces.formats import RateSeries

TRACES, SIZES = "abr_refs/pensieve/traces", "abr_refs/pensieve/video_size"
# Six traces in alphabetical order: bb, robustmpc with leak. From runs of the reference's rules written independently.
LEAK = [97.228007, 53.45, 41.258911, 52.362897, 42.05, 21.016292]


def reference_rows(shared_data, scheme):
    lines = (shared_data / "abr_refs/pensieve/native_per_trace.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return {row[0]: [float(value) for value in row[2:]] for row in rows if row[1] == scheme}


@pytest.mark.parametrize(("abr", "scheme", "compat"), [("bb", "bb", "leak"), ("robustmpc", "mpcreset", "reset")])
def test_the_published_rows_of_native_runs(shared_data, abr, scheme, compat):
    expected = reference_rows(shared_data, scheme)
    scores = list(evaluate(shared_data / TRACES, read_sizes(shared_data / SIZES), abr, compat))
    compared = [score for score in scores if score.trace in expected]
    assert [score.trace for score in compared] == ["norway_bus_1", "norway_car_3"]
    for score in compared:
        qoe, kbps, rebuffered_s, startup_s, switch_kbps = expected[score.trace]
        assert score.qoe_lin == pytest.approx(qoe, abs=1e-5)
        assert score.mean_bitrate_kbps == pytest.approx(kbps, abs=1e-3)
        assert score.rebuffered_s == pytest.approx(rebuffered_s, abs=1e-6)
        assert score.startup_s == pytest.approx(startup_s, abs=1e-6)
        assert score.sum_abs_switch_kbps == switch_kbps


@pytest.mark.parametrize(
    ("abr", "compat", "bus_1", "train_5"),
    [
        ("bb", "leak", 80.95, 37.6684),
        ("rb", "leak", 73.6172, 35.85),
        ("robustmpc", "reset", 97.228, 36.0395),
        ("robustmpc", "reset-fixed", 100.878, 40.8),
    ],
)
def test_the_published_scores_of_two_traces(shared_data, abr, compat, bus_1, train_5):
    scores = {s.trace: s for s in evaluate(shared_data / TRACES, read_sizes(shared_data / SIZES), abr, compat)}
    assert scores["norway_bus_1"].qoe_lin == pytest.approx(bus_1, abs=1e-4)
    assert scores["norway_train_5"].qoe_lin == pytest.approx(train_5, abs=1e-4)


def test_errors_of_prediction_leak_from_trace_to_trace(shared_data):
    scores = evaluate(shared_data / TRACES, read_sizes(shared_data / SIZES), "robustmpc", "leak")
    assert [score.qoe_lin for score in scores] == pytest.approx(LEAK, abs=1e-5)


def test_the_first_download_of_bus_1(shared_data):
    transfer = read_link(shared_data / TRACES / "norway_bus_1").request(450_283, 0.0)
    assert transfer.finish_s == pytest.approx(0.887283662463, abs=1e-9)


def test_the_link_by_hand():
    # 8 Mbit/s for 1 s, then 0.8 Mbit/s for 2 s: 950 kB, then 95 kB a second, 80 ms on top that the link does not see.
    link = PensieveLink(RateSeries(np.array([0.0, 1.0, 3.0]), np.array([8e6, 0.8e6])))
    assert link.request(475_000, 5.0).finish_s == pytest.approx(5.0 + 0.5 + 0.08)
    assert link.request(475_000 + 95_000, 6.0).finish_s == pytest.approx(6.0 + 0.5 + 1.0 + 0.08)
    link.sleep(1.25)  # into the next lap
    assert link.request(95_000, 9.0).finish_s == pytest.approx(9.0 + 0.1 + 0.08)


def test_a_trace_that_begins_late_plays_its_lead_from_the_second_lap_on(tmp_path):
    (tmp_path / "late").write_text("2 9\n3 0.8\n")  # 95 kB in the first lap's 1 s, 285 kB in each later lap's 3 s
    link = read_link(tmp_path / "late")
    assert link.request(95_000 + 285_000 + 50, 0.0).finish_s == pytest.approx(1 + 3 + 50 / 95_000 + 0.08)


def write_case(folder, sizes=49, size=None):
    (folder / "traces").mkdir()
    (folder / "traces" / "fast").write_text("0 1000\n10 1000\n")
    for index, rate_bps in enumerate(BITRATES_BPS):
        (folder / f"video_size_{index}").write_text(f"{size or rate_bps // 2}\n" * sizes)
    return ["pensieve", "--traces", str(folder / "traces"), "--sizes", str(folder)]


@pytest.mark.parametrize("sizes", [48, 49, 60])
def test_a_link_faster_than_anything_by_hand(tmp_path, capsys, sizes):
    # Each segment takes little more than 80 ms. The buffer after segment k is about 4 + 3.9 k s: bb stays at 750, goes
    # to 300 kbit/s (4 s), 750 (7.9 s), 1850 (11.8 s), then 4300: 48 segments' sum by hand.
    assert main([*write_case(tmp_path, sizes), "--abr", "bb", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (score,) = report["traces"]
    assert score["rebuffered_s"] == 0
    assert score["sum_abs_switch_kbps"] == 450 + 450 + 1100 + 2450
    assert report["mean_qoe_lin"] == pytest.approx(0.3 + 0.75 + 1.85 + 44 * 4.3 - 4.45)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "traces" / "fast").write_text("0 0\n10 0\n"), "fast: a trace without a single rate"),
        (lambda folder: (folder / "traces" / "fast").unlink(), "traces: no files, expected a folder of traces"),
        (lambda folder: (folder / "video_size_3").unlink(), "video_size_3: No such file"),
        (lambda folder: (folder / "video_size_3").write_text("7\n\n9\n"), "video_size_3:2: found '', expected a size"),
        (lambda folder: (folder / "video_size_3").write_text("7\n9\n"), "video_size_3: 2 sizes, expected 48 or more"),
        (lambda folder: (folder / "video_size_3").write_bytes(b"\xff\n"), "video_size_3: not text"),
    ],
)
def test_what_cannot_be_played_is_one_line(tmp_path, capsys, spoil, message):
    arguments = write_case(tmp_path)
    spoil(tmp_path)
    assert main([*arguments, "--abr", "bb"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
