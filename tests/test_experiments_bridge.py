"""The bridge between real and virtual time: what is replayed, what is counted, what is drawn."""

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest

from emulator import LinkConfig, create_transport
from experiments import bridge
from experiments.bridge_figure import bridge_figure
from packager.server import run_origin
from traces import Trace

LINK = LinkConfig(model="packet", delay_ms=25.0)


@pytest.fixture
def trace() -> Trace:
    return Trace("uneven", np.array([3, 9, 10, 41, 47, 60, 95]), 100)


@pytest.fixture
def downloads(trace: Trace) -> pd.DataFrame:
    """Downloads as a session over that link would see them; the first one brings its init segment."""
    transport, rows, now_s = create_transport(trace, LINK), [], 0.5
    for index, sizes in enumerate([(700, 9000), (0, 20_000), (0, 1200)]):
        finish_s = now_s
        for size_bytes in filter(None, sizes):
            finish_s = transport.request(size_bytes, finish_s).finish_s
        rows.append((index, 0, now_s, *sizes, finish_s - now_s))
        now_s = finish_s + 0.3 * index
    names = ["segment", "representation", "request_s", "init_bytes", "size_bytes", "real_s"]
    return pd.DataFrame(rows, columns=names)


def test_what_the_model_made_it_makes_again(downloads: pd.DataFrame, trace: Trace) -> None:
    assert bridge.replay(downloads, trace, LINK) == pytest.approx(downloads["real_s"].tolist(), abs=1e-6)


def test_a_request_waits_for_a_slower_model(downloads: pd.DataFrame) -> None:
    slow = Trace("slow", np.array([100]), 100)
    taken_s = bridge.replay(downloads, slow, LINK)
    assert all(slow_s > real_s for slow_s, real_s in zip(taken_s, downloads["real_s"], strict=True))


def test_only_downloads_that_went_through_at_once_are_compared() -> None:
    segments = pd.DataFrame(
        {
            "segment": [0, 1, 2, 3], "representation": [0, 1, 1, 0], "downloaded": [True, True, True, False],
            "retries": [0, 1, 0, 0], "abandonments": [0, 0, 0, 0], "request_s": [0.0, 1.0, 2.0, 3.0],
            "finish_s": [0.5, 1.5, 2.25, np.nan], "init_bytes": [7, 0, 0, 0], "size_bytes": [10, 20, 30, 40],
        }
    )  # fmt: skip
    table = bridge.requests_of(segments)
    assert table["segment"].tolist() == [0, 2]
    assert table["real_s"].tolist() == [0.5, 0.25]


def test_errors_are_relative_to_real_time() -> None:
    table = pd.DataFrame({"real_s": [1.0, 2.0, 4.0], "packet_s": [1.1, 2.0, 3.0], "fluid_s": [2.0, 4.0, 8.0]})
    found = bridge.errors(table)
    assert found["downloads"] == 3
    assert found["packet"]["median"] == pytest.approx(0.1)
    assert found["packet"]["bias"] == pytest.approx(0.0)
    assert found["fluid"] == {"median": 1.0, "p90": 1.0, "bias": 1.0}


def test_the_responses_header_is_counted_to_the_byte(box_package: Path) -> None:
    async def count() -> tuple[int, bytes]:
        async with run_origin(box_package) as url:
            address = f"{url}low/seg-00001.m4s"
            return await asyncio.to_thread(lambda: (bridge.response_header_bytes(address), raw_answer(address)))

    counted, answer = asyncio.run(count())
    assert counted == answer.index(b"\r\n\r\n") + 4


def raw_answer(url: str) -> bytes:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        host = f"{parts.hostname}:{parts.port}"
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).replace(b"Connection: close\r\n", b"")


def test_the_figure_has_a_row_for_each_codec(downloads: pd.DataFrame) -> None:
    table = downloads.assign(packet_s=downloads["real_s"], fluid_s=2 * downloads["real_s"])
    figure = bridge_figure({"prompt": table, "h265": table}, "a label")
    assert len(figure.axes) == 4
    assert bridge_figure({"h265": table.iloc[:0]}, "no downloads").axes


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    shaper = "real.shaper=proxy"
    for arguments, code, expected in (
        (["colour=red", shaper], 2, "unknown key colour"),
        ([shaper, "trace=nowhere"], 1, "nowhere"),
        ([shaper, "link.mss_bytes=500"], 1, "in real time this is not ours to set"),
    ):
        assert bridge.main(arguments) == code
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
