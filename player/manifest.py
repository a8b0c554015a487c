"""The manifest of a packaged programme: dataclasses to an MPEG-DASH MPD (ISO/IEC 23009-1) and back. No I/O.

What is written is a static MPD of the profile isoff-live: one Period, one AdaptationSet, a SegmentTemplate with
$Number$ and a SegmentTimeline that all representations share. The reader takes exactly that and refuses the rest in one
line; names are such that no path can leave the folder of the MPD.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from player.codecs import PROMPT, codec_of, is_known, known_codecs, mime_type
from player.errors import ManifestError

PROFILE = "urn:mpeg:dash:profile:isoff-live:2011"
RANK_SCHEME = "tag:promptdash,2026:rank"  # SupplementalProperty of a Representation: rank of its prompts
CHAIN_SCHEME = "tag:promptdash,2026:chained"  # EssentialProperty of the AdaptationSet: segments decode in order only
QUALITY_SCHEME = "tag:promptdash,2026:quality"  # SupplementalProperty of the MPD: the quality sidecar's file name
INIT_TEMPLATE = "$RepresentationID$/init.mp4"
MEDIA_TEMPLATE = "$RepresentationID$/seg-$Number%05d$.m4s"
START_NUMBER = 1
_NAMESPACE = "urn:mpeg:dash:schema:mpd:2011"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_CODECS = re.compile(r"[A-Za-z0-9]{4}(\.[A-Za-z0-9.]*)?", re.ASCII)
_DURATION = re.compile(r"PT(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,12})?)S)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,20}", re.ASCII)
_FRAME_RATE = re.compile(r"(\d{1,10})(?:/(\d{1,10}))?", re.ASCII)
_NOT_XML = re.compile(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production Char, less line ends
_MAX_SEGMENTS = 1_000_000
_MAX_TEXT = 64 << 20  # characters of an MPD
_DURATION_TOLERANCE_S = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class Representation:
    """One rung of the ladder."""

    id: str  # also the name of its folder
    bandwidth_bps: int  # @bandwidth: bytes of init and all segments, dependencies included, * 8 / duration, rounded up
    rank: int | None  # of the prompts; None for pixel codecs
    codecs: str  # RFC 6381, e.g. "urim", "urim.vae" (latents), "hvc1.1.6.L63.90"
    dependencies: tuple[str, ...] = ()  # ids of the representations that this one is a layer on top of, lowest first

    def __post_init__(self) -> None:
        _check_name("representation id", self.id)
        if not _is_whole(self.bandwidth_bps, 1, (1 << 32) - 1):
            raise ManifestError(
                f"representation {self.id}: bandwidth {self.bandwidth_bps!r} bit/s, expected 1 to 2**32-1"
            )
        if self.rank is not None and not _is_whole(self.rank, 1, 4096):
            raise ManifestError(f"representation {self.id}: rank {self.rank!r}, expected 1 to 4096")
        if not isinstance(self.codecs, str) or not _CODECS.fullmatch(self.codecs):
            raise ManifestError(f"representation {self.id}: codecs {self.codecs!r}, expected an RFC 6381 string")
        for name in self.dependencies:
            _check_name("id in dependencyId", name)

    @property
    def init(self) -> str:
        """Path of the init segment, relative to the MPD."""
        return INIT_TEMPLATE.replace("$RepresentationID$", self.id)

    def media(self, index: int) -> str:
        """Path of the segment `index` (0-based), relative to the MPD."""
        path = MEDIA_TEMPLATE.replace("$RepresentationID$", self.id)
        return path.replace("$Number%05d$", f"{index + START_NUMBER:05d}")


@dataclass(frozen=True)
class Manifest:
    """A packaged programme: its time line and its ladder. The timescale is fps.numerator units per second."""

    title: str
    codec: str  # one of player.codecs.known_codecs()
    width: int  # pixels, as shown
    height: int
    fps: Fraction  # frames per second
    segments: tuple[int, ...]  # duration of each in timescale units: frames * fps.denominator
    representations: tuple[Representation, ...]  # ascending bandwidth
    quality_sidecar: str = "quality.json"  # file name beside the MPD
    min_buffer_s: float = 2.0  # @minBufferTime; see min_buffer_s()
    chained: bool = False  # segments build on each other: no seeking, and nothing to switch to

    def __post_init__(self) -> None:
        _check_manifest(self)

    @property
    def frames(self) -> tuple[int, ...]:
        """Frames of each segment."""
        return tuple(duration // self.fps.denominator for duration in self.segments)

    @property
    def layered(self) -> bool:
        """Whether representations are layers: each needs all those below it."""
        return len(self.representations) > 1 and bool(self.representations[-1].dependencies)

    @property
    def segment_duration_s(self) -> np.ndarray:
        """Duration of each segment, float64 [S]."""
        return np.array(self.segments, np.float64) / self.fps.numerator

    @property
    def duration_s(self) -> float:
        """Duration of the programme."""
        return sum(self.segments) / self.fps.numerator


def min_buffer_s(segment_bytes: Sequence[int], duration_s: Sequence[float], bandwidth_bps: float) -> float:
    """Return the least @minBufferTime that makes @bandwidth true (ISO/IEC 23009-1, 5.3.5.2).

    That is: received at exactly `bandwidth_bps` from the start of any segment, and played from `min_buffer_s` later on,
    no segment comes late. The worst run of segments i..j decides: bits of i..j / bandwidth - duration of i..j-1.
    """
    worst = lead = 0.0
    for size_bytes, length_s in zip(segment_bytes, duration_s, strict=True):
        lead = max(lead, 0.0) + size_bytes * 8 / bandwidth_bps  # transfer time not covered by playing so far
        worst = max(worst, lead)
        lead -= length_s
    return worst


def write_mpd(manifest: Manifest) -> str:
    """Return the MPD as text with an XML declaration; equal manifests give equal text."""
    longest = max(manifest.segments)
    mpd = ElementTree.Element(
        "MPD",
        {
            "xmlns": _NAMESPACE,
            "profiles": PROFILE,
            "type": "static",
            "mediaPresentationDuration": _write_duration(Fraction(sum(manifest.segments), manifest.fps.numerator)),
            "maxSegmentDuration": _write_duration(Fraction(longest, manifest.fps.numerator)),
            "minBufferTime": _write_duration(Fraction(manifest.min_buffer_s)),
        },
    )
    information = ElementTree.SubElement(mpd, "ProgramInformation")
    ElementTree.SubElement(information, "Title").text = manifest.title
    period = ElementTree.SubElement(mpd, "Period", {"id": "0", "start": "PT0S"})
    period.append(_adaptation_set(manifest))
    properties = {"schemeIdUri": QUALITY_SCHEME, "value": manifest.quality_sidecar}
    ElementTree.SubElement(mpd, "SupplementalProperty", properties)
    ElementTree.indent(mpd)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(mpd, encoding="unicode") + "\n"


def read_mpd(text: str) -> Manifest:
    """Parse an MPD that write_mpd could have written; raise ManifestError for anything else.

    Attributes that this build does not know are ignored; elements that it does not know are refused, since they may
    change what the segments are.
    """
    mpd = _parse(text)
    _attributes(mpd, {"profiles": PROFILE, "type": "static"})
    information, period, sidecar = _children(mpd, "ProgramInformation", "Period", "SupplementalProperty")
    (title,) = _children(information, "Title")
    (adaptation,) = _children(period, "AdaptationSet")
    if len(adaptation) < 2:
        raise ManifestError(f"AdaptationSet: {len(adaptation)} children, expected a template and representations")
    chained = _local(adaptation[0]) == "EssentialProperty"
    properties = ["EssentialProperty"] * chained
    found = _children(adaptation, *properties, "SegmentTemplate", *["Representation"] * (len(adaptation) - 1 - chained))
    template, *rungs = found[chained:]
    if chained:
        _attributes(found[0], {"schemeIdUri": CHAIN_SCHEME, "value": "1"})
    fps = _read_frame_rate(_attribute(adaptation, "frameRate"))
    _attributes(template, {"initialization": INIT_TEMPLATE, "media": MEDIA_TEMPLATE, "startNumber": str(START_NUMBER)})
    _attributes(template, {"timescale": str(fps.numerator)})
    (timeline,) = _children(template, "SegmentTimeline")
    representations = tuple(_read_representation(rung) for rung in rungs)
    codecs = {codec_of(r.codecs) or r.codecs for r in representations}
    manifest = Manifest(
        title=title.text or "",
        codec=", ".join(sorted(codecs)),
        width=_read_whole(adaptation, "width"),
        height=_read_whole(adaptation, "height"),
        fps=fps,
        segments=_read_timeline(timeline),
        representations=representations,
        quality_sidecar=_read_property(sidecar, QUALITY_SCHEME),
        min_buffer_s=float(_read_duration(mpd, "minBufferTime")),
        chained=chained,
    )
    _attributes(adaptation, {"mimeType": mime_type(manifest.codec)})
    stated = _read_duration(mpd, "mediaPresentationDuration")
    if abs(stated - Fraction(sum(manifest.segments), fps.numerator)) > _DURATION_TOLERANCE_S:
        raise ManifestError(f"MPD: duration {float(stated)} s, but the segments last {manifest.duration_s} s")
    return manifest


def _adaptation_set(manifest: Manifest) -> ElementTree.Element:
    """Return the AdaptationSet with its template, time line and representations."""
    kind = mime_type(manifest.codec)
    adaptation = ElementTree.Element(
        "AdaptationSet",
        {
            "id": "0",
            "contentType": kind.split("/")[0],
            "mimeType": kind,
            "width": str(manifest.width),
            "height": str(manifest.height),
            "frameRate": f"{manifest.fps.numerator}/{manifest.fps.denominator}",
            "segmentAlignment": "true",
            "startWithSAP": "0" if manifest.chained else "1",
        },
    )
    if manifest.chained:  # essential: a client that does not know it must leave the representations alone
        ElementTree.SubElement(adaptation, "EssentialProperty", {"schemeIdUri": CHAIN_SCHEME, "value": "1"})
    template = ElementTree.SubElement(
        adaptation,
        "SegmentTemplate",
        {
            "timescale": str(manifest.fps.numerator),
            "startNumber": str(START_NUMBER),
            "initialization": INIT_TEMPLATE,
            "media": MEDIA_TEMPLATE,
        },
    )
    timeline = ElementTree.SubElement(template, "SegmentTimeline")
    for duration, run in groupby(manifest.segments):
        start = {} if len(timeline) else {"t": "0"}
        repeats = sum(1 for _ in run) - 1
        again = {"r": str(repeats)} if repeats else {}
        ElementTree.SubElement(timeline, "S", {**start, "d": str(duration), **again})
    for rung in manifest.representations:
        attributes = {"id": rung.id, "bandwidth": str(rung.bandwidth_bps), "codecs": rung.codecs}
        if rung.dependencies:
            attributes["dependencyId"] = " ".join(rung.dependencies)
        element = ElementTree.SubElement(adaptation, "Representation", attributes)
        if rung.rank is not None:
            properties = {"schemeIdUri": RANK_SCHEME, "value": str(rung.rank)}
            ElementTree.SubElement(element, "SupplementalProperty", properties)
    return adaptation


def _check_manifest(manifest: Manifest) -> None:
    if not isinstance(manifest.title, str) or _NOT_XML.search(manifest.title) or len(manifest.title) > 4096:
        raise ManifestError(f"title {manifest.title[:40]!r}: expected up to 4096 characters that XML can carry")
    if not is_known(manifest.codec):
        raise ManifestError(f"codec {manifest.codec!r}: known are {', '.join(known_codecs())}")
    if not _is_whole(manifest.width, 1, 65535) or not _is_whole(manifest.height, 1, 65535):
        raise ManifestError(f"size {manifest.width!r} x {manifest.height!r}, expected sides from 1 to 65535")
    fps = manifest.fps
    if not isinstance(fps, Fraction) or fps <= 0 or max(fps.numerator, fps.denominator) >= 1 << 32:
        raise ManifestError(f"frame rate {fps!r}, expected a positive Fraction of 32-bit numbers")
    if not 1 <= len(manifest.segments) <= _MAX_SEGMENTS:
        raise ManifestError(f"{len(manifest.segments)} segments, expected 1 to {_MAX_SEGMENTS}")
    for index, duration in enumerate(manifest.segments):
        if not _is_whole(duration, 1, (1 << 63) - 1) or duration % fps.denominator:
            raise ManifestError(
                f"segment {index}: duration {duration!r}, expected a multiple of {fps.denominator} units"
            )
    rungs = manifest.representations
    if not rungs or len({rung.id for rung in rungs}) != len(rungs):
        raise ManifestError(f"representations {[rung.id for rung in rungs]}: expected one or more different ids")
    if list(rungs) != sorted(rungs, key=lambda rung: rung.bandwidth_bps):
        raise ManifestError(f"bandwidths {[rung.bandwidth_bps for rung in rungs]} bit/s, expected in ascending order")
    for rung in rungs:
        if codec_of(rung.codecs) != manifest.codec or (rung.rank is None) == (manifest.codec == PROMPT):
            raise ManifestError(
                f"representation {rung.id}: codecs {rung.codecs}, rank {rung.rank} in a {manifest.codec} ladder"
            )
    if manifest.chained and (manifest.codec != PROMPT or len(rungs) > 1):
        raise ManifestError(f"chained: {len(rungs)} {manifest.codec} representations, expected one of prompts")
    below = [tuple(rung.id for rung in rungs[:position]) for position in range(len(rungs))]
    if any(rung.dependencies for rung in rungs) and [rung.dependencies for rung in rungs] != below:
        raise ManifestError("dependencyId: expected every representation to depend on all below it, or none on any")
    _check_name("quality sidecar", manifest.quality_sidecar)
    if not 0 < manifest.min_buffer_s < 1e9:
        raise ManifestError(f"minimum buffer {manifest.min_buffer_s!r} s, expected more than 0")


def _parse(text: str) -> ElementTree.Element:
    """Return the root of an MPD; entity and document type declarations are refused."""
    if len(text) > _MAX_TEXT:
        raise ManifestError(f"MPD of {len(text)} characters, expected at most {_MAX_TEXT}")
    try:
        # Encoded here, since the parser refuses text that declares an encoding.
        root = fromstring(text.encode("utf-8", "surrogatepass"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise ManifestError(f"MPD: {type(error).__name__}, but declarations are not allowed") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ManifestError(f"MPD is not XML: {error}") from error
    if root.tag != f"{{{_NAMESPACE}}}MPD":
        raise ManifestError(f"root element {str(root.tag)[:80]!r}, expected MPD of {_NAMESPACE}")
    return root


def _children(element: ElementTree.Element, *names: str) -> list[ElementTree.Element]:
    """Return the children of an element, which must have exactly these names in this order."""
    found = [_local(child) for child in element]
    if found != list(names):
        expected = ", ".join(dict.fromkeys(names))
        raise ManifestError(f"{_local(element)}: children {', '.join(found)[:200] or '(none)'}, expected {expected}")
    return list(element)


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).removeprefix(f"{{{_NAMESPACE}}}")


def _attribute(element: ElementTree.Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        raise ManifestError(f"{_local(element)}: no @{name}")
    return value


def _attributes(element: ElementTree.Element, expected: Mapping[str, str]) -> None:
    """Raise ManifestError unless the attributes have these values."""
    for name, value in expected.items():
        found = _attribute(element, name)
        if found != value:
            raise ManifestError(f"{_local(element)}: @{name} {found[:80]!r}, but this build reads {value!r}")


def _read_whole(element: ElementTree.Element, name: str, default: str | None = None) -> int:
    text = element.get(name, default)
    if text is None or not _WHOLE.fullmatch(text):
        raise ManifestError(f"{_local(element)}: @{name} {str(text)[:80]!r}, expected a whole number")
    return int(text)


def _read_property(element: ElementTree.Element, scheme: str) -> str:
    _attributes(element, {"schemeIdUri": scheme})
    return _attribute(element, "value")


def _read_representation(element: ElementTree.Element) -> Representation:
    rank = None
    if len(element):
        (descriptor,) = _children(element, "SupplementalProperty")
        text = _read_property(descriptor, RANK_SCHEME)
        if not _WHOLE.fullmatch(text):
            raise ManifestError(f"representation rank {text[:80]!r}, expected a whole number")
        rank = int(text)
    bandwidth_bps = _read_whole(element, "bandwidth")
    dependencies = tuple(element.get("dependencyId", "").split())
    return Representation(_attribute(element, "id"), bandwidth_bps, rank, _attribute(element, "codecs"), dependencies)


def _read_timeline(timeline: ElementTree.Element) -> tuple[int, ...]:
    """Return the duration of each segment; runs are unrolled up to _MAX_SEGMENTS."""
    segments: list[int] = []
    for run in _children(timeline, *["S"] * len(timeline)):
        count = 1 + _read_whole(run, "r", "0")
        if count > _MAX_SEGMENTS - len(segments):
            raise ManifestError(f"SegmentTimeline: more than {_MAX_SEGMENTS} segments")
        if _read_whole(run, "t", str(sum(segments))) != sum(segments):
            raise ManifestError(f"SegmentTimeline: @t {run.get('t')}, expected {sum(segments)}: no gaps")
        segments += [_read_whole(run, "d")] * count
    return tuple(segments)


def _read_frame_rate(text: str) -> Fraction:
    match = _FRAME_RATE.fullmatch(text)
    if not match or not int(match[2] or 1):
        raise ManifestError(f"AdaptationSet: @frameRate {text[:80]!r}, expected N or N/D")
    return Fraction(int(match[1]), int(match[2] or 1))


def _read_duration(element: ElementTree.Element, name: str) -> Fraction:
    text = _attribute(element, name)
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        raise ManifestError(f"{_local(element)}: @{name} {text[:80]!r}, expected a duration such as PT12.5S")
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _write_duration(seconds: Fraction) -> str:
    """Return an xs:duration, rounded up to a microsecond."""
    micros = -(-seconds.numerator * 1_000_000 // seconds.denominator)
    whole, part = divmod(micros, 1_000_000)
    digits = f".{part:06d}".rstrip("0") if part else ""
    return f"PT{whole}{digits}S"


def _check_name(what: str, name: Any) -> None:
    """Raise ManifestError unless a name is a plain file name: no separators, no leading dot, no white space."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ManifestError(f"{what} {str(name)[:80]!r}: expected letters, digits, '.', '_' or '-', 64 at most")


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
