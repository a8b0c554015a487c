"""Figures, tables and the page of a study, on a hand-made data set whose numbers are known."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import dataset, paper_evaluation, plot, report, sweep_report
from experiments.ladders import missing_text
from experiments.paper import PAPERS, grouped_legend
from experiments.report_frames import common_rate
from experiments.schemes import conditions_text, default_by, schemes_of
from experiments.study_plots import FIGURES, select
from experiments.text_tables import Table

TRACES = {"lte-a": "lte", "lte-b": "lte", "umts-a": "umts", "umts-b": "umts"}
LEVELS = {"prompt": 0.30, "h265": 0.40, "vae": 0.60}
"""Mean LPIPS of each codec; severely distorted share: prompts 0.1, the others 0.4."""
CONTROLLERS = {"bola": 0.0, "bba": 0.02}


def _row(trace: str, offset_s: float, codec: str, abr: str, video: str) -> dict[str, Any]:
    hardness = 0.01 * list(TRACES).index(trace) + 0.001 * offset_s
    row: dict[str, Any] = dict.fromkeys(dataset.SCHEMA, 0)
    row |= {
        "session": f"{trace} {offset_s} {codec} {abr} {video}", "trace": trace, "family": TRACES[trace], "share": 100,
        "offset_s": offset_s, "seed": None, "video": video, "codec": codec, "package": f"{video}-{codec}", "abr": abr,
        "session_s": 60.0, "buffer_s": 20.0, "delay_ms": 20.0, "loss": 0.0, "link_model": "fluid", "render_fps": np.nan,
        "rebuffering_ratio": hardness + 0.05 * (codec == "h265"), "startup_delay_s": 1.0, "media_bps": 20e3,
        "qoe_quality": -hardness - CONTROLLERS[abr], "qoe_lin": -hardness,
        "severe_share": 0.1 if codec == "prompt" else 0.4,
        "lpips_squeeze": LEVELS[codec] + hardness + CONTROLLERS[abr] + 0.02 * (video == "hard") * (codec == "prompt"),
        "psnr_db": 25.0 - 10 * LEVELS[codec],
    }  # fmt: skip
    return row


def make_study(folder: Path, lacking: tuple[str, ...] = (), **limits: tuple[Any, ...]) -> Path:
    """Write a study of three codecs, two controllers, two videos, four traces and two offsets, or some of them.

    Args:
        lacking: columns without a value.
    """
    values = {
        "trace": tuple(TRACES), "offset_s": (0.0, 30.0), "codec": tuple(LEVELS), "abr": tuple(CONTROLLERS),
        "video": ("easy", "hard"), **limits,
    }  # fmt: skip
    empty = dict.fromkeys(lacking, np.nan)
    rows = [_row(*combination) | empty for combination in itertools.product(*values.values())]
    packages = {row["package"]: "0" * 64 for row in rows}
    settings = {"severe_rule": ["lpips_squeeze", 0.32], "player": {"buffer_s": 20.0}}
    config = {
        "package": "", "cache_dir": str(folder / "none"), "videos": "", "video": {"name": "demo"},
        "build": {"generator": "embedded"},
    }  # fmt: skip
    provenance = {
        "command": ["python", "-m", "experiments.sweep", "trace=<all>"], "commit": "c" * 40, "dirty": False,
        "versions": {"python": "3.11"}, "platform": "Linux", "machine": "x86_64", "seeds": {}, "config": config,
    }  # fmt: skip
    dataset.open_study(folder, settings, packages, provenance)
    dataset.write_part(folder, "0", rows)
    failures = [{"trace": "lte-c", "package": "<b>easy</b>", "abr": "bola", "reason": "ValueError: a & b"}]
    (folder / dataset.FAILURES).write_text(json.dumps({"failures": failures}))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("data") / "study")


@pytest.fixture(scope="module")
def table(study: Path) -> pd.DataFrame:
    return dataset.load(study)


# ---- schemes --------------------------------------------------------------------------------------------------------


def test_schemes_are_codecs_times_controllers_unless_the_figure_pools_them(table: pd.DataFrame) -> None:
    assert default_by(table) == ("codec", "abr")
    assert default_by(table, pooled=True) == ("codec",)
    assert default_by(table[table["codec"] == "prompt"]) == ("abr",)
    assert [one.label for one in schemes_of(table, ("codec",))] == ["Prompts", "H.265", "VAE"]
    assert [one.label for one in schemes_of(table, ("codec", "abr"))][:2] == ["Prompts, bola", "Prompts, bba"]


def test_schemes_differ_without_colour(table: pd.DataFrame) -> None:
    for by in (("codec",), ("abr",), ("family",)):
        schemes = schemes_of(table, by)
        assert len({str(one.line) for one in schemes}) == len(schemes)
        assert len({one.marker for one in schemes}) == len(schemes)


def test_a_controller_keeps_its_colour_whoever_is_beside_it(table: pd.DataFrame) -> None:
    one = table[table["codec"] == "prompt"]
    alone = schemes_of(one[one["abr"] == "bba"], ("abr",))[0]
    beside = next(scheme for scheme in schemes_of(one, ("abr",)) if scheme.label == "bba")
    assert alone.color == beside.color


def test_groups_of_a_legend_begin_columns_of_their_own() -> None:
    figure = Figure(figsize=(3.33, 2))
    codecs = {name: Line2D([], []) for name in ("Prompts", "H.265", "AV1", "VAE")}
    grouped_legend(figure, [codecs, {name: Line2D([], []) for name in ("bola", "throughput", "robustmpc")}])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*codecs, "", "", "bola", "throughput", "robustmpc"]  # three rows, filled column by column


def test_the_small_print_counts_what_is_pooled(table: pd.DataFrame) -> None:
    text = conditions_text(table, ("codec",))
    assert "2 videos, 4 traces of 2 families, 96 sessions of 60 s" in text
    assert "pooled over bba, bola" in text
    assert "link share 1/100" in text
    assert "unequal" in conditions_text(table[~((table["codec"] == "vae") & (table["video"] == "hard"))], ("codec",))


# ---- prompts against the others -------------------------------------------------------------------------------------


def test_gains_are_those_of_equal_conditions(table: pd.DataFrame) -> None:
    found = {one.codec: one for one in paper_evaluation.duels(table, "lpips_squeeze")}
    assert found["h265"].gain.mean == pytest.approx(0.09)  # 0.1 for the easy video, 0.08 for the hard one
    assert found["vae"].gain.mean == pytest.approx(0.29)
    assert (found["h265"].gain.sessions, found["h265"].gain.traces) == (32, 4)
    assert found["h265"].severe == pytest.approx((0.1, 0.4))
    assert found["h265"].reduction.mean == pytest.approx(0.75)
    assert found["h265"].stalled_less.mean == pytest.approx(0.05)
    assert found["vae"].stalled_less.mean == pytest.approx(0.0)
    stalled = table.loc[table["codec"] == "prompt", "rebuffering_ratio"].mean()
    assert found["vae"].bad[0] == pytest.approx(stalled + (1 - stalled) * 0.1)
    by_video = {one.where: one.gain.mean for one in paper_evaluation.duels(table, "lpips_squeeze", "video")[:2]}
    assert by_video == pytest.approx({"easy": 0.1, "hard": 0.08})


def test_a_metric_that_is_better_when_higher_turns_no_sign(table: pd.DataFrame) -> None:
    found = {one.codec: one.gain.mean for one in paper_evaluation.duels(table, "psnr_db")}
    assert found == pytest.approx({"h265": 1.0, "vae": 3.0})


def test_it_says_plainly_when_prompts_lose(table: pd.DataFrame) -> None:
    turned = table.assign(codec=table["codec"].map({"prompt": "h265", "h265": "prompt", "vae": "vae"}))
    lines = paper_evaluation.findings(turned, "lpips_squeeze")
    assert lines[0].startswith(
        "Prompts are worse than H.265 by 0.090 in LPIPS (SqueezeNet) (95 % interval 0.090 to 0.090)"
    )
    same = table[table["codec"] != "h265"].replace({"codec": {"vae": "h265"}})
    same["lpips_squeeze"] = np.where(same["codec"] == "prompt", 0.3, same["trace"].map(_plus_minus))
    assert "are not told apart: gain" in paper_evaluation.findings(same, "lpips_squeeze")[0]


def _plus_minus(trace: str) -> float:
    return 0.3 + (0.1 if trace.endswith("a") else -0.1)


def test_published_numbers_stand_beside_the_codecs_they_are_about(table: pd.DataFrame) -> None:
    rows = {row[0]: row for row in paper_evaluation.quality_table(table, "lpips_squeeze").rows}
    assert "+0.092 (v2: +0.118)" in rows["H.265"]
    assert "+0.111 (v2: +0.139)" in rows["VAE"]
    rows = {row[0]: row for row in paper_evaluation.severe_table(table, "lpips_squeeze").rows}
    assert "91.7 %" in rows["H.265"]
    assert "89.3 %" in rows["VAE"]
    assert not any("v2" in cell for row in paper_evaluation.quality_table(table, "psnr_db").rows for cell in row)


def test_a_video_that_lacks_a_codec_is_named(table: pd.DataFrame) -> None:
    lacking = table[~((table["codec"] == "vae") & (table["video"] == "hard"))]
    assert "hard (no VAE)" in paper_evaluation.coverage(lacking)[0]
    assert paper_evaluation.coverage(table) == []
    assert len(paper_evaluation.duels(lacking, "lpips_squeeze", "video")) == 3


def test_two_packages_of_one_video_leave_the_rest_of_the_report(tmp_path: Path, capsys: Any) -> None:
    folder = make_study(tmp_path / "study", video=("easy",))
    again = [_row(trace, 0.0, "prompt", abr, "easy") for trace in TRACES for abr in CONTROLLERS]
    dataset.write_part(folder, "1", [row | {"package": "other", "session": f"{row['session']} 2"} for row in again])
    assert sweep_report.main([str(folder), "--no-figures", "--against", "bola"]) == 0
    said = capsys.readouterr()
    assert "not compared" in said.err
    assert "minus `bola`" in said.out
    assert report.main([str(folder), "-o", str(tmp_path / "page.html"), "--frames", "0"]) == 0
    assert "Prompts and other codecs are not compared" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_missing_values_make_a_scheme_of_their_own(table: pd.DataFrame) -> None:
    seeds = pd.array([1, None] * (len(table) // 2), dtype="Int64")
    assert [one.label for one in schemes_of(table.assign(seed=seeds), ("seed",))] == ["seed 1", "none"]


def test_nothing_to_reduce_is_no_reduction(table: pd.DataFrame) -> None:
    clean = table.assign(severe_share=np.where(table["codec"] == "prompt", 0.1, 0.0))
    assert np.isnan(paper_evaluation.duels(clean, "lpips_squeeze")[0].reduction.mean)


def test_the_report_prints_every_part(study: Path, capsys: Any) -> None:
    assert sweep_report.main([str(study), "--no-figures", "--against", "bola"]) == 0
    text = capsys.readouterr().out
    assert "## Prompts against other codecs, LPIPS (SqueezeNet)" in text
    assert "| `bba` | -0.020 | -0.020 to -0.020 |" in text
    assert sweep_report.main([str(study), "--no-figures", "--against", "nobody"]) == 2
    assert "which has bba, bola" in capsys.readouterr().err


def test_without_qoe_by_quality_it_reports_qoe_by_bitrate_and_says_so(tmp_path: Path, capsys: Any) -> None:
    folder = str(make_study(tmp_path / "study", codec=("h265",), video=("easy",), lacking=("qoe_quality",)))
    assert sweep_report.main([folder, "--no-figures", "--against", "bola"]) == 0
    said = capsys.readouterr()
    assert "| controller | qoe_lin |" in said.out
    assert "minus `bola`" in said.out
    assert "qoe_quality: none for h265" in said.err
    assert said.err.endswith("; reporting qoe_lin\n")
    assert said.err.count("\n") == 1
    assert sweep_report.main([folder, "--no-figures", "--qoe", "qoe_quality"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--qoe qoe_quality: none for h265" in said.err
    assert "take --qoe qoe_lin" in said.err
    assert said.err.count("\n") == 1


def test_sessions_that_never_showed_a_frame_are_one_line(tmp_path: Path, capsys: Any) -> None:
    lacking = ("qoe_quality", "qoe_lin")
    folder = str(make_study(tmp_path / "study", codec=("h265",), video=("easy",), lacking=lacking))
    assert sweep_report.main([folder, "--no-figures"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ("experiments.sweep_report: no session of h265 showed a frame: there is no QoE to report\n")


# ---- figures --------------------------------------------------------------------------------------------------------


def test_every_figure_of_a_study_is_drawn(study: Path, tmp_path: Path, capsys: Any) -> None:
    assert plot.main([str(study), "-o", str(tmp_path), "--format", "pdf"]) == 0
    said = capsys.readouterr()
    assert {path.stem for path in tmp_path.iterdir()} == set(FIGURES) - {"rd"}
    assert "rd is left out: 6 of 6 packages are not at hand" in said.err
    for path in tmp_path.iterdir():
        assert b"/Type3" not in path.read_bytes()  # publishers refuse Type 3 fonts
        assert b"/FontFile2" in path.read_bytes()  # embedded TrueType


@pytest.mark.parametrize(("style", "columns"), [("acm", 1), ("ieee", 2), ("usenix", 1)])
def test_figures_are_as_wide_as_the_template_says(study: Path, tmp_path: Path, style: str, columns: int) -> None:
    from PIL import Image

    chosen = ["--style", style, "--columns", str(columns), "--format", "png", "--figure", "severe"]
    assert plot.main([str(study), "-o", str(tmp_path), *chosen]) == 0
    with Image.open(tmp_path / "severe.png") as picture:
        paper = PAPERS[style]
        assert picture.width == pytest.approx(300 * (paper.column_in if columns == 1 else paper.page_in), abs=2)


def test_equal_studies_make_equal_figures(study: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert plot.main([str(study), "-o", str(tmp_path / name), "--figure", "bars", "--format", "svg,pdf"]) == 0
    for suffix in ("svg", "pdf"):
        first, second = (tmp_path / name / f"bars.{suffix}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_where_and_by_choose_sessions_and_schemes(table: pd.DataFrame, study: Path, tmp_path: Path) -> None:
    assert set(select(table, ["abr=bola", "codec=prompt,vae"])["codec"]) == {"prompt", "vae"}
    options = ["--by", "family", "--where", "codec=prompt", "--figure", "cdf", "--format", "svg"]
    assert plot.main([str(study), "-o", str(tmp_path), *options]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--figure", "timeline"], 2, "does not keep the course of a session"),
        (["--figure", "rd"], 1, "name their folder by --packages"),
        (["--where", "abr=nobody"], 2, "abr is one of bba, bola"),
        (["--where", "nothing=1"], 2, "expected COLUMN=VALUE"),
        (["--by", "nothing"], 2, "expected some of the columns"),
        (["--figure", "heat_map", "--column", "trace"], 1, "no column of numbers"),
        (["--format", "gif"], 2, "expected some of pdf, png, svg"),
    ],
)
def test_mistakes_cost_one_line(
    study: Path, tmp_path: Path, capsys: Any, arguments: Any, code: int, message: str
) -> None:
    assert plot.main([str(study), "-o", str(tmp_path), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ---- the page -------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """What a page refers to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        if "id" in values:
            assert values["id"] not in self.anchors, "every anchor once"
            self.anchors.add(values["id"])
        self.references += [values[name] for name in ("src", "href", "srcset", "data", "action") if name in values]


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert report.main([str(study), "-o", str(path), "--title", "A <script>alert(1)</script> title"]) == 0
    return path


def test_the_page_holds_all_it_shows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = _Page(text)
    assert all(one.startswith(("data:", "#")) for one in found.references)
    assert {one[1:] for one in found.references if one.startswith("#")} <= found.anchors
    assert {"stall_quality", "cdf", "severe", "heat_map", "bars"} <= {one[7:] for one in found.anchors}
    assert not {"script", "iframe", "object", "link"} & set(found.tags) - {"link"}
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_escapes_what_it_is_given(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "A &lt;script&gt;alert(1)&lt;/script&gt; title" in text
    assert "trace=&lt;all&gt;" in text
    assert "package &lt;b&gt;easy&lt;/b&gt;" in text
    assert "ValueError: a &amp; b" in text


def test_the_page_says_how_it_was_run_and_what_failed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "c" * 40 in text
    assert "0" * 64 in text
    assert "player.buffer_s" in text
    assert "1 sessions or packages failed" in text
    assert "Prompts are better than H.265 by 0.090" in text
    assert "The packages are not at hand" in text


def test_packages_that_are_not_at_hand_are_named() -> None:
    study = {"packages": dict.fromkeys(("a-vae", "b-vae", "c-vae", "d-vae", "e-prompt"), "0")}
    assert missing_text(study, dict.fromkeys(study["packages"], Path())) == ""
    assert missing_text(study, {"e-prompt": Path()}).endswith("changed since: a-vae, b-vae, c-vae and others.")
    assert missing_text(study, dict.fromkeys([*"ab"], Path())).startswith("5 of 5 packages")


def test_a_study_of_one_scheme_makes_a_page_too(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "one", codec=("h265",), abr=("bola",), trace=("lte-a",), video=("easy",))
    assert report.main([str(folder), "-o", str(tmp_path / "one.html")]) == 0
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "Prompts against" not in text
    assert "Controllers compared" not in text


def test_a_missing_study_costs_one_line(tmp_path: Path, capsys: Any) -> None:
    assert report.main([str(tmp_path), "-o", str(tmp_path / "no.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no.html").exists()


def test_a_common_rate_is_one_that_every_codec_comes_near() -> None:
    ladders = {"a": np.array([10.0, 20.0, 40.0]), "b": np.array([19.0, 100.0]), "c": np.array([22.0, 80.0])}
    assert common_rate(ladders) == {"a": 1, "b": 0, "c": 0}


def test_tables_become_markdown() -> None:
    assert Table(["a", "b"], [["x", "1"]]).markdown() == "| a | b |\n| --- | ---: |\n| x | 1 |"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HEADLESS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


def _shown(page: Path, folder: Path, width: int, height: int) -> tuple[np.ndarray, str]:
    """Return the page's picture uint8 [H, W] as Chromium draws it, and what it said on its console."""
    from PIL import Image

    picture = folder / "page.png"
    command = [str(CHROMIUM), *HEADLESS, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "HOME": str(folder)})
    assert ran.returncode == 0, ran.stderr
    with Image.open(picture) as shown:
        return np.asarray(shown.convert("L")), "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (500, 1600)])
def test_a_browser_shows_the_page_without_errors_or_requests(
    page: Path, tmp_path: Path, width: int, height: int
) -> None:
    pixels, console = _shown(page, tmp_path, width, height)
    assert console == ""  # the page's own policy would report a request here, as the next test shows
    assert pixels.shape == (height, width)
    assert pixels[:, -8:].mean() > 250  # nothing runs out of the page on the right
    assert pixels.std() > 5  # something is drawn


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_would_report_a_request(page: Path, tmp_path: Path) -> None:
    leaking = tmp_path / "leaking.html"
    text = page.read_text(encoding="utf-8")
    leaking.write_text(text.replace("</main>", '<img src="http://localhost:9/x.png"></main>'), encoding="utf-8")
    assert "localhost:9" in _shown(leaking, tmp_path, 1280, 400)[1]
