"""Learned controllers: networks as trained, what they answer, malformed weights, the halves of the traces, resuming."""

import functools

import numpy as np
import pytest
import torch

from abr import Ladder, Observation, OptionError, ThroughputSample, create_abr
from abr.fugu import BINS, CENTRES, EDGES, Fugu, bin_of, predict
from abr.mpc import best_plan
from abr.network import load_network
from abr.pensieve import FEATURES, features
from experiments import abr_sessions, ppo, transfer_times
from experiments.abr_sessions import BinnedLink, TrainingSession, draw_situation, half
from experiments.train_abr import main
from traces.synthetic import constant

RATES = (1e6, 2e6, 4e6)


def make_ladder(rates=RATES, segments=20, duration_s=2.0):
    sizes = np.round(np.outer(np.full(segments, duration_s), rates) / 8)
    return Ladder(rates, sizes, np.full(segments, duration_s))


def observe(buffer_s, rate_bps, last=0, count=8, segment=9, scale=1.0):
    """Return an observation after `count` transfers of 250 kB at one rate."""
    samples = []
    for index in range(count):
        begin_s, size = 3.0 * index, round(250_000 * scale)
        first_s = begin_s + 0.02
        samples.append(ThroughputSample(size, begin_s, first_s, first_s + 8 * size / (rate_bps * scale)))
    return Observation(30.0, segment, buffer_s, 20.0, last, tuple(samples), True)


@pytest.mark.parametrize("name", ["pensieve", "fugu"])
def test_with_all_the_time_in_the_world_the_top_and_with_none_the_lowest(name):
    controller = create_abr(name, make_ladder(), buffer_capacity_s=20.0)
    assert controller.choose(observe(18.0, 40e6, last=2)).representation == 2
    assert controller.choose(observe(1.0, 0.3e6, last=0)).representation == 0
    assert controller.choose(observe(0.0, 1e6, count=0)).representation == 0


@pytest.mark.parametrize("name", ["pensieve", "fugu"])
def test_the_scale_of_ladder_and_link_does_not_matter(name):
    for buffer_s, rate_bps in ((2.0, 2e6), (8.0, 3e6), (15.0, 1.5e6)):
        choices = []
        for scale in (1.0, 30.0):
            controller = create_abr(name, make_ladder([scale * rate for rate in RATES]), buffer_capacity_s=20.0)
            if name == "fugu":  # slow start does have a scale, the only one the network is told
                controller.network.layers[0][0][:, -1] = 0.0
            choices.append(controller.choose(observe(buffer_s, rate_bps, scale=scale)).representation)
        assert choices[0] == choices[1]
        load_network.__globals__["_load"].cache_clear()


def test_features_hold_the_state_and_one_row_per_representation():
    rows = features(make_ladder(), observe(8.0, 2e6, count=3))
    assert rows.shape == (3, FEATURES)
    assert np.all(rows[:, :5] == 0)  # five of eight transfers are missing
    assert np.all(np.isfinite(rows))
    assert np.all(np.diff(rows[:, 20]) > 0)  # sizes rise


def test_fugus_distribution_follows_the_size():
    network = load_network("fugu", None, inputs=27, outputs=BINS)
    sizes, durations_s = np.array([[50_000, 150_000, 500_000]]), np.array([2.0])
    chance = predict(network, observe(8.0, 2e6).samples, sizes, durations_s)
    assert chance.sum(axis=-1) == pytest.approx(1)
    median_s = CENTRES[(np.cumsum(chance[0], axis=-1) >= 0.5).argmax(axis=-1)] * 2.0
    assert median_s == pytest.approx([0.22, 0.62, 2.02], rel=0.45)  # at 2 Mbit/s; a bin is 37 % wide


def test_bins_and_their_centres_agree():
    assert bin_of(CENTRES).tolist() == list(range(BINS))
    assert bin_of(EDGES * 1.0001).tolist() == list(range(1, BINS))


def test_fugu_with_a_certain_predictor_is_mpc():
    """With all probability on one bin per choice, value iteration gives the plan of `mpc`."""
    ladder = make_ladder()
    controller = Fugu(ladder, buffer_capacity_s=20.0)
    for buffer_s in (2.0, 7.0, 14.0):
        bins = np.array([8, 12, 15])
        chance = np.zeros((5, 3, BINS))
        chance[:, np.arange(3), bins] = 1.0
        values = controller._values(chance, np.full(5, 2.0), ladder.bitrate_bps / 1e6 + np.zeros((5, 1)), buffer_s, 1.0)
        times_s = np.tile(CENTRES[bins] * 2.0, (5, 1))
        plan = best_plan(
            controller.qoe, slice(0, 5), times_s, np.full(5, 2.0), buffer_s=buffer_s, capacity_s=20.0, last=1e6
        )
        assert values.max() == pytest.approx(plan.value, abs=0.1)  # the buffer's bins are 0.2 s


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w0": np.zeros((1, 5)), "b0": np.zeros(1)}, "behind 27 values"),
        ({"w0": np.zeros((2, FEATURES)), "b0": np.zeros(2)}, "expected 1"),
        ({"w0": np.full((1, FEATURES), np.nan), "b0": np.zeros(1)}, "not finite"),
        ({}, "0 layers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, arrays, message):
    assert FEATURES == 27
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(OptionError, match=message):
        create_abr("pensieve", make_ladder(), buffer_capacity_s=20.0, weights=str(tmp_path / "weights.npz"))


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "weights.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match="cannot be read"):
        create_abr("fugu", make_ladder(), buffer_capacity_s=20.0, weights=str(path))


def test_the_halves_share_no_drive_and_leave_nothing_out():
    training, test = half(True), half(False)
    assert not set(training) & set(test)
    drives = [{name.removesuffix("-down").removesuffix("-up") for name in names} for names in (training, test)]
    assert not drives[0] & drives[1]
    assert len(training) + len(test) == sum(len(family.entries) for family in abr_sessions.catalogue.families())
    for names in (training, test):
        assert {"hsdpa", "fcc", "lte", "5g"} <= {name.split("-")[0] for name in names}


def test_the_binned_link_by_hand():
    link = BinnedLink(constant(1.448e6))
    link.mean_bps = 8e5
    # 1448 kbit/s of opportunities carry 1448^2 / 1504 kbit/s of payload.
    sample = link.transfer(100_000, 1.0, 0.05)
    assert sample.finish_s - sample.first_byte_s == pytest.approx(0.8 / 1.394, rel=0.03)
    assert link.transfer(2_000, 50.0, 0.05).first_byte_s == 50.05


def test_a_training_session_counts_what_pensieve_counts():
    link = BinnedLink(constant(100e6))
    situation = draw_situation([link], np.random.default_rng(0))
    session = TrainingSession(situation)
    utility = situation.ladder.bitrate_bps / situation.ladder.bitrate_bps[-1]
    first = session.step(1)  # may rebuffer if the link is slow; this one is at 0.3..2.5 tops
    spent_s = session.observe().samples[-1].finish_s - session.observe().samples[-1].request_s
    late_s = max(spent_s - float(situation.ladder.segment_duration_s[0]), 0.0)
    assert first == pytest.approx(utility[1] - (utility[1] - utility[0]) - min(late_s, 10.0))
    while not session.done:
        session.step(0)


def test_training_resumes_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(abr_sessions, "half", lambda training: ["fcc-01", "hsdpa-20"])
    small = {"PpoConfig": {"sessions": 2, "steps": 8}, "PredictorConfig": {"sessions": 1, "batches": 2}}
    for module, config in ((ppo, "PpoConfig"), (transfer_times, "PredictorConfig")):
        monkeypatch.setattr(module, config, functools.partial(getattr(module, config), **small[config]))
    for name in ("pensieve", "fugu"):
        assert main([name, "--out", str(tmp_path), "--iterations", "1"]) == 0
        assert main([name, "--out", str(tmp_path), "--iterations", "2"]) == 0
        assert "resuming at iteration 1 of 2" in capsys.readouterr().err
        assert [row.split(",")[0] for row in (tmp_path / f"{name}.csv").read_text().splitlines()] == ["1", "2"]
        controller = create_abr(name, make_ladder(), buffer_capacity_s=20.0, weights=str(tmp_path / f"{name}.npz"))
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        trained = state["actor" if name == "pensieve" else "network"]["0.weight"].numpy()
        assert controller.network.layers[0][0] == pytest.approx(trained)


def test_a_broken_checkpoint_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(abr_sessions, "half", lambda training: ["fcc-01"])
    (tmp_path / "fugu.pt").write_bytes(b"nothing")
    assert main(["fugu", "--out", str(tmp_path), "--iterations", "1"]) == 1
    assert "not a checkpoint" in capsys.readouterr().err
