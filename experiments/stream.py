"""One codec's session: programme, ladder, virtual-time simulation, and the tables and numbers it leaves."""

import dataclasses
import math
from collections.abc import Sequence

from emulator import create_transport
from experiments.device import controller_on, ladder_on
from experiments.errors import ExperimentError
from experiments.future import link_future
from experiments.results import CodecResult
from experiments.schema import QualityConfig, RunConfig
from experiments.series import HEADLINE_METRICS
from experiments.simulate import simulate
from player.codecs import PROMPT
from player.programme import Programme
from player.quality import METRIC_NAMES, SEVERE_DISTORTION
from player.record import SevereRule, make_record
from player.session import Session
from traces import Trace


def stream(codec: str, programme: Programme, trace: Trace, config: RunConfig) -> CodecResult:
    """Play ``programme`` over ``trace`` in virtual time and return its logs, every frame with its measured quality."""
    abr = config.abr
    if abr.name == "oracle":  # the one controller that is told the future
        abr = dataclasses.replace(abr, options={"finish_s": link_future(trace, config.link), **abr.options})
    ladder = ladder_on(config.device, programme.presentation, programme.ladder)
    controller = controller_on(config.device, abr, ladder, config.player.buffer_s)
    # A pixel codec has nothing to make frames up from.
    player = config.player if codec == PROMPT else dataclasses.replace(config.player, conceal_s=0.0)
    session = Session(ladder, controller, player)
    simulate(
        session,
        create_transport(trace, config.link),
        segment_frames=programme.segment_frames.tolist(),
        # The simulated renderer is the generator; pixel codecs decode in hardware on any viewer's device.
        render_fps=config.player.render_fps if codec == PROMPT else None,
    )
    metric, threshold = severity(programme.presentation.metrics, config.quality)
    record = make_record(session.log(), programme, SevereRule(metric, threshold))
    return CodecResult(codec, record.segments, record.frames, record.events, record.summary)


def check_severe_metric(quality: QualityConfig) -> None:
    """Raise ExperimentError for a metric that nobody measures, before anything is packaged."""
    known = ("auto", *METRIC_NAMES)
    if quality.severe_metric not in known:
        raise ExperimentError(f"quality.severe_metric={quality.severe_metric}: expected one of {', '.join(known)}")


def severity(metrics: Sequence[str], quality: QualityConfig) -> tuple[str | None, float]:
    """Return the metric and threshold by which frames count as severely distorted; (None, nan) if none has one.

    Raises:
        ExperimentError: the metric asked for was not measured, or has no published threshold and none was given.
    """
    metric: str | None = quality.severe_metric
    if metric == "auto":
        metric = next((name for name in HEADLINE_METRICS if name in metrics and name in SEVERE_DISTORTION), None)
    if metric is None:
        return None, math.nan
    if metric not in metrics:
        raise ExperimentError(f"quality.severe_metric={metric}: measured were {', '.join(metrics) or 'none'}")
    if quality.severe_threshold is not None:
        return metric, quality.severe_threshold
    if metric not in SEVERE_DISTORTION:
        raise ExperimentError(
            f"quality.severe_metric={metric} has no published threshold; give quality.severe_threshold"
        )
    return metric, SEVERE_DISTORTION[metric].threshold
