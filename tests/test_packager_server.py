"""The origin server: files as they are, nothing outside the root, ranges, validators, CORS, and a clean end."""

import asyncio
import contextlib
import http.client
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from packager.__main__ import main
from packager.errors import ServeError
from packager.server import run_origin
from player.manifest import Manifest, Representation
from player.presentation import write_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two presentations under one root, and a secret beside it."""
    root = tmp_path / "root"
    for name, codec in (("clips/prompts", "prompt"), ("pixels & co", "h265")):
        folder = root / name / "low"
        folder.mkdir(parents=True)
        rung = Representation("low", 1000, 2 if codec == "prompt" else None, "urim" if codec == "prompt" else "hvc1.1")
        write_manifest(root / name, Manifest("<a title>", codec, 64, 64, Fraction(2), (4,), (rung,)))
        (folder / "seg-00001.m4s").write_bytes(bytes(range(100)))
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / ".build").write_text("a build's own notes")
    return root


Answer = tuple[int, Mapping[str, str], bytes]


def ask(root: Path, question: Callable[[aiohttp.ClientSession], Any], **options: Any) -> Any:
    """Serve `root`, put one question to it, stop."""

    async def run() -> Any:
        async with run_origin(root, **options) as url, aiohttp.ClientSession(url) as client:
            return await question(client)

    return asyncio.run(run())


def get(root: Path, path: str, method: str = "GET", **headers: str) -> Answer:
    async def question(client: aiohttp.ClientSession) -> Answer:
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        async with client.request(method, path, headers=names) as response:
            return response.status, response.headers, await response.read()

    return ask(root, question)


SEGMENT = "/clips/prompts/low/seg-00001.m4s"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/clips/prompts/manifest.mpd", "application/dash+xml"),
        (SEGMENT, "application/mp4"),
        ("/pixels%20%26%20co/low/seg-00001.m4s", "video/mp4"),
    ],
)
def test_files_come_whole_with_their_type_validators_and_cors(root: Path, path: str, content_type: str) -> None:
    status, headers, body = get(root, path)
    assert (status, headers["Content-Type"]) == (200, content_type)
    assert int(headers["Content-Length"]) == len(body) > 0
    assert all(name in headers for name in ("ETag", "Last-Modified", "Cache-Control", "Accept-Ranges"))
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Range" in headers["Access-Control-Expose-Headers"]
    assert get(root, path, "HEAD")[2] == b""


def test_ranges(root: Path) -> None:
    status, headers, body = get(root, SEGMENT, Range="bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, bytes(range(10, 20)), "bytes 10-19/100")
    assert get(root, SEGMENT, Range="bytes=-5")[2] == bytes(range(95, 100))
    assert get(root, SEGMENT, Range="bytes=100-")[0] == 416


def test_conditional_requests(root: Path) -> None:
    headers = get(root, SEGMENT)[1]
    assert get(root, SEGMENT, If_None_Match=headers["ETag"])[::2] == (304, b"")
    assert get(root, SEGMENT, If_None_Match='"another"')[0] == 200
    assert get(root, SEGMENT, If_Modified_Since=headers["Last-Modified"])[0] == 304


def test_preflight_and_methods(root: Path) -> None:
    status, headers, _ = get(root, SEGMENT, "OPTIONS")
    assert status == 204
    assert "Range" in headers["Access-Control-Allow-Headers"]
    assert get(root, SEGMENT, "POST")[0] == 405


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/clips/..%2f..%2fsecret.txt", "/link.txt", "/.build", "/clips", "/%00",
     "/nothing", "//etc/passwd"],
)  # fmt: skip
def test_nothing_else_is_published(root: Path, path: str) -> None:
    async def question(client: aiohttp.ClientSession) -> tuple[int, bytes]:
        base = urlsplit(str(client._base_url))
        return await asyncio.to_thread(raw_get, base.port, path)

    status, body = ask(root, question)
    assert status == 404
    assert b"secret" not in body


def raw_get(port: int, path: str) -> tuple[int, bytes]:
    """GET a path exactly as it is written, which URL libraries would tidy up."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_index_lists_presentations_and_quotes_what_they_are_called(root: Path) -> None:
    (root / "broken").mkdir()
    (root / "broken" / "manifest.mpd").write_text("<MPD/>")
    text = get(root, "/")[2].decode()
    assert 'href="clips/prompts/manifest.mpd"' in text
    assert 'href="pixels%20%26%20co/manifest.mpd"' in text
    assert "&lt;a title&gt;: prompt, 64x64, 2 s, 1 kbit/s" in text
    assert "not readable" in text
    assert "No manifest.mpd here" in get(root / "clips" / "prompts" / "low", "/")[2].decode()


def test_one_connection_serves_many_requests(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = []

    async def note(*unused: Any) -> None:
        opened.append(1)

    async def run() -> None:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(note)
        log = logging.getLogger("access")
        async with (
            run_origin(root, access_log=log) as url,
            aiohttp.ClientSession(url, trace_configs=[tracing]) as client,
        ):
            for _ in range(3):
                async with client.get(SEGMENT) as response:
                    await response.read()

    caplog.set_level(logging.INFO)
    asyncio.run(run())
    assert len(opened) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "access"]
    assert len(lines) == 3
    assert f'"GET {SEGMENT} HTTP/1.1" 200' in lines[0]


@pytest.fixture
def process(root: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "packager", "serve", str(root), "--port", "0"]
    with subprocess.Popen(
        [*command, "--access-log", str(tmp_path / "access.log")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_the_command_announces_itself_logs_and_stops_when_told(
    process: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    server, url = process
    port = urlsplit(url).port
    assert port is not None
    status, body = raw_get(port, SEGMENT)
    assert (status, len(body)) == (200, 100)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0
    assert SEGMENT in (tmp_path / "access.log").read_text()


def test_bad_arguments_are_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(root / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1

    async def listen_twice() -> None:
        async with run_origin(root) as url:
            await run_origin(root, port=urlsplit(url).port or 0).__aenter__()

    with pytest.raises(ServeError, match="cannot listen on 127"):
        asyncio.run(listen_twice())
