"""A slow device in runs and sweeps: what it costs, who knows of it, and which frames it leaves out."""

import math
from fractions import Fraction

import numpy as np
import pytest

from abr import AbrConfig
from emulator import LinkConfig, create_transport
from experiments import dataset
from experiments.command_line import check_arguments, compose_config, to_run_config
from experiments.device import DeviceConfig, controller_on, ladder_on
from experiments.errors import UsageError
from experiments.schema import RunConfig
from experiments.simulate import simulate
from experiments.sweep_sessions import Looked
from experiments.sweep_sessions import play as play_row
from packager.package import build_prompts
from packager.settings import BuildConfig
from packager.video import write_h264
from player.config import PlayerConfig
from player.programme import build_programme
from player.record import SevereRule, make_record
from player.session import Session
from traces.synthetic import constant

FPS, FRAMES = 20, 16


@pytest.fixture(scope="module")
def programme(tiny_folder, tmp_path_factory):
    """Twenty seconds of two segments of eight frames, all of them made by the generator."""
    folder = tmp_path_factory.mktemp("device")
    pictures = [np.full((64, 64, 3), 12 * k, np.uint8) for k in range(FRAMES)]
    write_h264(folder / "clip.mp4", pictures, fps=Fraction(FPS), width=64, height=64, crf=20)
    config = BuildConfig(
        segment_s=0.4, metrics=["psnr_db"], device="cpu", ranks=[1, 2], interval=4, motion=False, iterations=1,
        generator=str(tiny_folder),
    )  # fmt: skip
    return build_programme(build_prompts(folder / "clip.mp4", folder / "package", config).presentation, 20.0)


def play(programme, **device):
    config, player = DeviceConfig(**device), PlayerConfig(buffer_s=4.0, startup_s=0.4, rebuffer_s=0.4)
    ladder = ladder_on(config, programme.presentation, programme.ladder)
    session = Session(ladder, controller_on(config, AbrConfig("bola"), ladder, player.buffer_s), player)
    transport = create_transport(constant(1e6), LinkConfig(delay_ms=5.0))
    simulate(session, transport, segment_frames=programme.segment_frames.tolist())
    return session, make_record(session.log(), programme, SevereRule(None))


def test_half_the_passes_show_half_the_frames_and_do_not_stall(programme):
    session, record = play(programme, passes_per_s=FPS / 2 * 1.2)
    assert record.summary["rebuffering_ratio"] == 0.0
    assert session.reduced_segments == len(record.segments)
    assert set(record.segments["render_mode"]) <= {"half", "third", "keys"}
    repeated = record.frames["repeated"]
    assert record.summary["repeated_frames"] == repeated.sum() > len(record.frames) / 2 - 1
    assert record.frames["psnr_db"].isna().equals(repeated)
    half = record.frames[record.frames["segment"].isin(record.segments.query("render_mode == 'half'")["segment"])]
    assert half["repeated"].eq(half["frame"] % 2 == 1).all()


def test_an_untold_controller_renders_every_frame_and_waits(programme):
    session, record = play(programme, passes_per_s=FPS / 2, render_modes=False)
    assert session.reduced_segments == 0
    assert not record.frames["repeated"].any()
    assert record.summary["rebuffering_ratio"] == pytest.approx(0.5, abs=0.05)


def test_without_a_device_rendering_is_free(programme):
    session, record = play(programme)
    assert session.ladder is programme.ladder
    assert record.segments["render_mode"].isna().all()
    assert record.summary["repeated_frames"] == 0


def test_a_row_of_a_sweep_has_no_quality_where_frames_were_left_out(programme):
    looked = Looked("package", "clip", programme, SevereRule(None))
    arguments = (AbrConfig("bola"), constant(1e6), looked, PlayerConfig(), LinkConfig())
    slow, fast = (play_row(*arguments, DeviceConfig(speed)) for speed in (FPS / 2, 10.0 * FPS))
    assert slow["reduced_segments"] > 0
    assert math.isnan(slow["psnr_db"])
    assert fast["reduced_segments"] == 0
    assert fast["psnr_db"] > 0
    assert looked.ladder_on(DeviceConfig(5.0)) is looked.ladder_on(DeviceConfig(5.0))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["device.passes_per_s=0"], r"device.passes_per_s=0: expected a number above zero"),
        (["device.warp_cost=2"], r"device.warp_cost=2: expected 0 to 1"),
        (["device.passes_per_s=20", "player.render_fps=20"], "give one of them"),
        (["device.passes_per_s=20", "mode=real"], "mode=simulate only"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        check_arguments(keys)


def test_the_keys_reach_the_run():
    config = to_run_config(compose_config(["device.passes_per_s=20", "device.render_modes=false"]))
    assert config.device == DeviceConfig(20.0, render_modes=False)
    assert RunConfig().device.passes_per_s is None


def test_data_sets_from_before_devices_can_be_read(tmp_path):
    row = dict.fromkeys(set(dataset.SCHEMA) - set(dataset.LATER), 0)
    dataset.open_study(tmp_path, {}, {}, {})
    dataset.write_part(tmp_path, "a", [row])
    table = dataset.load(tmp_path)
    assert table["reduced_segments"].tolist() == [0]
    assert table["passes_per_s"].isna().all()
