"""``python -m experiments.bridge``: one session in real time and in virtual time, download by download.

The session is played once in real time. Then every request it made (the same bytes at the same moment of the same
trace) is put to the packet and to the fluid model, which gives download times that can be compared one by one; and the
same controller plays the programme in virtual time on its own, which gives a quality of experience to compare.
"""

import http.client
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, UsageError
from experiments.overrides import rewrite_overrides

if TYPE_CHECKING:
    import pandas as pd

    from experiments.results import CodecResult
    from experiments.schema import RunConfig
    from player.programme import Programme
    from traces import Trace

log = logging.getLogger("experiments.bridge")  # also where this module is __main__

VIRTUAL = ("packet", "fluid")
QOE = {
    "startup_delay_s": "Startup delay [s]",
    "rebuffering_ratio": "Rebuffering ratio",
    "media_bitrate_bps": "Bitrate played [bit/s]",
    "switches": "Switches",
}
_HELP = """Play a session in real time and in virtual time, and compare each download.

usage: python -m experiments.bridge [KEY=VALUE ...]

Keys are those of python -m experiments.run; session_s is 60 here unless given. real.shaper=shell (default where this
machine lets it start) or proxy. The result goes to bridge_dir=DIR (default outputs/<date_time>-bridge-<trace>)."""


@dataclass(frozen=True)
class Bridged:
    """One codec's session, in real time and twice in virtual time."""

    downloads: "pd.DataFrame"  # one row per download: request_s, size_bytes, real_s, packet_s, fluid_s
    qoe: dict[str, dict[str, Any]]  # real, packet, fluid -> the numbers of QOE and the mean of each quality metric


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 for a run that failed, 2 for a command line that is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(flag in given for flag in ("-h", "--help")):
        print(_HELP)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("experiments").setLevel(logging.INFO)  # others would tell of fonts
    from experiments.command_line import check_arguments
    from experiments.job import REPORTED_ERRORS

    try:
        folder, overrides = _split(given)
        check_arguments(overrides)
        bridge(overrides, folder)
    except UsageError as error:
        print(f"experiments.bridge: {error}", file=sys.stderr)
        return 2
    except REPORTED_ERRORS as error:
        print(f"experiments.bridge: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments.bridge: interrupted", file=sys.stderr)
        return 130
    return 0


def _split(given: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the output folder, if one is named, and the overrides of a run."""
    own = [argument for argument in given if argument.startswith("bridge_dir=")]
    others = [argument for argument in given if argument not in own]
    overrides = rewrite_overrides(others)
    if not any(argument.startswith("session_s=") for argument in overrides):
        overrides.append("session_s=60.0")
    if not any(argument.startswith("real.shaper=") for argument in overrides):
        overrides.append(f"real.shaper={'shell' if shell_starts() else 'proxy'}")
    return (Path(own[-1].partition("=")[2]) if own else None), [*overrides, "mode=real"]


def shell_starts() -> bool:
    """Return whether the emulator's shell works on this machine; say why if it does not."""
    command = [sys.executable, "-m", "emulator", "shell", "--trace", "lte", "--", "true"]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        log.warning("over the proxy, since the shell does not start: %s", " ".join(tried.stderr.split()))
    return tried.returncode == 0


def bridge(overrides: Sequence[str], folder: Path | None) -> None:
    """Play, compare, print the tables and write them with the figure."""
    from omegaconf import OmegaConf

    from experiments.bridge_figure import bridge_figure
    from experiments.command_line import compose_config
    from experiments.job import prepare_packages
    from experiments.paper import save_figure
    from experiments.prepare import obtain_video
    from experiments.real import check_real
    from player.files import write_bytes, write_json, write_table
    from player.programme import build_programme
    from traces import load_trace

    resolved = compose_config(overrides)
    config: RunConfig = OmegaConf.to_object(resolved)  # type: ignore[assignment]
    check_real(config)
    trace = load_trace(config.trace)
    folder = folder or Path("outputs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-bridge-{Path(config.trace.name).name}"
    if (folder / "bridge.json").exists():
        raise ExperimentError(f"{folder} holds a bridge already; choose another bridge_dir")
    results = {}
    cache = Path(config.cache_dir)
    for package in prepare_packages(config, obtain_video(config.video, cache), cache):
        programme = build_programme(package.presentation, config.session_s)
        results[package.codec] = compare(package.codec, programme, trace, config, folder)
        write_table(folder / package.codec / "downloads.parquet", results[package.codec].downloads)
    label = f"trace {config.trace.name}, share 1/{config.trace.share}, {config.link.delay_ms:g} ms one way, "
    label += f"{config.abr.name}, {config.session_s:g} s in real time over the {config.real.shaper}"
    write_bytes(folder / "config.yaml", OmegaConf.to_yaml(resolved, resolve=True).encode())
    numbers = {codec: {"errors": errors(one.downloads), "qoe": one.qoe} for codec, one in results.items()}
    write_json(folder / "bridge.json", {"version": 1, "conditions": label, "codecs": numbers})
    save_figure(bridge_figure({codec: one.downloads for codec, one in results.items()}, label), folder, "bridge")
    print(label)
    for codec, one in results.items():
        print(table(codec, one))
    log.info("%s", folder)


def compare(codec: str, programme: "Programme", trace: "Trace", config: "RunConfig", folder: Path) -> Bridged:
    """Play one codec in real time, and put what it asked for to both models."""
    from experiments.real import origin, play_real
    from experiments.stream import stream

    real = play_real(codec, programme, trace, config, folder)
    with origin(programme.presentation.directory) as url:
        header_bytes = response_header_bytes(f"{url}{programme.presentation.representations[0].media(0)}")
    seen = trace.starting_at(max(real.lead_s, 0.0))
    link = replace(config.link, response_header_bytes=header_bytes)
    downloads = requests_of(real.result.segments)
    qoe = {"real": _qoe(real.result)}
    for model in VIRTUAL:
        downloads[f"{model}_s"] = replay(downloads, seen, replace(link, model=model))
        qoe[model] = _qoe(stream(codec, programme, seen, replace(config, link=replace(link, model=model))))
    return Bridged(downloads, qoe)


def requests_of(segments: "pd.DataFrame") -> "pd.DataFrame":
    """Return the downloads that succeeded: segment, request_s, init_bytes, size_bytes, real_s."""
    import numpy as np

    done = segments[segments["downloaded"] & (segments["retries"] + segments["abandonments"] == 0)]
    table = done[["segment", "representation", "request_s", "init_bytes", "size_bytes"]].reset_index(drop=True)
    table["real_s"] = np.asarray(done["finish_s"] - done["request_s"])
    return table


def replay(downloads: "pd.DataFrame", trace: "Trace", link: Any) -> list[float]:
    """Return how long each download takes in virtual time, asked for when the real one was.

    Where the model is still busy with the one before, the request waits for it, as on one connection it must.
    """
    from emulator import create_transport

    transport = create_transport(trace, link)
    free_s, taken_s = 0.0, []
    for row in downloads.itertuples():
        begin_s = max(float(row.request_s), free_s)
        free_s = begin_s
        for size_bytes in (int(row.init_bytes), int(row.size_bytes)):  # two requests where there is an init segment
            if size_bytes:
                free_s = transport.request(size_bytes, free_s).finish_s
        taken_s.append(free_s - begin_s)
    return taken_s


def response_header_bytes(url: str) -> int:
    """Return the size of a response's header, status line and blank line included."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in response.getheaders()), ""]
        return sum(len(line.encode()) + 2 for line in lines)
    finally:
        connection.close()


def errors(downloads: "pd.DataFrame") -> dict[str, Any]:
    """Return, for each model, quantiles of |virtual - real| / real over the downloads, and the median's sign."""
    import numpy as np

    result: dict[str, Any] = {"downloads": len(downloads)}
    for model in VIRTUAL:
        relative = ((downloads[f"{model}_s"] - downloads["real_s"]) / downloads["real_s"]).to_numpy(dtype=float)
        p50, p90 = np.percentile(np.abs(relative), (50, 90)) if len(relative) else (np.nan, np.nan)
        result[model] = {"median": float(p50), "p90": float(p90), "bias": float(np.median(relative))}
    return result


def table(codec: str, one: Bridged) -> str:
    """Return one codec's comparison as text."""
    found = errors(one.downloads)
    lines = [f"\n{codec}: {found['downloads']} downloads", f"{'':34}{'real':>12}{'packet':>12}{'fluid':>12}"]
    for label, key in (("Median relative error [%]", "median"), ("90th percentile [%]", "p90"), ("Bias [%]", "bias")):
        cells = "".join(f"{100 * found[model][key]:>12.1f}" for model in VIRTUAL)
        lines.append(f"{label:34}{'-':>12}{cells}")
    names = {**QOE, **{name: f"{name}, mean" for name in one.qoe["real"] if name not in QOE}}
    for key, label in names.items():
        cells = "".join(f"{_cell(one.qoe[way][key]):>12}" for way in ("real", *VIRTUAL))
        lines.append(f"{label:34}{cells}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _qoe(result: "CodecResult") -> dict[str, Any]:
    return {**{key: result.summary[key] for key in QOE}, **result.summary["quality"]}


if __name__ == "__main__":
    sys.exit(main())
