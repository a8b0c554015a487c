"""An origin server for packaged folders: plain files over HTTP/1.1, as any static server or CDN would publish them.

Range and conditional requests, keep-alive and sendfile are aiohttp's FileResponse; added here are content types, CORS,
cache rules, an index of presentations, and the refusal of everything that does not lie under the root.
"""

from __future__ import annotations

import asyncio
import html
import logging
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from packager.errors import ServeError
from player.errors import ManifestError
from player.manifest import Manifest, read_mpd
from player.presentation import MANIFEST_NAME

log = logging.getLogger(__name__)

ACCESS_LOG_FORMAT = '%a %t "%r" %s %b %Tf "%{Range}i" "%{User-Agent}i"'
"""Common Log Format, then seconds taken, range asked for, client."""
KEEPALIVE_S = 75.0
"""An idle connection is kept this long (nginx's default): longer than a full buffer makes a player wait."""
SHUTDOWN_S = 10.0
"""A response under way may take this long to finish after the server was told to stop."""
INDEX_DEPTH = 4
"""Folders below the root that the index looks into."""

CONTENT_TYPES = {
    ".mpd": "application/dash+xml",
    ".json": "application/json",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".html": "text/html",
    ".js": "text/javascript",
}
_MP4_SUFFIXES = (".mp4", ".m4s", ".cmfv")
_MIME_TYPE = re.compile(r'mimeType="([a-z]+/[a-z0-9.+-]+)"')
_SEGMENTS_FRESH = "public, max-age=3600"
_REVALIDATE = "no-cache"  # a manifest may be built again under its old name; its ETag makes asking cheap
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Accept-Ranges, Content-Length, Content-Range, Date, ETag, Last-Modified",
    "Timing-Allow-Origin": "*",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Cache-Control, If-Modified-Since, If-None-Match, If-Range, Range",
    "Access-Control-Max-Age": "86400",
}
_ROOT = web.AppKey("root", Path)


def create_app(root: Path) -> web.Application:
    """Return the application that publishes the files under `root`; ServeError unless that is a folder."""
    if not root.is_dir():
        raise ServeError(f"{root}: no such folder; give one that holds packages, or a package")
    app = web.Application()
    app[_ROOT] = root.resolve()
    app.router.add_get("/", _index)
    app.router.add_get("/{path:.+}", _file)
    app.router.add_route("OPTIONS", "/{path:.*}", _preflight)
    app.on_response_prepare.append(_add_cors)
    return app


@asynccontextmanager
async def run_origin(
    root: Path, *, host: str = "127.0.0.1", port: int = 0, access_log: logging.Logger | None = None
) -> AsyncIterator[str]:
    """Serve `root` inside the block and yield the root's URL. At its end responses under way are finished first.

    Args:
        host: address to listen on.
        port: 0 lets the system choose.
        access_log: takes one line per request; None keeps quiet.

    Raises:
        ServeError: no such folder, or the address cannot be had.
    """
    runner = web.AppRunner(
        create_app(root),
        access_log=access_log,
        access_log_format=ACCESS_LOG_FORMAT,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        address = runner.addresses[0]
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{address[1]}/"
    finally:
        await runner.cleanup()


def find_presentations(root: Path) -> Iterator[Path]:
    """Yield the manifests under `root`, at most INDEX_DEPTH folders deep, in alphabetical order."""
    for depth in range(INDEX_DEPTH + 1):
        for path in sorted(root.glob("*/" * depth + MANIFEST_NAME)):
            if _published(root, path.relative_to(root).as_posix()) is not None:
                yield path


async def _file(request: web.Request) -> web.StreamResponse:
    root = request.app[_ROOT]
    path = _published(root, request.match_info["path"])
    if path is None:
        raise web.HTTPNotFound(text="no such file\n")
    response = web.FileResponse(path)
    content_type = CONTENT_TYPES.get(path.suffix)
    if path.suffix in _MP4_SUFFIXES:
        content_type = _mp4_type(root, path)
    if content_type is not None:
        response.content_type = content_type
    response.headers["Cache-Control"] = _SEGMENTS_FRESH if path.suffix in _MP4_SUFFIXES else _REVALIDATE
    return response


def _published(root: Path, name: str) -> Path | None:
    """Return the file a URL's path stands for, or None: not there, no plain file, hidden, or outside of the root."""
    if any(part.startswith(".") for part in name.split("/")):  # also "..", and a build's own notes
        return None
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, a NUL in the name, a loop of links
        return None
    return path if path.is_relative_to(root) and path.is_file() else None


def _mp4_type(root: Path, path: Path) -> str:
    """Return the type that the package's own manifest states: prompts are application/mp4."""
    for folder in path.parents:
        if not folder.is_relative_to(root):
            break
        manifest = folder / MANIFEST_NAME
        if manifest.is_file() and (found := _MIME_TYPE.search(manifest.read_text(encoding="utf-8", errors="replace"))):
            return found[1]
    return "video/mp4"


async def _preflight(request: web.Request) -> web.Response:
    return web.Response(status=204, headers=_PREFLIGHT)


async def _add_cors(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_CORS)


async def _index(request: web.Request) -> web.Response:
    root = request.app[_ROOT]
    rows = "".join(_index_row(root, path) for path in find_presentations(root))
    body = f"<table>{rows}</table>" if rows else f"<p>No {MANIFEST_NAME} here.</p>"
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Presentations</title><h1>Presentations</h1>{body}'
    )
    return web.Response(text=f"{text}</html>\n", content_type="text/html", headers={"Cache-Control": _REVALIDATE})


def _index_row(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        about = _about(read_mpd(path.read_text(encoding="utf-8")))
    except (ManifestError, OSError, UnicodeDecodeError) as error:
        about = f"not readable: {error}"
    return (
        f'<tr><td><a href="{html.escape(quote(name))}">{html.escape(name)}</a></td><td>{html.escape(about)}</td></tr>'
    )


def _about(manifest: Manifest) -> str:
    rates = ", ".join(f"{rung.bandwidth_bps / 1000:.4g}" for rung in manifest.representations)
    size = f"{manifest.width}x{manifest.height}"
    return f"{manifest.title}: {manifest.codec}, {size}, {manifest.duration_s:.4g} s, {rates} kbit/s"


async def serve(
    root: Path,
    *,
    host: str,
    port: int,
    access_log: logging.Logger | None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve `root` until SIGINT or SIGTERM, then finish what is under way; `on_ready` gets the root's URL."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stopped.set)
    try:
        async with run_origin(root, host=host, port=port, access_log=access_log) as url:
            on_ready(url)
            await stopped.wait()
            log.info("stopping: responses under way may take up to %g s", SHUTDOWN_S)
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
