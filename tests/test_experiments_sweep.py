"""Studies: what is run, what is kept, what is resumed, and what a failure leaves."""

from fractions import Fraction

import numpy as np
import pytest

import experiments
from experiments import dataset, sweep, sweep_report
from experiments.errors import UsageError
from experiments.expand import expand_traces
from player.manifest import Manifest, Representation
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar
from player.programme import build_programme

PATIENT = "player.timeout_s=1000"  # a request that fails is repeated at the lowest representation
SIZES = {"low": (2000, 2400), "high": (8000, 7600)}


@pytest.fixture
def package(tmp_path):
    """Two segments of 2 s at 8 and 32 kbit/s; PSNR 15 dB (severely distorted) and 30 dB."""
    folder = tmp_path / "clip"
    rungs = (Representation("low", 8000, 2, "urim"), Representation("high", 32000, 4, "urim"))
    quality = {}
    for rung, level in zip(rungs, (15.0, 30.0), strict=True):
        (folder / rung.id).mkdir(parents=True)
        (folder / rung.init).write_bytes(b"i" * 50)
        for segment, size in enumerate(SIZES[rung.id]):
            (folder / rung.media(segment)).write_bytes(b"s" * size)
        scores = {"psnr_db": (np.full(20, level), np.full(20, level)), "ms_ssim": (np.full(20, level / 40),) * 2}
        quality[rung.id] = RepresentationQuality(SIZES[rung.id], scores)
    manifest = Manifest("test", "prompt", 64, 64, Fraction(10), (20, 20), rungs)
    write_manifest(folder, manifest)
    write_sidecar(folder, manifest, quality)
    return folder


def run(package, output, *more):
    return sweep.main([f"package={package}", f"output={output}", "session_s=20", "jobs=1", *more])


def test_a_study_has_a_row_for_every_session(package, tmp_path, capsys):
    output = tmp_path / "study"
    assert (
        run(package, output, "trace=lte-att-driving-down,umts/1", "abr=lowest,highest,bola", "offsets=2", PATIENT) == 0
    )
    table = experiments.load(output)
    assert len(table) == 2 * 2 * 3
    assert set(dataset.SCHEMA) <= set(table.columns)
    assert sorted(set(table["family"])) == ["lte", "umts"]
    lowest, highest = (table[table["abr"] == name] for name in ("lowest", "highest"))
    np.testing.assert_allclose(lowest["psnr_db"], 15.0)
    np.testing.assert_allclose(lowest["severe_share"], 1.0)
    np.testing.assert_allclose(highest["severe_share"], 0.0)
    assert lowest["media_bps"].max() < highest["media_bps"].min()
    bitrate = build_programme(Presentation.load(package), 20.0).ladder.bitrate_bps
    expected = bitrate[0] / bitrate[-1] - lowest["rebuffered_s"] / lowest["segments"]
    np.testing.assert_allclose(lowest["qoe_lin"], expected)
    assert sweep_report.main([str(output), "--no-figures", "--against", "bola"]) == 0
    assert "minus `bola`" in capsys.readouterr().out


def test_the_same_command_goes_on_where_it_stopped(package, tmp_path, capsys):
    output = tmp_path / "study"
    assert run(package, output, "trace=umts/1", "abr=bola") == 0
    assert run(package, output, "trace=umts/1", "abr=bola,bba") == 0
    assert "1 sessions there, 1 to run" in capsys.readouterr().err
    assert sorted(experiments.load(output)["abr"]) == ["bba", "bola"]
    assert run(package, output, "trace=umts/1", "abr=bola", "player.buffer_s=9") == 1
    assert "a study with other player (buffer_s 20.0, not 9.0);" in capsys.readouterr().err


def test_a_failed_session_does_not_sink_the_rest(package, tmp_path, capsys):
    output = tmp_path / "study"
    assert run(package, output, "trace=umts/1", "abr=bola:gp=-1,bba") == 1
    assert "gp must be positive" in capsys.readouterr().err
    assert list(experiments.load(output)["abr"]) == ["bba"]
    assert "gp must be positive" in (output / dataset.FAILURES).read_text()


def test_processes_bring_what_one_process_does(package, tmp_path):
    for jobs in (1, 2):
        assert run(package, tmp_path / str(jobs), "trace=umts/1", "abr=bba", "offsets=2", f"jobs={jobs}") == 0
    one, two = (experiments.load(tmp_path / name) for name in ("1", "2"))
    assert one.equals(two)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trace=nowhere", "no family, trace or file"),
        ("abr=nobody", "unknown controller 'nobody'; known: bb"),
        ("offsets=x", "expected a whole number"),
        ("player.nothing=1", "nothing"),
        ("loose", "expected key=value"),
    ],
)
def test_mistakes_cost_one_line(package, tmp_path, capsys, argument, message):
    assert run(package, tmp_path / "study", argument) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_traces_stand_for_families_and_limits():
    assert len(expand_traces(["umts", "hsdpa"], 2)) == 4
    assert len(expand_traces(["all"])) > 90
    with pytest.raises(UsageError, match="no family"):
        expand_traces(["umts", "none"])
