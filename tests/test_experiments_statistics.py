"""Intervals by trace and paired comparisons."""

import numpy as np
import pandas as pd
import pytest

from experiments.errors import ExperimentError
from experiments.statistics import compare, interval


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
