"""Controllers by name: the built-in ones, those other installed packages offer, and those of modules at hand.

A package offers a controller by an entry point in the group `promptdash.abr`; it names a class or function that is
called as `factory(ladder, buffer_capacity_s=..., **options)` and returns an object with `choose`. A name with a dot,
`module.Class`, is imported without any installation.
"""

from __future__ import annotations

import inspect
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
from abr.plugins import Plugins
from abr.rate_based import Festive, HarmonicRate
from abr.throughput import ewma_controller, harmonic_controller
from abr.throughput_rule import throughput_rule

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


PLUGINS = Plugins(ENTRY_POINT_GROUP, "controller", frozenset(BUILT_IN), PluginError)


def known_names() -> list[str]:
    """Return the names of all controllers, built in and installed, in alphabetical order."""
    return sorted({*BUILT_IN, *PLUGINS.names()})


def check_name(name: str) -> None:
    """Raise UnknownControllerError unless a controller has this name, which may still be broken; nothing is loaded."""
    find_plugin(name)


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
    point = _point(name)
    with PLUGINS.blamed(point, "failed to start", passing=(AbrError,)):
        controller = factory(ladder, buffer_capacity_s=buffer_capacity_s, **options)
    if not callable(getattr(controller, "choose", None)):
        raise PluginError(f"{PLUGINS.describe(point)} made a {type(controller).__name__} without a choose method")
    return controller


def find_plugin(name: str) -> metadata.EntryPoint | None:
    """Return where a controller that is not built in comes from, or None; errors as in `check_name`."""
    return None if name in BUILT_IN else _point(name)


def _point(name: str) -> metadata.EntryPoint:
    """Return where the controller called `name` is, if it is not built in."""
    module, _, attribute = name.rpartition(".")
    if module and attribute.isidentifier():
        return metadata.EntryPoint(name, f"{module}:{attribute}", ENTRY_POINT_GROUP)
    try:
        return PLUGINS.point(name)
    except LookupError as error:
        known = f"{', '.join(known_names())}, or module.Class"
        raise UnknownControllerError(f"unknown controller {name!r}; known: {known}") from error


def _factory(name: str) -> Callable[..., Abr]:
    """Return what builds the controller called `name`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    point = _point(name)
    factory = PLUGINS.resolve(point)
    if not callable(factory):
        raise PluginError(f"{PLUGINS.describe(point)} is a {type(factory).__name__}, not callable")
    return factory
