"""``python -m experiments.rate_distortion``: clips in several codecs, their curves, BD-rates and contact sheets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ExperimentError, UsageError
from player.errors import PlayerError

if TYPE_CHECKING:
    from experiments.rd_config import StudyConfig
    from experiments.rd_study import Study

_PROGRAM = "experiments.rate_distortion"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; return the exit code: 0, 1 where clips failed (the rest is written), 2 for a wrong command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    from experiments.rd_config import find_videos, help_text, parse_study

    if any(flag in given for flag in ("-h", "--help")):
        print(help_text())
        return 0
    try:
        config = parse_study(given)
        videos = [] if config.packages else find_videos(config.videos)
    except UsageError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format=f"{_PROGRAM}: %(message)s", stream=sys.stderr)
    try:
        return _study(config, videos, given)
    except UsageError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    except (ExperimentError, PlayerError, OSError) as error:  # a folder that cannot be written, a full disk
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130


def _study(config: StudyConfig, videos: Sequence[Path], given: Sequence[str]) -> int:
    from tqdm import tqdm

    from experiments.rd_report import summary_lines
    from experiments.rd_study import Study, run_study

    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.packages:
        return _packages_study(folder, config, given)
    total = len(videos) * len(config.codecs)
    with tqdm(total=total, unit="package", file=sys.stderr, disable=None, dynamic_ncols=True) as bar:

        def show(done: int, _total: int, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        found = run_study(config, videos, show)
    if not isinstance(found, Study):
        print(f"{_PROGRAM}: nothing could be measured ({len(found)} failures, above)", file=sys.stderr)
        return 1
    write_study(folder, found, config, given)
    print("\n".join(summary_lines(found)))
    print(f"{folder}: report.md, tables{' and figures' if config.figures else ''}")
    if found.failures:
        print(f"{_PROGRAM}: {len(found.failures)} of {total} could not be measured (report.md)", file=sys.stderr)
    return 1 if found.failures else 0


def _packages_study(folder: Path, config: StudyConfig, given: Sequence[str]) -> int:
    from experiments.rd_packages import measured_packages
    from experiments.rd_report import summary_lines
    from experiments.rd_study import compare

    study = compare(measured_packages(config.packages, config.codecs, folder / "measured"), config)
    write_study(folder, study, config, given)
    print("\n".join(summary_lines(study)))
    print(f"{folder}: report.md, tables{' and figures' if config.figures else ''}")
    return 0


def write_study(folder: Path, study: Study, config: StudyConfig, given: Sequence[str] = ()) -> None:
    """Write a study's tables, report, provenance and figures into a folder."""
    import pandas as pd
    from omegaconf import OmegaConf

    from experiments.provenance import provenance
    from experiments.rd_report import report
    from player.files import write_bytes, write_json, write_table

    write_bytes(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    frames = pd.concat([one.frames for one in study.measured.values()], ignore_index=True)
    tables = {
        "points": study.points, "mean_points": study.mean_points, "deltas": study.deltas,
        "crossings": study.crossings, "frames": frames,
    }  # fmt: skip
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
        if name != "frames":
            write_bytes(folder / f"{name}.csv", table.to_csv(index=False).encode())
    packages: dict[str, Any] = {f"{clip}/{codec}": one.folder.name for (clip, codec), one in study.measured.items()}
    origin = provenance(overrides=list(given), seeds={"build.seed": config.build.seed}, inputs={"measured": packages})
    write_json(folder / "provenance.json", origin | {"command": ["python", "-m", _PROGRAM, *given]})
    write_bytes(folder / "report.md", report(study, conditions(config)).encode())
    if config.figures:
        _draw(folder / "figures", study, config)


def conditions(config: StudyConfig) -> str:
    """Return the line under every figure: how the numbers arose."""
    build = config.build
    if config.packages:
        return "Finished packages, every frame measured; bitrates count every byte on disk."
    length = f"First {build.seconds:g} s" if build.seconds else "Whole length"
    sampled = f", one frame in {config.every} measured" if config.every > 1 else ""
    return (
        f"{length}, segments of {build.segment_s:g} s{sampled}; bitrates count every byte on disk; generator "
        f"{Path(build.generator).name}."
    )


def _draw(folder: Path, study: Study, config: StudyConfig) -> None:
    from experiments import rd_figures as draw
    from experiments.paper import save_figure

    text = conditions(config)
    mean = f"Mean of {int(study.mean_points['clips'].max()) if len(study.mean_points) else 0} clips. {text}"
    pictures = {
        "curves": draw.curves(study, study.mean_points, mean),
        "severe_distortion": draw.severe_distortion(study, study.mean_points, mean),
        "delta_rates": draw.delta_rates(study, text),
    }
    for name, figure in pictures.items():
        if figure is not None:
            save_figure(figure, folder, name)
    for clip in study.clips:
        own = study.points[study.points["clip"] == clip]
        save_figure(draw.curves(study, own, f"{clip}. {text}"), folder / "clips", f"{clip}-curves")
        for rate_bps in [] if config.packages else config.sheets_bps:
            figure = draw.sheet(study, clip, rate_bps, text)
            save_figure(figure, folder / "clips", f"{clip}-{rate_bps // 1000}k")


if __name__ == "__main__":
    sys.exit(main())
