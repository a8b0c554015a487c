"""The session's rules by hand, its misuse, and what must hold for any network, ladder, controller and renderer."""

import itertools
import math
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abr import AbrConfig, AbrError, Decision, Ladder
from player.config import PlayerConfig
from player.errors import SessionError
from player.events import SegmentPlayed, SegmentSkipped
from player.playback import PlaybackState
from player.session import Finished, Request, Session, Wait


def make_ladder(durations_s=(2.0,) * 5, rates_bps=(100e3, 200e3, 400e3), **extra):
    sizes = [[max(round(duration * rate / 8), 1) for rate in rates_bps] for duration in durations_s]
    return Ladder(rates_bps, sizes, durations_s, **extra)


@dataclass
class Script:
    """A controller that says what it is told, and keeps what it saw."""

    choices: list
    wait_s: float = 0.0

    def __post_init__(self):
        self.seen = []

    def choose(self, observation):
        self.seen.append(observation)
        index = min(len(self.seen) - 1, len(self.choices) - 1)
        return Decision(self.choices[index], self.wait_s, estimate_bps=1e6, reason="script")


@dataclass
class Done:
    """A finished transfer."""

    request_s: float
    first_byte_s: float
    finish_s: float
    size_bytes: int


def make_session(choices=(0,), *, ladder=None, wait_s=0.0, **config):
    return Session(ladder or make_ladder(), Script(list(choices), wait_s), PlayerConfig(**config))


def fetch(session, now_s, took_s=0.5, *, render=True):
    """Answer the request due at `now_s` after `took_s`; return the time and the segment."""
    request = session.next_action(now_s)
    assert isinstance(request, Request), request
    finish_s = now_s + took_s
    session.on_complete(finish_s, Done(now_s, now_s + took_s / 2, finish_s, request.size_bytes))
    if render:
        session.on_rendered(finish_s, request.segment)
    return finish_s, request.segment


def names(session):
    return [(round(event.time_s, 9), event.name, event.segment) for event in session.events()]


# By hand


def test_a_session_by_hand():
    """Three segments of 2 s, startup at 2 s: downloads of 0.5, 0.5 and 4 s, so 1 s of rebuffering."""
    session = make_session([0, 1, 1], ladder=make_ladder((2.0,) * 3))
    now_s, _ = fetch(session, 10.0)
    assert session.state is PlaybackState.PLAYING
    now_s, _ = fetch(session, now_s)
    assert session.buffer_s == pytest.approx(3.5)
    now_s, _ = fetch(session, now_s, 4.0)
    assert now_s == 15.0
    action = session.next_action(now_s)
    assert action == Wait(17.0)
    assert session.next_action(17.0) == Finished()
    assert names(session) == [
        (10.5, "startup", 0),
        (10.5, "play", 0),
        (12.5, "switch", 1),
        (12.5, "play", 1),
        (14.5, "rebuffering_start", 2),
        (15.0, "rebuffering_end", 2),
        (15.0, "play", 2),
        (17.0, "end", 2),
    ]
    summary = session.log().summary
    assert summary["startup_delay_s"] == 0.5
    assert summary["played_s"] == 6.0
    assert summary["rebuffered_s"] == pytest.approx(0.5)
    assert summary["elapsed_s"] == 7.0
    assert summary["rebuffering_ratio"] == pytest.approx(0.5 / 6.5)
    assert (summary["rebuffering_count"], summary["switches"]) == (1, 1)
    assert summary["mean_bitrate_bps"] == pytest.approx((100e3 + 200e3 + 200e3) / 3)


def test_playback_waits_for_the_startup_threshold():
    session = make_session(startup_s=5.0)
    now_s = 0.0
    for expected in (PlaybackState.STARTUP, PlaybackState.STARTUP, PlaybackState.PLAYING):
        now_s, _ = fetch(session, now_s)
        assert session.state is expected
    assert session.log().summary["startup_delay_s"] == 1.5


def test_playback_resumes_at_its_own_threshold():
    session = make_session(startup_s=2.0, rebuffer_s=4.0)
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s, 3.0)  # runs out at 2.5, arrives at 3.5
    assert session.state is PlaybackState.REBUFFERING
    now_s, _ = fetch(session, now_s, 0.5)
    assert session.state is PlaybackState.PLAYING
    assert session.log().summary["rebuffered_s"] == pytest.approx(1.5)


def test_the_end_of_the_programme_needs_no_threshold():
    session = make_session(ladder=make_ladder((2.0, 1.0)), startup_s=10.0)
    now_s, _ = fetch(session, 0.0)
    assert session.state is PlaybackState.STARTUP
    now_s, _ = fetch(session, now_s)
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(now_s) == Wait(4.0)
    assert session.next_action(4.0) == Finished()


def test_a_full_buffer_starts_playback_below_the_threshold():
    session = make_session(buffer_s=5.0, startup_s=8.0)
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s)  # 4 s; a third segment does not fit
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(now_s) == Wait(2.0)  # one second must play


def test_the_buffer_cap_holds_requests_back():
    session = make_session(buffer_s=6.0)
    now_s = 0.0
    for _ in range(3):
        now_s, _ = fetch(session, now_s, 0.25)
    assert session.buffer_s == pytest.approx(5.5)
    action = session.next_action(now_s)
    assert action == Wait(pytest.approx(2.25))
    assert isinstance(session.next_action(action.until_s), Request)
    assert session.buffer_s == pytest.approx(4.0)


def test_a_segment_longer_than_the_cap_is_fetched_on_an_empty_buffer(caplog):
    session = make_session(ladder=make_ladder((8.0, 8.0)), buffer_s=5.0, startup_s=2.0)
    assert "do not fit in player.buffer_s=5" in caplog.text
    assert session.capacity_s == 8.0
    now_s, _ = fetch(session, 0.0)
    action = session.next_action(now_s)
    assert action == Wait(8.5)
    now_s, _ = fetch(session, 8.5)
    assert session.state is PlaybackState.PLAYING
    assert session.log().summary["rebuffered_s"] == pytest.approx(0.5)


def test_only_rendered_media_plays_but_all_of_it_counts_towards_the_cap():
    session = make_session(buffer_s=4.0)
    now_s, _ = fetch(session, 0.0, render=False)
    now_s, _ = fetch(session, now_s, render=False)
    assert (session.state, session.buffer_s, session.playable_s) == (PlaybackState.STARTUP, 4.0, 0.0)
    assert session.next_action(now_s) == Wait(math.inf)
    session.on_rendered(3.0, 0)
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(5.0) == Request(2, 0, 25_000, 60.0)  # segment 0 has just played out
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(5.5) == Wait(65.0)
    assert session.state is PlaybackState.REBUFFERING
    session.on_rendered(6.0, 1)
    assert session.log().summary["rebuffered_s"] == pytest.approx(1.0)
    rows = session.log().segments
    assert [row["render_s"] for row in rows] == [2.5, 3.0, None]


def test_slow_rendering_at_the_end_is_waited_for():
    session = make_session(ladder=make_ladder((2.0,)))
    now_s, _ = fetch(session, 0.0, render=False)
    assert session.next_action(now_s) == Wait(math.inf)
    session.on_rendered(4.0, 0)
    assert session.next_action(4.0) == Wait(6.0)
    assert session.next_action(100.0) == Finished()  # a late driver does not stretch the session
    assert session.log().summary["elapsed_s"] == 6.0
    assert session.log().summary["startup_delay_s"] == 4.0


def test_media_rendered_at_the_very_end_of_the_buffer_is_no_rebuffering():
    session = make_session()
    now_s, _ = fetch(session, 0.0, 1.0)
    fetch(session, now_s, 2.0)  # arrives at 3.0, when the first segment has just played out
    assert session.state is PlaybackState.PLAYING
    assert session.log().summary["rebuffering_count"] == 0


# Concealment


@pytest.mark.parametrize(
    ("late_s", "concealed_s", "rebuffered_s", "events"),
    [
        (0.5, 0.5, 0.0, [(2.5, "concealment_start"), (3.0, "concealment_end")]),
        (3.0, 1.0, 2.0, [(2.5, "concealment_start"), (3.5, "concealment_end"), (3.5, "rebuffering_start"),
                         (5.5, "rebuffering_end")]),
    ],
)  # fmt: skip
def test_a_stop_is_concealed_for_a_while(late_s, concealed_s, rebuffered_s, events):
    """The first segment plays from 0.5 to 2.5; the second comes late."""
    session = make_session(ladder=make_ladder((2.0,) * 2), conceal_s=1.0)
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s, 2.0 + late_s)
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(now_s + 2.0) == Finished()
    summary = session.log().summary
    assert (summary["concealed_s"], summary["rebuffered_s"]) == pytest.approx((concealed_s, rebuffered_s))
    assert (summary["played_s"], summary["elapsed_s"]) == pytest.approx((4.0, 4.5 + late_s))
    stops = [(time_s, name) for time_s, name, _ in names(session) if "concealment" in name or "rebuffering" in name]
    assert stops == events


def test_what_the_viewer_sees_of_a_concealed_stop():
    session = make_session(conceal_s=1.0)
    now_s, _ = fetch(session, 0.0)
    session.next_action(now_s)
    for time_s, state in ((2.5, "playing"), (2.6, "concealing"), (3.4, "concealing"), (3.6, "rebuffering")):
        session.next_action(time_s)
        assert session.state.value == state


# The controller's pause


def test_the_controllers_pause_is_honoured():
    session = make_session(wait_s=1.5)
    now_s, _ = fetch(session, 0.0)  # at startup it would only delay: not granted
    assert session.next_action(now_s) == Wait(2.0)
    assert isinstance(session.next_action(2.0), Request)
    assert [row["wait_s"] for row in session.log().segments] == [0.0, 1.5]


def test_the_controllers_pause_never_drains_the_buffer():
    session = make_session(wait_s=100.0)
    now_s, _ = fetch(session, 0.0)
    assert session.next_action(now_s) == Wait(2.5)
    assert isinstance(session.next_action(2.5), Request)


def test_the_players_least_pause_is_kept_while_playing():
    session = make_session(min_wait_s=0.75)
    now_s, _ = fetch(session, 0.0)
    assert session.next_action(now_s) == Wait(1.25)
    assert [row["wait_s"] for row in session.log().segments] == [0.0, 0.75]


def test_the_players_low_buffer_rule_holds_over_any_controller():
    """25 kB in 0.5 s after 0.5 s of waiting: half of 1.5 s of buffer is enough for 0, not for 1."""
    session = make_session([0, 2], low_buffer_share=0.5)
    request = session.next_action(0.0)
    session.on_complete(1.0, Done(0.0, 0.5, 1.0, request.size_bytes))
    session.on_rendered(1.0, 0)
    assert session.next_action(1.5).representation == 0
    assert make_session([2], low_buffer_share=0.5).next_action(0.0).representation == 2  # nothing is known yet


@pytest.mark.parametrize(
    "decision", [Decision(3), Decision(-1), Decision(0.5), Decision(0, math.nan), Decision(0, -1.0), 2]
)
def test_an_impossible_decision_is_refused(decision):
    session = make_session()
    session.controller.choose = lambda observation: decision
    with pytest.raises(AbrError, match="controller Script"):
        session.next_action(0.0)


def test_what_the_controller_sees():
    session = make_session([0, 2], ladder=make_ladder((2.0,) * 3))
    fetch(session, 5.0, render=False)
    session.on_rendered(6.5, 0)  # one second of rendering for two of media
    session.next_action(7.0)
    first, second = session.controller.seen
    assert (first.now_s, first.segment_index, first.last_representation, first.samples) == (5.0, 0, None, ())
    assert (first.playing, first.render_speed, first.buffer_s) == (False, None, 0.0)
    assert (second.now_s, second.segment_index, second.last_representation) == (7.0, 1, 0)
    assert (second.playing, second.render_speed, second.buffer_s) == (True, 2.0, 1.5)
    assert [sample.size_bytes for sample in second.samples] == [25_000]


# Failures


def fail(session, now_s, reason="timeout", received_bytes=0, **extra):
    request = session.next_action(now_s)
    assert isinstance(request, Request), request
    session.on_error(now_s + 1.0, reason, received_bytes, **extra)
    return now_s + 1.0, request.representation


def test_retries_pause_longer_each_time_then_fall_to_the_lowest_then_leave_a_gap():
    session = make_session([0, 2, 0], ladder=make_ladder((2.0,) * 3), retries=2, backoff_s=1.0)
    now_s, _ = fetch(session, 0.0)
    attempts = []
    while True:
        action = session.next_action(now_s)
        if isinstance(action, Wait):
            attempts.append(action.until_s - now_s)
            now_s = action.until_s
            continue
        if action.segment == 2:
            break
        now_s += 1.0
        session.on_error(now_s, "timeout", 10)
        attempts.append(action.representation)
    assert attempts == [2, 1.0, 2, 2.0, 2, 1.0, 0, 1.0, 0, 2.0, 0]
    row = session.log().segments[1]
    assert (row["skipped"], row["downloaded"], row["retries"], row["wasted_bytes"]) == (True, False, 5, 60)
    session.on_complete(now_s + 1.0, Done(now_s, now_s + 0.5, now_s + 1.0, action.size_bytes))
    session.on_rendered(now_s + 1.0, 2)
    assert session.next_action(now_s + 3.0) == Finished()
    summary = session.log().summary
    assert (summary["skipped_segments"], summary["skipped_s"], summary["played_s"]) == (1, 2.0, 4.0)
    assert (summary["timeouts"], summary["errors"], summary["wasted_bytes"]) == (6, 0, 60)
    total_s = summary["startup_delay_s"] + summary["played_s"] + summary["rebuffered_s"]
    assert total_s == pytest.approx(summary["elapsed_s"], abs=1e-9)
    assert [event.segment for event in session.events() if isinstance(event, SegmentPlayed)] == [0, 2]


def test_a_retry_that_succeeds_leaves_no_gap():
    session = make_session([1], ladder=make_ladder((2.0,)), retries=1, backoff_s=0.0)
    now_s, _ = fail(session, 0.0, "HTTP 503", 5)
    now_s, _ = fetch(session, now_s)
    assert session.next_action(now_s + 2.0) == Finished()
    row = session.log().segments[0]
    assert (row["retries"], row["wasted_bytes"], row["request_s"], row["skipped"]) == (1, 5, 1.0, False)
    assert session.log().events[0] == {"time_s": 1.0, "event": "error", "segment": 0, "value": 5.0}


def test_a_programme_of_gaps_ends():
    session = make_session(ladder=make_ladder((2.0,) * 2), retries=0)
    now_s, _ = fail(session, 0.0)
    now_s, _ = fail(session, now_s)
    assert session.next_action(now_s) == Finished()
    summary = session.log().summary
    assert (summary["startup_delay_s"], summary["played_s"], summary["rebuffered_s"]) == (2.0, 0.0, 0.0)
    assert summary["elapsed_s"] == 2.0


def test_a_cut_transfer_is_a_measurement_if_its_first_byte_is_known():
    session = make_session([0], retries=3, backoff_s=0.0)
    now_s, _ = fail(session, 0.0, "timeout", 1_000)
    now_s, _ = fail(session, now_s, "timeout", 1_000, first_byte_s=1.2)
    fetch(session, now_s)
    session.next_action(now_s + 0.5)
    samples = session.controller.seen[-1].samples
    assert [(sample.size_bytes, sample.first_byte_s) for sample in samples] == [(1_000, 1.2), (25_000, 2.25)]


# Abandonment


class Fickle(Script):
    """A script that also gives up: each entry of `targets` answers one report of progress."""

    def __init__(self, choices, targets):
        super().__init__(choices)
        self.targets, self.reports = list(targets), []

    def abandon(self, progress):
        self.reports.append(progress)
        target = self.targets[(len(self.reports) - 1) % len(self.targets)]
        return None if target is None or target >= progress.representation else target


def test_an_abandoned_request_is_repeated_in_the_representation_named():
    ladder = make_ladder((2.0,) * 3)
    session = Session(ladder, Fickle([0, 2], [None, 1]), PlayerConfig())
    assert session.wants_progress
    now_s, _ = fetch(session, 0.0)  # plays from 0.5
    request = session.next_action(now_s)
    assert request.representation == 2
    assert not session.on_progress(0.6, 0)
    assert session.on_progress(1.0, 30_000, first_byte_s=0.7)
    again = session.next_action(1.0)
    assert (again.segment, again.representation, again.size_bytes) == (1, 1, 50_000)
    fetch_s = 1.25
    session.on_complete(fetch_s, Done(1.0, 1.1, fetch_s, 50_000))
    row, log = session.log().segments[1], session.log()
    assert (row["representation"], row["abandonments"], row["wasted_bytes"], row["request_s"]) == (1, 1, 30_000, 1.0)
    assert (log.summary["abandonments"], log.summary["wasted_bytes"]) == (1, 30_000)
    assert {"time_s": 1.0, "event": "abandon", "segment": 1, "value": 30_000.0} in log.events
    first, second = session.controller.reports
    assert (first.received_bytes, first.first_byte_s, first.request_s, first.size_bytes) == (0, None, 0.5, 100_000)
    assert (second.received_bytes, second.first_byte_s, second.representation) == (30_000, 0.7, 2)
    assert (second.observation.segment_index, second.observation.buffer_s) == (1, pytest.approx(1.5))
    session.next_action(fetch_s)
    samples = session.controller.seen[-1].samples
    assert [(sample.size_bytes, sample.complete) for sample in samples] == [
        (25_000, True),
        (30_000, False),
        (50_000, True),
    ]


def test_the_retries_of_a_request_survive_its_abandonment():
    session = Session(make_ladder((2.0,)), Fickle([2], [0]), PlayerConfig(retries=0, backoff_s=0.0))
    assert session.next_action(0.0).representation == 2
    assert session.on_progress(1.0, 10, first_byte_s=0.5)
    assert session.next_action(1.0).representation == 0
    session.on_error(2.0, "timeout", 5)
    assert session.next_action(2.0) == Finished()
    assert session.log().summary["wasted_bytes"] == 15


def test_a_controller_without_the_method_hears_of_no_progress():
    session = make_session([2])
    assert not session.wants_progress
    session.next_action(0.0)
    assert not session.on_progress(1.0, 10)


@pytest.mark.parametrize("target", [2, 3, -1, 0.5])
def test_an_abandonment_must_name_a_lower_representation(target):
    session = Session(make_ladder(), Fickle([2], []), PlayerConfig())
    session.controller.abandon = lambda progress: target
    session.next_action(0.0)
    with pytest.raises(AbrError, match=f"Fickle abandons representation 2 for {target}"):
        session.on_progress(1.0, 10)


def test_impossible_progress_is_refused():
    session = Session(make_ladder(), Fickle([2], [0]), PlayerConfig())
    with pytest.raises(SessionError, match="on_progress without a request"):
        session.on_progress(0.0, 0)
    session.next_action(0.0)
    with pytest.raises(SessionError, match="bytes received of 100000"):
        session.on_progress(1.0, 100_001)
    with pytest.raises(SessionError, match="impossible transfer"):
        session.on_progress(1.0, 10, first_byte_s=2.0)


# Upgrades


class Improver(Script):
    """A script that raises the first buffered segment that can be raised: at choices, or on an idle link."""

    def __init__(self, choices, *, at_choices=False, top=2):
        super().__init__(choices)
        self.at_choices, self.top = at_choices, top

    def choose(self, observation):
        better = self.upgrade(observation) if self.at_choices else None
        return better or super().choose(observation)

    def upgrade(self, observation):
        for held in observation.buffered:
            if held.representation < self.top:
                return Decision(held.representation + 1, segment=held.segment)
        return None


def make_layered(durations_s=(2.0,) * 3, **extra):
    layers = [[25_000, 15_000, 40_000]] * len(durations_s)
    sizes = [list(itertools.accumulate(row)) for row in layers]
    return Ladder((100e3, 160e3, 320e3), sizes, durations_s, layer_bytes=layers, **extra)


def answer(session, now_s, took_s=0.25):
    """Answer the request due at `now_s`; return it and the time."""
    request = session.next_action(now_s)
    assert isinstance(request, Request), request
    session.on_complete(now_s + took_s, Done(now_s, now_s, now_s + took_s, request.size_bytes))
    session.on_rendered(now_s + took_s, request.segment)
    return request, now_s + took_s


def test_an_idle_link_upgrades_what_is_buffered():
    """Two segments of 2 s fit under 4 s: the second, not yet shown, is raised twice; the first is on the screen."""
    session = Session(make_ladder((2.0,) * 3), Improver([0]), PlayerConfig(buffer_s=4.0, startup_s=4.0))
    now_s, requests = 0.0, []
    for _ in range(4):
        request, now_s = answer(session, now_s)
        requests.append((request.segment, request.representation, request.held, request.size_bytes))
    assert requests == [(0, 0, None, 25_000), (1, 0, None, 25_000), (1, 1, 0, 50_000), (1, 2, 1, 100_000)]
    assert session.next_action(now_s) == Wait(2.5)
    row = session.log().segments[1]
    assert (row["representation"], row["upgrades"], row["upgraded_s"], row["size_bytes"]) == (2, 2, 1.0, 100_000)
    assert (row["finish_s"], row["wasted_bytes"]) == (0.5, 75_000)
    now_s = 2.5
    while not isinstance(session.next_action(now_s), Finished):
        action = session.next_action(now_s)
        if isinstance(action, Wait) and session._state.in_flight is None:
            now_s = action.until_s
        else:
            request = session._state.in_flight.request
            session.on_complete(now_s + 0.25, Done(now_s, now_s, now_s + 0.25, request.size_bytes))
            session.on_rendered(now_s + 0.25, request.segment)
            now_s += 0.25
    assert [(event.segment, event.value) for event in session.events() if event.name == "play"] == [
        (0, 0),
        (1, 2),
        (2, 2),
    ]
    assert session.log().summary["upgrades"] == 4


def test_layers_are_added_and_nothing_is_thrown_away():
    ladder = make_layered(init_bytes=[100, 10, 20])
    session = Session(ladder, Improver([0]), PlayerConfig(buffer_s=4.0, startup_s=4.0))
    now_s, sizes = 0.0, []
    for _ in range(4):
        request, now_s = answer(session, now_s)
        sizes.append(request.size_bytes)
    assert sizes == [25_100, 25_000, 15_010, 40_020]
    row, summary = session.log().segments[1], session.log().summary
    assert (row["size_bytes"], row["init_bytes"], row["wasted_bytes"]) == (80_000, 30, 0)
    assert (summary["downloaded_bytes"], summary["wasted_bytes"]) == (sum(sizes), 0)


def test_whole_layers_of_a_failed_request_are_kept():
    """Layers of 25100, 15010 and 40020 bytes with their inits: 50000 bytes hold two of them."""
    session = Session(make_layered(init_bytes=[100, 10, 20]), Script([2]), PlayerConfig())
    session.next_action(0.0)
    session.on_error(4.0, "timeout", 50_000, first_byte_s=1.0)
    kept = session.take_kept()
    assert kept is not None
    assert (kept.segment, session.take_kept()) == (0, None)
    session.on_rendered(4.0, 0)
    assert session.state is PlaybackState.PLAYING
    assert session.next_action(4.0).segment == 1
    row = session.log().segments[0]
    assert (row["representation"], row["size_bytes"], row["init_bytes"]) == (1, 40_000, 110)
    assert (row["wasted_bytes"], row["retries"], row["finish_s"]) == (9_890, 0, 4.0)


def test_a_failed_request_without_a_whole_layer_is_repeated():
    session = Session(make_layered(init_bytes=[100, 10, 20]), Script([2]), PlayerConfig())
    session.next_action(0.0)
    session.on_error(4.0, "timeout", 25_099, first_byte_s=1.0)
    assert session.take_kept() is None
    assert session.next_action(5.0).representation == 2
    assert session.log().segments[0]["wasted_bytes"] == 25_099


def test_the_layers_of_an_upgrade_that_failed_are_shown():
    session = Session(make_layered(), Improver([0]), PlayerConfig(buffer_s=4.0, startup_s=4.0))
    _, now_s = answer(session, 0.0)
    _, now_s = answer(session, now_s)
    assert session.next_action(now_s).size_bytes == 15_000
    session.on_error(now_s + 0.5, "timeout", 14_999, first_byte_s=now_s)
    assert session.take_kept() is None
    assert session.log().segments[1]["wasted_bytes"] == 14_999


@pytest.mark.parametrize("conceal_s", [0.0, 1.0])
def test_a_stop_ends_with_the_base_layer_if_stops_are_concealed(conceal_s):
    session = Session(make_layered(), Script([2]), PlayerConfig(conceal_s=conceal_s))
    answer(session, 0.0)
    session.next_action(0.25)  # plays until 2.25
    assert session.wants_progress is (conceal_s > 0)
    assert not session.on_progress(2.2, 25_000, first_byte_s=1.0)
    assert not session.on_progress(2.3, 24_999, first_byte_s=1.0)
    assert not session.on_progress(2.4, 30_000, first_byte_s=1.0)
    kept = session.take_kept()
    assert (None if kept is None else (kept.segment, kept.representation)) == ((1, 0) if conceal_s else None)


def split_request():
    """A session that shows the base of segment 1 since 2.4, while its other 55000 bytes are on their way."""
    session = Session(make_layered(), Script([2, 2, 0]), PlayerConfig(conceal_s=1.0))
    answer(session, 0.0)
    session.next_action(0.25)
    session.on_progress(2.4, 30_000, first_byte_s=1.0)
    session.take_kept()
    session.on_rendered(2.4, 1)
    assert session.state is PlaybackState.PLAYING
    return session


def test_the_rest_of_a_request_goes_on_while_its_base_plays():
    session = split_request()
    assert isinstance(session.next_action(2.4), Wait)
    assert not session.on_progress(2.9, 60_000, first_byte_s=1.0)
    session.on_complete(3.0, Done(0.25, 1.0, 3.0, 80_000))
    session.on_rendered(3.0, 1)
    row = session.log().segments[1]
    assert (row["representation"], row["raised_to"], row["raised_after_s"]) == (0, 2, pytest.approx(0.6))
    assert (row["size_bytes"], row["wasted_bytes"], row["upgrades"]) == (80_000, 0, 1)
    frames = session.log().frames([10] * session.ladder.segments)
    shown = frames["representation"][frames["segment"] == 1]
    assert shown.tolist() == [0, 0, 0][: len(shown)]
    assert session.next_action(3.0).segment == 2


def test_the_rest_of_a_request_is_given_up_when_its_segment_is_over():
    session = split_request()
    assert session.on_progress(4.5, 60_000, first_byte_s=1.0)
    row = session.log().segments[1]
    assert (row["representation"], row["raised_to"]) == (0, None)
    assert (row["size_bytes"], row["wasted_bytes"], row["abandonments"]) == (25_000, 35_000, 1)
    assert session.next_action(4.5).segment == 2


def test_the_rest_of_a_request_may_fail():
    session = split_request()
    session.on_error(2.8, "reset", 40_000, first_byte_s=1.0)
    row = session.log().segments[1]
    assert (row["size_bytes"], row["wasted_bytes"], row["retries"]) == (25_000, 15_000, 0)
    assert session.next_action(2.8).segment == 2


def test_a_representation_fetched_at_once_brings_all_its_layers():
    session = Session(make_layered(init_bytes=[100, 10, 20]), Script([2]), PlayerConfig())
    assert session.next_action(0.0).size_bytes == 80_130


def test_a_choice_may_be_an_upgrade():
    session = Session(make_ladder(), Improver([0], at_choices=True, top=1), PlayerConfig(startup_s=10.0))
    requests, now_s = [], 0.0
    for _ in range(4):
        request, now_s = answer(session, now_s)
        requests.append((request.segment, request.representation))
    assert requests == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row["representation"] for row in session.log().segments] == [1, 1]


def test_an_upgrade_that_comes_too_late_is_given_up():
    session = Session(make_ladder((2.0,) * 2), Improver([0]), PlayerConfig())
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s)  # plays from 0.5; the second begins at 2.5
    request = session.next_action(now_s)
    assert (request.segment, request.held) == (1, 0)
    assert session.wants_progress
    assert not session.on_progress(2.4, 10_000)
    assert session.on_progress(2.5, 20_000, first_byte_s=2.0)
    assert session.next_action(2.5) == Wait(4.5)
    row = session.log().segments[1]
    assert (row["representation"], row["wasted_bytes"], row["abandonments"], row["upgrades"]) == (0, 20_000, 1, 0)


def test_an_upgrade_that_arrives_too_late_is_wasted():
    session = Session(make_ladder((2.0,) * 2), Improver([0]), PlayerConfig())
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s)
    request = session.next_action(now_s)
    session.on_complete(3.0, Done(now_s, 2.0, 3.0, request.size_bytes))
    session.on_rendered(3.0, 1)
    row = session.log().segments[1]
    assert (row["representation"], row["size_bytes"], row["wasted_bytes"], row["upgrades"]) == (0, 25_000, 50_000, 0)


def test_a_failed_upgrade_is_not_repeated():
    session = Session(make_ladder((2.0,) * 2), Improver([0], top=1), PlayerConfig())
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s)
    session.next_action(now_s)
    session.on_error(1.5, "HTTP 500", 10)
    session.controller.top = 0
    assert session.next_action(1.5) == Wait(4.5)
    assert session.log().segments[1]["skipped"] is False


@pytest.mark.parametrize("decision", [Decision(0, segment=0), Decision(1, segment=3), Decision(2, segment=1)])
def test_an_impossible_upgrade_is_refused(decision):
    session = make_session([1])
    now_s, _ = fetch(session, 0.0)
    now_s, _ = fetch(session, now_s)
    session.controller.choose = lambda observation: decision
    if decision == Decision(2, segment=1):  # the one that is possible
        assert session.next_action(now_s).segment == 1
        return
    with pytest.raises(AbrError, match="not possible"):
        session.next_action(now_s)


# Init segments


def test_an_init_segment_is_fetched_once_with_the_first_segment_of_its_representation():
    ladder = make_ladder((2.0,) * 4, init_bytes=[100, 200, 300])
    session = make_session([0, 1, 0, 1], ladder=ladder)
    now_s, sizes = 0.0, []
    for _ in range(4):
        sizes.append(session.next_action(now_s).size_bytes)
        session.on_complete(now_s + 0.5, Done(now_s, now_s, now_s + 0.5, sizes[-1]))
        session.on_rendered(now_s + 0.5, len(sizes) - 1)
        now_s += 0.5
    assert sizes == [25_100, 50_200, 25_000, 50_000]
    summary = session.log().summary
    assert summary["downloaded_bytes"] == sum(sizes)
    assert summary["mean_bitrate_bps"] == pytest.approx(8 * sum(sizes) / 8.0)


# Misuse


def test_time_may_not_go_backwards():
    session = make_session()
    session.next_action(5.0)
    with pytest.raises(SessionError, match=r"time went backwards: 4\.500000 s after 5\.000000 s"):
        session.next_action(4.5)
    for bad in (math.nan, math.inf):
        with pytest.raises(SessionError, match="finite"):
            session.next_action(bad)


def test_answers_nobody_asked_for_are_refused():
    session = make_session()
    with pytest.raises(SessionError, match="on_complete without a request"):
        session.on_complete(0.0, Done(0.0, 0.0, 0.0, 1))
    with pytest.raises(SessionError, match="on_error without a request"):
        session.on_error(0.0, "timeout")
    with pytest.raises(SessionError, match="segment 0 rendered, but none"):
        session.on_rendered(0.0, 0)
    with pytest.raises(SessionError, match="has not begun"):
        session.log()
    now_s, _ = fetch(session, 0.0, render=False)
    with pytest.raises(SessionError, match="segment 1 rendered, but segment 0"):
        session.on_rendered(now_s, 1)


@pytest.mark.parametrize(
    ("done", "message"),
    [
        (Done(0.0, 0.5, 1.0, 7), "7 bytes arrived, but 25000"),
        (Done(0.0, 0.5, 2.0, 25_000), "does not lie between"),
        (Done(-1.0, 0.5, 1.0, 25_000), "does not lie between"),
        (Done(0.0, 0.9, 0.5, 25_000), "impossible transfer"),
    ],
)
def test_impossible_transfers_are_refused(done, message):
    session = make_session()
    session.next_action(0.0)
    with pytest.raises(SessionError, match=message):
        session.on_complete(1.0, done)


@pytest.mark.parametrize("received", [-1, 25_001])
def test_impossible_failures_are_refused(received):
    session = make_session()
    session.next_action(0.0)
    with pytest.raises(SessionError, match="bytes received of 25000"):
        session.on_error(1.0, "timeout", received)


def test_one_request_at_a_time():
    session = make_session(timeout_s=10.0)
    session.next_action(1.0)
    assert session.next_action(2.0) == Wait(11.0)
    assert session.next_action(12.0) == Wait(12.0)


@pytest.mark.parametrize(
    "settings_",
    [
        {"buffer_s": 0.0},
        {"buffer_s": math.inf},
        {"timeout_s": -1.0},
        {"startup_s": -0.1},
        {"rebuffer_s": math.nan},
        {"backoff_s": -1.0},
        {"retries": -1},
        {"render_fps": 0.0},
        {"min_wait_s": -1.0},
        {"conceal_s": -1.0},
        {"low_buffer_share": 0.0},
        {"low_buffer_share": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(SessionError, match=r"player\."):
        PlayerConfig(**settings_)


# For anything


def drive(session, times_s, render_times_s, failures):
    """Play a session to its end in virtual time; downloads and renders take the given times in turn."""
    now_s, count, renders, free_s = 0.0, 0, deque(), 0.0
    cap = session.capacity_s
    session.received_bytes = 0

    def render_until(limit_s):
        nonlocal now_s
        while renders and renders[0][0] <= limit_s:
            now_s, segment = renders.popleft()
            session.on_rendered(now_s, segment)
            assert -1e-9 <= session.buffer_s <= cap + 1e-9

    def render_kept():
        nonlocal free_s
        kept = session.take_kept()
        if kept is not None:
            free_s = max(free_s, now_s) + render_times_s[kept.segment % len(render_times_s)]
            renders.append((free_s, kept.segment))

    for _ in range(10_000):
        render_until(now_s)
        action = session.next_action(now_s)
        assert -1e-9 <= session.buffer_s <= cap + 1e-9
        if isinstance(action, Finished):
            return
        if isinstance(action, Wait):
            assert action.until_s > now_s
            next_s = min(action.until_s, renders[0][0] if renders else math.inf)
            assert next_s < math.inf, "a session that waits for nothing"
            now_s = next_s
            continue
        sent_s, took_s = now_s, times_s[count % len(times_s)]
        failed = failures[count % len(failures)]
        count += 1
        finish_s = sent_s + min(took_s, action.timeout_s)
        report_s = sent_s + 0.4 * (finish_s - sent_s)
        render_until(report_s)
        now_s = report_s
        if session.on_progress(now_s, action.size_bytes // 3, first_byte_s=sent_s):
            session.received_bytes += action.size_bytes // 3
            render_kept()
            continue
        render_kept()
        render_until(finish_s)
        now_s = finish_s
        if failed or took_s > action.timeout_s:
            session.on_error(now_s, "timeout" if took_s > action.timeout_s else "reset", action.size_bytes // 2)
            session.received_bytes += action.size_bytes // 2
            render_kept()
            continue
        session.on_complete(now_s, Done(sent_s, sent_s + took_s / 3, now_s, action.size_bytes))
        session.received_bytes += action.size_bytes
        free_s = max(free_s, now_s) + render_times_s[action.segment % len(render_times_s)]
        renders.append((free_s, action.segment))
    raise AssertionError("the session did not end")


duration = st.floats(0.05, 12.0)
RULES = ["bola_u", "bola_o", "bolae", "bolapl", "dynamic", "dash_dynamic", "throughput_ibr"]
RULES += ["layered_bola", "layered_mpc"]
NAMES = ["throughput", "ewma", "bba", "bola", "fixed", *RULES, "script", "fickle", "improver", "chooser"]


@settings(max_examples=150, deadline=None)
@given(
    durations_s=st.lists(duration, min_size=1, max_size=25),
    name=st.sampled_from(NAMES),
    layered=st.booleans(),
    wait_s=st.sampled_from([0.0, 0.3, 5.0]),
    times_s=st.lists(st.floats(0.001, 15.0), min_size=1, max_size=25),
    render_times_s=st.lists(st.floats(0.0, 6.0), min_size=1, max_size=5),
    failures=st.lists(st.sampled_from([False, False, False, True]), min_size=1, max_size=7),
    config=st.builds(
        PlayerConfig,
        buffer_s=st.floats(0.5, 40.0),
        startup_s=st.floats(0.0, 30.0),
        rebuffer_s=st.floats(0.0, 30.0),
        timeout_s=st.floats(0.5, 12.0),
        retries=st.integers(0, 3),
        backoff_s=st.floats(0.0, 2.0),
        min_wait_s=st.sampled_from([0.0, 0.2]),
        conceal_s=st.sampled_from([0.0, 0.5, 100.0]),
        low_buffer_share=st.sampled_from([None, 0.5]),
        reconsider_abandoned=st.booleans(),
    ),
)
def test_what_holds_for_any_session(durations_s, name, layered, wait_s, times_s, render_times_s, failures, config):
    ladder = make_layered(durations_s) if layered else make_ladder(durations_s)
    if name == "script":
        controller = Script([2, 0, 1, 2], wait_s)
    elif name == "fickle":
        controller = Fickle([2, 1, 2], [0, None, 1])
    elif name in ("improver", "chooser"):
        controller = Improver([0, 2, 1], at_choices=name == "chooser")
    else:
        controller = AbrConfig(name=name, representation=1).create(ladder, buffer_capacity_s=config.buffer_s)
    session = Session(ladder, controller, config)
    drive(session, times_s, render_times_s, failures)
    log, events = session.log(), session.events()
    summary = log.summary

    total_s = summary["startup_delay_s"] + summary["played_s"] + summary["concealed_s"] + summary["rebuffered_s"]
    assert total_s == pytest.approx(summary["elapsed_s"], abs=1e-9)
    concealed_s = sum(event.duration_s for event in events if event.name == "concealment_end")
    assert concealed_s == pytest.approx(summary["concealed_s"], abs=1e-9)
    assert summary["played_s"] + summary["skipped_s"] == pytest.approx(sum(durations_s), abs=1e-9)
    assert summary["ended"] == 1

    stops_s = sum(event.duration_s for event in events if event.name == "rebuffering_end")
    assert stops_s == pytest.approx(summary["rebuffered_s"], abs=1e-9)
    assert all(event.duration_s > 0 for event in events if event.name == "rebuffering_end")

    times = [event.time_s for event in events]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(times))
    assert [event.name for event in events].count("end") == 1
    assert events[-1].name == "end"

    shown = {event.segment: event.representation for event in events if isinstance(event, SegmentPlayed)}
    for row in log.segments:
        assert shown.get(row["segment"], row["representation"]) == row["representation"]
        held = row["representation"] if row["raised_to"] is None else row["raised_to"]
        assert row["skipped"] or row["size_bytes"] == ladder.segment_bytes[row["segment"], held]
        assert row["wasted_bytes"] >= 0
    assert summary["downloaded_bytes"] + summary["wasted_bytes"] == session.received_bytes

    played = [event.segment for event in events if isinstance(event, SegmentPlayed)]
    skipped = [event.segment for event in events if isinstance(event, SegmentSkipped)]
    assert sorted(played + skipped) == list(range(len(durations_s)))
    assert played == sorted(played)

    rows = log.segments
    assert [row["segment"] for row in rows] == list(range(len(durations_s)))
    for row in rows:
        assert row["downloaded"] != row["skipped"]
        if row["downloaded"]:
            assert row["request_s"] <= row["first_byte_s"] <= row["finish_s"] <= row["rendered_s"]
            assert row["rendered_s"] <= row["play_start_s"] + 1e-9

    frames = log.frames([max(round(seconds * 10), 1) for seconds in durations_s])
    walls = frames["wall_time_s"]
    assert sorted(set(frames["segment"].tolist())) == played
    assert all(walls[1:] >= walls[:-1])
    for row in rows:
        if row["downloaded"]:
            first = frames["wall_time_s"][frames["segment"] == row["segment"]][0]
            assert first == pytest.approx(row["play_start_s"], abs=1e-9)
