"""Sessions in virtual time over hand-made presentations: hand-worked times, identities, and the same log twice."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from abr import AbrConfig, Decision, Ladder, Observation, Progress, create_abr
from emulator import LinkConfig, Transfer, create_transport
from experiments.errors import ExperimentError
from experiments.schema import QualityConfig, RunConfig
from experiments.simulate import RenderServer, SimulationError, simulate
from experiments.stream import severity, stream
from player.config import PlayerConfig
from player.manifest import Manifest, Representation
from player.presentation import Presentation, RepresentationQuality, write_manifest, write_sidecar
from player.programme import build_programme
from player.session import Session
from traces import TraceConfig, load_trace

FPS = 10
SEGMENT_FRAMES = (20, 20, 20, 20, 10)  # a 9 s clip
RATES_BPS = (8e3, 30e3, 60e3)


@pytest.fixture(scope="module")
def presentation(tmp_path_factory: pytest.TempPathFactory) -> Presentation:
    """Three representations of a 9 s clip; a frame's quality tells its representation, segment and place."""
    folder = tmp_path_factory.mktemp("presentation")
    names = [f"r{index}" for index in range(len(RATES_BPS))]
    quality = {}
    for rung, (name, rate) in enumerate(zip(names, RATES_BPS, strict=True)):
        sizes = tuple(int(rate * frames / FPS / 8) for frames in SEGMENT_FRAMES)
        (folder / name).mkdir()
        (folder / name / "init.mp4").write_bytes(bytes(100))
        for index, size in enumerate(sizes):
            (folder / name / f"seg-{index + 1:05d}.m4s").write_bytes(bytes(size))
        values = [rung * 10 + s + np.arange(T) / 100 for s, T in enumerate(SEGMENT_FRAMES)]
        quality[name] = RepresentationQuality(sizes, {"ssimulacra2": tuple(values)})
    manifest = Manifest(
        title="hand-made", codec="h265", width=64, height=64, fps=Fraction(FPS), segments=SEGMENT_FRAMES,
        representations=tuple(
            Representation(name, int(rate) + 200, None, "hvc1.1.6.L30.90")
            for name, rate in zip(names, RATES_BPS, strict=True)
        ),
    )  # fmt: skip
    write_manifest(folder, manifest)
    write_sidecar(folder, manifest, quality)
    return Presentation.load(folder)


def _config(**changes: Any) -> RunConfig:
    return RunConfig(**{"trace": TraceConfig("lte", share=115), "session_s": 60.0, **changes})


class _FixedRate:
    """A transport of constant rate and no delay; transfers longer than their deadline are cut."""

    def __init__(self, rate_bps: float, outages: Sequence[int] = ()) -> None:
        self.rate_bps, self.outages, self.requests = rate_bps, set(outages), 0

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        number, self.requests = self.requests, self.requests + 1
        finish_s = math.inf if number in self.outages else request_s + 8 * size_bytes / self.rate_bps
        if finish_s > deadline_s:
            return Transfer(request_s, deadline_s, deadline_s, size_bytes, 0, False)
        return Transfer(request_s, request_s, finish_s, size_bytes, size_bytes, True)


def _session(segments: int, **player: Any) -> Session:
    """Segments of 1 s and 1000 bytes, one representation."""
    ladder = Ladder(np.array([8e3]), np.full((segments, 1), 1000), np.ones(segments))
    config = PlayerConfig(**{"buffer_s": 4.0, "startup_s": 1.0, "rebuffer_s": 1.0, **player})
    return Session(ladder, create_abr("fixed", ladder, buffer_capacity_s=config.buffer_s), config)


def test_a_fast_link_plays_without_a_stop() -> None:
    session = _session(5)
    end_s = simulate(session, _FixedRate(16e3), segment_frames=[10] * 5)
    assert end_s == pytest.approx(0.5 + 5.0)
    summary = session.log().summary
    assert summary["startup_delay_s"] == pytest.approx(0.5)
    assert summary["rebuffered_s"] == 0


def test_half_the_needed_rate_stops_before_every_segment() -> None:
    session = _session(4)
    simulate(session, _FixedRate(4e3), segment_frames=[10] * 4)
    summary = session.log().summary
    assert summary["startup_delay_s"] == pytest.approx(2.0)
    assert summary["rebuffering_count"] == 3
    assert summary["rebuffered_s"] == pytest.approx(3.0)


def test_slow_rendering_is_rebuffering() -> None:
    """Downloads are instant; 10 frames at 5 frames/s take 2 s a segment, one after the other."""
    session = _session(3)
    end_s = simulate(session, _FixedRate(1e12), segment_frames=[10] * 3, render_fps=5)
    rows = session.log().segments
    assert [row["rendered_s"] for row in rows] == pytest.approx([2.0, 4.0, 6.0])
    assert session.log().summary["rebuffered_s"] == pytest.approx(2.0)
    assert end_s == pytest.approx(7.0)


def test_a_lost_request_times_out_and_is_repeated() -> None:
    session = _session(3, timeout_s=0.7, backoff_s=0.25)
    simulate(session, _FixedRate(80e3, outages=[1]), segment_frames=[10] * 3)
    log = session.log()
    assert log.summary["timeouts"] == 1
    assert log.segments[1]["request_s"] == pytest.approx(0.1 + 0.7 + 0.25)


class _Fickle:
    """Asks for the highest, and settles for the lowest once `patience_s` have passed."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s

    def choose(self, observation: Observation) -> Decision:
        return Decision(1)

    def abandon(self, progress: Progress) -> int | None:
        late = progress.representation > 0 and progress.observation.now_s - progress.request_s >= self.patience_s
        return 0 if late else None


@pytest.mark.parametrize("model", ["fluid", "packet"])
def test_an_abandoned_request_frees_the_link_and_costs_what_had_arrived(model: str) -> None:
    """8 Mbit/s in whole packets and 20 ms one way: 1 MB takes over a second and is given up after half of one."""
    ladder = Ladder(np.array([8e4, 8e6]), np.array([[10_000, 1_000_000]] * 3), np.ones(3))
    trace = load_trace(TraceConfig("constant", rate_bps=8e6))
    transport = create_transport(trace, LinkConfig(model=model))
    session = Session(ladder, _Fickle(0.475), PlayerConfig(buffer_s=4.0, startup_s=1.0))
    simulate(session, transport, segment_frames=[10] * 3)
    log = session.log()
    assert [row["representation"] for row in log.segments] == [0, 0, 0]
    assert log.summary["abandonments"] == 3
    for row in log.segments:
        assert row["request_s"] == pytest.approx(row["decided_s"] + 0.5)
        assert 100_000 < row["wasted_bytes"] < 500_000
        assert row["finish_s"] > row["request_s"]
    total = log.summary["startup_delay_s"] + log.summary["played_s"] + log.summary["rebuffered_s"]
    assert total == pytest.approx(log.summary["elapsed_s"], abs=1e-9)


def test_patience_changes_nothing() -> None:
    """Looking at the progress of requests without giving any up leaves the session as it is."""
    ladder = Ladder(np.array([8e4, 8e5]), np.array([[10_000, 100_000]] * 8), np.ones(8))
    logs = []
    for controller in (_Fickle(math.inf), create_abr("fixed", ladder, buffer_capacity_s=4.0, representation=1)):
        session = Session(ladder, controller, PlayerConfig(buffer_s=4.0, timeout_s=2.0, backoff_s=0.1))
        transport = create_transport(load_trace(TraceConfig("umts", share=4)), LinkConfig())
        simulate(session, transport, segment_frames=[10] * 8)
        logs.append(session.log())
    assert logs[0].events == logs[1].events
    assert logs[0].summary == logs[1].summary


def test_the_render_server_takes_segments_in_turn() -> None:
    server = RenderServer()
    assert server.next_s == math.inf
    server.submit(0, 1.0, 1.0)
    server.submit(1, 2.0, 1.5)
    assert (server.next_s, server.finish()) == (2.0, (0, 1))
    assert (server.next_s, server.finish()) == (4.0, (1, 1))
    assert server.next_s == math.inf


def test_a_stuck_session_is_reported() -> None:
    class Stuck:
        def next_action(self, now_s: float) -> Any:
            from player.session import Wait

            return Wait(math.inf)

    with pytest.raises(SimulationError, match="stuck"):
        simulate(Stuck(), _FixedRate(1e6), segment_frames=[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("session_s", "segments", "duration_s"),
    [(2.0, 1, 2.0), (2.1, 2, 4.0), (9.0, 5, 9.0), (9.5, 6, 11.0), (27.0, 15, 27.0), (60.0, 33, 60.0)],
)
def test_programmes_are_whole_segments(
    presentation: Presentation, session_s: float, segments: int, duration_s: float
) -> None:
    programme = build_programme(presentation, session_s)
    assert programme.ladder.segments == segments
    assert programme.duration_s == pytest.approx(duration_s)
    assert programme.clip_segment.tolist() == [index % 5 for index in range(segments)]


@pytest.mark.parametrize("abr", ["bola", "bba", "throughput", "ewma", "fixed"])
@pytest.mark.parametrize("model", ["fluid", "packet"])
def test_a_session_over_lte_keeps_its_identities(presentation: Presentation, abr: str, model: str) -> None:
    config = _config(abr=AbrConfig(abr), link=LinkConfig(model=model), player=PlayerConfig(render_fps=40.0))
    programme = build_programme(presentation, config.session_s)
    result = stream("h265", programme, load_trace(config.trace), config)
    summary = result.summary
    total = summary["startup_delay_s"] + summary["played_s"] + summary["rebuffered_s"]
    assert total == pytest.approx(summary["elapsed_s"], abs=1e-9)
    assert summary["ended"] == 1
    shown = result.segments[~result.segments["skipped"]]
    assert len(result.frames) == programme.segment_frames[shown["segment"]].sum()
    assert result.frames["wall_time_s"].is_monotonic_increasing
    assert np.all(result.segments["rendered_s"].dropna() <= result.segments["play_start_s"].dropna() + 1e-9)
    assert summary["received_bytes"] == summary["downloaded_bytes"] + summary["wasted_bytes"]


def test_every_frame_has_the_quality_of_what_was_shown(presentation: Presentation) -> None:
    programme = build_programme(presentation, 30.0)
    result = stream("h265", programme, load_trace("lte", share=115), _config())
    frames = result.frames
    clip_segment = programme.clip_segment[frames["segment"]]
    expected = frames["representation"] * 10 + clip_segment + frames["frame"] / 100
    np.testing.assert_allclose(frames["ssimulacra2"], expected)
    assert result.summary["quality"]["ssimulacra2"] == pytest.approx(float(expected.mean()))
    assert result.summary["severe_share"] == pytest.approx(float((expected < 10).mean()))


def test_the_same_run_twice_gives_the_same_log(presentation: Presentation) -> None:
    config = _config(link=LinkConfig(loss=0.01), abr=AbrConfig("throughput"))
    first, second = (
        stream("h265", build_programme(presentation, 60.0), load_trace(config.trace), config) for _ in range(2)
    )
    assert first.summary == second.summary
    for name in ("segments", "frames", "events"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name), check_exact=True)


def test_severity_prefers_lpips() -> None:
    assert severity(["ssimulacra2", "lpips_alex"], QualityConfig()) == ("lpips_alex", 0.32)
    assert severity(["psnr_db", "ssimulacra2"], QualityConfig()) == ("ssimulacra2", 10.0)
    assert severity(["ms_ssim"], QualityConfig())[0] is None
    assert severity(["psnr_db"], QualityConfig("psnr_db", 25.0)) == ("psnr_db", 25.0)


def test_severity_by_a_metric_that_is_not_there_is_refused() -> None:
    with pytest.raises(ExperimentError, match="measured were psnr_db"):
        severity(["psnr_db"], QualityConfig("ssimulacra2"))
    with pytest.raises(ExperimentError, match="severe_threshold"):
        severity(["ms_ssim"], QualityConfig("ms_ssim"))
