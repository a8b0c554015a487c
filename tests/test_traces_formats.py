"""Trace files: what is read and written, and the one line said about what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces import MTU_BYTES, Trace, TraceError, read_trace, write_cooked, write_mahimahi, write_sabre
from traces.formats import read_rates

SABRE = (
    '[{"duration_ms": 1000, "bandwidth_kbps": 1203.2, "latency_ms": 20},\n {"duration_ms": 500, "bandwidth_kbps": 0}]'
)

in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "x"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def per_second(trace: Trace) -> list[int]:
    return np.bincount(trace.opportunities_ms // 1000).tolist()


def test_mahimahi(save: Callable) -> None:
    trace = read_trace(save("0\n0\n5\n7"))
    assert (trace.name, trace.period_ms, trace.opportunities_ms.tolist()) == ("x", 7, [0, 0, 5, 7])
    assert read_trace(save("3\r\n4\r\n")).opportunities_ms.tolist() == [3, 4]
    assert read_trace(save("0007\n")).period_ms == 7


def test_cooked_rates_hold_until_their_time(save: Callable) -> None:
    # Line 0's 99 Mbit/s marks the start; 100 packets/s in the first second, none in the second, 200/s for half a second
    trace = read_trace(save("0 99\n1.0\t1.2032\n\n2.0,0\n2.5 2.4064\n"))
    assert trace.period_ms == 2500
    assert per_second(trace) == [100, 0, 100]
    assert np.diff(trace.opportunities_ms[:100]).tolist() == [10] * 99


def test_cooked_starts_at_its_first_line(save: Callable) -> None:
    trace = read_trace(save("300.2 99\n301.2 1.2032\n"))
    assert (trace.period_ms, per_second(trace)) == (1000, [100])


def test_sabre(save: Callable) -> None:
    trace = read_trace(save(SABRE))
    assert (trace.period_ms, per_second(trace)) == (1500, [100])
    assert read_trace(save("\n " + SABRE + "\n\n")).period_ms == 1500


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 40, allow_subnormal=False)), min_size=1, max_size=20).filter(
        lambda rows: any(ms * mbps > 100 for ms, mbps in rows)
    )
)
@in_tmp_path
def test_every_span_is_within_one_mtu_of_the_rates_integral(save: Callable, rows: list[tuple[int, float]]) -> None:
    text = json.dumps([{"duration_ms": ms, "bandwidth_kbps": mbps * 1000} for ms, mbps in rows])
    trace, series = read_trace(save(text)), read_rates(save(text))
    edges_ms = np.arange(0, trace.period_ms + 1)
    expected = series.bytes_until(edges_ms / 1000)
    counted = np.asarray(trace.count_until(edges_ms - 1)) * MTU_BYTES
    assert np.abs(counted - expected).max() <= MTU_BYTES / 2 + 1  # rounding of the intervals to whole bytes


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60).map(sorted).filter(lambda times: times[-1] > 0))
@in_tmp_path
def test_mahimahi_round_trip(tmp_path: Path, times: list[int]) -> None:
    trace = Trace("t", np.array(times, dtype=np.int64), times[-1])
    assert write_mahimahi(trace, tmp_path / "x") == 0
    assert (tmp_path / "x").read_text() == "".join(f"{time}\n" for time in times)
    assert read_trace(tmp_path / "x").opportunities_ms.tolist() == times


def test_writing_mahimahi_tells_how_far_the_last_opportunity_moved(tmp_path: Path) -> None:
    trace = Trace("t", np.array([1, 5]), 9)
    assert write_mahimahi(trace, tmp_path / "x") == 4
    assert read_trace(tmp_path / "x").opportunities_ms.tolist() == [1, 9]


@pytest.mark.parametrize("write", [write_cooked, write_sabre])
@pytest.mark.parametrize("bin_s", [1.0, 0.1, 7.0])
def test_rate_formats_keep_period_count_and_bins(tmp_path: Path, write: Callable, bin_s: float) -> None:
    times = np.sort(np.random.default_rng(3).integers(0, 12_345, 5000))
    times[-1] = 12_345
    write(Trace("t", times, 12_345), tmp_path / "x", bin_s=bin_s)
    back = read_trace(tmp_path / "x")
    assert (back.period_ms, back.opportunities_ms.size) == (12_345, 5000)
    width = round(bin_s * 1000)
    bins = 12_345 // width + 1
    error = np.bincount(times // width, minlength=bins) - np.bincount(back.opportunities_ms // width, minlength=bins)
    assert np.abs(error).max() <= 1


MAHIMAHI_WANTS = "a whole number of milliseconds"
MALFORMED = [
    ("", "1: found an empty file, expected a trace"),
    ("\n \n", "1: found only blank lines, expected a trace"),
    ("1\n\n2\n", f"2: found an empty line, expected {MAHIMAHI_WANTS}"),
    ("1\n2\n\n", f"3: found an empty line, expected {MAHIMAHI_WANTS}"),
    ("1\r\n\r\n2\r\n", f"2: found an empty line, expected {MAHIMAHI_WANTS}"),
    ("1\nabc\n", f"2: found 'abc', expected {MAHIMAHI_WANTS} >= 0"),
    ("# comment\n1\n", "1: found '#', expected a time in seconds >= 0"),
    ("1\n-2\n", f"2: found '-2', expected {MAHIMAHI_WANTS} >= 0"),
    ("1\n2.5\n", f"2: found '2.5', expected {MAHIMAHI_WANTS} >= 0"),
    ("1\n2 3\n", f"2: found '2 3', expected {MAHIMAHI_WANTS} >= 0"),
    ("1\n٣\n", f"2: found '٣', expected {MAHIMAHI_WANTS} >= 0"),
    ("1\n" + "9" * 60, f"2: found '{'9' * 37}...', expected {MAHIMAHI_WANTS} >= 0"),
    ("1\n999999999999\n", "2: found 999999999999 ms, expected at most 604800000 ms (7 days)"),
    ("5\n3\n", "2: found 3 after 5, expected a time not before the line above"),
    ("0\n0\n", "2: found 0 as the last time, expected a period above 0 ms"),
    ("0\n", "1: found 0 as the last time, expected a period above 0 ms"),
    (b"1\n2\n\0\0", "3: found binary data, expected a text file"),
    (b"1\n\xff\n", "2: found bytes that are not UTF-8, expected a text file"),
    (b"\x1f\x8b\x08\0", "1: found a gzip archive, expected text (unpack it first)"),
    ("1 2 3\n", "1: found 3 columns, expected 1 (Mahimahi ms) or 2 (time_s Mbit/s), or Sabre's JSON list"),
    ("0 1\n1\n", "2: found 1 columns, expected 2 (time_s Mbit/s)"),
    ("0 1\n1 2 3\n", "2: found 3 columns, expected 2 (time_s Mbit/s)"),
    ("0 1\n1 x\n", "2: found 'x', expected a rate in Mbit/s >= 0"),
    ("time rate\n0 1\n", "1: found 'time', expected a time in seconds >= 0"),
    ("0 1\n1 nan\n", "2: found 'nan', expected a rate in Mbit/s >= 0"),
    ("0 1\n1 -1\n", "2: found '-1', expected a rate in Mbit/s >= 0"),
    ("0 1\n1 1e7\n", "2: found 1e+07 Mbit/s, expected at most 1e+06"),
    ("0 1\ninf 1\n", "2: found 'inf', expected a time in seconds >= 0"),
    ("0 1\n1_0 1\n", "2: found '1_0', expected a time in seconds >= 0"),
    ("0 1\n2 1\n2 1\n", "3: found time 2 after 2, expected increasing times"),
    ("0 1\n2 1\n1 1\n", "3: found time 1 after 2, expected increasing times"),
    ("0 1\n", "1: found 1 line(s), expected at least 2, the first one marks the start"),
    ("0 1\n1e-5 1\n", "2: found 1e-05 s in all, expected a trace of 0.001 s or more"),
    ("0 1\n1e9 1\n", "2: found an interval of 1e+09 s, expected less than 86400 s (1 day)"),
    ("".join(f"{i * 80_000} 1\n" for i in range(9)), "9: found 640000 s in all, expected less than 604800 s (7 days)"),
    ("[]", "1: found an empty list, expected at least one object with duration_ms and bandwidth_kbps"),
    ("{}", "1: found '{}', expected a JSON list [...]"),
    ("[1]", "1: found '1', expected an object with duration_ms and bandwidth_kbps"),
    ('[\n{"duration_ms": 5}\n]', "2: found keys duration_ms, expected bandwidth_kbps"),
    ('[\n{"duration_ms": "5"}\n]', "2: found duration_ms '\"5\"', expected a number >= 0"),
    ('[\n{"duration_ms": NaN}\n]', "2: found 'nan', expected duration_ms >= 0"),
    ('[\n{"duration_ms": true}\n]', "2: found duration_ms 'true', expected a number >= 0"),
    ('[{"duration_ms": 0, "bandwidth_kbps": 1}]', "1: found duration_ms 0, expected a duration above 0"),
    ('[{"duration_ms": 5, "bandwidth_kbps": -1}]', "1: found '-1', expected bandwidth_kbps >= 0"),
    ('[{"duration_ms": 5, "bandwidth_kbps": 1e12}]', "1: found bandwidth_kbps 1e+12, expected at most 1e+09"),
    ('[{"duration_ms": 1e-9, "bandwidth_kbps": 1}]', "1: found 1e-12 s in all, expected a trace of 0.001 s or more"),
    (SABRE[:-1], "2: found the end, expected ',' or ']'"),
    (SABRE.replace(",\n", "\n"), "2: found '{\"duration_ms\": 500,', expected ',' or ']'"),
    (SABRE + "x", "2: found 'x', expected the end of the file"),
    ("[\n{,", "2: found invalid JSON"),
    ("[\n", "2: found invalid JSON"),
    ("[" * 100_000, "1: found invalid JSON"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED)
def test_malformed(save: Callable, content: str | bytes, message: str) -> None:
    path = save(content)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["0 0\n1 0\n", '[{"duration_ms": 9, "bandwidth_kbps": 0}]', "0 1e-9\n1 1e-9\n"])
def test_a_trace_that_delivers_nothing(save: Callable, content: str) -> None:
    path = save(content)
    with pytest.raises(TraceError, match=r"found 0 bytes in all, expected half a packet \(1504\) or more") as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_too_much_to_expand_is_refused_before_it_is_expanded(save: Callable) -> None:
    with pytest.raises(TraceError, match=r"found \d+ bytes in a period, expected at most"):
        read_trace(save("0 1e6\n80000 1e6\n"))


@given(st.one_of(st.binary(max_size=80), st.text('0123456789. \n-,[]{}"e', max_size=80).map(str.encode)))
@in_tmp_path
def test_any_bytes_give_a_trace_or_one_line(save: Callable, data: bytes) -> None:
    try:
        trace = read_trace(save(data))
    except TraceError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert ": found " in str(error)  # noqa: PT017
    else:
        assert trace.opportunities_ms[-1] <= trace.period_ms


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nope: found no such file or directory, expected a readable file"):
        read_trace(tmp_path / "nope")
    with pytest.raises(TraceError, match=r"found is a directory, expected a readable file"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match=r"found no such file or directory, expected a writable file"):
        write_mahimahi(Trace("t", np.array([1]), 1), tmp_path / "nope" / "x")
    (tmp_path / "x").write_text("1\n")
    with pytest.raises(TraceError, match=r"found format 'pcap', expected mahimahi or cooked or sabre"):
        read_trace(tmp_path / "x", format="pcap")


def test_a_named_format_is_not_guessed(save: Callable) -> None:
    with pytest.raises(TraceError, match=r":1: found '0 1', expected a whole number"):
        read_trace(save("0 1\n1 1\n"), format="mahimahi")


def test_cooked_lines_mean_what_they_mean_to_pensieve(shared_data: Path) -> None:
    # Its own log: the first chunk, 450283 bytes of which 95 % of the link is payload, takes 887.28 ms, 80 of them RTT.
    series = read_rates(shared_data / "abr_refs" / "pensieve" / "traces" / "norway_bus_1")
    link_bytes = series.bytes_until(np.array([(887.283662463 - 80) / 1000]))[0]
    assert link_bytes * 0.95 == pytest.approx(450283, abs=1)
