"""Say what a packaged folder, a manifest, or one of its files holds, as text. Reads only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from player.bitstream import SCHEME_URI, Segment, read_init, read_segment
from player.errors import BitstreamError, ManifestError
from player.manifest import Manifest, read_mpd
from player.mp4 import list_boxes, read_fragment
from player.presentation import MANIFEST_NAME, Presentation

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"mvex", b"moof", b"traf")


def describe(path: str | Path) -> str:
    """Return a description of a packaged folder, an MPD, an init segment or a media segment, in lines of text.

    A media segment of prompts is decoded with the init.mp4 beside it; without one its samples are listed.

    Raises:
        ManifestError, BitstreamError: the file is not one of these, or is corrupt.
    """
    path = Path(path)
    if path.is_dir():
        return _describe_folder(path)
    data = _read(path)
    try:
        return _describe_file(path, data)
    except (BitstreamError, ManifestError) as error:
        raise type(error)(f"{path}: {error}") from error


def _describe_file(path: Path, data: bytes) -> str:
    if path.suffix == ".mpd":
        try:
            return _describe_manifest(read_mpd(data.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise ManifestError(f"not UTF-8 text: {error}") from error
    kinds = [box.kind for box in list_boxes(data)]
    if not kinds:
        raise BitstreamError("an empty file")
    if kinds[0] == b"ftyp":
        return _describe_init(data)
    init = path.with_name("init.mp4")
    return _describe_segment(data, _read(init) if init.is_file() else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error


def _describe_folder(path: Path) -> str:
    if not (path / MANIFEST_NAME).is_file():
        raise ManifestError(f"{path}: no {MANIFEST_NAME}, so not a packaged folder")
    presentation = Presentation.load(path)
    means = {metric: presentation.mean_quality(metric).mean(axis=0) for metric in presentation.metrics}
    head = ["representation", "rank", "kbit/s", "bytes", "largest segment", *presentation.metrics]
    rows = [head]
    for index, rung in enumerate(presentation.representations):
        sizes = presentation.segment_bytes[:, index]
        total = int(presentation.init_bytes[index] + sizes.sum())
        rank = "-" if rung.rank is None else str(rung.rank)
        rate = f"{presentation.bitrate_bps[index] / 1000:.1f}"
        values = [f"{means[metric][index]:.4g}" for metric in presentation.metrics]
        rows.append([rung.id, rank, rate, str(total), str(sizes.max()), *values])
    return "\n".join([*_manifest_lines(presentation.manifest), "", *_table(rows)])


def _describe_manifest(manifest: Manifest) -> str:
    rows = [["representation", "rank", "bandwidth bit/s", "codecs"]]
    for rung in manifest.representations:
        rank = "-" if rung.rank is None else str(rung.rank)
        rows.append([rung.id, rank, str(rung.bandwidth_bps), rung.codecs])
    return "\n".join([*_manifest_lines(manifest), "", *_table(rows)])


def _manifest_lines(manifest: Manifest) -> list[str]:
    durations = manifest.segment_duration_s
    return [
        f"title        {manifest.title}",
        f"codec        {manifest.codec}",
        f"frames       {manifest.width} x {manifest.height}, {_rate(manifest.fps)}",
        f"duration     {manifest.duration_s:.3f} s, {sum(manifest.frames)} frames",
        f"segments     {len(durations)} of {durations.min():.3f} to {durations.max():.3f} s",
        f"min. buffer  {manifest.min_buffer_s:.3f} s",
        f"quality      {manifest.quality_sidecar}",
        *(["chained      yes: segments decode in order only"] if manifest.chained else []),
    ]


def _describe_init(data: bytes) -> str:
    if SCHEME_URI.encode() not in data:
        return "\n".join([f"init segment, {len(data)} bytes, not of prompts", *_box_lines(data)])
    info = read_init(data)
    below = f", components up to {info.base_rank} being in other representations" if info.base_rank else ""
    grid = f", a grid of {info.grid_height} x {info.grid_width}" if info.grid_height else ""
    lines = [
        f"init segment, {len(data)} bytes",
        f"scheme       {SCHEME_URI}",
        f"generator    {info.generator_id}",
        f"prompt       {info.tokens} tokens{grid}, width {info.width}",
        f"rank         {info.rank} of a fit of rank {info.norm_rank}{below}",
        f"frames       {info.frame_width} x {info.frame_height}, shown {info.display_width} x {info.display_height}",
        f"frame rate   {_rate(info.fps)}",
    ]
    if info.chain:
        latent = " x ".join(str(side) for side in info.chain.shape)
        lines.append(f"chained      carry {info.chain.carry:g}, first latent {latent}; decodes in order only")
    return "\n".join([*lines, *_box_lines(data)])


def _describe_segment(data: bytes, init: bytes | None) -> str:
    if init is None or SCHEME_URI.encode() not in init:
        what = "without an init.mp4 beside it" if init is None else "not of prompts"
        return "\n".join([f"media segment, {len(data)} bytes, {what}", *_box_lines(data)])
    info = read_init(init)
    fragment = read_fragment(data)
    boxes_bytes = len(data) - sum(end - start for start, end in fragment.sample_ranges)
    start_s = fragment.base_time / info.fps.numerator
    head = f"media segment {fragment.sequence}, {len(data)} bytes, of which {boxes_bytes} in boxes"
    if info.base_rank:
        layer = f"components {info.base_rank + 1} to {info.rank}, on top of other representations"
        return f"{head}\nlayer        {layer}"
    segment = read_segment(info, data)
    keys = len(segment.keys)
    codes = sum(factor.size for key in segment.keys for factor in (key.u, key.v))
    motion = []
    if segment.motion is not None:
        fields, _, rows, columns = segment.motion.shape
        anchors = ", ".join(str(at) for at in segment.all_anchors)
        codes += segment.motion.size
        motion = [f"motion       {fields} fields of {rows} x {columns}, between frames {anchors}"]
        if segment.cuts:
            motion += [f"cuts         new scenes from frames {', '.join(str(at) for at in segment.cuts)}"]
    lines = [
        head,
        f"time         {start_s:.3f} s to {start_s + float(segment.frames / info.fps):.3f} s, {segment.frames} frames",
        f"bitrate      {len(data) * 8 * float(info.fps) / segment.frames / 1000:.1f} kbit/s",
        f"key prompts  {keys} of rank {segment.rank}",
        *motion,
        f"in all       {len(data) / keys:.1f} bytes a key prompt, {len(data) * 8 / codes:.2f} bit/code",
        "",
        *_table(_key_rows(segment)),
    ]
    return "\n".join(lines)


def _key_rows(segment: Segment) -> list[list[str]]:
    rows = [["frame", "u nonzero", "u std", "u repeated", "v nonzero", "v std", "v repeated"]]
    before = None
    for key in segment.keys:
        row = [str(key.frame_offset)]
        for codes, last in ((key.u, before and before.u), (key.v, before and before.v)):
            repeated = "-" if last is None else f"{np.mean(codes == last):.1%}"
            row += [f"{np.count_nonzero(codes) / codes.size:.1%}", f"{codes.std():.2f}", repeated]
        rows.append(row)
        before = key
    return rows


def _box_lines(data: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> list[str]:
    """Return one line per box, containers opened; box sizes are checked on the way."""
    lines = []
    for box in list_boxes(data, start, end):
        lines.append(f"{'  ' * depth}{box.kind.decode('latin-1')!r} {box.end - box.start}")
        if box.kind in _CONTAINERS and depth < 8:
            lines += _box_lines(data, box.body, box.end, depth + 1)
    return lines


def _rate(fps: object) -> str:
    return f"{fps} frames/s"


def _table(rows: list[list[str]]) -> list[str]:
    """Return aligned columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return lines
