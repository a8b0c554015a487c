"""What tables call better: only what LPIPS, or its estimate under its own name, and SSIMULACRA2 both find so."""

from typing import Any

import pytest

from experiments.series import HEADLINE_METRICS, METRICS, agreed_best, agreement_metric
from experiments.tables import _rows
from player.quality import METRIC_NAMES


def scores(lpips: float | None, ssimulacra2: float, name: str = "lpips_squeeze") -> dict[str, Any]:
    return {name: lpips, "ssimulacra2": ssimulacra2, "psnr_db": 30.0}


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([scores(0.1, 40), scores(0.2, 30)], 0),
        ([scores(0.3, 10), scores(0.2, 30), scores(0.25, 20)], 1),
        ([scores(0.1, 20), scores(0.2, 30)], None),  # they disagree
        ([scores(0.1, 40), scores(0.1, 30)], None),  # a tie
        ([scores(0.1, 40), scores(None, 30)], None),  # not measured
        ([scores(0.1, 40), scores(0.2, 30, "lpips_vgg")], None),  # not the same metric
        ([scores(0.1, 40)], None),
        ([], None),
    ],
)
def test_better_is_what_both_metrics_find_better(measured: list[dict[str, Any]], best: int | None) -> None:
    assert agreed_best(measured) == best


def test_the_estimate_stands_in_where_lpips_was_not_measured() -> None:
    assert agreement_metric([scores(0.1, 40, "lpips_embedded")] * 2) == "lpips_embedded"
    both = scores(0.1, 40) | scores(0.1, 40, "lpips_embedded")
    assert agreement_metric([both, both]) == "lpips_squeeze"


def test_the_estimate_is_never_called_lpips() -> None:
    assert METRICS["lpips_embedded"].title == "lpips-embedded"
    assert set(METRICS) == set(HEADLINE_METRICS) == set(METRIC_NAMES)


def test_the_table_says_who_is_better_by_both() -> None:
    summary = {
        "severe_metric": None, "media_bitrate_bps": 1.0, "mean_bitrate_bps": 1.0, "received_bytes": 1,
        "startup_delay_s": 1.0, "rebuffering_ratio": 0.0, "rebuffering_count": 0, "skipped_segments": 0, "switches": 0,
        "ladder_bps": [1.0],
    }  # fmt: skip
    qualities = [scores(0.2, 30, "lpips_embedded"), scores(0.1, 40, "lpips_embedded")]
    rows = dict(_rows([summary | {"quality": quality} for quality in qualities]))
    assert rows["lpips-embedded, mean (lower is better)"] == ["0.200", "0.100"]
    assert rows["Better by both lpips-embedded and SSIMULACRA2"] == ["no", "yes"]
    alone = dict(_rows([summary | {"quality": qualities[0]}]))
    assert not any(label.startswith("Better by both") for label in alone)
