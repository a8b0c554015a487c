"""Figures and run folders, on a hand-made run: what is read back, what is drawn, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import plot
from experiments.errors import RunFolderError
from experiments.paper import FORMATS, PAPERS
from experiments.plots import FIGURE_NAMES, draw_figures
from experiments.results import CodecResult, load_run, write_codec, write_summary
from experiments.series import header_line, series_of, severity_rule
from experiments.study_plots import FIGURES as STUDY_FIGURES
from experiments.timeline import buffer_levels, rebuffering_spans
from player.files import write_table

CONDITIONS: dict[str, Any] = {
    "video": "demo", "trace": "lte", "share": 100, "offset_s": 0.0, "mean_rate_bps": 45_600.0,
    "session_rate_bps": 43_210.0, "delay_ms": 20.0,
    "loss": 0.0, "buffer_s": 20.0, "abr": "bola", "session_s": 60.0, "clip_s": 10.0, "loops": 6.0, "render_fps": None,
}  # fmt: skip
FPS = 10


def _session(codec: str, seed: int) -> CodecResult:
    """Thirty 2 s segments, one rebuffering of 3 s before the tenth."""
    rng = np.random.default_rng(seed)
    count, start = 30, 1.5
    bitrate = rng.choice([8e3, 15e3, 30e3, 60e3], count)
    play = start + 2.0 * np.arange(count) + np.where(np.arange(count) >= 10, 3.0, 0.0)
    finish = np.minimum(play, np.maximum(0.0, play - rng.uniform(0, 12, count)))
    finish = np.maximum.accumulate(finish)
    segments = pd.DataFrame(
        {
            "segment": np.arange(count), "representation": 0, "duration_s": 2.0, "bitrate_bps": bitrate,
            "request_s": finish - 0.5, "rendered_s": finish, "play_start_s": play, "buffer_s": play - finish,
            "estimate_bps": np.nan,
            "link_rate_bps": np.where(np.arange(count) == 0, np.nan, bitrate * 1.3),
        }
    )  # fmt: skip
    index = np.arange(count * 2 * FPS)
    quality = np.clip(0.5 - np.log2(bitrate / 4e3)[index // (2 * FPS)] * 0.08 + rng.normal(0, 0.02, len(index)), 0, 1)
    frames = pd.DataFrame(
        {
            "segment": index // (2 * FPS), "frame": index % (2 * FPS),
            "wall_time_s": play[index // (2 * FPS)] + index % (2 * FPS) / FPS,
            "lpips_squeeze": quality, "psnr_db": 35 - 20 * quality,
        }
    )  # fmt: skip
    events = pd.DataFrame(
        {"time_s": [1.5, 21.5, 24.5, 64.5], "event": ["play", "rebuffering_start", "rebuffering_end", "end"]}
    )
    summary = {
        "elapsed_s": 64.5, "rebuffering_ratio": 3 / 63, "severe_metric": "lpips_squeeze", "severe_threshold": 0.3,
        "severe_share": float((quality > 0.3).mean()),
    }  # fmt: skip
    return CodecResult(codec, segments, frames, events, summary)


def _write_run(folder: Path, **conditions: Any) -> Path:
    folder.mkdir()
    results = [_session("prompt", 1), _session("h265", 2)]
    for result in results:
        write_codec(folder, result)
    write_summary(folder, {**CONDITIONS, **conditions}, results)
    (folder / "config.yaml").write_text("name: test\n")
    rate = 45e3 + 20e3 * np.sin(np.arange(70))
    write_table(folder / "trace.parquet", pd.DataFrame({"time_s": np.arange(70.0), "rate_bps": rate}))
    return folder


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [_write_run(root / "a"), _write_run(root / "b", abr="bba"), _write_run(root / "c", abr="throughput")]


def test_a_run_folder_reads_back(run_folders: list[Path]) -> None:
    run = load_run(run_folders[0])
    assert run.conditions == CONDITIONS
    assert list(run.codecs) == ["prompt", "h265"]
    pd.testing.assert_frame_equal(run.codecs["h265"].segments, _session("h265", 2).segments)


def test_buffer_is_what_is_rendered_less_what_has_played() -> None:
    segments = pd.DataFrame({"rendered_s": [1.0, 2.0], "play_start_s": [1.0, 4.0], "duration_s": [2.0, 2.0]})
    times_s, levels_s = buffer_levels(segments)
    levels = dict(zip(times_s[1::2], levels_s[1::2], strict=True))  # after each corner
    assert levels == {0.0: 0.0, 1.0: 2.0, 2.0: 3.0, 3.0: 2.0, 4.0: 2.0, 6.0: 0.0}


def test_rebuffering_open_at_the_end_closes_with_the_log() -> None:
    events = pd.DataFrame({"time_s": [1.0, 3.0, 5.0, 9.0], "event": ["rebuffering_start", "rebuffering_end"] * 2})
    assert rebuffering_spans(events) == [(1.0, 3.0), (5.0, 9.0)]
    assert rebuffering_spans(events.iloc[:3]) == [(1.0, 3.0), (5.0, 5.0)]


def test_rules_of_severe_distortion_name_the_worse_side() -> None:
    assert severity_rule("lpips_squeeze", 0.3) == "LPIPS (SqueezeNet) > 0.3"
    assert severity_rule("ssimulacra2", 10.0) == "SSIMULACRA2 < 10"


def test_header_states_share_and_loops() -> None:
    line = header_line(CONDITIONS)
    assert "share 1/100" in line
    assert "mean 45.6 kbit/s (43.21 kbit/s in the session)" in line
    assert "clip of 10 s looped 6 times" in line


def test_labels_name_only_what_differs(run_folders: list[Path]) -> None:
    runs = [load_run(folder) for folder in run_folders]
    assert [one.label for one in series_of(runs[:1])] == ["Prompts", "H.265"]
    assert [one.label for one in series_of(runs[:2])] == [
        "Prompts, bola", "H.265, bola", "Prompts, bba", "H.265, bba",
    ]  # fmt: skip


def test_labels_of_different_traces_stay_short(run_folders: list[Path], tmp_path: Path) -> None:
    other = _write_run(tmp_path / "d", trace="umts (umts-tmobile)", share=45, mean_rate_bps=1.0)
    runs = [load_run(run_folders[0]), load_run(other)]
    assert [one.label for one in series_of(runs)][::2] == ["Prompts, lte, 1/100", "Prompts, umts, 1/45"]


def test_a_sweeps_folder_stands_for_its_runs(run_folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    sweep = [str(run_folders[0].parent), str(tmp_path / "multirun.yaml")]
    assert plot.main([*sweep, "-o", str(tmp_path), "--figure", "severe"]) == 0
    assert (tmp_path / "severe.png").is_file()


def test_every_figure_is_drawn_as_pdf_and_png(run_folders: list[Path], tmp_path: Path) -> None:
    paths = draw_figures([load_run(run_folders[0])], tmp_path)
    names = {path.name for path in paths}
    stems = ("timeline", "stall_quality", "cdf", "severe")
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".pdf", ".png")}
    assert b"/Type /Font" in (tmp_path / "cdf.pdf").read_bytes()
    assert b"/Type3" not in (tmp_path / "cdf.pdf").read_bytes()  # publishers refuse Type 3 fonts


def test_equal_runs_make_equal_files(run_folders: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw_figures([load_run(run_folders[0])], tmp_path / name, names=["severe"])
    for suffix in (".pdf", ".png"):
        first, second = (tmp_path / name / f"severe{suffix}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_the_command_line_knows_every_figure() -> None:
    assert plot.RUN_FIGURES == FIGURE_NAMES
    assert tuple(STUDY_FIGURES) == plot.STUDY_FIGURES
    assert tuple(PAPERS) == plot.STYLES
    assert plot.FORMATS == FORMATS


def test_plot_command_overlays_runs(run_folders: list[Path], tmp_path: Path, capsys: Any) -> None:
    assert plot.main([*map(str, run_folders), "-o", str(tmp_path), "--figure", "cdf"]) == 0
    assert (tmp_path / "cdf.pdf").is_file()
    assert "cdf.png" in capsys.readouterr().out


def test_plot_command_reports_a_broken_run_in_one_line(tmp_path: Path, capsys: Any) -> None:
    assert plot.main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    folder = _write_run(tmp_path / "run")
    (folder / "prompt" / "frames.parquet").write_bytes(b"PAR1 nonsense")
    assert plot.main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "frames.parquet" in error
    assert plot.main([str(tmp_path / "multirun.yaml")]) == 1  # what a sweep's shell pattern may leave alone
    assert capsys.readouterr().err.endswith("no run folder\n")


def test_other_versions_and_mixed_rules_are_refused(tmp_path: Path) -> None:
    folder = _write_run(tmp_path / "a")
    other = _write_run(tmp_path / "b")
    summary = json.loads((other / "summary.json").read_text())
    summary["codecs"]["h265"]["severe_threshold"] = 0.5
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match="different rules"):
        draw_figures([load_run(folder), load_run(other)], tmp_path, names=["severe"])
    (other / "summary.json").write_text('{"version": 99}')
    with pytest.raises(RunFolderError, match="reads version 1"):
        load_run(other)
