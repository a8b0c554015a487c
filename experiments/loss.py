"""Prompts and H.265 over a lossy path without retransmission: what layers and concealment save, as quality by loss.

    python -m experiments.loss [--clip demo ...] [--seeds 20] [--out outputs/loss]

Every segment's bytes travel in packets of at most 1200 bytes through a Gilbert-Elliott channel; no packet holds bytes
of two layers. Four receivers see equal loss processes at equal bitrates:

    layers, concealed    shows the layers up to the first damaged one; if the base is damaged, made-up frames
    layers               the same, but a damaged base freezes the picture until the next segment
    independent          the same prompts as one representation: any lost packet freezes the segment
    H.265                decodes up to the first damaged picture, then freezes until the next closed group of pictures

Boxes, and what a transport would add, are treated alike for all. Init segments are taken to have arrived.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.clips import CLIP_HELP, DEFAULT_CACHE

if TYPE_CHECKING:
    import pandas as pd

    from experiments.clips import Clip
    from player.presentation import Presentation
    from player.quality import Metric

PACKET_BYTES = 1200
LOSSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
BURST_PACKETS = 3.0
"""Mean length of a run of lost packets."""
RECEIVERS = ("layers, concealed", "layers", "independent", "H.265")
FROZEN = -1
"""Stands for a frame that repeats the one before it."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.loss", description=__doc__.split("\n")[0])
    parser.add_argument("--clip", action="append", metavar="VIDEO[=PACKAGE]", help=f"{CLIP_HELP}; may be repeated")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of packages")
    parser.add_argument("--metrics", default="auto", help="names, separated by commas (default auto: all there is)")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="passes over each clip at each loss")
    parser.add_argument("--every", type=int, default=10, metavar="N", help="measure every N-th frame of a segment")
    parser.add_argument("--out", type=Path, default=Path("outputs/loss"), help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = build_parser().parse_args(argv)
    from experiments.errors import UsageError
    from experiments.job import REPORTED_ERRORS

    try:
        if arguments.seeds < 1 or arguments.every < 1:
            raise UsageError("--seeds and --every: expected 1 or more")
        print(study(arguments))
    except REPORTED_ERRORS as error:
        print(f"experiments.loss: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def gilbert_elliott(packets: int, loss: float, generator: np.random.Generator) -> np.ndarray:
    """Return which packets are lost, bool [packets]: all in the bad state, none in the good one.

    Gilbert 1960 with loss probabilities 0 and 1; stationary from the first packet on. Bursts have the mean length
    `BURST_PACKETS`, and `loss` of all packets are lost.
    """
    to_good = 1 / BURST_PACKETS
    to_bad = loss / (1 - loss) * to_good
    bad = generator.random() < loss
    lost = np.empty(packets, dtype=bool)
    for index, draw in enumerate(generator.random(packets)):
        lost[index] = bad
        bad = draw >= to_good if bad else draw < to_bad
    return lost


def packets_of(size_bytes: int) -> int:
    """Return how many packets carry that many bytes."""
    return -(-size_bytes // PACKET_BYTES)


def study(arguments: argparse.Namespace) -> str:
    """Measure clips that have not been measured; write and return the table, and draw the figure."""
    import pandas as pd

    from experiments.clips import obtain_clip
    from experiments.paper import save_figure
    from player.files import write_bytes
    from player.quality import load_metrics

    clips = [obtain_clip(text, arguments.cache) for text in arguments.clip or ["demo"]]
    names = arguments.metrics if arguments.metrics == "auto" else arguments.metrics.split(",")
    metrics = load_metrics(names)
    path = arguments.out / "passes.csv"
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    for clip in clips:
        if clip.name not in {row["clip"] for row in rows}:
            video = h265_at_rate(clip, arguments.cache)
            rows += measure(clip, video, metrics, seeds=arguments.seeds, every=arguments.every)
            write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
    table = pd.DataFrame(rows)
    measured = [metric.name for metric in metrics]
    text = report(table, measured) + "\n"
    write_bytes(arguments.out / "loss.md", text.encode())
    save_figure(figure(table, measured), arguments.out, "loss")
    return text


def h265_at_rate(clip: Clip, cache: Path) -> Presentation:
    """Return the clip in H.265 at the bitrate of its prompts' highest representation, packaged on first use."""
    from experiments.prepare import obtain_package
    from packager.settings import BuildConfig

    rate_bps = round(float(clip.prompts.bitrate_bps[-1]))
    manifest = clip.prompts.manifest
    config = BuildConfig(
        bitrates_bps=[rate_bps], metrics=["psnr_db"], segment_s=manifest.frames[0] / float(manifest.fps),
        size=f"{manifest.width}x{manifest.height}", seconds=manifest.duration_s,
    )  # fmt: skip
    return obtain_package("h265", clip.video, config, cache, lambda title: lambda *progress: None).presentation


class Pictures:
    """Every picture that a receiver may show of a clip, and how good it is; each is made and measured once."""

    def __init__(self, clip: Clip, video: Presentation, metrics: Sequence[Metric], every: int) -> None:
        from player.decoder import PromptDecoder, load_model
        from player.generator import Generator

        generator = load_model("prompt", "embedded", device="auto")
        if not isinstance(generator, Generator):
            raise TypeError("prompts need a generator")
        self._prompts, self._video, self._metrics = clip.prompts, video, metrics
        ranks = range(len(clip.prompts.representations))
        self._decoders = [PromptDecoder(clip.prompts.read_init(rank), generator) for rank in ranks]
        self._originals = [part[sampled(len(part), every)] for part in clip.originals()]
        self._every = every
        self._frames: dict[tuple[Any, ...], np.ndarray] = {}
        self._scores: dict[tuple[Any, ...], np.ndarray] = {}

    def prompts(self, segment: int, rank: int) -> np.ndarray:
        """Return a segment's frames at a representation."""
        return self._once(
            ("prompts", segment, rank),
            lambda: self._decoders[rank].decode(self._prompts.read_segment(segment, rank)),
        )

    def beyond(self, segment: int, rank: int, count: int) -> np.ndarray:
        """Return `count` frames made up to follow a segment."""
        return self._once(
            ("beyond", segment, rank, count),
            lambda: self._decoders[rank].conceal(self._prompts.read_segment(segment, rank), count),
        )

    def video(self, segment: int) -> np.ndarray:
        """Return a segment's frames in H.265."""
        from player.decoder import VideoDecoder

        init = self._video.read_init(0)
        return self._once(("video", segment), lambda: VideoDecoder(init).decode(self._video.read_segment(segment, 0)))

    def score(self, segment: int, key: tuple[Any, ...], frames: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the metrics [M] of what was on the screen during a segment, which `key` identifies."""
        place = (segment, *key)
        if place not in self._scores:
            original = self._originals[segment]
            screens = frames()
            shown = screens[sampled(len(screens), self._every)]
            values = [float(metric(original, shown).mean()) for metric in self._metrics]
            self._scores[place] = np.array(values)
        return self._scores[place]

    def _once(self, key: tuple[Any, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._frames:
            self._frames[key] = make()
        return self._frames[key]


def sampled(frames: int, every: int) -> np.ndarray:
    """Return which frames of a segment are measured: every N-th one, of a shorter segment the last."""
    return np.arange(min(every, frames) - 1, frames, every)


def measure(
    clip: Clip, video: Presentation, metrics: Sequence[Metric], *, seeds: int, every: int
) -> list[dict[str, Any]]:
    """Return one row per loss, seed and receiver: each metric's mean over the clip."""
    from experiments.clips import layer_sizes

    pictures = Pictures(clip, video, metrics, every)
    layers, _ = layer_sizes(clip.prompts)
    whole = clip.prompts.segment_bytes[:, -1]
    damage = [first_damage(video.read_segment(number, 0)) for number in range(video.segments)]
    rows = []
    for loss in LOSSES:
        for seed in range(seeds if loss else 1):
            generators = np.random.default_rng([seed, round(1e4 * loss)]).spawn(3)
            lost = [[gilbert_elliott(packets_of(size), loss, generators[0]).any() for size in row] for row in layers]
            ranks = [next((rank for rank, gone in enumerate(row) if gone), len(row)) - 1 for row in lost]
            top = layers.shape[1] - 1
            intact = [not gilbert_elliott(packets_of(int(size)), loss, generators[1]).any() for size in whole]
            cuts = [
                cut(gilbert_elliott(packets_of(int(size)), loss, generators[2])) for size in video.segment_bytes[:, 0]
            ]
            shown = {
                RECEIVERS[0]: prompt_scores(pictures, clip.prompts, ranks, conceal=True),
                RECEIVERS[1]: prompt_scores(pictures, clip.prompts, ranks, conceal=False),
                RECEIVERS[2]: prompt_scores(
                    pictures, clip.prompts, [top if ok else FROZEN for ok in intact], conceal=False
                ),
                RECEIVERS[3]: video_scores(pictures, video, cuts, damage),
            }
            for receiver, scores in shown.items():
                values = dict(zip([metric.name for metric in metrics], scores, strict=True))
                rows.append({"clip": clip.name, "loss": loss, "seed": seed, "receiver": receiver, **values})
    return rows


def cut(lost: np.ndarray) -> int | None:
    """Return the first byte that did not arrive; None if all did."""
    return int(np.argmax(lost)) * PACKET_BYTES if lost.any() else None


def prompt_scores(pictures: Pictures, prompts: Presentation, ranks: Sequence[int], *, conceal: bool) -> np.ndarray:
    """Return the metrics [M] over a clip whose segments arrived in `ranks`, FROZEN where not even the base did."""
    frames = prompts.manifest.frames
    scores = []
    held: tuple[int, int] | None = None  # the segment, and its representation, that the picture comes from
    since = 0  # frames since then
    for segment, rank in enumerate(ranks):
        count = frames[segment]
        if rank != FROZEN:
            held, since = (segment, rank), 0
            scores.append(pictures.score(segment, ("prompts", rank), partial(pictures.prompts, segment, rank)))
        elif held is None:
            scores.append(pictures.score(segment, ("black",), partial(_black, prompts, count)))
        else:
            screens = partial(_held, pictures, held, since, count, conceal)
            scores.append(pictures.score(segment, ("held", *held, since, conceal), screens))
            since += count
    return np.average(scores, axis=0, weights=frames)


def _held(pictures: Pictures, held: tuple[int, int], since: int, count: int, conceal: bool) -> np.ndarray:
    if conceal:
        return pictures.beyond(*held, since + count)[since:]
    return np.repeat(pictures.prompts(*held)[-1:], count, axis=0)


def _black(presentation: Presentation, count: int) -> np.ndarray:
    return np.zeros((count, presentation.manifest.height, presentation.manifest.width, 3), np.uint8)


def video_scores(
    pictures: Pictures, video: Presentation, cuts: Sequence[int | None], damage: Sequence[Callable[[int], int]]
) -> np.ndarray:
    """Return the metrics [M] over a clip in H.265, each segment received up to a byte (None: whole)."""
    frames = video.manifest.frames
    scores = []
    last: tuple[int, int] | None = None  # segment and frame on the screen
    for segment, byte in enumerate(cuts):
        count = frames[segment]
        good = count if byte is None else min(damage[segment](byte), count)
        screens = partial(_cut_video, pictures, video, segment, good, last)
        scores.append(pictures.score(segment, ("video", good, None if good else last), screens))
        last = (segment, good - 1) if good else last
    return np.average(scores, axis=0, weights=frames)


def _cut_video(
    pictures: Pictures, video: Presentation, segment: int, good: int, last: tuple[int, int] | None
) -> np.ndarray:
    """Return what is on the screen during a segment of which the first `good` frames can be decoded."""
    count = video.manifest.frames[segment]
    shown = pictures.video(segment)[:good]
    if good:
        frozen = shown[-1:]
    elif last is None:
        frozen = _black(video, 1)
    else:
        frozen = pictures.video(last[0])[last[1] : last[1] + 1]
    return np.concatenate([shown, np.repeat(frozen, count - good, axis=0)])


def first_damage(segment: bytes) -> Callable[[int], int]:
    """Return what tells, for the first missing byte of a CMAF segment, how many frames from its start are whole.

    Pictures are coded in another order than they are shown in: a frame counts if it and all shown before it are coded
    before the missing byte.
    """
    ends, order = sample_places(segment)

    def whole(byte: int) -> int:
        decoded = int(np.searchsorted(ends, byte, side="right"))
        broken = order[decoded:]
        return int(broken.min()) if len(broken) else len(order)

    return whole


def sample_places(segment: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return, per picture in coding order, the byte at which it ends in the segment, and its place on the screen."""
    import struct

    from packager.cmaf import find_box

    moof = find_box(segment, (b"moof",))
    at = find_box(segment, (b"moof", b"traf", b"trun"))
    version_flags, count = struct.unpack_from(">II", segment, at + 8)
    flags = version_flags & 0xFFFFFF
    place = at + 16
    start = find_box(segment, (b"mdat",)) + 8
    if flags & 0x1:
        start = moof + struct.unpack_from(">i", segment, place)[0]
        place += 4
    place += 4 * bool(flags & 0x4)
    fields = [flag for flag in (0x100, 0x200, 0x400, 0x800) if flags & flag]
    values = np.array(struct.unpack_from(f">{count * len(fields)}i", segment, place)).reshape(count, len(fields))
    sizes = values[:, fields.index(0x200)] if 0x200 in fields else np.full(count, (len(segment) - start) // count)
    shift = values[:, fields.index(0x800)] if 0x800 in fields else np.zeros(count)
    tick = np.argsort(np.argsort(np.arange(count) * _tick(values, fields, segment) + shift))
    return start + np.cumsum(sizes), tick


def _tick(values: np.ndarray, fields: Sequence[int], segment: bytes) -> int:
    """Return a picture's duration in the segment's time units; from tfhd where the pictures do not carry it."""
    import struct

    from packager.cmaf import find_box

    if 0x100 in fields:
        return int(values[0, fields.index(0x100)])
    at = find_box(segment, (b"moof", b"traf", b"tfhd"))
    flags = struct.unpack_from(">I", segment, at + 8)[0] & 0xFFFFFF
    offset = at + 16 + 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2)
    return int(struct.unpack_from(">I", segment, offset)[0]) if flags & 0x8 else 1


def report(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Return means with intervals over passes, and the gain of concealed layers over the others, as Markdown."""
    from experiments.intervals import bootstrap_mean
    from experiments.series import METRICS

    losses = sorted(table["loss"].unique())
    lines = [f"{table['clip'].nunique()} clips, {table['seed'].max() + 1} passes of each at each loss above 0"]
    for metric in metrics:
        digits = METRICS[metric].digits
        lines += ["", f"| {METRICS[metric].title} at loss | " + " | ".join(RECEIVERS) + " |", "|---|" + "---:|" * 4]
        for loss in losses:
            rows = table[table["loss"] == loss]
            cells = [bootstrap_mean(rows[rows["receiver"] == name][metric]).text(digits) for name in RECEIVERS]
            lines.append(f"| {100 * loss:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(table: pd.DataFrame, metrics: Sequence[str]) -> Any:
    """Draw quality by loss for each receiver, with intervals over passes."""
    import matplotlib.pyplot as plt

    from experiments.intervals import bootstrap_mean
    from experiments.paper import PAGE_IN, SERIES_COLORS, add_caption, paper_style, shared_legend
    from experiments.series import METRICS

    with paper_style():
        drawn, axes = plt.subplots(1, len(metrics), figsize=(PAGE_IN, 2.4), layout="constrained", squeeze=False)
        for axis, metric in zip(axes[0], metrics, strict=True):
            for colour, name in zip(SERIES_COLORS, RECEIVERS, strict=False):
                rows = table[table["receiver"] == name].groupby("loss")[metric]
                means = [bootstrap_mean(values) for _, values in rows]
                losses = [100 * loss for loss in rows.groups]
                axis.plot(losses, [one.mean for one in means], "o-", ms=2, color=colour, label=name)
                axis.fill_between(
                    losses, [one.low for one in means], [one.high for one in means], color=colour, alpha=0.15, lw=0
                )
            axis.set(xlabel="Packets lost [%]", ylabel=METRICS[metric].title)
        shared_legend(drawn, axes)
        caption = f"{table['clip'].nunique()} clips at equal bitrates, packets of {PACKET_BYTES} bytes, mean burst "
        add_caption(drawn, f"{caption}{BURST_PACKETS:g} packets; bands: 95 % bootstrap intervals over passes", PAGE_IN)
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
