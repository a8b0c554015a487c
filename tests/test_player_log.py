"""The tables of a session: when each frame was on the screen, and what the rows hold."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from abr import Ladder, create_abr
from player.errors import SessionError
from player.session import Session


@dataclass
class Done:
    """A finished transfer."""

    request_s: float
    first_byte_s: float
    finish_s: float
    size_bytes: int


def play(durations_s, downloads_s, *, skip=(), start_s=0.0):
    """Play segments of one representation; return the session and the time of the last download's end."""
    ladder = Ladder([8e3], [[round(1e3 * seconds)] for seconds in durations_s], durations_s)
    session = Session(ladder, create_abr("fixed", ladder, buffer_capacity_s=20.0))
    now_s = start_s
    for index, took_s in enumerate(downloads_s):
        action = session.next_action(now_s)
        sent_s, now_s = now_s, now_s + took_s
        if index in skip:
            for _ in range(3):
                session.on_error(now_s, "reset")
                now_s = session.next_action(now_s).until_s
                session.next_action(now_s)
            session.on_error(now_s, "reset")
            continue
        session.on_complete(now_s, Done(sent_s, sent_s, now_s, action.size_bytes))
        session.on_rendered(now_s, index)
    return session, now_s


def test_frames_by_hand():
    """Startup 1 s; the second segment arrives 0.5 s late; frames of each second: 2."""
    session, now_s = play([2.0, 1.0, 1.0], [1.0, 2.5, 0.5], start_s=10.0)
    session.next_action(now_s + 10.0)
    frames = session.log().frames([4, 2, 2])
    assert frames["segment"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert frames["frame"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert frames["representation"].tolist() == [0] * 8
    assert frames["media_time_s"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    # the second segment (1 s) is below the resume threshold of 2 s, so playback waits for the third: 14 s
    assert frames["wall_time_s"].tolist() == [11.0, 11.5, 12.0, 12.5, 14.0, 14.5, 15.0, 15.5]


def test_a_gap_moves_programme_time_but_not_playback():
    session, now_s = play([2.0, 2.0, 2.0], [1.0, 0.25, 0.25], skip=(1,))
    session.next_action(now_s)
    session.next_action(now_s + 10.0)
    frames = session.log().frames([2, 2, 2])
    assert frames["segment"].tolist() == [0, 0, 2, 2]
    assert frames["media_time_s"].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert session.log().summary["ended"] == 1


def test_only_frames_shown_so_far_are_logged():
    session, now_s = play([2.0, 2.0], [1.0])
    assert now_s == 1.0
    session.next_action(2.2)  # 1.2 s played
    frames = session.log().frames([4, 4])
    assert frames["wall_time_s"].tolist() == [1.0, 1.5, 2.0]
    assert session.log().summary["ended"] == 0


def test_nothing_played_gives_empty_columns():
    session, _ = play([2.0, 2.0], [])
    session.next_action(0.0)
    frames = session.log().frames([4, 4])
    assert {len(column) for column in frames.values()} == {0}


@pytest.mark.parametrize("counts", [[4], [4, 0], [[4, 4]]])
def test_wrong_frame_counts_are_refused(counts):
    session, _ = play([2.0, 2.0], [1.0])
    with pytest.raises(SessionError, match="2 counts"):
        session.log().frames(counts)


def test_rows_hold_what_the_names_say():
    session, now_s = play([2.0, 1.0], [0.5, 0.25], start_s=3.0)
    session.next_action(now_s + 10.0)
    log = session.log()
    row = log.segments[1]
    assert (row["segment"], row["request_s"], row["finish_s"], row["rendered_s"]) == (1, 3.5, 3.75, 3.75)
    assert (row["buffer_s"], row["play_start_s"], row["size_bytes"]) == (2.0, 5.5, 1000)
    assert row["bitrate_bps"] == 8000.0
    assert row["throughput_bps"] == 32000.0
    assert (row["reason"], row["estimate_bps"]) == ("fixed", None)
    assert row["link_rate_bps"] > 0
    assert set(log.events[0]) == {"time_s", "event", "segment", "value"}


def test_tables_are_plain_numbers_and_text():
    session, now_s = play([2.0, 1.0], [0.5, 0.25])
    session.next_action(now_s + 10.0)
    log = session.log()
    text = json.dumps([log.segments, log.events, log.summary])  # numpy scalars would fail here
    assert "NaN" not in text
    assert all(column.dtype in (np.int64, np.float64) for column in log.frames([1, 1]).values())


def test_the_same_input_gives_the_same_log():
    logs = [play([2.0, 1.0, 1.0], [1.0, 2.5, 0.5])[0].log() for _ in range(2)]
    assert (logs[0].segments, logs[0].events) == (logs[1].segments, logs[1].events)
