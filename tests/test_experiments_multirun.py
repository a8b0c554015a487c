"""`run -m` and suites: what is a session, what is a column, what resumes, what a mistake costs."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

import experiments
from experiments import run, sources
from experiments.command_line import check_arguments, compose_config, is_sweep, to_run_config
from experiments.dataset import FAILURES, SCHEMA, SESSIONS, read_study
from experiments.errors import UsageError
from experiments.expand import expand
from experiments.multirun import default_output
from experiments.overrides import rewrite_overrides
from experiments.prepare import Package
from experiments.seeds import apply_seed
from experiments.stream import stream
from packager.errors import PackagerError
from player.manifest import Manifest, Representation
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar
from player.programme import build_programme
from traces import catalogue, load_trace

FRAMES = (20, 10)
PSNR_DB = {"low": (15.0, 21.0), "high": (30.0, 36.0)}
SIZES = {"low": (2000, 1200), "high": (8000, 3800)}


def make_package(folder, codec="prompt"):
    """Write segments of 2 s and 1 s at about 8 and 32 kbit/s, the quality of each segment another."""
    ranks, name = ((2, 4), "urim") if codec == "prompt" else ((None, None), "hvc1.1")
    rungs = (Representation("low", 8000, ranks[0], name), Representation("high", 32000, ranks[1], name))
    quality = {}
    for rung in rungs:
        (folder / rung.id).mkdir(parents=True)
        (folder / rung.init).write_bytes(b"i" * 50)
        for segment, size in enumerate(SIZES[rung.id]):
            (folder / rung.media(segment)).write_bytes(b"s" * size)
        scores = tuple(np.full(count, level) for count, level in zip(FRAMES, PSNR_DB[rung.id], strict=True))
        quality[rung.id] = RepresentationQuality(SIZES[rung.id], {"psnr_db": scores})
    manifest = Manifest("test", codec, 64, 64, Fraction(10), FRAMES, rungs)
    write_manifest(folder, manifest)
    write_sidecar(folder, manifest, quality)
    return folder


@pytest.fixture
def package(tmp_path):
    return make_package(tmp_path / "packages" / "clip-prompt")


def sweep(package, output, *more):
    return run.main(["-m", f"package={package}", f"output={output}", "session_s=20", "jobs=1", *more])


def begin(*arguments):
    """Do what the command line does before anything is packaged."""
    overrides = rewrite_overrides(arguments)
    check_arguments(overrides)
    assert is_sweep(overrides)
    expand([text for text in overrides if text != "-m"])


def refusal(*arguments):
    with pytest.raises(UsageError) as caught:
        begin(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_combination_is_a_session(package, tmp_path):
    output = tmp_path / "set"
    axes = ["trace=umts,lte", "abr=bola,bba:reservoir=0.1", "seed=range(2)", "player.buffer_s=8,16"]
    assert sweep(package, output, *axes, "link.model=fluid,packet") == 0
    table = experiments.load(output)
    assert len(table) == 2**5
    assert set(SCHEMA) <= set(table.columns)
    keys = ["trace", "abr", "seed", "player.buffer_s", "link.model"]
    assert not table.duplicated(keys).any()
    assert set(table["abr"]) == {"bola", "bba:reservoir=0.1"}
    assert set(table["seed"]) == {0, 1}
    assert (table["player.buffer_s"] == table["buffer_s"]).all()
    assert set(table["video"]) == {"clip"}
    # schemes of equal trace and seed share their link
    assert (table.groupby(["trace", "seed"])["offset_s"].nunique() == 1).all()
    assert table["offset_s"].nunique() == 4
    assert read_study(output)["settings"]["swept"] == sorted(
        ["trace.name", "abr.name", "seed", "player.buffer_s", "link.model"]
    )


def test_a_session_of_a_sweep_is_that_of_a_run(package, tmp_path):
    output = tmp_path / "set"
    axes = ["trace=umts,5g", "abr=bola,robustmpc", "seed=3,4", "link.loss=0.01", "link.model=packet"]
    assert sweep(package, output, *axes) == 0
    programme = build_programme(Presentation.load(package), 20.0)
    for _, row in experiments.load(output).iterrows():
        overrides = [f"trace.name={row['trace']}", f"abr.name={row['abr']}", f"seed={row['seed']}", *axes[3:]]
        config = apply_seed(to_run_config(compose_config(overrides)))
        single = stream("prompt", programme, load_trace(config.trace), config).summary
        for name in ("startup_delay_s", "elapsed_s", "rebuffered_s", "switches", "wasted_bytes", "frames"):
            assert row[name] == single[name], name
        assert row["psnr_db"] == pytest.approx(single["quality"]["psnr_db"])
        assert row["severe_share"] == pytest.approx(single["severe_share"])


def test_quality_is_weighed_by_frames_and_startup_is_a_column_of_its_own(package, tmp_path):
    output = tmp_path / "set"
    assert sweep(package, output, "trace=lte", "abr=lowest,highest", "player.timeout_s=1000") == 0
    for _, row in experiments.load(output).iterrows():
        levels = PSNR_DB["low" if row["abr"] == "lowest" else "high"]
        clip_segment = np.arange(row["segments"]) % 2
        counts = np.array(FRAMES)[clip_segment]
        assert row["frames"] == counts.sum()
        assert row["psnr_db"] == pytest.approx(np.average(np.array(levels)[clip_segment], weights=counts))
        waited_s = row["startup_delay_s"] + row["rebuffered_s"]
        assert row["waiting_ratio"] == pytest.approx(waited_s / row["elapsed_s"])
        assert row["waiting_ratio"] > row["rebuffering_ratio"]
        assert row["qoe_lin_startup"] == pytest.approx(row["qoe_lin"] - row["startup_delay_s"] / row["segments"])


def test_the_same_command_runs_what_is_missing(package, tmp_path, capsys):
    output = tmp_path / "set"
    axes = ["trace=umts,lte,5g", "abr=bola,bba"]
    assert sweep(package, output, *axes) == 0
    whole = experiments.load(output)
    next((output / SESSIONS).iterdir()).unlink()
    left = len(experiments.load(output))
    assert left < 6
    capsys.readouterr()
    assert sweep(package, output, *axes) == 0
    assert f"{left} sessions there, {6 - left} to run" in capsys.readouterr().err
    assert experiments.load(output).equals(whole)
    more = make_package(tmp_path / "packages" / "clip-h265", "h265")
    assert sweep(f"{package},{more}", output, *axes) == 0
    assert len(experiments.load(output)) == 12
    assert sweep(package, output, *axes, "link.delay_ms=50") == 1
    assert "a study with other link (delay_ms 20.0, not 50.0);" in capsys.readouterr().err
    (more / "high" / "seg-00001.m4s").write_bytes(b"t" * SIZES["high"][0])
    assert sweep(more, output, *axes) == 1
    assert "other package clip-h265" in capsys.readouterr().err


def test_a_failed_session_is_reported_and_the_rest_goes_on(package, tmp_path, capsys):
    output = tmp_path / "set"
    assert sweep(package, output, "trace=umts", "abr=bola:gp=-1,bba", "link.delay_ms=20,40") == 1
    error = capsys.readouterr().err
    assert "gp must be positive" in error
    assert "2 failed; all in" in error
    assert list(experiments.load(output)["abr"]) == ["bba", "bba"]
    failures = json.loads((output / FAILURES).read_text())["failures"]
    assert [failure["link.delay_ms"] for failure in sorted(failures, key=lambda one: one["link.delay_ms"])] == [20, 40]


def test_the_paper_s_suite_holds_every_cellular_trace(package, tmp_path):
    with_flag, without = (
        expand(rewrite_overrides(["experiment=paper", f"package={package}", *more])) for more in ([], ["suite.limit=0"])
    )
    assert len(with_flag.points) == len(without.points)
    traces = {point.config.trace.name for point in with_flag.points}
    families = {entry.family for entry in map(catalogue.find, traces) if entry is not None}
    assert families == {"lte", "umts", "evdo", "hsdpa", "4g", "5g"}
    assert traces == {e.name for family in catalogue.families() if family.name in families for e in family.entries}
    assert len(with_flag.points) == len(traces) * 2 * 3
    narrowed = expand(rewrite_overrides(["experiment=paper", "trace=umts", "abr=bba", "codec=h265"]))
    assert {(point.config.trace.name, point.label, point.codecs) for point in narrowed.points} == {
        ("umts-tmobile-driving-down", "bba", ("h265",))
    }


def test_a_suite_is_played_with_and_without_the_flag(package, tmp_path):
    arguments = ["experiment=paper_smoke", f"package={package}", "session_s=20", "jobs=1"]
    assert run.main([*arguments, f"output={tmp_path / 'a'}"]) == 0
    assert run.main(["-m", *arguments, f"output={tmp_path / 'b'}"]) == 0
    a, b = (experiments.load(tmp_path / name) for name in "ab")
    assert len(a) == 6 * 2
    assert a.equals(b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "jobs=1,2"], "one value for the whole sweep"),
        (["-m", "launcher=local,ray"], "one value for the whole sweep"),
        (["-m", "link.delay_ms=interval(1,2)"], "lists, choice() and range()"),
        (["-m", "trace=umts", "hydra.sweep.dir=x"], "output=DIR"),
        (["-m", "trace=lte,umtz"], "trace: found 'umtz', expected lte, umts"),
        (["-m", "abr=nobody,bola"], "unknown controller 'nobody'"),
        (["-m", "abr=mpc:horizon"], "name:key=value+key=value"),
        (["-m", "seed=-1,2"], "seed=-1: expected 0 or more"),
        (["-m", "launcher=slurm"], "expected one of local, ray"),
        (["-m", "launcher.address=auto2"], "only launcher=ray"),
        (["experiment=paper", "render=true"], "without rendering"),
        (["experiment=paper", "suite.traces=[lte,nowhere]"], "no family, trace or file"),
        (["output=x"], "output= is for sweeps"),
        (["-m", "render=true", "videos=x"], "videos= is for sweeps"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    assert message in refusal(*arguments)


def test_what_needs_a_folder_each_is_left_to_hydra():
    for arguments in (["-m", "trace=lte,umts", "render=true"], ["-m", "mode=simulate,real"], ["-m", "--cfg", "job"]):
        assert not is_sweep(rewrite_overrides(arguments))
    assert not is_sweep(rewrite_overrides(["trace=lte", "seed=3"]))


def test_equal_commands_have_equal_folders():
    one, two = (default_output(["trace.name=lte,umts", more]) for more in ("jobs=2", "launcher.name=ray"))
    assert one == two
    assert default_output(["trace.name=lte"]) != one
    assert default_output(["experiment=paper"]).name.startswith("paper-")


def test_packages_are_found_by_pattern_and_codec(package, tmp_path, capsys):
    other = make_package(tmp_path / "packages" / "clip-h265", "h265")
    (other / "package.json").write_text(json.dumps({"identity": {"video": "beach.mov"}}))
    (tmp_path / "packages" / "clip-vae").mkdir()
    pattern = f"{tmp_path}/packages/*"
    assert sweep(pattern, tmp_path / "all", "trace=umts") == 0
    assert "1 without manifest.mpd left out" in capsys.readouterr().err
    table = experiments.load(tmp_path / "all")
    assert sorted(zip(table["video"], table["codec"], strict=True)) == [("beach", "h265"), ("clip", "prompt")]
    assert sweep(pattern, tmp_path / "one", "trace=umts", "codec=h265") == 0
    assert list(experiments.load(tmp_path / "one")["package"]) == ["clip-h265"]
    assert sweep(pattern, tmp_path / "none", "trace=umts", "codec=av1") == 1
    assert sweep(tmp_path / "nothing", tmp_path / "none", "trace=umts") == 2


def test_all_videos_of_a_folder_are_streamed_and_a_bad_one_is_reported(package, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("one.mp4", "two.mkv", "broken.mp4", "notes.txt"):
        (folder / name).write_bytes(b"")

    def obtain(codec, video, config, cache, progress):
        if video.stem == "broken":
            raise PackagerError("broken.mp4: no video stream")
        made = tmp_path / "made" / f"{video.stem}-{codec}"
        return Package(codec, Presentation.load(made if made.exists() else make_package(made, codec)), "key")

    monkeypatch.setattr("experiments.prepare.obtain_package", obtain)
    output = tmp_path / "set"
    arguments = ["-m", f"videos={folder}", f"output={output}", "codec=prompt,h265", "trace=umts", "session_s=20"]
    assert run.main([*arguments, "jobs=1"]) == 1
    assert "video=broken.mp4, codec=prompt: broken.mp4: no video stream" in capsys.readouterr().err
    table = experiments.load(output)
    assert sorted(zip(table["video"], table["codec"], strict=True)) == [
        (video, codec) for video in ("one", "two") for codec in ("h265", "prompt")
    ]
    (folder / "one.webm").write_bytes(b"")
    with pytest.raises(UsageError, match="one is there twice"):
        sources.list_videos(to_run_config(compose_config([f"videos={folder}"])))


def test_a_seed_places_a_session_in_its_trace():
    drawn = {}
    base = to_run_config(compose_config(["trace.name=lte", "link.seed=5"]))
    for seed in range(20):
        config = apply_seed(dataclasses.replace(base, seed=seed))
        assert config.link.seed == 5 + seed
        drawn[seed] = config.trace.offset_s
    entry = catalogue.find("lte")
    assert len(set(drawn.values())) == 20
    assert 0 <= min(drawn.values()) < 0.3 * entry.duration_s
    assert 0.7 * entry.duration_s < max(drawn.values()) < entry.duration_s
    same = apply_seed(to_run_config(compose_config(["trace.name=lte-att-driving-down", "seed=7", "abr.name=bba"])))
    assert same.trace.offset_s == drawn[7]
    assert apply_seed(base) is base
