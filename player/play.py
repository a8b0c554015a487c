"""One session in real time, from a URL to its record: what `python -m player play` does."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abr import create_abr
from player.client import Client, MediaRenderer, PacedRenderer
from player.codecs import PROMPT
from player.config import PlayerConfig
from player.errors import PlaybackError
from player.files import write_json
from player.programme import Programme, build_programme
from player.record import SessionRecord, default_rule, make_record, write_record
from player.remote import RemotePresentation, manifest_url, open_remote
from player.report import progress_line
from player.session import Session
from player.shaper import shaped
from player.worker import WorkerRenderer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlayOptions:
    """What to play, and how."""

    url: str
    """Of a manifest, or of the folder it is in."""
    abr: str = "bola"
    abr_options: Mapping[str, Any] = field(default_factory=dict)
    player: PlayerConfig = field(default_factory=PlayerConfig)
    duration_s: float | None = None
    """Length of the programme: a shorter clip loops, a longer one is cut; None: the clip once."""
    link: tuple[str, ...] = ()
    """Arguments of an emulated link in front of the server; none: the network as it is."""
    render: bool = False
    """Decode what arrives; only then is it shown."""
    generator: str = "embedded"
    decoder: str = ""
    """Another latent decoder than the generator's own; empty: its own."""
    device: str = "auto"
    dtype: str = "auto"
    compile_mode: str = "off"
    batch: int = 0
    """Frames rendered at a time; 0: as many as fit."""
    film: Path | None = None
    """Where to write what the viewer saw; needs `render`."""
    log: Path | None = None
    """Folder for the session's record."""
    begin_at_s: float | None = None
    """When to send the first request, on the clock of `time.monotonic`, so that it meets a link at a known moment."""


@dataclass(frozen=True)
class Played:
    """A session that is over."""

    record: SessionRecord
    interrupted: bool


async def play(options: PlayOptions, *, on_line: Callable[[str], None] | None = None) -> Played:
    """Play to the end, or until SIGINT or SIGTERM; the record is complete either way.

    Args:
        on_line: gets a line that says where the session stands, a few times a second.

    Raises:
        PlayerError: no such presentation, no link, an option out of range, or nothing could be played.
    """
    with TemporaryDirectory(prefix="promptdash-play-") as scratch:
        url = manifest_url(options.url)
        remote = await open_remote(url, Path(scratch))
        presentation = remote.presentation
        duration_s = presentation.manifest.duration_s if options.duration_s is None else options.duration_s
        programme = build_programme(presentation, duration_s)
        controller = create_abr(
            options.abr, programme.ladder, buffer_capacity_s=options.player.buffer_s, **options.abr_options
        )
        session = Session(programme.ladder, controller, options.player)
        async with _renderer(options, programme, Path(scratch)) as renderer, _link(options, remote) as seen:
            client = Client(seen, programme, session, renderer, on_turn=_reporter(session, programme, on_line))
            ready_s = time.monotonic()
            try:
                interrupted = await _until_told(client, options.begin_at_s)
            finally:
                if client.started_s is None:
                    raise PlaybackError("interrupted before the session began")
                record = make_record(session.log(), programme, default_rule(presentation.metrics))
                if options.log is not None:
                    write_record(options.log, record)
                    write_json(options.log / "session.json", _about(options, remote, client, renderer, ready_s))
        if record.summary["segments"] == 0 and not interrupted:
            raise PlaybackError(f"nothing could be played; the last failure was {client.last_error}")
        if options.film is not None and isinstance(renderer, WorkerRenderer):
            from player.film import write_film

            write_film(options.film, record.segments, renderer.load, presentation.manifest)
    return Played(record, interrupted)


async def _until_told(client: Client, begin_at_s: float | None) -> bool:
    """Run the client; return whether a signal ended it."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(_run_from(client, begin_at_s))
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
        return False
    except asyncio.CancelledError:
        return True
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _run_from(client: Client, begin_at_s: float | None) -> None:
    if begin_at_s is not None:
        early_s = begin_at_s - time.monotonic()
        if early_s < 0:
            log.warning("the session begins %.2f s later than it was to", -early_s)
        await asyncio.sleep(max(early_s, 0.0))
    await client.run()


@asynccontextmanager
async def _renderer(options: PlayOptions, programme: Programme, folder: Path) -> AsyncIterator[MediaRenderer]:
    if options.render:
        frames = folder / "frames"
        async with WorkerRenderer(
            programme.presentation,
            generator=options.generator,
            decoder=options.decoder,
            device=options.device,
            dtype=options.dtype,
            compile_mode=options.compile_mode,
            batch=options.batch,
            config=options.player,
            folder=frames,
        ) as worker:
            yield worker
    else:
        prompts = programme.presentation.manifest.codec == PROMPT
        yield PacedRenderer(programme, options.player.render_fps if prompts else None)


@asynccontextmanager
async def _link(options: PlayOptions, remote: RemotePresentation) -> AsyncIterator[RemotePresentation]:
    """Give the presentation as seen through the link. Nothing but media crosses it, so time 0 is the first request."""
    if not options.link:
        yield remote
        return
    async with shaped(remote.url, options.link) as url:
        yield RemotePresentation(url, remote.presentation, host=remote.host)


def _reporter(
    session: Session, programme: Programme, on_line: Callable[[str], None] | None
) -> Callable[[float], None] | None:
    """Return what turns the client's turns into lines, no more than a screen can show."""
    if on_line is None:
        return None
    last_s = -1.0

    def report(now_s: float) -> None:
        nonlocal last_s
        if now_s - last_s < 0.2:
            return
        last_s = now_s
        rows = session.log().segments
        name = programme.ladder.names[rows[-1]["representation"]] if rows else ""
        on_line(progress_line(session, now_s, programme.duration_s, name))

    return report


def _about(
    options: PlayOptions, remote: RemotePresentation, client: Client, renderer: MediaRenderer, ready_s: float
) -> dict[str, Any]:
    """Return what else is worth keeping: how the session was made, and what the tables have no place for."""
    age_s = 0.0 if client.started_s is None else time.monotonic() - client.started_s
    about: dict[str, Any] = {
        "url": remote.url,
        "abr": options.abr,
        "abr_options": dict(options.abr_options),
        "player": asdict(options.player),
        "link": list(options.link),
        "began": (datetime.now(timezone.utc) - timedelta(seconds=age_s)).isoformat(),
        "began_monotonic_s": client.started_s,
        "link_ready_monotonic_s": ready_s,
        "connections": client.connections,
        "last_error": client.last_error,
        "render": None,
    }
    if isinstance(renderer, WorkerRenderer):
        speed = renderer.frames / renderer.busy_s if renderer.busy_s else None
        about["render"] = {"frames": renderer.frames, "busy_s": renderer.busy_s, "frames_per_s": speed}
    return about
