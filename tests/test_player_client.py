"""The real-time client: what it measures, what it does when a server misbehaves, and what it leaves when stopped."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

from abr.base import Decision
from abr.fixed import Fixed
from abr.registry import BUILT_IN
from emulator import LinkConfig, create_transport
from experiments.simulate import simulate
from packager.server import run_origin
from player.__main__ import main
from player.client import Client, Media, check_media
from player.config import PlayerConfig
from player.errors import BitstreamError, FetchError, ManifestError, PlaybackError
from player.mp4 import list_boxes
from player.play import Played, PlayOptions, play
from player.presentation import Presentation
from player.programme import build_programme
from player.record import TABLES, default_rule, make_record
from player.remote import manifest_url, open_remote
from player.session import Session
from traces import Trace

QUICK = PlayerConfig(buffer_s=0.6, startup_s=0.2, rebuffer_s=0.2, backoff_s=0.01, timeout_s=10.0)

Fault = Callable[[web.Request, bytes], Any]


class FaultyServer:
    """Serves a folder; a path's faults are taken from its list, one per request, before it answers properly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = self.folder / request.path.lstrip("/")
        self.requests.append(f"{request.method} {request.path}")
        if not path.is_file():
            raise web.HTTPNotFound
        data = path.read_bytes()
        faults = self.faults.get(request.path, [])
        return await faults.pop(0)(request, data) if faults else web.Response(body=data)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def refuse(request: web.Request, data: bytes) -> web.Response:
    return web.Response(status=503)


async def shorten(request: web.Request, data: bytes) -> web.Response:
    return web.Response(body=data[:-1])


async def lengthen(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(data + b"more")
    return response


async def cut(request: web.Request, data: bytes) -> web.StreamResponse:
    """Promise all, send half, hang up."""
    response = await begin(request, data)
    assert request.transport is not None
    request.transport.close()
    return response


async def hang(request: web.Request, data: bytes) -> web.StreamResponse:
    """Promise all, send half, and wait until the client has gone."""
    response = await begin(request, data)
    await asyncio.Event().wait()
    return response


async def begin(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    return response


async def corrupt(request: web.Request, data: bytes) -> web.Response:
    """Flip the last byte; in a box package the size of the last box."""
    if data[-8:] == bytes(8):
        at = list_boxes(data)[-1].start + 3
        return web.Response(body=data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return web.Response(body=data[:-1] + bytes([data[-1] ^ 1]))


def options(url: str, **changes: Any) -> PlayOptions:
    return replace(PlayOptions(url, abr="fixed", abr_options={"representation": 0}, player=QUICK), **changes)


def run(server: FaultyServer, **changes: Any) -> Played:
    async def session() -> Played:
        async with server.run() as url:
            return await play(options(url, **changes))

    return asyncio.run(session())


SECOND = "/low/seg-00002.m4s"


def test_a_session_over_the_origin_is_logged_as_a_simulated_one(box_package: Path, tmp_path: Path) -> None:
    async def session() -> Played:
        async with run_origin(box_package.parent) as url:
            return await play(options(f"{url}clip/", log=tmp_path / "log", duration_s=1.2))

    record = asyncio.run(session()).record
    segments, summary = record.segments, record.summary
    assert segments["clip_segment"].tolist() == [0, 1, 2, 3, 0, 1]
    assert (summary["ended"], summary["segments"], summary["frames"]) == (1, 6, 12)
    assert summary["downloaded_bytes"] == 6 * 600 + 124
    assert (segments["request_s"] <= segments["first_byte_s"]).all()
    assert (segments["first_byte_s"] <= segments["finish_s"]).all()
    assert summary["quality"] == {"psnr_db": 25.0}
    total_s = summary["startup_delay_s"] + summary["played_s"] + summary["rebuffered_s"]
    assert total_s == pytest.approx(summary["elapsed_s"])

    programme = build_programme(Presentation.load(box_package), 1.2)
    simulated = Session(programme.ladder, Fixed(programme.ladder, buffer_capacity_s=0.6, representation=0), QUICK)
    link = create_transport(Trace("fast", np.arange(1, 101), 100), LinkConfig())
    simulate(simulated, link, segment_frames=programme.segment_frames.tolist())
    expected = make_record(simulated.log(), programme, default_rule(["psnr_db"]))
    assert list(summary) == list(expected.summary)
    for name in TABLES:
        written = pd.read_parquet(tmp_path / "log" / f"{name}.parquet")
        assert dict(written.dtypes) == dict(getattr(expected, name).dtypes)
    assert (tmp_path / "log" / "session.json").is_file()


@pytest.mark.parametrize("fault", [refuse, shorten, lengthen, cut, corrupt])
def test_a_fault_is_retried_and_counted(box_package: Path, fault: Fault) -> None:
    server = FaultyServer(box_package)
    server.faults[SECOND] = [fault]
    record = run(server).record
    assert record.segments["retries"].tolist() == [0, 1, 0, 0]
    assert record.segments["downloaded"].all()
    assert record.summary["errors"] == 1
    assert record.summary["wasted_bytes"] == {refuse: 0, shorten: 0, lengthen: 0, cut: 300, corrupt: 600}[fault]
    assert server.requests.count(f"GET {SECOND}") == 2


def test_a_request_that_hangs_times_out_on_a_connection_that_is_given_up(box_package: Path, tmp_path: Path) -> None:
    server = FaultyServer(box_package)
    server.faults[SECOND] = [hang]
    record = run(server, player=replace(QUICK, timeout_s=0.3), log=tmp_path).record
    assert record.summary["timeouts"] == 1
    assert record.segments["wasted_bytes"].tolist() == [0, 300, 0, 0]
    assert '"connections": 2' in (tmp_path / "session.json").read_text()


def test_a_segment_that_stays_corrupt_is_skipped_and_named(box_package: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = FaultyServer(box_package)
    server.faults[SECOND] = [corrupt] * 8
    caplog.set_level("WARNING")
    record = run(server).record
    assert record.segments["skipped"].tolist() == [False, True, False, False]
    assert "segment 1 skipped" in caplog.text
    assert "seg-00002.m4s" in caplog.text
    assert "size" in caplog.text


def test_nothing_to_play_is_an_error_that_says_why(box_package: Path, tmp_path: Path) -> None:
    server = FaultyServer(box_package)
    server.faults["/low/init.mp4"] = [lambda r, d: asyncio.sleep(0, web.Response(body=d))] + [refuse] * 100
    with pytest.raises(PlaybackError, match=r"nothing could be played; .*init\.mp4: HTTP status 503"):
        run(server, player=replace(QUICK, retries=0), log=tmp_path)
    assert pd.read_parquet(tmp_path / "segments.parquet")["skipped"].all()


def test_an_abandoned_request_frees_the_session_for_another(
    box_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(Fixed):
        """Gives up the high representation once its answer has begun and stopped."""

        def abandon(self, progress: Any) -> int | None:
            return 0 if progress.representation == 1 and progress.received_bytes == 900 else None

    monkeypatch.setitem(BUILT_IN, "fixed", Impatient)
    server = FaultyServer(box_package)
    server.faults["/high/seg-00002.m4s"] = [hang]
    record = run(server, abr_options={"representation": 1}, log=tmp_path).record
    assert record.segments["abandonments"].tolist() == [0, 1, 0, 0]
    assert record.segments["name"].tolist() == ["high", "low", "high", "high"]
    assert record.segments["wasted_bytes"].tolist() == [0, 900, 0, 0]
    assert record.summary["retries"] == 0


def test_an_interrupt_leaves_a_complete_log(box_package: Path, tmp_path: Path) -> None:
    server = FaultyServer(box_package)
    server.faults[SECOND] = [hang]

    def interrupt(line: str) -> None:
        if f"GET {SECOND}" in server.requests:
            os.kill(os.getpid(), signal.SIGINT)

    async def session() -> Played:
        async with server.run() as url:
            return await play(options(url, log=tmp_path), on_line=interrupt)

    played = asyncio.run(session())
    assert played.interrupted
    segments = pd.read_parquet(tmp_path / "segments.parquet")
    assert segments["downloaded"].tolist() == [True, False]
    assert pd.read_parquet(tmp_path / "events.parquet")["event"].tolist()[-1] == "error"
    assert (tmp_path / "summary.json").is_file()


def test_sizes_are_asked_for_where_there_is_no_sidecar(box_package: Path, tmp_path: Path) -> None:
    (box_package / "quality.json").unlink()
    server = FaultyServer(box_package)

    async def look() -> Presentation:
        async with server.run() as url:
            return (await open_remote(manifest_url(url), tmp_path)).presentation

    presentation = asyncio.run(look())
    assert presentation.segment_bytes.tolist() == [[600, 1800]] * 4
    assert presentation.init_bytes.tolist() == [124, 124]
    assert presentation.metrics == ()
    assert sum(line.startswith("HEAD") for line in server.requests) == 10
    assert run(server).record.summary["segments"] == 4


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("manifest.mpd", None, FetchError, "manifest.mpd: HTTP status 404"),
        ("manifest.mpd", b"<html>", ManifestError, "MPD is not XML"),
        ("manifest.mpd", b"\xff\xfe\x00", ManifestError, "not UTF-8"),
        ("quality.json", b"{", ManifestError, "quality.json is not JSON"),
        ("low/init.mp4", None, FetchError, "init.mp4: HTTP status 404"),
        ("low/init.mp4", b"", FetchError, "does not say how long"),
    ],
)
def test_what_a_server_should_not_publish(
    box_package: Path, name: str, content: bytes | None, kind: type[Exception], message: str
) -> None:
    if content is None:
        (box_package / name).unlink()
    else:
        (box_package / name).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        run(FaultyServer(box_package))
    assert "\n" not in str(caught.value)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_mistakes_on_the_command_line_are_one_line(
    box_package: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{closed_port}/"
    for arguments, expected in (
        ([str(box_package)], "publish it first"),
        (["clip.mpd"], "expected an http:// or https:// URL"),
        ([url], "Connect call failed"),
        ([url, "--buffer", "-1"], "buffer_s must be positive"),
        ([url, "--player-option", "colour=1"], "unknown player option colour; known: "),
        ([url, "--player-option", "startup_s=soon"], "expected a number"),
        ([url, "--duration", "0"], "more than 0"),
        ([url, "--delay-ms", "20"], "needs --trace"),
    ):
        assert main(["play", *arguments]) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1, error


def test_urls() -> None:
    assert manifest_url("http://a/b") == "http://a/b/manifest.mpd"
    assert manifest_url("https://a/b/c.mpd?key=1") == "https://a/b/c.mpd?key=1"
    assert manifest_url("http://a") == "http://a/manifest.mpd"


def test_prompt_segments_are_checked_by_their_crcs() -> None:
    golden = (Path(__file__).parent / "golden" / "prompt_stream.mp4").read_bytes()
    moov, moof, mdat = list_boxes(golden)[1:4]
    init, segment = golden[: moov.end], golden[moof.start : mdat.end]
    check_media("prompt", init, segment)
    for position in (0, len(segment) // 2, len(segment) - 1):
        damaged = bytearray(segment)
        damaged[position] ^= 1
        with pytest.raises(BitstreamError):
            check_media("prompt", init, bytes(damaged))


LAYERED_INFO = {"generator_id": "test", "tokens": 4, "width": 3, "norm_rank": 2, "frame_width": 64, "frame_height": 64,
                "display_width": 64, "display_height": 64, "fps": Fraction(10)}  # fmt: skip


@pytest.fixture
def layered_package(tmp_path: Path) -> Path:
    """Four segments of 0.2 s in two layers of rank 1."""
    from player.bitstream import KeyPrompt, Segment, StreamInfo, write_init, write_layers
    from player.manifest import Manifest, Representation
    from player.presentation import RepresentationQuality, write_manifest, write_sidecar

    folder = tmp_path / "root" / "clip"
    infos = [StreamInfo(rank=1, **LAYERED_INFO), StreamInfo(rank=2, base_rank=1, **LAYERED_INFO)]
    rungs = [
        Representation("r1", 25_000, 1, "urim"),
        Representation("r2", 50_000, 2, "urim", dependencies=("r1",)),
    ]
    sizes: list[list[int]] = [[], []]
    draw = np.random.default_rng(0)
    for rung, info in zip(rungs, infos, strict=True):
        (folder / rung.id).mkdir(parents=True)
        (folder / rung.init).write_bytes(write_init(info))
    for index in range(4):
        keys = tuple(
            KeyPrompt(at, draw.integers(-9, 9, (4, 2)).astype(np.int16), draw.integers(-9, 9, (2, 3)).astype(np.int16))
            for at in (0, 1)
        )
        scales = np.ones(2, np.float32)
        layers = write_layers(infos, Segment(2, scales, scales, keys), sequence=index + 1, start_frame=2 * index)
        for rung, own, data in zip(rungs, sizes, layers, strict=True):
            (folder / rung.media(index)).write_bytes(data)
            own.append(len(data))
    quality = {
        rung.id: RepresentationQuality(tuple(own), {"psnr_db": (np.full(2, psnr_db),) * 4})
        for rung, own, psnr_db in zip(rungs, sizes, (25.0, 35.0), strict=True)
    }
    manifest = Manifest("clip", "prompt", 64, 64, Fraction(10), (2,) * 4, tuple(rungs))
    write_manifest(folder, manifest)
    write_sidecar(folder, manifest, quality)
    return folder


class Collected:
    """A renderer that costs no time and keeps what it was given."""

    def __init__(self) -> None:
        self.media: list[Media] = []

    async def render(self, media: Media) -> None:
        self.media.append(media)


class Upgrading(Fixed):
    """The lowest layer first, then the others of everything that is buffered."""

    def upgrade(self, observation: Any) -> Any:
        low = [one for one in observation.buffered if one.representation == 0]
        return Decision(1, segment=low[0].segment) if low else None


@pytest.mark.parametrize("upgrades", [False, True])
def test_a_layered_package_is_fetched_layer_by_layer(layered_package: Path, tmp_path: Path, upgrades: bool) -> None:
    server, renderer = FaultyServer(layered_package), Collected()

    async def session() -> None:
        async with server.run() as url:
            remote = await open_remote(manifest_url(url), tmp_path)
            programme = build_programme(remote.presentation, 0.8)
            controller = (Upgrading if upgrades else Fixed)(
                programme.ladder, buffer_capacity_s=QUICK.buffer_s, representation=0 if upgrades else 1
            )
            await Client(remote, programme, Session(programme.ladder, controller, QUICK), renderer).run()

    asyncio.run(session())
    package = Presentation.load(layered_package)
    gets = [request.removeprefix("GET ") for request in server.requests if request.startswith("GET /r")]
    assert len(gets) == len(set(gets))  # nothing twice
    assert len(gets) == 10 or upgrades  # two inits and eight layers; what plays already is not upgraded
    assert gets.index("/r1/init.mp4") < gets.index("/r2/init.mp4")
    assert {media.representation for media in renderer.media} == ({0, 1} if upgrades else {1})
    for media in renderer.media:
        layers = package.representations[: media.representation + 1]
        data = b"".join((layered_package / one.media(media.segment)).read_bytes() for one in layers)
        assert media.data == data
        assert media.init == b"".join((layered_package / one.init).read_bytes() for one in layers)


def test_a_corrupt_layer_is_not_kept(layered_package: Path, tmp_path: Path) -> None:
    server = FaultyServer(layered_package)
    server.faults = {"/r2/seg-00002.m4s": [corrupt]}
    record = run(server, abr_options={"representation": 1}).record
    assert record.summary["segments"] == 4
    assert sorted(record.segments["representation"]) == [0, 1, 1, 1]  # the layer below, whole, is shown


# ---- other servers


@pytest.fixture
def python_server(box_package: Path) -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", box_package.parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split("(")[1].split(")")[0]
        process.kill()


@pytest.fixture
def nginx(box_package: Path, tmp_path: Path, closed_port: int) -> Iterator[str]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; error_log stderr; pid {tmp_path}/pid; worker_processes 1;\n"
        + ("user root;\n" if os.getuid() == 0 else "")
        + "events {}\nhttp { access_log off; types { application/dash+xml mpd; video/mp4 mp4 m4s; }\n"
        + "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"server {{ listen 127.0.0.1:{closed_port}; root {box_package.parent}; gzip on; gzip_types *; }} }}\n"
    )
    with subprocess.Popen([program, "-e", "stderr", "-c", config], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(closed_port, process)
        yield f"http://127.0.0.1:{closed_port}"
        process.terminate()
        process.communicate(timeout=10)


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    """Return once something listens on a port; nginx does not say when it does."""
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
    assert process.stderr is not None
    pytest.fail(f"nginx did not start: {process.stderr.read()}")


@pytest.mark.parametrize("server", ["python_server", "nginx"])
def test_any_static_server_will_do(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(server)
    record = asyncio.run(play(options(f"{url}/clip/manifest.mpd"))).record
    assert record.summary["segments"] == 4
    assert record.summary["errors"] == 0


# ---- the link and the renderer, each a process of its own


def test_a_trace_shapes_what_is_fetched(box_package: Path, tmp_path: Path) -> None:
    trace = tmp_path / "slow.mm"
    trace.write_text("\n".join(str(20 * n) for n in range(1, 6)) + "\n")  # a packet every 20 ms: 600 kbit/s

    async def session(link: tuple[str, ...]) -> Played:
        async with run_origin(box_package.parent) as url:
            return await play(options(f"{url}clip", link=link))

    arguments = ("--trace", str(trace), "--delay-ms=50")
    segments = asyncio.run(session(arguments)).record.segments
    # A round trip of 100 ms: one for the connection, one for the init segment, one for the segment itself.
    assert segments["finish_s"][0] >= 0.3
    assert (segments["finish_s"] - segments["request_s"] >= 0.1).all()
    with pytest.raises(FetchError, match=r"the link did not start: .*nowhere"):
        asyncio.run(session(("--trace", "nowhere")))


def test_rendering_shows_frames_and_leaves_a_film(tmp_path: Path, clip: np.ndarray) -> None:
    import av

    from packager.package import build_h265
    from packager.settings import BuildConfig
    from packager.video import write_h264

    video, folder = tmp_path / "clip.mp4", tmp_path / "root" / "clip"
    write_h264(video, clip, fps=Fraction(10), width=64, height=64, crf=20)
    config = BuildConfig(segment_s=0.4, size="64", metrics=["psnr_db"], bitrates_bps=[50_000], device="cpu")
    build_h265(video, folder, config)

    async def session() -> Played:
        async with run_origin(folder.parent) as url:
            return await play(options(f"{url}clip", render=True, film=tmp_path / "seen.mp4", log=tmp_path / "log"))

    record = asyncio.run(session()).record
    assert record.summary["segments"] == 2
    assert (record.segments["rendered_s"] > record.segments["finish_s"]).all()
    with av.open(str(tmp_path / "seen.mp4")) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == pytest.approx(10 * record.summary["elapsed_s"], abs=1)
