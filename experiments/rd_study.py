"""The study behind ``python -m experiments.rate_distortion``: measure all clips in parallel, compare, tabulate."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.bd_rate import Curve, bd_quality, bd_rate, crossings
from experiments.errors import ExperimentError
from experiments.rd_config import StudyConfig
from experiments.rd_measure import POINT_COLUMNS, Measured, measure_clip
from experiments.series import METRICS
from packager.errors import PackagerError
from player.errors import PlayerError
from player.quality import known_metrics

log = logging.getLogger(__name__)

REPORTED_ERRORS = (ExperimentError, PackagerError, PlayerError, OSError)
"""Bad input, which explains itself in one line; anything else is named by its class too."""
MEAN = "mean ladder"
"""Stands for a clip's name in rows that compare the mean ladders of all clips."""
_DELTA_COLUMNS = (
    "bd_rate", "bd_rate_overlap", "bd_rate_reason", "bd_quality", "bd_quality_overlap", "bd_quality_reason",
)  # fmt: skip
_TABLES = ("points", "mean_points", "deltas", "crossings")
Progress = Callable[[int, int, str], None]
"""Called with (tasks done, tasks in all, what was done last)."""


@dataclass(frozen=True)
class Failure:
    """A clip that could not be packaged or measured in a codec."""

    clip: str
    codec: str
    reason: str  # one line


@dataclass(frozen=True)
class Study:
    """What a study has found; tables are described in docs/rate_distortion.md."""

    anchor: str
    codecs: tuple[str, ...]
    metrics: tuple[str, ...]
    points: pd.DataFrame  # one row per clip, codec and representation
    mean_points: pd.DataFrame  # one row per codec and rung, over the clips that every codec was measured on
    deltas: pd.DataFrame  # one row per clip, codec and metric
    crossings: pd.DataFrame
    measured: dict[tuple[str, str], Measured] = field(repr=False)
    failures: tuple[Failure, ...] = ()

    @property
    def clips(self) -> list[str]:
        """Clips with at least one codec measured, in the order given."""
        return list(dict.fromkeys(self.points["clip"]))


def run_study(config: StudyConfig, videos: Sequence[Path], progress: Progress) -> Study | tuple[Failure, ...]:
    """Measure every clip in every codec, then compare; a clip that fails is left out and listed.

    Returns:
        The study, or only the failures where nothing could be measured.
    """
    tasks = [(video, codec) for codec in _slowest_first(config.codecs) for video in videos]
    measured: dict[tuple[str, str], Measured] = {}
    failures: list[Failure] = []
    for done, (video, codec, outcome) in enumerate(_outcomes(tasks, config), start=1):
        if isinstance(outcome, Measured):
            measured[video.stem, codec] = outcome
        else:
            failures.append(Failure(video.stem, codec, _reason(outcome)))
            log.warning("%s as %s: %s", video.stem, codec, failures[-1].reason)
        progress(done, len(tasks), f"{video.stem} as {codec}")
    if not measured:
        return tuple(failures)
    order = [(video.stem, codec) for video in videos for codec in config.codecs if (video.stem, codec) in measured]
    return compare({key: measured[key] for key in order}, config, failures)


def compare(measured: dict[tuple[str, str], Measured], config: StudyConfig, failures: Sequence[Failure] = ()) -> Study:
    """Compare what was measured: every codec against the anchor, clip by clip and on the mean curves."""
    tables = [one.points for one in measured.values()]
    metrics = [name for name in known_metrics() if all(name in table for table in tables)]
    kept = [*POINT_COLUMNS, *metrics, *(f"severe_{name}" for name in metrics if f"severe_{name}" in tables[0])]
    points = pd.concat([table[kept] for table in tables], ignore_index=True)
    mean_points = average_ladders(points, config.codecs)
    everything = pd.concat([points, mean_points.assign(clip=MEAN)], ignore_index=True)
    deltas, places = [], []
    for clip, own in everything.groupby("clip", sort=False):
        curves = {codec: _curves(rows, metrics) for codec, rows in own.groupby("codec", sort=False)}
        for codec in config.codecs:
            if codec == config.anchor or codec not in curves or config.anchor not in curves:
                continue
            for metric in metrics:
                pair = curves[config.anchor][metric], curves[codec][metric]
                names = {"clip": clip, "codec": codec, "anchor": config.anchor, "metric": metric}
                deltas.append(names | _delta_row(*pair, higher_is_better=METRICS[metric].higher_is_better))
                places += [names | vars(crossing) for crossing in crossings(*pair)]
    columns = ["clip", "codec", "anchor", "metric"]
    return Study(
        anchor=config.anchor,
        codecs=tuple(config.codecs),
        metrics=tuple(metrics),
        points=points,
        mean_points=mean_points,
        deltas=pd.DataFrame(deltas, columns=[*columns, *_DELTA_COLUMNS]),
        crossings=pd.DataFrame(places, columns=[*columns, "rate_bps", "better_above"]),
        measured=measured,
        failures=tuple(failures),
    )


def load_study(folder: Path) -> tuple[Study, str]:
    """Return a study as its folder holds it, without the frames measured, and the line under its figures.

    Raises:
        ExperimentError: a file is missing or cannot be read.
    """
    from omegaconf import OmegaConf

    from experiments.rate_distortion import conditions

    try:
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES}
        config = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(StudyConfig), OmegaConf.load(folder / "config.yaml"))
        )
    except Exception as error:  # OmegaConf's, YAML's and pyarrow's errors share no public base class
        raise ExperimentError(f"{folder}: cannot be read as a rate-distortion study ({_reason(error)})") from error
    if not isinstance(config, StudyConfig):
        raise ExperimentError(f"{folder / 'config.yaml'}: not a rate-distortion study's settings")
    metrics = tuple(name for name in METRICS if name in tables["points"])
    study = Study(config.anchor, tuple(config.codecs), metrics, **tables, measured={})
    clips = int(study.mean_points["clips"].max()) if len(study.mean_points) else 0
    return study, f"Mean of {clips} clips. {conditions(config)}"


def average_ladders(points: pd.DataFrame, codecs: Sequence[str]) -> pd.DataFrame:
    """Return each codec's mean ladder: per rung the geometric mean of the bitrates and the mean of everything else.

    Only clips that every codec was measured on enter, and only rungs that all of them have. Rungs are counted from the
    lowest bitrate; `clips` says how many clips there are.
    """
    present = points.groupby("clip")["codec"].nunique()
    whole = points[points["clip"].isin(present.index[present == len(codecs)])]
    clips = whole["clip"].nunique()
    rung = whole.groupby(["clip", "codec"])["bitrate_bps"].rank(method="first").astype(int)
    ladder = whole.assign(rung=rung, bitrate_bps=np.log(whole["bitrate_bps"])).groupby(["codec", "rung"], sort=False)
    mean = ladder.mean(numeric_only=True).assign(clips=ladder.size())
    mean = mean[mean["clips"] == clips].reset_index()
    names = "rung " + mean.pop("rung").astype(str)
    return mean.assign(bitrate_bps=np.exp(mean["bitrate_bps"]), representation=names)


def nearest_point(points: pd.DataFrame, rate_bps: float) -> pd.Series:
    """Return the row whose bitrate is nearest to a rate, as a ratio."""
    return points.loc[np.log(points["bitrate_bps"] / rate_bps).abs().idxmin()]


def _curves(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Curve]:
    return {
        metric: Curve.of(rows["bitrate_bps"], rows[metric], higher_is_better=METRICS[metric].higher_is_better)
        for metric in metrics
    }


def _delta_row(anchor: Curve, test: Curve, *, higher_is_better: bool) -> dict[str, Any]:
    """Return _DELTA_COLUMNS; differences in quality in the metric's own direction."""
    rate, quality = bd_rate(anchor, test), bd_quality(anchor, test)
    sign = 1 if higher_is_better else -1
    values = (
        rate.value, rate.overlap, rate.reason,
        None if quality.value is None else sign * quality.value, quality.overlap, quality.reason,
    )  # fmt: skip
    return dict(zip(_DELTA_COLUMNS, values, strict=True))


# ---- processes ------------------------------------------------------------------------------------------------------

Outcome = tuple[Path, str, Measured | Exception]


def _slowest_first(codecs: Sequence[str]) -> list[str]:
    """Start with what takes longest, so that no process is left alone with it at the end."""
    order = ("prompt", "vae", "vp9", "av1")
    return sorted(codecs, key=lambda codec: order.index(codec) if codec in order else len(order))


def _outcomes(tasks: Sequence[tuple[Path, str]], config: StudyConfig) -> Iterator[Outcome]:
    """Yield what comes of every task, as it is finished; an error is an outcome like another."""
    if config.jobs == 1:
        for video, codec in tasks:
            yield video, codec, _attempt(video, codec, config)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    with ProcessPoolExecutor(config.jobs, context, initializer=_start_worker, initargs=(threads,)) as pool:
        try:
            futures = {pool.submit(_attempt, video, codec, config): (video, codec) for video, codec in tasks}
            for future in as_completed(futures):
                yield *futures[future], _result(future)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and silently; builds survive that
    logging.basicConfig(level=logging.ERROR)


def _attempt(video: Path, codec: str, config: StudyConfig) -> Measured | Exception:
    """Measure one clip in one codec; an error is returned, since one clip must not sink the others."""
    try:
        return measure_clip(video, codec, config)
    except Exception as error:
        log.debug("%s as %s", video, codec, exc_info=True)
        return error if isinstance(error, REPORTED_ERRORS) else RuntimeError(f"{type(error).__name__}: {error}")


def _result(future: Future[Measured | Exception]) -> Measured | Exception:
    try:
        return future.result()
    except Exception as error:  # the process died, or its answer could not be read
        return error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
