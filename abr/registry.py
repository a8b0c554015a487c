"""Controllers by name: the built-in ones and those other installed packages offer.

A package offers a controller by an entry point in the group `promptdash.abr`; it names a class or function that is
called as `factory(ladder, buffer_capacity_s=..., **options)` and returns an object with `choose`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

from abr.base import Abr, Ladder
from abr.bola import Bola, bola_o, bola_u
from abr.bolae import bolae, bolapl
from abr.buffer_based import BufferBased
from abr.chunk_map import bba1_controller, bba2_controller
from abr.dashjs import dash_dynamic, dash_throughput
from abr.dynamic import dynamic
from abr.errors import AbrError, OptionError, PluginError, UnknownControllerError
from abr.fast_mpc import FastMpc
from abr.fixed import Fixed, highest_controller, lowest_controller
from abr.fugu import Fugu
from abr.l2a import L2A
from abr.layered import layered_bola, layered_mpc
from abr.linear_buffer import IndexMap, SizeMap
from abr.lolp import LoLPlus
from abr.mpc import mpc_controller, quality_mpc_controller, robust_mpc_controller
from abr.oracle import Oracle
from abr.pensieve import Pensieve
from abr.rate_based import Festive, HarmonicRate
from abr.throughput import ewma_controller, harmonic_controller
from abr.throughput_rule import throughput_rule

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "promptdash.abr"

BUILT_IN: dict[str, Callable[..., Abr]] = {
    "bb": IndexMap,
    "bba": BufferBased,
    "bba1": bba1_controller,
    "bba2": bba2_controller,
    "bola": Bola,
    "bola_o": bola_o,
    "bola_u": bola_u,
    "bolae": bolae,
    "bolapl": bolapl,
    "dash_dynamic": dash_dynamic,
    "dash_throughput": dash_throughput,
    "dynamic": dynamic,
    "ewma": ewma_controller,
    "fastmpc": FastMpc,
    "festive": Festive,
    "fixed": Fixed,
    "fugu": Fugu,
    "highest": highest_controller,
    "l2a": L2A,
    "layered_bola": layered_bola,
    "layered_mpc": layered_mpc,
    "lolp": LoLPlus,
    "lowest": lowest_controller,
    "mpc": mpc_controller,
    "oracle": Oracle,
    "pensieve": Pensieve,
    "puffer_bba": SizeMap,
    "quality_mpc": quality_mpc_controller,
    "rb": HarmonicRate,
    "robustmpc": robust_mpc_controller,
    "throughput": harmonic_controller,
    "throughput_ibr": throughput_rule,
}


def known_names() -> list[str]:
    """Return the names of all controllers, built in and installed, in alphabetical order."""
    return sorted({*BUILT_IN, *(point.name for point in _entry_points())})


def known_options(name: str) -> list[str] | None:
    """Return the options the controller takes besides ladder and cap, or None if it takes any."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [parameter.name for parameter in parameters if parameter.kind in keyword]
    return [option for option in named[1:] if option != "buffer_capacity_s"]


def create_abr(name: str, ladder: Ladder, *, buffer_capacity_s: float, **options: Any) -> Abr:
    """Build the controller called `name` for one session.

    Raises:
        UnknownControllerError: no such name; the message lists the known ones.
        OptionError: an option it does not take, or a value out of range.
        PluginError: a controller of another package that cannot be loaded or lacks `choose`.
    """
    factory = _factory(name)
    allowed = known_options(name)
    if allowed is not None and (unknown := sorted(set(options) - set(allowed))):
        known = ", ".join(allowed) or "none"
        raise OptionError(f"controller {name!r} has no option {', '.join(unknown)}; known: {known}")
    if name in BUILT_IN:
        return factory(ladder, buffer_capacity_s=buffer_capacity_s, **options)
    try:
        controller = factory(ladder, buffer_capacity_s=buffer_capacity_s, **options)
    except AbrError:
        raise
    except Exception as error:  # whatever a foreign package raises is its fault, said in our words
        raise PluginError(f"controller {name!r} (plug-in) failed to start: {type(error).__name__}: {error}") from error
    if not callable(getattr(controller, "choose", None)):
        raise PluginError(f"controller {name!r} (plug-in) made a {type(controller).__name__} without a choose method")
    return controller


def _entry_points() -> list[metadata.EntryPoint]:
    """Return the installed plug-ins; a built-in name wins over a plug-in's."""
    points = list(metadata.entry_points(group=ENTRY_POINT_GROUP))
    for point in points:
        if point.name in BUILT_IN:
            log.warning("plug-in %s is ignored: the controller name %r is built in", point.value, point.name)
    return [point for point in points if point.name not in BUILT_IN]


def _factory(name: str) -> Callable[..., Abr]:
    """Return what builds the controller called `name`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = [point for point in _entry_points() if point.name == name]
    if not found:
        raise UnknownControllerError(f"unknown controller {name!r}; known: {', '.join(known_names())}")
    if len({point.value for point in found}) > 1:
        values = ", ".join(sorted(point.value for point in found))
        raise PluginError(f"controller {name!r} is offered more than once: {values}")
    try:
        factory = found[0].load()
    except Exception as error:  # importing foreign code may raise anything
        message = f"controller {name!r} (plug-in {found[0].value}) cannot be loaded: {type(error).__name__}: {error}"
        raise PluginError(message) from error
    if not callable(factory):
        raise PluginError(f"controller {name!r} (plug-in {found[0].value}) is a {type(factory).__name__}, not callable")
    return factory
