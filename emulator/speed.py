"""How fast virtual time runs: link events, packets, transfers and whole sessions per second of one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from emulator.config import LinkConfig
from emulator.replay import replay
from emulator.transport import create_transport
from traces import Trace

SESSION_SEGMENTS = 199  # of 3 s: the film of Sabre's examples (Spiteri et al., MMSys 2018)
SEGMENT_S = 3.0
SEGMENT_BYTES = (28_000, 400_000)  # a segment of 75 kbit/s, as prompts take, and one of about 1 Mbit/s
TRANSFER_BYTES = (5_000, 28_000, 100_000, 1_000_000, 5_000_000)
_PAUSE_S = 2.0  # between transfers


@dataclass(frozen=True)
class Speed:
    """One measurement."""

    what: str
    per_second: float  # of processor time


def measure(trace: Trace, config: LinkConfig, *, seconds: float) -> list[Speed]:
    """Measure everything over one trace, each for about `seconds` of processor time."""
    fluid, packet = (LinkConfig(**{**vars(config), "model": model}) for model in ("fluid", "packet"))
    arrivals = [(now_ms, 1504) for now_ms in range(20_000)]
    speeds = [
        Speed("link: event lines", _rate(lambda: len(replay(trace, arrivals, end_ms=20_000)), seconds)),
        Speed("packet: packets", _rate(_transfers(trace, packet, 5_000_000), seconds) * 5_000_000 / config.mss_bytes),
    ]
    for size_bytes in TRANSFER_BYTES:
        rate = _rate(_transfers(trace, fluid, size_bytes), seconds)
        speeds.append(Speed(f"fluid: transfers of {size_bytes / 1000:g} kB", rate))
    for size_bytes in SEGMENT_BYTES:
        for name, setting in (("fluid", fluid), ("packet", packet)):
            rate = _rate(_session(trace, setting, size_bytes), seconds)
            speeds.append(Speed(f"{name}: sessions of {SESSION_SEGMENTS} segments of {size_bytes / 1000:g} kB", rate))
    return speeds


def _rate(run: Callable[[], int], seconds: float) -> float:
    """Call `run` for some time; return how much it did per second."""
    done, started_s = 0, time.process_time()
    while (elapsed_s := time.process_time() - started_s) < seconds or not done:
        done += run()
    return done / elapsed_s


def _transfers(trace: Trace, config: LinkConfig, size_bytes: int) -> Callable[[], int]:
    transport = create_transport(trace, config)
    now_s = 0.0

    def run() -> int:
        nonlocal now_s
        now_s = transport.request(size_bytes, now_s).finish_s + _PAUSE_S
        return 1

    return run


def _session(trace: Trace, config: LinkConfig, size_bytes: int) -> Callable[[], int]:
    """Fetch a film's segments, each when its turn to play has come or the last one is there: the network's share."""

    def run() -> int:
        transport = create_transport(trace, config)
        now_s = 0.0
        for segment in range(SESSION_SEGMENTS):
            now_s = transport.request(size_bytes, max(now_s, segment * SEGMENT_S)).finish_s
        return 1

    return run


def format_speeds(speeds: list[Speed]) -> str:
    """Lay the measurements out as a Markdown table."""
    lines = ["| what | per second of one core |", "|---|---:|"]
    return "\n".join(lines + [f"| {speed.what} | {speed.per_second:,.0f} |" for speed in speeds])
