"""The main job behind ``python -m experiments.run``: prepare, stream, log, tabulate, plot, render; one run folder."""

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from abr import AbrError, check_name
from emulator import EmulatorError
from experiments.command_line import CONFIG_NAME, flags_first
from experiments.errors import ExperimentError
from experiments.paper import save_figure
from experiments.plots import draw_figures
from experiments.prepare import Package, check_same_time_line, check_video, input_hashes, obtain_package, obtain_video
from experiments.provenance import provenance
from experiments.real import check_real, play_real
from experiments.results import CodecResult, load_run, write_codec, write_summary
from experiments.schema import CONF, REAL, SIMULATE, RunConfig, register
from experiments.seeds import apply_seed
from experiments.stream import check_severe_metric, stream
from experiments.tables import summary_table
from packager.errors import PackagerError
from player.codecs import PROMPT, known_codecs, ordered
from player.errors import PlayerError
from player.files import write_bytes, write_json, write_table
from player.programme import Programme, build_programme
from traces import Trace, TraceError, catalogue, load_trace

log = logging.getLogger(__name__)

REPORTED_ERRORS = (ExperimentError, TraceError, EmulatorError, AbrError, PlayerError, PackagerError, OSError)
"""What ends a run with one line: bad input, and files that cannot be read or written."""


def run_hydra(overrides: Sequence[str]) -> int:
    """Let Hydra run the job once, or once for each value of a sweep; return the exit code."""
    register()
    argv = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as they are, not as Hydra's own report
    sys.argv = ["experiments.run", *flags_first(overrides)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(_task)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = argv
    return 0


def _task(config: DictConfig) -> None:
    settings = OmegaConf.to_object(config)
    if not isinstance(settings, RunConfig):
        raise TypeError(f"the configuration is a {type(settings).__name__}, not a RunConfig")
    folder = Path(HydraConfig.get().runtime.output_dir)
    given = HydraConfig.get().overrides
    try:
        run_experiment(settings, folder, overrides=[*given.task, *given.hydra])
    except REPORTED_ERRORS as error:
        print(f"experiments.run: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"experiments.run: interrupted; {folder} keeps what was written", file=sys.stderr)
        sys.exit(130)


def run_experiment(config: RunConfig, folder: Path, *, overrides: Sequence[str] = ()) -> None:
    """Do one run into ``folder``. Every file appears whole, as soon as its content is known."""
    given, config = config, apply_seed(config)
    trace = load_trace(config.trace)
    check_name(config.abr.name)
    check_video(config.video)
    check_severe_metric(config.quality)
    if config.mode == REAL:
        check_real(config)
    # A mistake found above leaves the folder free for the same command put right.
    _claim(folder, overwrite=config.overwrite)
    write_bytes(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(given)).encode())
    cache = Path(config.cache_dir)
    video = obtain_video(config.video, cache)
    packages = prepare_packages(config, video, cache)
    seeds = {"trace.seed": config.trace.seed, "link.seed": config.link.seed, "build.seed": config.build.seed}
    seeds |= {} if config.seed is None else {"seed": config.seed}
    inputs = input_hashes(config, video, packages)
    write_json(folder / "provenance.json", provenance(overrides=list(overrides), seeds=seeds, inputs=inputs))

    programmes = {package.codec: build_programme(package.presentation, config.session_s) for package in packages}
    results = []
    for package in packages:
        if config.mode == REAL:
            results.append(play_real(package.codec, programmes[package.codec], trace, config, folder).result)
        else:
            results.append(stream(package.codec, programmes[package.codec], trace, config))
            write_codec(folder, results[-1])
    conditions = _conditions(config, trace, next(iter(programmes.values())))
    _write_trace(folder, trace, results)
    write_summary(folder, conditions, results)
    print(summary_table(conditions, results), flush=True)
    if config.figures:
        draw_figures([load_run(folder)], folder / "figures")
    if config.render_check or config.render:
        _show(config, folder, video, packages, results)
    log.info("%s", folder)


def prepare_packages(config: RunConfig, video: Path, cache: Path) -> list[Package]:
    """Return the packages that a run streams, made on first use."""
    packages = [obtain_package(codec, video, config.build, cache, _package_bar) for codec in ordered(config.codec)]
    check_same_time_line(packages)
    return packages


def _claim(folder: Path, *, overwrite: bool) -> None:
    """Make sure that nothing of another run is mixed into this one."""
    if (folder / "config.yaml").exists() and not overwrite:
        raise ExperimentError(f"{folder} holds a run already; choose another hydra.run.dir, or add overwrite=true")
    for name in ("config.yaml", "provenance.json", "trace.parquet", "summary.json"):
        (folder / name).unlink(missing_ok=True)
    for name in (*known_codecs(), "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _conditions(config: RunConfig, trace: Trace, programme: Programme) -> dict[str, Any]:
    """Return what every table and figure states: under which conditions the sessions ran."""
    entry = catalogue.find(config.trace.name)
    name = config.trace.name if entry is None else f"{config.trace.name} ({entry.name})"
    clip_s = programme.presentation.manifest.duration_s
    session_s = programme.duration_s
    return {
        "mode": config.mode if config.mode == SIMULATE else f"real time over the emulator's {config.real.shaper}",
        "video": Path(config.video.name).name,
        "trace": name if entry is None or entry.name != config.trace.name else config.trace.name,
        "share": config.trace.share,
        "offset_s": config.trace.offset_s,
        "mean_rate_bps": trace.mean_bps,
        "session_rate_bps": trace.capacity_bytes(0, 1000 * session_s) * 8 / session_s,
        "delay_ms": config.link.delay_ms,
        "loss": config.link.loss,
        "link_model": config.link.model,
        "buffer_s": config.player.buffer_s,
        "abr": config.abr.name,
        "session_s": session_s,
        "clip_s": clip_s,
        "loops": session_s / clip_s,
        "render_fps": config.player.render_fps,
        "passes_per_s": config.device.passes_per_s,
    }


def _write_trace(folder: Path, trace: Trace, results: Sequence[CodecResult]) -> None:
    """Write the link's rate over the longest session."""
    import numpy as np
    import pandas as pd

    elapsed_s = max(result.summary["elapsed_s"] for result in results)
    rate_bps = trace.rate_bps(1.0, duration_s=max(1.0, float(np.ceil(elapsed_s))))
    table = pd.DataFrame({"time_s": np.arange(len(rate_bps), dtype=float), "rate_bps": rate_bps})
    write_table(folder / "trace.parquet", table)


def _show(
    config: RunConfig, folder: Path, video: Path, packages: Sequence[Package], results: Sequence[CodecResult]
) -> None:
    """Render what was played: measured speed, the session as a film, the contact sheet."""
    from contextlib import ExitStack

    from experiments.playback import open_store, render_played, write_session
    from experiments.sheet import draw_sheet
    from player.decoder import load_model
    from player.engine import RenderOptions, Shortcut

    with ExitStack() as stack:
        stores = {}
        for package, result in zip(packages, results, strict=True):
            model = load_model(
                package.codec,
                config.build.generator,
                decoder=config.build.decoder,
                device=config.build.device,
                options=RenderOptions(shortcut=Shortcut.of(config.player)),
            )
            store = stores[package.codec] = stack.enter_context(open_store(package.presentation, model))
            with _bar(f"rendering {package.codec}", "segment") as bar:
                report = render_played(store, result.segments, progress=partial(_set, bar))
            write_json(folder / package.codec / "render.json", report)
            if config.device.passes_per_s is None:
                _report_speed(package.codec, report, config.player.render_fps)
            if config.render:
                film = folder / package.codec / "session.mp4"
                write_session(film, store, result.segments, conceal_s=config.player.conceal_s)
        if config.figures:
            figure = draw_sheet(load_run(folder), video, config.build, stores)
            save_figure(figure, folder / "figures", "contact_sheet")


def _report_speed(codec: str, report: dict[str, Any], assumed_fps: float | None) -> None:
    speed, fps = report["frames_per_s"], report["playback_fps"]
    if speed is None:
        return
    log.info("%s: renders %.1f frames/s on %s; playback needs %.4g", codec, speed, report["device"], fps)
    if speed < fps and codec == PROMPT and (assumed_fps is None or assumed_fps > 1.1 * speed):
        assumed = "for free" if assumed_fps is None else f"at {assumed_fps:g} frames/s"
        log.warning(
            "%s: this machine renders slower than playback, but the session above rendered %s; "
            "add player.render_fps=%.1f to see it as a viewer here would",
            codec,
            assumed,
            speed,
        )


# ---- progress on a terminal -----------------------------------------------------------------------------------------


def _bar(title: str, unit: str) -> Any:
    return tqdm(desc=title, unit=unit, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)


def _set(bar: Any, done: float, total: float | None) -> None:
    bar.total = total
    bar.n = done
    bar.refresh()
    if total is not None and done >= total:
        bar.close()


def _package_bar(title: str) -> Any:
    """Return a progress callback that draws a bar for each stage of packaging."""
    bars: dict[str, Any] = {}

    def report(stage: str, done: float, total: float | None) -> None:
        if stage not in bars:
            bars[stage] = _bar(f"{title}: {stage}", "segment")
        _set(bars[stage], round(done, 2), total)

    return report
