"""Generators that other packages offer: entry points in the group `promptdash.generators` lead to folders. No torch.

It names either the folder's path, or a function without arguments that returns it, having made or fetched what is in
it. The folder is in diffusers layout, as every generator's (docs/generator.md).
"""

from __future__ import annotations

import os
from pathlib import Path

from abr.plugins import Plugins
from player.errors import PlayerError, PluginError

ENTRY_POINT_GROUP = "promptdash.generators"
EMBEDDED = "embedded"
PLUGINS = Plugins(ENTRY_POINT_GROUP, "generator", frozenset((EMBEDDED,)), PluginError)


def known_generators() -> list[str]:
    """Return the generators that have a name: `embedded`, then those of installed packages in alphabetical order."""
    return [EMBEDDED, *PLUGINS.names()]


def describe(name: str) -> str:
    """Return what offers a generator, once its code has been imported; raise PluginError if that fails."""
    PLUGINS.load(name)
    return PLUGINS.describe(PLUGINS.point(name))


def plugin_folder(name: str) -> Path | None:
    """Return the folder of a generator that another package offers under this name, or None if none does.

    Raises:
        PluginError: it is broken, or what it leads to is no folder.
    """
    if name not in PLUGINS.names():
        return None
    point = PLUGINS.point(name)
    found = PLUGINS.resolve(point)
    if callable(found):
        with PLUGINS.blamed(point, "failed", passing=(PlayerError, OSError)):
            found = found()
    if not isinstance(found, str | os.PathLike) or not Path(found).is_dir():
        raise PluginError(f"{PLUGINS.describe(point)} gave {str(found)!r}, expected a folder")
    return Path(found)
