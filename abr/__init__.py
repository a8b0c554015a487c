"""Bitrate controllers and throughput estimators: pure functions of what the player sees."""

from abr.base import (
    Abandoning,
    Abr,
    Buffered,
    Decision,
    Ladder,
    Learning,
    Observation,
    Outcome,
    Progress,
    ThroughputSample,
    Upgrading,
)
from abr.config import AbrConfig
from abr.errors import AbrError, LadderError, ObservationError, OptionError, PluginError, UnknownControllerError
from abr.path import PathModel
from abr.registry import check_name, create_abr, known_names, known_options
from abr.rendering import Rendering
from abr.throughput import NaiveEstimator, RateEstimate, SlowStartEstimator, create_estimator

__all__ = [
    "Abandoning",
    "Abr",
    "AbrConfig",
    "AbrError",
    "Buffered",
    "Decision",
    "Ladder",
    "LadderError",
    "Learning",
    "NaiveEstimator",
    "Observation",
    "ObservationError",
    "OptionError",
    "Outcome",
    "PathModel",
    "PluginError",
    "Progress",
    "RateEstimate",
    "Rendering",
    "SlowStartEstimator",
    "ThroughputSample",
    "UnknownControllerError",
    "Upgrading",
    "check_name",
    "create_abr",
    "create_estimator",
    "known_names",
    "known_options",
]
