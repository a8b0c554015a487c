"""Bjontegaard deltas: known values, another implementation's numbers, and no number where curves do not overlap."""

import numpy as np
import pytest

from experiments.bd_rate import Curve, bd_quality, bd_rate, crossings

# HEVC reference against VVC-like points, and what `bjontegaard` 1.3.0 (PyPI) says of them with method="pchip".
RATES_A, PSNR_A = [9487.76, 4593.60, 2486.44, 1358.24], [40.037, 38.615, 36.845, 34.851]
RATES_B, PSNR_B = [9787.80, 4469.00, 2451.52, 1356.24], [40.121, 38.651, 36.970, 34.987]


def test_half_the_rate_is_minus_fifty_percent():
    anchor = Curve.of([10, 20, 40, 80], [1, 2, 3, 4])
    test = Curve.of([5, 10, 20, 40], [1, 2, 3, 4])
    assert bd_rate(anchor, test).value == pytest.approx(-0.5)
    assert bd_rate(test, anchor).value == pytest.approx(1.0)
    assert bd_quality(anchor, test).value == pytest.approx(1.0, abs=0.05)


def test_the_numbers_of_another_implementation():
    anchor, test = Curve.of(RATES_A, PSNR_A), Curve.of(RATES_B, PSNR_B)
    assert 100 * bd_rate(anchor, test).value == pytest.approx(-4.41749, abs=1e-4)
    assert bd_quality(anchor, test).value == pytest.approx(0.11969, abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_any_monotone_curves_agree_with_another_implementation(seed):
    bjontegaard = pytest.importorskip("bjontegaard", reason="the package bjontegaard is not installed")
    random = np.random.default_rng(seed)
    curves = [(np.cumsum(random.uniform(1, 9, 6)), np.cumsum(random.uniform(0.5, 2, 6))) for _ in range(2)]
    theirs = bjontegaard.bd_rate(*curves[0], *curves[1], method="pchip", require_matching_points=False, min_overlap=0)
    ours = bd_rate(Curve.of(*curves[0]), Curve.of(*curves[1])).value
    assert 100 * ours == pytest.approx(theirs, rel=1e-6)


def test_metrics_where_lower_is_better_are_turned_round():
    anchor = Curve.of([10, 20, 40], [0.3, 0.2, 0.1], higher_is_better=False)
    test = Curve.of([10, 20, 40], [0.25, 0.15, 0.05], higher_is_better=False)
    assert bd_rate(anchor, test).value < 0
    assert bd_quality(anchor, test).value == pytest.approx(0.05)


def test_points_that_a_cheaper_one_equals_do_not_count():
    curve = Curve.of([40, 10, 20, 20, 30], [3, 1, 2, 1.5, 1.9])
    assert curve.quality.tolist() == [1, 2, 3]
    assert np.exp(curve.log_rate).tolist() == pytest.approx([10, 20, 40])


@pytest.mark.parametrize(
    ("rates", "values", "reason"),
    [
        ([10, 20, 40], [5, 6, 7], "no overlap, qualities all higher"),
        ([10, 20, 40], [-3, -2, 0], "no overlap, qualities all lower"),
        ([10, 20, 40], [3.9, 5, 9], "overlap of 3 % only"),
        ([10], [2], "fewer than two points"),
        ([10, 20], [2, 2], "fewer than two points"),
    ],
)
def test_without_overlap_there_is_a_reason_and_no_number(rates, values, reason):
    delta = bd_rate(Curve.of([10, 20, 40, 80], [1, 2, 3, 4]), Curve.of(rates, values))
    assert (delta.value, delta.reason) == (None, reason)


def test_crossings_are_found_with_their_direction():
    anchor = Curve.of([10, 20, 40, 80], [1, 2, 3, 4])
    test = Curve.of([10, 20, 40, 80], [1.5, 2.1, 2.9, 3.5])
    (found,) = crossings(anchor, test)
    assert 20 < found.rate_bps < 40
    assert not found.better_above
    assert crossings(anchor, anchor) == []
    assert crossings(anchor, Curve.of([100, 200], [1, 2])) == []
