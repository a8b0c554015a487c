"""One codec's session in real time: an origin, a shaper and the player, each a process of its own.

`proxy` shapes the bytes of the player's connection and needs no privileges; `shell` puts the player's process behind a
network namespace's link, kernel TCP and all. docs/emulation.md says what each can and cannot show.
"""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from abr import known_options
from abr.config import AbrConfig
from emulator import LinkConfig
from experiments.errors import ExperimentError
from experiments.results import CodecResult, load_codec
from experiments.schema import SHELL, RunConfig
from experiments.stream import severity
from player.files import write_json
from player.programme import Programme
from player.record import SevereRule, severe_numbers
from traces import Trace
from traces.formats import write_mahimahi

log = logging.getLogger(__name__)

SHELL_HOST = "100.64.0.1"
"""What the host's 127.0.0.1 is called inside the emulator's shell."""
STOP_S = 15.0
"""A process may take this long to end after it was told to."""
LINK_OPTIONS = ("delay_ms", "queue", "queue_packets", "queue_bytes", "loss", "seed")
"""Fields of LinkConfig that both shapers take; all others are the kernel's own in real time."""


@dataclass(frozen=True)
class RealSession:
    """A session that was played in real time."""

    result: CodecResult
    lead_s: float
    """Time of the (unturned) trace at which the session began: close to 0, and known to milliseconds."""
    connections: int
    """TCP connections that the media took."""


def check_real(config: RunConfig) -> None:
    """Raise ExperimentError for a link that exists in virtual time only."""
    taken = {"model", *LINK_OPTIONS}
    default = LinkConfig()
    for setting in fields(LinkConfig):
        value = getattr(config.link, setting.name)
        if setting.name not in taken and value != getattr(default, setting.name):
            raise ExperimentError(
                f"link.{setting.name}={value}: in real time this is not ours to set (docs/streaming.md)"
            )


def play_real(codec: str, programme: Programme, trace: Trace, config: RunConfig, folder: Path) -> RealSession:
    """Play ``programme`` over ``trace`` in real time; its record is in ``folder``/``codec`` afterwards.

    Raises:
        ExperimentError: a part that does not start, or ends badly; its own line on stderr says why.
    """
    duration = timedelta(seconds=programme.duration_s + (config.real.lead_s if config.real.shaper == SHELL else 0))
    done = datetime.now() + duration
    log.info("%s: real time, about %.0f s if nothing stalls: until %s", codec, duration.total_seconds(), f"{done:%X}")
    with TemporaryDirectory(prefix="promptdash-real-") as scratch, origin(programme.presentation.directory) as url:
        start = _over_shell if config.real.shaper == SHELL else _over_proxy
        origin_s = start(url, codec, programme, trace, config, folder / codec, Path(scratch))
    about = json.loads((folder / codec / "session.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / codec / "summary.json").read_text(encoding="utf-8"))
    result = load_codec(folder / codec, codec, summary)
    rule = SevereRule(*severity(programme.presentation.metrics, config.quality))
    result.summary.update(severe_numbers(result.frames, rule))
    write_json(folder / codec / "summary.json", result.summary)
    began_s = about["link_ready_monotonic_s"] if origin_s is None else origin_s
    return RealSession(result, about["began_monotonic_s"] - began_s, about["connections"])


def _over_proxy(
    url: str, codec: str, programme: Programme, trace: Trace, config: RunConfig, record: Path, scratch: Path
) -> float | None:
    """Let the player start the proxy in front of its server. The trace begins when the proxy is ready."""
    write_mahimahi(trace, scratch / "trace.mm")
    options = [f"{name.replace('_', '-')}={getattr(config.link, name)}" for name in _link_options(config)]
    shape = ["--trace", str(scratch / "trace.mm"), *(word for option in options for word in ("--link-option", option))]
    _wait([*_player(url, programme, config, record), *shape], "the player")
    return None


def _over_shell(
    url: str, codec: str, programme: Programme, trace: Trace, config: RunConfig, record: Path, scratch: Path
) -> float | None:
    """Run the player inside the emulator's shell; return when the trace proper began."""
    lead_s = config.real.lead_s
    write_mahimahi(after_lead(trace, lead_s, 3 * programme.duration_s + 600), scratch / "trace.mm")
    parts = urlsplit(url)
    inside = parts._replace(netloc=f"{SHELL_HOST}:{parts.port}").geturl()
    options = [f"--{name.replace('_', '-')}={getattr(config.link, name)}" for name in _link_options(config)]
    note = scratch / "start_ns"
    # The link's start is known inside only; the player is told to begin a fixed time after it.
    script = (
        'printf %s "$EMULATOR_START_NS" > "$0"; '
        f"at=$((EMULATOR_START_NS / 1000000 + {round(1000 * lead_s)})); "
        'exec "$@" --begin-at "$((at / 1000)).$(printf %03d $((at % 1000)))"'
    )
    player = _player(inside, programme, config, record)
    shell = [sys.executable, "-m", "emulator", "shell", "--trace", str(scratch / "trace.mm"), *options]
    _wait([*shell, "--", "sh", "-c", script, str(note), *player], "the player in the emulator's shell")
    return int(note.read_text()) / 1e9 + lead_s


def after_lead(trace: Trace, lead_s: float, duration_s: float) -> Trace:
    """Return ``duration_s`` of a trace, or more, behind a lead of 12 Mbit/s for what comes before the session."""
    lead_ms = round(1000 * lead_s)
    laps = math.ceil(1000 * duration_s / trace.period_ms)
    starts_ms = lead_ms + trace.period_ms * np.arange(laps)
    times = [np.arange(1, lead_ms), *(start_ms + trace.opportunities_ms for start_ms in starts_ms)]
    return Trace(f"{trace.name} after {lead_s:g} s", np.concatenate(times), lead_ms + laps * trace.period_ms)


def _link_options(config: RunConfig) -> list[str]:
    """Return the link's options to pass on; a limit of 0 is one that is not set, and an infinite queue has none."""
    limits = ("queue_packets", "queue_bytes")
    unset = [name for name in limits if config.link.queue == "infinite" or getattr(config.link, name) == 0]
    return [name for name in LINK_OPTIONS if name not in unset]


def _player(url: str, programme: Programme, config: RunConfig, record: Path) -> list[str]:
    """Return the command that plays the programme as the configuration says."""
    command = [sys.executable, "-m", "player", "play", url, "--log", str(record)]
    command += ["--duration", repr(programme.duration_s), "--abr", config.abr.name]
    for name, value in vars(config.player).items():
        command += ["--player-option", f"{name}={json.dumps(value)}"]
    for name, value in _abr_options(config.abr).items():
        command += ["--abr-option", f"{name}={json.dumps(value)}"]
    return command


def _abr_options(config: AbrConfig) -> dict[str, object]:
    """Return the options that the controller takes of those configured."""
    allowed = known_options(config.name)
    values = {key: value for key, value in vars(config).items() if key not in ("name", "options")}
    chosen = {key: value for key, value in values.items() if allowed is not None and key in allowed}
    return {**chosen, **config.options}


@contextmanager
def origin(package: Path) -> Iterator[str]:
    """Publish a package; yield its URL."""
    command = [sys.executable, "-m", "packager", "serve", str(package), "--port", "0", "--access-log", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise ExperimentError(f"the origin server did not start (exit code {process.wait()})")
            yield url
        finally:
            _end(process)


def _wait(command: list[str], what: str) -> None:
    """Wait for a command to end well. Ctrl-C reaches it too, so it gets the time to write its log."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # its table: the run prints its own
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _end(process, told=True)
        raise
    if code != 0:
        raise ExperimentError(f"{what} ended with exit code {code}; its own line above says why")


def _end(process: subprocess.Popen[Any], *, told: bool = False) -> None:
    """Tell a process to end, unless it was told, give it the time, and end it."""
    if not told:
        process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
