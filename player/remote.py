"""A packaged programme behind a URL: manifest, quality sidecar and sizes over HTTP, from any static server.

Sizes come from the sidecar and a HEAD of each init segment. Without a sidecar (404) nothing is known of quality, and
every segment's size is asked for by HEAD before the session begins: controllers and logs rest on exact sizes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import aiohttp

from player.errors import FetchError, ManifestError
from player.manifest import Manifest, read_mpd
from player.presentation import MANIFEST_NAME, Presentation, RepresentationQuality, parse_sidecar

log = logging.getLogger(__name__)

PARALLEL = 6
"""Connections while the manifest is read (a browser's limit per host); the session itself uses one."""
TIMEOUT_S = 30.0
"""For each of these requests."""
MAX_DOCUMENT_BYTES = 64 << 20
"""Of a manifest or a sidecar."""
MAX_HEADS = 20_000
"""Segments whose sizes are asked for one by one."""
IDENTITY = {"Accept-Encoding": "identity"}
"""Bytes are counted as they are on disk."""


def manifest_url(text: str) -> str:
    """Return the URL of the manifest that a user's argument names: a manifest, or the folder it is in.

    Raises:
        FetchError: not an http or https URL; a local path gets told how to become one.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        if Path(text).exists():
            raise FetchError(f"{text}: a local path; publish it first (python -m packager serve), then play its URL")
        raise FetchError(f"{text}: expected an http:// or https:// URL of a manifest or its folder")
    if not parts.path.endswith(".mpd"):
        parts = parts._replace(path=f"{parts.path.rstrip('/')}/{MANIFEST_NAME}")
    return urlunsplit(parts)


class RemotePresentation:
    """Where the files of a presentation are, and what is known of them before any is fetched."""

    def __init__(self, url: str, presentation: Presentation, *, host: str | None = None) -> None:
        self.url = url
        """Of the manifest, redirects followed."""
        self.host = host or urlsplit(url).netloc
        """What the server is called, whatever stands between: the Host header."""
        self.presentation = presentation
        """Its `directory` is where a player may keep what it fetches."""

    def init_url(self, representation: int) -> str:
        """Return the URL of a representation's init segment."""
        return urljoin(self.url, self.presentation.representations[representation].init)

    def segment_url(self, segment: int, representation: int) -> str:
        """Return the URL of a media segment; segments from S on wrap around."""
        name = self.presentation.representations[representation].media(segment % self.presentation.segments)
        return urljoin(self.url, name)


async def open_remote(url: str, directory: Path) -> RemotePresentation:
    """Read what a URL publishes, over connections of its own.

    Args:
        url: as `manifest_url` returns it.
        directory: becomes the presentation's.

    Raises:
        FetchError: no server, or an answer other than the file.
        ManifestError: a manifest or sidecar that this build cannot read.
    """
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=IDENTITY, auto_decompress=False
    ) as http:
        text, url = await _read(http, url)
        try:
            manifest = read_mpd(text)
        except ManifestError as error:
            raise ManifestError(f"{url}: {error}") from error
        metrics, quality = await _read_quality(http, urljoin(url, manifest.quality_sidecar), manifest)
        rungs = manifest.representations
        init_bytes = await _sizes(http, [urljoin(url, rung.init) for rung in rungs])
        if quality:
            columns = [quality[rung.id].segment_bytes for rung in rungs]
        else:
            columns = await _ask_sizes(http, url, manifest)
    presentation = Presentation.from_sizes(directory, manifest, init_bytes, columns, metrics, quality)
    return RemotePresentation(url, presentation)


async def _read_quality(
    http: aiohttp.ClientSession, url: str, manifest: Manifest
) -> tuple[tuple[str, ...], dict[str, RepresentationQuality]]:
    """Return the sidecar's metrics and measurements; both empty where the server has none."""
    try:
        text, _ = await _read(http, url)
    except _MissingError:
        log.warning("%s: no such file; the frames' quality is unknown, sizes are asked for by HEAD", url)
        return (), {}
    return parse_sidecar(text, manifest, url)


async def _ask_sizes(http: aiohttp.ClientSession, url: str, manifest: Manifest) -> list[tuple[int, ...]]:
    """Return every segment's size, [R][S], one HEAD each."""
    count = len(manifest.segments)
    total = count * len(manifest.representations)
    if total > MAX_HEADS:
        raise ManifestError(f"{url}: no quality sidecar, and {total} segments are too many to ask for each one's size")
    names = [urljoin(url, rung.media(index)) for rung in manifest.representations for index in range(count)]
    sizes = await _sizes(http, names)
    return [tuple(sizes[start : start + count]) for start in range(0, total, count)]


async def _sizes(http: aiohttp.ClientSession, urls: Sequence[str]) -> list[int]:
    """Return the sizes of files; the connector's limit is the limit of requests at a time."""
    tasks = [asyncio.ensure_future(_size(http, url)) for url in urls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _size(http: aiohttp.ClientSession, url: str) -> int:
    try:
        async with http.head(url, allow_redirects=True) as response:
            _expect_ok(response, url)
            size = response.content_length
    except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: also a timeout
        raise FetchError(f"{url}: {describe(error)}") from error
    if not size:
        raise FetchError(f"{url}: the server does not say how long the file is (Content-Length {size})")
    return size


async def _read(http: aiohttp.ClientSession, url: str) -> tuple[str, str]:
    """Return a document's text and the URL it came from in the end."""
    data = bytearray()
    try:
        async with http.get(url) as response:
            _expect_ok(response, url)
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > MAX_DOCUMENT_BYTES:
                    raise FetchError(f"{url}: longer than {MAX_DOCUMENT_BYTES} bytes")
            return data.decode("utf-8"), str(response.url)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{url}: not UTF-8 text: {error}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(f"{url}: {describe(error)}") from error


class _MissingError(FetchError):
    """The server has no such file."""


def _expect_ok(response: aiohttp.ClientResponse, url: str) -> None:
    if response.status in (404, 410):
        raise _MissingError(f"{url}: HTTP status {response.status} {response.reason}")
    if response.status != 200:
        raise FetchError(f"{url}: HTTP status {response.status} {response.reason}, expected 200")


def describe(error: BaseException) -> str:
    """Return an error of a connection in one line; many have no text of their own."""
    text = " ".join(str(error).split())
    return text or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)
