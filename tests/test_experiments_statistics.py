"""Intervals by trace and paired comparisons."""

import numpy as np
import pandas as pd
import pytest

from experiments.errors import ExperimentError
from experiments.statistics import compare, interval, pair, reduction


def sessions(values: dict[str, list[float]], column: str = "qoe") -> pd.DataFrame:
    rows = [(trace, 1, float(k), value) for trace, series in values.items() for k, value in enumerate(series)]
    return pd.DataFrame(rows, columns=["trace", "share", "offset_s", column])


def test_an_interval_is_that_of_traces_not_of_sessions() -> None:
    few = interval(sessions({"a": [0.0] * 50, "b": [1.0] * 50}), "qoe")
    assert (few.mean, few.low, few.high, few.sessions, few.traces) == (0.5, 0.0, 1.0, 100, 2)
    many = interval(sessions({str(k): [float(k % 2)] for k in range(100)}), "qoe")
    assert many.mean == 0.5
    assert 0.05 < many.high - 0.5 < 0.15


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        table = sessions({str(k): [value] for k, value in enumerate(generator.normal(3.0, 1.0, 40))})
        found = interval(table, "qoe", draws=500)
        hits += found.low <= 3.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairs_tell_what_intervals_alone_do_not() -> None:
    generator = np.random.default_rng(2)
    level = generator.normal(0.0, 5.0, 40)
    a = sessions({str(k): [x + 0.5 + 0.1 * generator.normal()] for k, x in enumerate(level)})
    b = sessions({str(k): [x] for k, x in enumerate(level)})
    found = compare(a, b, "qoe")
    assert found.overlap
    assert found.is_clear
    assert found.difference.low == pytest.approx(0.5, abs=0.1)
    assert found.higher_share == 1.0
    assert found.effect_size > 3


def test_equal_schemes_are_not_told_apart() -> None:
    table = sessions({str(k): [float(k)] for k in range(10)})
    found = compare(table, table, "qoe")
    assert not found.is_clear
    assert found.overlap
    assert found.higher_share == 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    table = sessions({"a": [1.0, 2.0]})
    with pytest.raises(ExperimentError, match="no trace and offset in common"):
        compare(table, sessions({"b": [1.0]}), "qoe")
    with pytest.raises(ExperimentError, match="several sessions over one link"):
        compare(pd.concat([table, table]), table, "qoe")


def test_a_small_example_is_as_by_hand() -> None:
    """Trace a: differences 1 and 3; trace b: 5. Means over traces 2 and 5, so d = 3.5 / (3 / sqrt 2)."""
    a, b = sessions({"a": [2.0, 5.0], "b": [6.0]}), sessions({"a": [1.0, 2.0], "b": [1.0]})
    found = compare(a, b, "qoe")
    assert found.difference.mean == pytest.approx(3.0)
    # Two traces: aa, ab, ba or bb with equal chance; their means over sessions are 2, 3, 3 and 5.
    assert (found.difference.low, found.difference.high) == (2.0, 5.0)
    assert found.effect_size == pytest.approx(3.5 / (3 / np.sqrt(2)))
    assert (found.difference.sessions, found.difference.traces, found.higher_share) == (3, 2, 1.0)
    pairs = pair(a, b, ["qoe"])
    assert reduction(pairs, "qoe").mean == pytest.approx(1 - 13 / 4)
    assert (reduction(pairs, "qoe").low, reduction(pairs, "qoe").high) == (
        pytest.approx(-5.0),
        pytest.approx(1 - 7 / 3),
    )


def test_the_share_of_a_trace_s_sessions_does_not_narrow_an_interval() -> None:
    """20 traces of unequal numbers of sessions, alike within a trace: intervals by trace cover, by session do not."""
    generator = np.random.default_rng(3)
    by_trace = by_session = 0
    for _ in range(300):
        levels = generator.normal(0.0, 1.0, 20)
        table = sessions({str(k): list(x + generator.normal(0.0, 0.2, 4 + k % 5)) for k, x in enumerate(levels)})
        found = interval(table, "qoe", draws=400)
        by_trace += found.low <= 0.0 <= found.high
        alone = interval(table.assign(trace=np.arange(len(table)).astype(str)), "qoe", draws=400)
        by_session += alone.low <= 0.0 <= alone.high
    assert 0.88 <= by_trace / 300 <= 0.97
    assert by_session / 300 < 0.7


def test_pairs_have_equal_video_seed_and_swept_keys() -> None:
    """A scheme that is 1 ahead under every condition is 1 ahead in every pair, however conditions differ."""
    grid = [
        (trace, video, seed, delay) for trace in "pq" for video in ("u", "v") for seed in (0, 1) for delay in (20, 90)
    ]
    table = pd.DataFrame(grid, columns=["trace", "video", "seed", "link.delay_ms"]).assign(share=1, offset_s=0.0)
    table["qoe"] = np.random.default_rng(4).normal(0.0, 10.0, len(table))
    shuffled = table.assign(qoe=table["qoe"] + 1).sample(frac=1, random_state=0)
    found = compare(shuffled, table, "qoe")
    assert found.difference.sessions == len(table)
    assert (found.difference.low, found.difference.high) == (pytest.approx(1.0), pytest.approx(1.0))
    fewer = compare(shuffled[shuffled["video"] == "u"], table, "qoe")
    assert fewer.difference.sessions == len(table) / 2
