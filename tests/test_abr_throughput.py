"""Estimators on links with a known rate: bytes / time is biased at small objects, ours is not; and the rate rules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import (
    Ladder,
    NaiveEstimator,
    Observation,
    OptionError,
    PathModel,
    RateEstimate,
    SlowStartEstimator,
    ThroughputSample,
    create_abr,
    create_estimator,
)
from abr.path import split_spread, spread_s, window_after
from emulator import LinkConfig, create_transport
from traces import TraceConfig, load_trace

PATH = PathModel()
LINKS = [(rate_bps, rtt_s) for rate_bps in (1e6, 5e6, 20e6) for rtt_s in (0.04, 0.1)]


def closed_form_sample(size_bytes, request_s, *, rate_bps, rtt_s, path=PATH):
    """Deliver an object from the initial window over a constant link, round by round, and return what is seen.

    Deliberately not written with `abr.path`: this walks the packets. A packet of the next round is sent when a
    packet of the round before is acknowledged, two for one; the link serves one packet at a time.
    """
    packets = math.ceil((size_bytes + path.header_bytes) / path.mss_bytes)
    packet_s = 8 * path.mss_bytes / rate_bps
    one_way_s = (rtt_s - packet_s) / 2  # so that the first byte arrives after rtt_s
    sends = [request_s + one_way_s] * min(path.initial_window_packets, packets)
    arrivals, free_s = [], 0.0
    for index in range(packets):
        free_s = max(free_s, sends[index]) + packet_s
        arrivals.append(free_s + one_way_s)
        sends += [arrivals[-1] + one_way_s] * min(2, packets - len(sends))
    return ThroughputSample(size_bytes, request_s, arrivals[0], arrivals[-1])


def sequence(size_bytes, count=8, **link):
    return [closed_form_sample(size_bytes, 2.0 * index, **link) for index in range(count)]


# Path model


@pytest.mark.parametrize(
    ("size_bytes", "rate_bps", "expected_s"),
    [
        (5_000, 1e6, 3 * 11.584e-3),  # 4 packets with the header, one round: 3 packet times
        (14_230, 5e6, 9 * 2.3168e-3),  # 10 packets just fit the first round
        (14_231, 5e6, 0.04),  # an eleventh waits for the round trip, 40 ms > 10 x 2.3 ms
        (28_000, 5e6, 0.04 + 9 * 2.3168e-3),  # 20 packets: 10, silence, 10
        (28_000, 1e6, 19 * 11.584e-3),  # 10 x 11.6 ms > 40 ms: the first round fills the pipe
        (60_000, 20e6, 2 * 0.04 + 11 * 0.5792e-3),  # 42 packets: 10, 20, then 12
    ],
)
def test_spread_by_hand(size_bytes, rate_bps, expected_s):
    assert spread_s(PATH, size_bytes, window_packets=10, rtt_s=0.04, rate_bps=rate_bps) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("size_bytes", "window", "expected"),
    [(1_000, 10, 10), (8_000, 10, 12), (14_230, 10, 20), (28_000, 10, 20), (60_000, 10, 40), (5_000, 40, 40)],
)
def test_the_window_doubles_only_while_it_is_used(size_bytes, window, expected):
    assert window_after(PATH, size_bytes, window_packets=window) == expected


@settings(deadline=None)
@given(
    size_bytes=st.integers(5_000, 2_000_000),
    rate_bps=st.floats(1e5, 1e8),
    rtt_s=st.floats(0.001, 0.5),
    window=st.integers(2, 200),
    whole=st.booleans(),
)
def test_the_inverse_of_the_spread_is_the_rate_or_a_lower_bound(size_bytes, rate_bps, rtt_s, window, whole):
    path = PathModel(whole_packets=whole)
    measured_s = spread_s(path, size_bytes, window_packets=window, rtt_s=rtt_s, rate_bps=rate_bps)
    evidence = split_spread(path, size_bytes, measured_s, window_packets=window, rtt_s=rtt_s)
    if evidence.is_bound:
        assert evidence.bits <= rate_bps * evidence.busy_s * (1 + 1e-6) + 1.0
    else:
        assert evidence.bits == pytest.approx(rate_bps * evidence.busy_s, rel=1e-6, abs=1.0)


@settings(deadline=None)
@given(
    size_bytes=st.integers(1, 500_000),
    rates=st.tuples(st.floats(1e4, 1e8), st.floats(1e4, 1e8)),
    rtt_s=st.floats(0.001, 0.5),
)
def test_a_faster_link_is_never_slower(size_bytes, rates, rtt_s):
    slow_s, fast_s = (
        spread_s(PATH, size_bytes, window_packets=10, rtt_s=rtt_s, rate_bps=rate) for rate in sorted(rates)
    )
    assert fast_s <= slow_s * (1 + 1e-12)


# The headline: bias at small objects


@pytest.mark.parametrize(("rate_bps", "rtt_s"), LINKS)
def test_bytes_over_time_misreads_a_constant_link_at_5_kilobytes(rate_bps, rtt_s):
    samples = sequence(5_000, rate_bps=rate_bps, rtt_s=rtt_s)
    naive = NaiveEstimator().estimate(samples, 20.0)
    expected = {
        (1e6, 0.04): 0.535,
        (1e6, 0.1): 0.297,
        (5e6, 0.04): 0.170,
        (5e6, 0.1): 0.075,
        (20e6, 0.04): 0.048,
        (20e6, 0.1): 0.020,
    }
    assert naive.rate_bps / rate_bps == pytest.approx(expected[rate_bps, rtt_s], abs=0.002)


@pytest.mark.parametrize("mean", ["harmonic", "ewma"])
@pytest.mark.parametrize("size_bytes", [5_000, 12_000, 28_000, 100_000])
@pytest.mark.parametrize(("rate_bps", "rtt_s"), LINKS)
def test_ours_reads_the_rate_of_a_constant_link(rate_bps, rtt_s, size_bytes, mean):
    samples = sequence(size_bytes, rate_bps=rate_bps, rtt_s=rtt_s)
    estimate = SlowStartEstimator(mean=mean).estimate(samples, 20.0)
    if not estimate.is_bound:
        assert estimate.rate_bps == pytest.approx(rate_bps, rel=1e-6)
    else:  # only where the whole window's worth of packets takes about as long as the clock's grain
        assert estimate.rate_bps <= rate_bps * (1 + 1e-9)
        assert 8 * PATH.mss_bytes / rate_bps < 1e-3
    last = samples[-1]
    assert estimate.predict_transfer_s(size_bytes) == pytest.approx(last.finish_s - last.request_s, rel=0.02)


@pytest.mark.parametrize("model", ["fluid", "packet"])
@pytest.mark.parametrize(("rate_bps", "rtt_s"), LINKS)
@pytest.mark.parametrize("sizes", [(5_000,), (4_000, 9_000, 20_000, 40_000)])
def test_ours_reads_the_rate_of_an_emulated_link(rate_bps, rtt_s, sizes, model):
    """On Mahimahi's schedule of whole milliseconds: within 15 % on average, where naive misses most of the rate."""
    trace = load_trace(TraceConfig("constant", rate_bps=rate_bps))
    transport = create_transport(trace, LinkConfig(delay_ms=500 * rtt_s, model=model))
    samples, ratios, naive_ratios, now_s = [], [], [], 0.0
    for index in range(24):
        transfer = transport.request(sizes[index % len(sizes)], now_s)
        samples.append(
            ThroughputSample(transfer.size_bytes, transfer.request_s, transfer.first_byte_s, transfer.finish_s)
        )
        now_s = max(transfer.finish_s, now_s + 2.0) + 0.0137
        if index >= 4:
            estimate = SlowStartEstimator().estimate(samples, now_s)
            payload_bps = rate_bps * 1448 / 1504  # what the link carries besides headers
            ratios.append(estimate.rate_bps / payload_bps)
            naive_ratios.append(NaiveEstimator().estimate(samples, now_s).rate_bps / payload_bps)
            assert not estimate.is_bound
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)
    assert np.mean(naive_ratios) < 0.72


def test_ours_predicts_download_times_on_a_recorded_lte_link():
    """Objects of 2 to 12 kB every 2 s: ours is near the link's rate and times; naive reads a fraction of the rate."""
    trace = load_trace("lte")
    transport, now_s, samples = create_transport(trace, LinkConfig()), 0.0, []
    errors = {"slow_start": [], "naive": []}
    ratios = {"slow_start": [], "naive": []}
    for index in range(150):
        size_bytes = 2_000 + 2_500 * (index % 5)
        estimates = {name: create_estimator(name).estimate(samples, now_s) for name in errors}
        transfer = transport.request(size_bytes, now_s)
        if index >= 5:
            begin_s = samples[-5].request_s
            true_bps = 8 * trace.capacity_bytes(1000 * begin_s, 1000 * now_s) / (now_s - begin_s) * 1448 / 1504
            for name, estimate in estimates.items():
                took_s = transfer.finish_s - transfer.request_s
                errors[name].append(abs(math.log(estimate.predict_transfer_s(size_bytes) / took_s)))
                ratios[name].append(estimate.rate_bps / true_bps)
        samples.append(ThroughputSample(size_bytes, transfer.request_s, transfer.first_byte_s, transfer.finish_s))
        now_s = max(now_s + 2.0, transfer.finish_s)
    assert 0.8 < np.median(ratios["slow_start"]) < 1.1
    assert np.median(ratios["naive"]) < 0.25
    assert np.mean(errors["slow_start"]) < 0.75 * np.mean(errors["naive"])


def test_ours_reads_a_serial_link_that_counts_bytes():
    path = PathModel(whole_packets=False)
    # 5 kB and 250 B of header at 1 Mbit/s, RTT 40 ms: 3802 B follow the first packet
    sample = ThroughputSample(5_000, 0.0, 0.04, 0.04 + 8 * (5_250 - 1_448) / 1e6)
    assert SlowStartEstimator(path).estimate([sample], 1.0).rate_bps == pytest.approx(1e6)


# Where the rate cannot be told


def test_lone_packets_give_only_a_bound():
    samples = [ThroughputSample(1_000, 2.0 * index, 2.0 * index + 0.04, 2.0 * index + 0.04) for index in range(5)]
    estimate = SlowStartEstimator().estimate(samples, 10.0)
    assert estimate.is_bound
    assert estimate.rate_bps == pytest.approx(8 * 1_000 / 0.04)


def test_a_last_round_of_one_packet_gives_only_a_bound():
    samples = sequence(15_000, rate_bps=20e6, rtt_s=0.04)  # 11 packets
    estimate = SlowStartEstimator().estimate(samples, 20.0)
    assert estimate.is_bound
    assert estimate.rate_bps <= 20e6


def test_one_measured_transfer_beats_any_number_of_bounds():
    samples = [*sequence(1_000, rate_bps=5e6, rtt_s=0.04), closed_form_sample(12_000, 20.0, rate_bps=5e6, rtt_s=0.04)]
    estimate = SlowStartEstimator().estimate(samples, 21.0)
    assert not estimate.is_bound
    assert estimate.rate_bps == pytest.approx(5e6)


def test_a_sender_with_a_larger_window_than_assumed_is_not_overrated():
    path = PathModel(initial_window_packets=32)
    samples = [closed_form_sample(28_000, 2.0 * i, rate_bps=5e6, rtt_s=0.1, path=path) for i in range(5)]
    estimate = SlowStartEstimator().estimate(samples, 10.0)  # assumes 10, so expects a silence of 100 ms
    assert estimate.is_bound
    assert 0.95 * 5e6 <= estimate.rate_bps <= 5e6


def test_an_outage_before_the_first_byte_counts():
    samples = sequence(5_000, rate_bps=5e6, rtt_s=0.04)
    late = closed_form_sample(5_000, 16.0, rate_bps=5e6, rtt_s=0.04)
    samples.append(ThroughputSample(5_000, 16.0, late.first_byte_s + 3.0, late.finish_s + 3.0))
    assert SlowStartEstimator().estimate(samples, 20.0).rate_bps < 0.1e6


def test_the_handshake_of_the_first_request_is_no_outage():
    first = closed_form_sample(5_000, 0.1, rate_bps=5e6, rtt_s=0.1)
    first = ThroughputSample(5_000, 0.0, first.first_byte_s, first.finish_s)  # one round trip earlier
    samples = [first, *(closed_form_sample(5_000, 2.0 * i, rate_bps=5e6, rtt_s=0.1) for i in range(1, 4))]
    assert SlowStartEstimator().estimate(samples, 10.0).rate_bps == pytest.approx(5e6, rel=1e-6)


def test_a_pause_of_a_day_forgets_nothing():
    samples = sequence(5_000, rate_bps=1e6, rtt_s=0.04)
    estimate = SlowStartEstimator(mean="ewma").estimate(samples, 86_400.0)
    assert not estimate.is_bound
    assert estimate.rate_bps == pytest.approx(1e6)


def test_the_fast_mean_follows_a_drop_and_the_slow_one_delays_a_rise():
    fast = [closed_form_sample(12_000, 2.0 * i, rate_bps=10e6, rtt_s=0.04) for i in range(10)]
    slow = [closed_form_sample(12_000, 20.0 + 2.0 * i, rate_bps=1e6, rtt_s=0.04) for i in range(3)]
    estimator = SlowStartEstimator(mean="ewma")
    assert estimator.estimate(fast + slow, 25.0).rate_bps < 1.5e6
    again = [closed_form_sample(12_000, 26.0 + 2.0 * i, rate_bps=10e6, rtt_s=0.04) for i in range(3)]
    assert estimator.estimate(fast + slow + again, 31.0).rate_bps < 4e6


# The naive estimator, by hand


def timed(*rates_bps, seconds=1.0):
    return [
        ThroughputSample(int(rate * seconds / 8), 2.0 * i, 2.0 * i, 2.0 * i + seconds)
        for i, rate in enumerate(rates_bps)
    ]


@pytest.mark.parametrize(
    ("rates_bps", "window", "expected_bps"),
    [
        ((1e6, 2e6, 4e6), 5, 3 / (1 + 1 / 2 + 1 / 4) * 1e6),  # 1.714 Mbit/s
        ((8e6, 8e6, 1e6), 5, 3 / (1 / 8 + 1 / 8 + 1) * 1e6),  # a dip weighs most: 2.4
        ((1e6, 4e6, 4e6, 4e6, 4e6, 4e6), 5, 4e6),  # the sixth before is forgotten
        ((4e6, 1e6), 1, 1e6),
    ],
)
def test_harmonic_mean_by_hand(rates_bps, window, expected_bps):
    estimate = create_estimator("naive", window=window).estimate(timed(*rates_bps), 20.0)
    assert estimate.rate_bps == pytest.approx(expected_bps)
    assert not estimate.is_bound


def test_ewma_by_hand():
    # One second each at 1 then 4 Mbit/s; weights 0.5^(1/3) and 1 for the fast mean, 0.5^(1/8) and 1 for the slow one.
    fast, slow = 0.5 ** (1 / 3), 0.5 ** (1 / 8)
    expected = min((fast * 1 + 4) / (fast + 1), (slow * 1 + 4) / (slow + 1)) * 1e6
    estimator = create_estimator("naive", mean="ewma")
    assert estimator.estimate(timed(1e6, 4e6), 5.0).rate_bps == pytest.approx(expected)
    expected = min((fast * 4 + 1) / (fast + 1), (slow * 4 + 1) / (slow + 1)) * 1e6
    assert estimator.estimate(timed(4e6, 1e6), 5.0).rate_bps == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "unknown estimator 'magic'; known: naive, slow_start"),
        ("naive", {"mean": "median"}, "unknown mean"),
        ("slow_start", {"window": 0}, "window must be in"),
        ("slow_start", {"fast_half_life_s": 0.0}, "fast_half_life_s must be positive"),
    ],
)
def test_estimators_refuse(name, options, message):
    with pytest.raises(OptionError, match=message):
        create_estimator(name, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_window_packets": 0},
        {"mss_bytes": 0},
        {"header_bytes": -1},
        {"idle_restart_s": -1},
        {"resolution_s": 0},
    ],
)
def test_a_path_model_refuses(options):
    with pytest.raises(OptionError):
        PathModel(**options)


def test_no_transfer_no_estimate():
    assert SlowStartEstimator().estimate([], 0.0) is None
    assert NaiveEstimator().estimate([], 0.0) is None


# The rate rules


def make_ladder(rates_bps, duration_s=2.0):
    sizes = np.round(np.outer([duration_s] * 4, rates_bps) / 8)
    return Ladder(np.array(rates_bps, dtype=float), sizes, [duration_s] * 4)


LADDER = make_ladder([0.5e6, 1e6, 2e6, 4e6])


def decide(controller, samples=(), *, buffer_s=10.0, last=0, playing=True):
    now_s = samples[-1].finish_s if samples else 0.0
    observation = Observation(now_s, 0, buffer_s, 20.0, last, tuple(samples), playing)
    return controller.choose(observation)


@pytest.mark.parametrize("name", ["throughput", "ewma"])
def test_the_first_segment_is_the_lowest(name):
    decision = decide(create_abr(name, LADDER, buffer_capacity_s=20.0))
    assert (decision.representation, decision.wait_s, decision.estimate_bps) == (0, 0.0, None)


@pytest.mark.parametrize(
    ("rate_bps", "safety", "expected"),
    [(1e6, 0.9, 0), (1.2e6, 0.9, 1), (2e6, 1.0, 2), (2e6, 0.9, 1), (100e6, 0.9, 3), (0.1e6, 0.9, 0)],
)
def test_the_naive_rule_takes_the_highest_bitrate_within_the_safe_rate(rate_bps, safety, expected):
    controller = create_abr("throughput", LADDER, buffer_capacity_s=20.0, estimator="naive", safety=safety)
    decision = decide(controller, timed(rate_bps, rate_bps))
    assert decision.representation == expected
    assert decision.estimate_bps == pytest.approx(rate_bps)


@pytest.mark.parametrize(("rate_bps", "rtt_s"), LINKS)
def test_small_objects_do_not_hold_ours_down(rate_bps, rtt_s):
    """After 5 kB objects the naive rule picks a fraction of the link; ours what really downloads in time."""
    ladder = make_ladder([rate_bps * share for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)])
    samples = sequence(5_000, rate_bps=rate_bps, rtt_s=rtt_s)
    chosen = decide(create_abr("throughput", ladder, buffer_capacity_s=20.0), samples).representation
    naive = decide(create_abr("throughput", ladder, buffer_capacity_s=20.0, estimator="naive"), samples).representation
    times_s = [
        (sample := closed_form_sample(int(size), 30.0, rate_bps=rate_bps, rtt_s=rtt_s)).finish_s - sample.request_s
        for size in ladder.segment_bytes[0]
    ]
    best = max(index for index, time_s in enumerate(times_s) if time_s <= 0.9 * 2.0)
    assert chosen == best
    assert naive < best


def test_a_bound_does_not_hold_quality_down():
    # The lowest is one packet, which cannot measure anything: 8 kbit in 0.1 s bound the link by 80 kbit/s. At that rate
    # the next would take 3.1 s, more than a segment lasts.
    samples = sequence(1_000, rate_bps=50e6, rtt_s=0.1)
    controller = create_abr("throughput", make_ladder([4e3, 125e3, 2e6, 4e6]), buffer_capacity_s=20.0)
    assert decide(controller, samples, last=0, buffer_s=2.0).representation == 0
    decision = decide(controller, samples, last=0, buffer_s=4.0)
    assert decision.representation == 1
    assert "one step up" in decision.reason
    assert decide(controller, samples, last=0, buffer_s=0.0, playing=False).representation == 1
    assert decide(controller, samples, last=1, buffer_s=9.0).representation == 0  # 50 s for the one above, 9 s buffered
    assert decide(controller, samples, last=1, buffer_s=10.0).representation == 2  # half full: risk it


def test_the_real_size_of_the_next_segment_counts():
    sizes = [[125_000, 500_000], [125_000, 200_000]]
    ladder = Ladder([0.5e6, 1.4e6], sizes, [2.0, 2.0])
    controller = create_abr("throughput", ladder, buffer_capacity_s=20.0, estimator="naive")
    samples = tuple(timed(1e6))
    choices = [controller.choose(Observation(5.0, index, 5.0, 20.0, 0, samples)).representation for index in (0, 1)]
    assert choices == [0, 1]


def test_predicted_times_of_the_naive_estimate_are_bytes_over_rate():
    estimate = RateEstimate(1e6, False, 0.0, 10, PATH)
    assert estimate.predict_transfer_s(125_000) == 1.0


@settings(deadline=None)
@given(
    rates=st.lists(st.integers(1, 10_000), min_size=1, max_size=6).map(lambda r: [1e3 * x for x in sorted(r)]),
    transfers=st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(0, 2), st.floats(0, 5), st.floats(0, 3)), max_size=30
    ),
    name=st.sampled_from(["throughput", "ewma"]),
    estimator=st.sampled_from(["slow_start", "naive"]),
    data=st.data(),
)
def test_any_history_gives_a_valid_decision(rates, transfers, name, estimator, data):
    ladder = make_ladder(rates)
    samples, now_s = [], 0.0
    for size, first_s, spread, gap_s in transfers:
        samples.append(ThroughputSample(size, now_s, now_s + first_s, now_s + first_s + spread))
        now_s = samples[-1].finish_s + gap_s
    controller = create_abr(name, ladder, buffer_capacity_s=20.0, estimator=estimator)
    last = data.draw(st.none() | st.integers(0, len(rates) - 1))
    decision = decide(controller, samples, last=last)
    assert 0 <= decision.representation < len(rates)
    assert decision.wait_s == 0
    assert (decision.estimate_bps is None) == (not samples)
    if samples:
        assert math.isfinite(decision.estimate_bps)
        assert decision.estimate_bps > 0
