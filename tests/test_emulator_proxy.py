"""The TCP proxy: real sockets on loopback; what is checked is bytes, order and logs, not the clock."""

import asyncio
import contextlib
import io

import numpy as np
import pytest

from emulator.__main__ import main
from emulator.errors import RealTimeError
from emulator.proxy import TraceProxy, _Side
from traces import Trace

FAST = Trace("fast", np.repeat(np.arange(1, 11), 20), 10)  # 240 Mbit/s
BODY = bytes(i * 11 % 253 for i in range(300_000))


@contextlib.asynccontextmanager
async def server(answer):
    """Serve connections by `answer(reader, writer)` on a free port; yield the port."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await asyncio.wait(tasks) if tasks else None


async def echo_body(reader, writer):
    """Answer each line with its length of BODY; end with the client."""
    while line := await reader.readline():
        writer.write(BODY[: int(line)])
        await writer.drain()


async def ask(port, *sizes):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    for size in sizes:
        writer.write(b"%d\n" % size)
        answers.append(await reader.readexactly(size))
    writer.write_eof()
    rest = await reader.read()
    writer.close()
    return answers, rest


def test_bytes_arrive_whole_and_in_order_on_several_connections():
    async def run():
        async with server(echo_body) as port, TraceProxy(FAST, "127.0.0.1", port, delay_ms=1, loss=0.02) as proxy:
            return await asyncio.gather(ask(proxy.port, 1, 100_000, 0, 300_000), ask(proxy.port, 250_000))

    (first, rest), (second, _) = asyncio.run(asyncio.wait_for(run(), 30))
    assert first == [BODY[:1], BODY[:100_000], b"", BODY]
    assert second == [BODY[:250_000]]
    assert rest == b""


def test_the_log_is_mahimahis_and_accounts_for_every_byte(tmp_path):
    log = io.StringIO()

    async def run():
        async with (
            server(echo_body) as port,
            TraceProxy(FAST, "127.0.0.1", port, delay_ms=1, downlink_log=log) as proxy,
        ):
            await ask(proxy.port, 14_480)

    asyncio.run(asyncio.wait_for(run(), 30))
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("# mahimahi mm-link (Downlink) [fast]")
    events = [line.split() for line in lines if not line.startswith("#") or " # " in line[1:]]
    departed = [int(event[2]) for event in events if event[1] == "-"]
    assert departed.count(1504) >= 9  # the body in full packets, but where the server's writes part it
    assert sum(departed) == sum(int(event[2]) for event in events if event[1] == "+")
    assert sum(departed) >= 14_480


def test_a_client_that_does_not_read_stops_the_server(monkeypatch):
    written = 0

    async def flood(reader, writer):
        nonlocal written
        while True:
            writer.write(bytes(100_000))
            await writer.drain()
            written += 100_000

    async def run():
        held = asyncio.Event()
        hold = _Side.hold

        def watch(side, reason, on):
            hold(side, reason, on)
            if reason == "reader" and on:
                held.set()

        monkeypatch.setattr(_Side, "hold", watch)
        async with server(flood) as port, TraceProxy(FAST, "127.0.0.1", port, delay_ms=1) as proxy:
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1000)
            await held.wait()
            writer.transport.abort()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert 0 < written < 24_000_000


def test_a_client_that_goes_away_takes_its_upstream_connection_along():
    over = asyncio.Event

    async def run():
        gone = over()

        async def flood(reader, writer):
            try:
                while True:
                    writer.write(bytes(100_000))
                    await writer.drain()
            except ConnectionError:
                gone.set()
                raise

        async with server(flood) as port, TraceProxy(FAST, "127.0.0.1", port, delay_ms=1) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            await reader.readexactly(1000)
            writer.transport.abort()
            await gone.wait()
            return proxy.network.connections

    assert asyncio.run(asyncio.wait_for(run(), 30)) == set()


def test_a_server_that_is_not_there_resets_the_client(caplog):
    async def run():
        async with server(echo_body) as port:
            pass
        async with TraceProxy(FAST, "127.0.0.1", port, delay_ms=0) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert "upstream 127.0.0.1" in caplog.text


def test_a_taken_port_is_an_error_of_one_line():
    async def run():
        async with server(echo_body) as port, TraceProxy(FAST, "127.0.0.1", 9, listen_port=port):
            pass

    with pytest.raises(RealTimeError, match="cannot listen on"):
        asyncio.run(run())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trace", "no such trace"],
        ["--trace", "lte", "--uplink-log", "never-written"],
        ["--trace", "lte", "--queue", "infinite", "--queue-packets", "3"],
        ["--trace", "lte", "--queue-packets", "3", "--queue-args", "packets=3"],
        ["--trace", "lte", "--delay-ms", "-1"],
        ["--trace", "lte", "--listen", "192.0.2.77:1"],
    ],
)
def test_user_errors_take_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["proxy", "--upstream", "127.0.0.1:9", *arguments]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("emulator: ")
    assert captured.err.count("\n") == 1
