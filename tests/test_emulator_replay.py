"""Replayed logs against hand-worked ones, against Mahimahi's own, and their graphs against Mahimahi's figures."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from emulator import LinkError, parse_queue
from emulator.__main__ import main
from emulator.graph import binned_mbps, parse_log, read_log, signal_delays, summarise
from emulator.replay import LogHeader, read_arrivals, replay
from traces import Trace, read_trace

HEADER = LogHeader("Downlink", "trace", "log", "infinite").lines()


def make_trace(*opportunities_ms: int) -> Trace:
    return Trace(name="t", opportunities_ms=np.array(opportunities_ms, dtype=np.int64), period_ms=opportunities_ms[-1])


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_log_by_hand():
    """Opportunities at 0, 2, 5 and then 5, 7, 10: an arrival waits for a later ms, pieces keep their place."""
    lines = replay(make_trace(0, 2, 5), [(0, 1504), (2, 1000), (2, 1000), (5, 40)], end_ms=7)
    assert lines == [
        "0 # 1504",
        "0 + 1504",
        "2 # 1504",
        "2 - 1504 2",
        "2 + 1000",
        "2 + 1000",
        "5 # 1504",
        "5 - 1000 3",  # 504 bytes left for the second one
        "5 # 1504",  # line 0 of the next lap, in the same ms
        "5 - 1000 3",
        "5 + 40",
        "7 # 1504",
        "7 - 40 2",
    ]


def test_nothing_follows_the_last_opportunity_of_once():
    arrivals = [(1, 1504), (1, 1504), (5, 100), (9, 100)]
    lines = replay(make_trace(0, 2, 5), arrivals, end_ms=50, repeat=False)
    assert lines == ["0 # 1504", "1 + 1504", "1 + 1504", "2 # 1504", "2 - 1504 1", "5 # 1504", "5 - 1504 4"]


def test_the_end_is_part_of_the_log():
    assert replay(make_trace(3), [(3, 9), (4, 9)], end_ms=3) == ["3 # 1504", "3 + 9"]
    assert replay(make_trace(3), [], end_ms=2) == []


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.tsv").open() as table:
        return list(csv.DictReader(table, delimiter="\t"))


def test_logs_equal_mahimahis(shared_data: Path, tmp_path: Path, capsys):
    """Every reference case through the command line: the same event lines, by their MD5, or the same failure."""
    folder = shared_data / "abr_refs" / "mahimahi"
    assert rows(folder)
    for row in rows(folder):
        once = [] if row["repeat"] == "1" else ["--once"]
        status, out, err = run(
            capsys, "replay", "--trace", folder / "traces" / row["trace"], "--end-ms", row["end_ms"], *once,
            "--arrivals", folder / "arrivals" / row["arrivals"], "--queue", row["queue"],
            "--queue-args", row["args"], "--compat", "mahimahi", "--log", tmp_path / "log",
        )  # fmt: skip
        if row["events"] == "ABORT":
            assert (status, out) == (1, "")
            assert "Mahimahi aborts" in err
        else:
            found = json.loads(out)
            assert found == {"events": int(row["events"]), "md5_of_event_lines": row["md5_of_event_lines"]}, row["case"]


def test_a_log_file_equals_mahimahis_but_for_its_header(shared_data: Path, tmp_path: Path, capsys):
    folder = shared_data / "abr_refs" / "mahimahi"
    run(
        capsys, "replay", "--trace", folder / "traces" / "tiny_wrap.trace", "--end-ms", 100,
        "--arrivals", folder / "arrivals" / "tiny.txt", "--log", tmp_path / "log",
    )  # fmt: skip
    ours = (tmp_path / "log").read_text().splitlines()
    theirs = (folder / "logs" / "tiny_wrap_inf.log").read_text().splitlines()
    assert ours[0].startswith("# mahimahi mm-link (Downlink) [")
    assert ours[1:] == theirs[1:]


def test_graph_figures_equal_mahimahis(shared_data: Path):
    """The check values of three reference runs: rates, utilisation, and the 95th percentiles of both delays."""
    folder = shared_data / "abr_refs" / "mahimahi"
    with gzip.open(folder / "logs" / "att_down_inf.log.gz", "rt") as lines:
        logs = [(parse_log(lines), 4.38, 2.67, 60.9, 5421, 5482)]
    for trace, arrivals, end_ms, *expected in (
        ("ATT-LTE-driving-2016.up", "mix_light", 130_000, 2.09, 1.23, 59.1, 24693, 24785),
        ("12mbps.trace", "mix_heavy", 60_000, 12.03, 10.48, 87.1, 17, 17),
    ):
        events = replay(
            read_trace(folder / "traces" / trace), read_arrivals(folder / "arrivals" / f"{arrivals}.txt"), end_ms=end_ms
        )
        logs.append((parse_log([*HEADER, *events]), *expected))
    for log, capacity, throughput, utilization, delay, signal_delay in logs:
        found = summarise(log)
        assert round(found.capacity_mbps, 2) == capacity
        assert round(found.throughput_mbps, 2) == throughput
        assert round(100 * found.utilization, 1) == utilization
        assert (found.delay_p95_ms, found.signal_delay_p95_ms) == (delay, signal_delay)


def test_a_summary_by_hand():
    """Arrivals at 0, 0 and 4 leave at 3, 5 and 5; nothing arrived in 1..3, so a signal there waits for the one at 4."""
    events = [
        "0 + 100",
        "0 + 100",
        "3 # 1504",
        "3 - 100 3",
        "4 + 100",
        "5 # 1504",
        "5 - 100 5",
        "5 - 100 1",
        "8 d 2 300",
    ]
    log = parse_log([*HEADER, *events])
    assert signal_delays(log) == {0: 3, 1: 4, 2: 3, 3: 2, 4: 1}
    found = summarise(log)
    assert found.capacity_mbps == pytest.approx(2 * 1504 * 8 / 0.008 / 1e6)
    assert found.ingress_mbps == found.throughput_mbps == pytest.approx(300 * 8 / 0.008 / 1e6)
    assert (found.delay_p95_ms, found.signal_delay_p95_ms, found.dropped_packets) == (5, 4, 2)
    rates = binned_mbps(log, 4)
    assert rates["capacity"].tolist() == pytest.approx([1504 * 8 / 0.004 / 1e6] * 2 + [0])
    assert rates["drops"].tolist() == pytest.approx([0, 0, 300 * 8 / 0.004 / 1e6])


def test_times_count_from_the_base_timestamp():
    log = parse_log(["# base timestamp: 1000", "1000 # 1504", "1004 + 9", "1500 # 1504"])
    assert (log.first_ms, log.last_ms) == (0, 500)
    assert binned_mbps(log, 500)["capacity"].tolist() == pytest.approx([0.024064] * 2)


def test_graph_of_a_log_with_drops(tmp_path: Path, capsys):
    (tmp_path / "trace").write_text("1\n")
    (tmp_path / "arrivals").write_text("".join(f"{now_ms} 1504\n" * 2 for now_ms in range(300)))
    log, figure = tmp_path / "log", tmp_path / "figure.png"
    status, _, err = run(
        capsys, "replay", "--trace", tmp_path / "trace", "--arrivals", tmp_path / "arrivals", "--end-ms", 299,
        "--queue", "droptail", "--queue-args", "packets=10", "--uplink", "--before", "delay=20", "--log", log,
    )  # fmt: skip
    assert status == 0, err
    assert log.read_text().startswith("# mahimahi mm-link (Uplink) [")
    assert "# queue: droptail [packets=10]\n" in log.read_text()
    assert read_log(log).arrivals[0] == (20, 1504)
    status, out, err = run(capsys, "graph", log, "--bin-ms", 100, "-o", figure)
    assert status == 0, err
    assert out.splitlines()[0] == "Average capacity: 12.07 Mbits/s"
    assert "Dropped packets: " in out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert json.loads(run(capsys, "graph", log, "--json")[1])["dropped_packets"] > 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1504\nx 3\n", "arrivals:2: found 'x 3'"),
        ("1 1504 3\n", "arrivals:1: found"),
        ("1 -5\n", "arrivals:1: found"),
        ("1 1.5\n", "arrivals:1: found"),
        ("\n", "arrivals:1: found ''"),
        ("5 40\n4 40\n", "arrivals:2: found 4 after 5"),
        ("5 1505\n", "packet of 1505 bytes at 5 ms; expected 1 to 1504"),
        ("5 0\n", "packet of 0 bytes"),
    ],
)
def test_bad_arrivals_are_one_line_errors(tmp_path: Path, capsys, text, message):
    (tmp_path / "trace").write_text("1\n")
    (tmp_path / "arrivals").write_text(text)
    status, out, err = run(
        capsys, "replay", "--trace", tmp_path / "trace", "--arrivals", tmp_path / "arrivals", "--end-ms", 99,
        "--log", tmp_path / "log",
    )  # fmt: skip
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 # 1504"], "before the line '# base timestamp"),
        ([*HEADER], "no events"),
        ([*HEADER, "1 # 1504"], "single millisecond"),
        ([*HEADER, "1 # 1504", "2 ? 1504"], "log:7: found '2 [?] 1504'"),
        ([*HEADER, "1 - 1504"], "expected an event"),
        ([*HEADER, "1 # big"], "whole numbers"),
        ([*HEADER, "3 # 1504", "2 # 1504"], "time to go forward"),
    ],
)
def test_bad_logs_are_refused(lines, message):
    with pytest.raises(LinkError, match=message):
        summarise(parse_log(lines))


def test_user_errors_name_the_file(tmp_path: Path, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LinkError, match="binary: not a text file"):
        read_log(tmp_path / "binary")
    with pytest.raises(LinkError, match="binary: not a text file"):
        read_arrivals(tmp_path / "binary")
    status, _, err = run(capsys, "graph", tmp_path / "nothing")
    assert (status, err.count("\n")) == (1, 1)


def naive_log(
    times_ms: list[int],
    arrivals: list[tuple[int, int]],
    end_ms: int,
    limits: tuple[int, int],
    *,
    head: bool,
    once: bool,
) -> list[str]:
    """The rules again, one millisecond at a time and with nothing clever: what `Link` must log."""
    waiting: list[tuple[int, int]] = []  # (arrival, size)
    transit: list[int] = []  # arrival, size, unsent
    log = []
    packet_limit, byte_limit = limits
    laps = 1 if once else end_ms // times_ms[-1] + 2
    schedule = [lap * times_ms[-1] + time_ms for lap in range(laps) for time_ms in times_ms]
    for now_ms in range(end_ms + 1):
        for _ in range(schedule.count(now_ms)):
            log.append(f"{now_ms} # 1504")
            room = 1504
            while room and (transit or waiting):
                if not transit:
                    arrival_ms, size = waiting.pop(0)
                    transit = [arrival_ms, size, size]
                sent = min(room, transit[2])
                room -= sent
                transit[2] -= sent
                if transit[2] == 0:
                    log.append(f"{now_ms} - {transit[1]} {now_ms - transit[0]}")
                    transit = []
        if once and now_ms >= times_ms[-1]:
            break
        for _, size in [arrival for arrival in arrivals if arrival[0] == now_ms]:
            log.append(f"{now_ms} + {size}")
            before = [*waiting, (now_ms, size)]
            waiting = before[:]
            while (packet_limit and len(waiting) > packet_limit) or (
                byte_limit and sum(packet[1] for packet in waiting) > byte_limit
            ):
                waiting.pop(0 if head else -1)
            lost = len(before) - len(waiting)
            if lost:
                bytes_lost = sum(packet[1] for packet in before) - sum(packet[1] for packet in waiting)
                log.append(f"{now_ms} d {lost} {bytes_lost}")
    return log


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    ("name", "limits"), [("droptail", (3, 0)), ("droptail", (0, 4000)), ("drophead", (4, 3500)), ("infinite", (0, 0))]
)
def test_random_logs_equal_those_of_a_naive_link(seed, name, limits):
    draw = np.random.default_rng(seed)
    times_ms = sorted(draw.integers(0, 40, int(draw.integers(1, 25))).tolist())
    times_ms[-1] = max(times_ms[-1], 1)
    sizes = [40, 576, 700, 1000, 1500, 1503, 1504]
    count = int(draw.integers(1, 150))
    arrivals = [
        (int(time_ms), int(size))
        for time_ms, size in zip(np.sort(draw.integers(0, 130, count)), draw.choice(sizes, count), strict=True)
    ]
    once = bool(seed % 3 == 0)
    queue = parse_queue(name, "" if name == "infinite" else f"packets={limits[0]}, bytes={limits[1]}")
    found = replay(make_trace(*times_ms), arrivals, end_ms=120, queue=queue, repeat=not once)
    assert found == naive_log(times_ms, arrivals, 120, limits, head=name == "drophead", once=once)
