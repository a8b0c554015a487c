"""Codecs by name: the built-in ones, how manifests write them, and those that other packages offer. No torch.

A package offers a codec by an entry point in the group `promptdash.codecs` that names a `Codec`. The same object serves
both sides: the packager takes its ladder, the player its decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abr.plugins import Plugins, warn_once
from player.errors import PlayerError, PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import numpy as np

    from player.decoder import Decoder

PROMPT = "prompt"
VAE = "vae"
CODECS = (PROMPT, "h265", "h264", "av1", "vp9", VAE)
"""The built-in codecs, in the order in which tables and figures show them."""
ENTRY_POINT_GROUP = "promptdash.codecs"
METADATA_TYPE, VIDEO_TYPE = MIME_TYPES = ("application/mp4", "video/mp4")

_SAMPLE_ENTRIES = {
    "urim": PROMPT,
    "urim.vae": VAE,
    "avc1": "h264",
    "avc3": "h264",
    "hvc1": "h265",
    "hev1": "h265",
    "av01": "av1",
    "vp09": "vp9",
}
"""RFC 6381 codecs strings, whole or up to their first dot, and what they stand for."""
_STRING = re.compile(r"[A-Za-z0-9]{4}(\.[A-Za-z0-9.]+)?", re.ASCII)

PLUGINS = Plugins(ENTRY_POINT_GROUP, "codec", frozenset(CODECS), PluginError)


@dataclass(frozen=True)
class Codec:
    """A codec of another package."""

    sample_entry: str
    """RFC 6381 codecs string of its representations, or what stands before the first dot of them; no other codec's."""
    decoder: Callable[[bytes], Decoder]
    """Called with an init segment, returns the decoder of that representation; pickled, if a build has several jobs."""
    ladder: Callable[[Any], Any]
    """Called with a `packager.settings.BuildConfig`, returns a `packager.ladder.LadderCodec` of the codec's name."""
    title: str = ""
    """As tables and figures write it; without one, the entry point's name."""
    mime_type: str = METADATA_TYPE
    """application/mp4 for a timed-metadata track (`player.mp4` writes those), video/mp4 for a video track."""


@dataclass(frozen=True)
class BlamedDecoder:
    """A plug-in's decoder whose every failure is one line that names the plug-in."""

    point: EntryPoint
    decoder: Decoder

    def decode(self, segment: bytes) -> np.ndarray:
        """Return the frames uint8 [T, H, W, 3] of a segment; raise PluginError for anything else."""
        with PLUGINS.blamed(self.point, "failed to decode a segment", passing=(PlayerError,)):
            frames = self.decoder.decode(segment)
            if frames.dtype != "uint8" or frames.ndim != 4 or frames.shape[3] != 3:
                raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [T, H, W, 3]")
        return frames


def known_codecs() -> list[str]:
    """Return the names of all codecs: the built-in ones, then those of installed packages in alphabetical order."""
    return [*CODECS, *PLUGINS.names()]


def is_known(name: str) -> bool:
    """Whether a codec of this name is built in or installed; it may still be broken."""
    return name in CODECS or name in PLUGINS.names()


def ordered(names: Iterable[str]) -> list[str]:
    """Return codecs in the order of tables and figures: the built-in ones first; others need not be installed."""
    return sorted(names, key=lambda name: (CODECS.index(name) if name in CODECS else len(CODECS), name))


def load_codec(name: str) -> tuple[EntryPoint, Codec]:
    """Return a plug-in codec and where it comes from.

    Raises:
        PluginError: no package offers the name, or what it offers is broken.
    """
    try:
        point = PLUGINS.point(name)
    except LookupError as error:
        raise PluginError(f"unknown codec {name!r}; known: {', '.join(known_codecs())}") from error
    codec = PLUGINS.resolve(point)
    if not isinstance(codec, Codec):
        found = type(codec).__name__
        raise PluginError(f"{PLUGINS.describe(point)} is a {found}, expected a player.codecs.Codec")
    if not _STRING.fullmatch(codec.sample_entry) or codec.sample_entry in _SAMPLE_ENTRIES:
        raise PluginError(
            f"{PLUGINS.describe(point)} has sample entry {codec.sample_entry!r}, expected an RFC 6381 string of its own"
        )
    if codec.mime_type not in MIME_TYPES:
        raise PluginError(f"{PLUGINS.describe(point)} has type {codec.mime_type!r}, expected {' or '.join(MIME_TYPES)}")
    return point, codec


def plugin_decoder(name: str, init: bytes) -> Decoder:
    """Return the decoder that a plug-in makes of an init segment; PluginError if it fails."""
    point, codec = load_codec(name)
    with PLUGINS.blamed(point, "failed to make a decoder", passing=(PlayerError,)):
        return BlamedDecoder(point, codec.decoder(init))


def mime_type(name: str) -> str:
    """Return @mimeType of a codec's representations; PluginError for a plug-in that is broken or not there."""
    if name in CODECS:
        return METADATA_TYPE if name in (PROMPT, VAE) else VIDEO_TYPE
    return load_codec(name)[1].mime_type


def title(name: str) -> str | None:
    """Return what a plug-in codec calls itself in tables, or None if it is not to be had."""
    try:
        return load_codec(name)[1].title or name
    except PluginError:
        return None


def codec_of(codecs: str) -> str | None:
    """Return the codec that an RFC 6381 string names, by the whole string or by its sample entry.

    Plug-ins are asked where the built-in codecs do not know it; one that is broken is said so and passed over.
    """
    entry = codecs.split(".")[0]
    found = _SAMPLE_ENTRIES.get(codecs) or (None if entry == "urim" else _SAMPLE_ENTRIES.get(entry))
    if found:
        return found
    for name in PLUGINS.names():
        try:
            _, codec = load_codec(name)
        except PluginError as error:
            warn_once(str(error))
            continue
        if codec.sample_entry in (codecs, entry):
            return name
    return None
