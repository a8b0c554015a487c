"""Sessions against segment duration: the command line, what is counted, and the figure."""

from pathlib import Path

import pandas as pd
import pytest

from emulator import LinkConfig
from experiments.chunk_time import by_trace, equal_quality, interval, ladder_rows, main, parse_study, report
from experiments.chunk_time_figure import chunk_time_figure
from experiments.errors import UsageError
from experiments.paper import save_figure
from player.presentation import Presentation


def test_bytes_beyond_payload_by_hand(box_package: Path) -> None:
    low, high = ladder_rows(Presentation.load(box_package), LinkConfig())
    boxes = 16 + 92 + 8  # styp, moof, and the header of mdat
    assert low["payload_bps"] == pytest.approx(8 * (600 - boxes) / 0.2)
    assert low["wire_bps"] == pytest.approx(8 * (600 + 250 + 56) / 0.2)  # one packet
    assert high["wire_bps"] == pytest.approx(8 * (1800 + 250 + 2 * 56) / 0.2)
    assert low["overhead_percent"] == pytest.approx(100 * ((600 + 306) / (600 - boxes) - 1))
    assert low["psnr_db"] == 25.0


def test_equal_quality_is_taken_where_all_ladders_reach() -> None:
    ladder = pd.DataFrame(
        [("h265", 1.0, 20.0, 1e3), ("h265", 1.0, 40.0, 1e5), ("h265", 2.0, 24.0, 1e3), ("h265", 2.0, 36.0, 1e4)],
        columns=["codec", "segment_s", "psnr_db", "wire_bps"],
    )
    found = equal_quality(ladder)
    assert found["quality"].tolist() == [30.0, 30.0]
    assert found["wire_bps"].tolist() == pytest.approx([1e4, 10**3.5])
    assert equal_quality(ladder.assign(psnr_db=[20.0, 24.0, 30.0, 36.0])).empty


def test_sessions_of_one_trace_count_once() -> None:
    sessions = pd.DataFrame({"trace": ["a", "a", "b"], "rebuffering_percent": [1.0, 3.0, 6.0]})
    assert by_trace(sessions)["rebuffering_percent"].tolist() == [2.0, 6.0]


def test_intervals() -> None:
    mean, half = interval([1.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(12.706, abs=1e-3))
    assert interval([5.0])[1] != interval([5.0])[1]  # nan


def test_the_command_line() -> None:
    study = parse_study(["segments=2,0.5", "trace=lte,umts", "link.delay_ms=20", "session_s=30"])
    assert (study.segments_s, study.traces, study.delays_ms) == ((0.5, 2.0), ("lte", "umts"), (20.0,))
    assert study.overrides == ("session_s=30",)
    for wrong in ("segments=x", "segments=0", "starts=0", "starts=1.5", "codecs=mp3", "link.dely=1"):
        with pytest.raises(UsageError):
            parse_study([wrong])


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["starts=none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_table_and_figure(tmp_path: Path) -> None:
    rows = [
        (codec, delay_ms, segment_s, value, 2e4 + value, 0.3, 40.0)
        for codec in ("prompt", "h265")
        for delay_ms in (20.0, 100.0)
        for segment_s in (0.5, 2.0)
        for value in (1.0, 2.0)
    ]
    names = ["codec", "delay_ms", "segment_s", "rebuffering_percent", "media_bitrate_bps", "lpips_squeeze"]
    sessions = pd.DataFrame(rows, columns=[*names, "ssimulacra2"])
    sessions["trace"] = ["a", "b"] * (len(rows) // 2)
    ladder = sessions[["codec", "segment_s"]].assign(
        overhead_percent=8.0, wire_bps=2e4 + 1e3 * sessions["rebuffering_percent"],
        lpips_squeeze=sessions["rebuffering_percent"] / 10, ssimulacra2=sessions["rebuffering_percent"],
    )  # fmt: skip
    equal = equal_quality(ladder)
    text = report(sessions, ladder, equal)
    assert len(text.splitlines()) == 2 + 8
    assert "| prompt | 20 | 0.5 | 1.5 ± 6.4 |" in text
    paths = save_figure(chunk_time_figure(sessions, ladder, equal, "made up"), tmp_path, "chunk_time")
    assert all(path.stat().st_size > 1000 for path in paths)
