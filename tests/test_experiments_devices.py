"""The study of devices: its command line, and sessions on slow and fast devices by hand-made costs."""

import numpy as np
import pytest

from abr import Ladder, Rendering
from emulator import LinkConfig, create_transport
from experiments.devices import CONTROLS, device_profile, main, measure_device, play
from traces.synthetic import constant

S, R, MODES = 20, 2, ("full", "half")


def make_ladder():
    """Two representations of 2 s segments; every frame costs a pass, 30 frames/s."""
    shape = (S, R, 2)
    quality = np.broadcast_to(np.array([[0.5, 0.52], [0.3, 0.33]]), shape)
    rendering = Rendering(
        1.0, MODES, np.broadcast_to([60.0, 30.0], shape), np.broadcast_to([30.0, 15.0], shape), quality
    )
    sizes = np.tile([3000, 6000], (S, 1))
    return Ladder([12e3, 24e3], sizes, np.full(S, 2.0), np.tile([0.5, 0.3], (S, 1)), rendering=rendering)


def run(abr, aware, device):
    return play(abr, aware, make_ladder(), device, create_transport(constant(1e6), LinkConfig()))


@pytest.mark.parametrize("abr", ["bola", "quality_mpc"])
def test_a_device_of_20_frames_a_second_is_not_sent_30(abr):
    unaware, aware = run(abr, False, 20.0), run(abr, True, 20.0)
    assert unaware["rebuffering_ratio"] == pytest.approx(1 / 3, abs=0.03)  # 3 s to render 2 s
    assert unaware["frame_rate"] == pytest.approx(20.0, abs=1.0)
    assert aware["rebuffering_ratio"] == 0.0
    assert aware["frame_rate"] == pytest.approx(15.0, abs=0.5)


@pytest.mark.parametrize(("abr", "aware"), CONTROLS)
def test_a_fast_device_shows_every_frame(abr, aware):
    numbers = run(abr, aware, 200.0)
    assert numbers["rebuffering_ratio"] == 0.0
    assert numbers["frame_rate"] == pytest.approx(30.0)
    assert numbers["quality"] == pytest.approx(run(abr, not aware, 200.0)["quality"], abs=0.02)


def test_warping_is_cheaper_than_generating_and_measured_once(tmp_path):
    pass_s, warp_s = measure_device(frames=2)
    assert 0 < warp_s < pass_s
    path = tmp_path / "device.json"
    path.write_text('{"frames_per_s": 3.0, "warp_cost": 0.25}')
    assert device_profile(path) == {"frames_per_s": 3.0, "warp_cost": 0.25}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--warp-cost", "2"], "--warp-cost 2: expected 0 to 1 passes"),
        (["--session", "0"], "--session: expected more than 0"),
        (["--clip", "nowhere.mp4"], "video=nowhere.mp4: no such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path):
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
