"""The bench of sessions: Sabre's link in place of ours, and what the command says."""

import numpy as np
import pytest

from experiments import bench_sessions
from traces import Trace


def test_sabres_link_takes_one_latency_and_the_rate_of_the_moment():
    trace = Trace("steps", np.repeat([500, 1500], [10, 20]), 2000)  # 10 packets in the first second, 20 in the next
    link = bench_sessions.SabreTransport(trace, 20.0)
    transfer = link.request(10 * 1504 // 2, 0.0)
    assert transfer.first_byte_s == pytest.approx(0.04)
    assert transfer.finish_s == pytest.approx(0.54)
    later = link.request(20 * 1504 // 2, 1.2)
    assert (later.request_s, later.finish_s) == pytest.approx((1.2, 1.2 + 0.04 + 0.5))


def test_a_missing_package_is_one_line(tmp_path, capsys):
    assert bench_sessions.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


def test_counts_below_one_are_refused(tmp_path, capsys):
    assert bench_sessions.main([str(tmp_path), "--sessions", "0"]) == 2
    assert "--sessions" in capsys.readouterr().err
