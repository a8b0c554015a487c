"""The link against hand-worked timelines and against logs of Mahimahi itself."""

import numpy as np
import pytest

from emulator import Link, LinkError, Packet, create_queue
from traces import Trace


def make_trace(*opportunities_ms: int, period_ms: int | None = None) -> Trace:
    times = np.array(opportunities_ms, dtype=np.int64)
    return Trace(name="test", opportunities_ms=times, period_ms=period_ms or int(times[-1]))


def times(packets: list[Packet]) -> list[int]:
    return [packet.departure_ms for packet in packets]


def tags(packets: list[Packet]) -> list[object]:
    return [packet.tag for packet in packets]


def test_an_opportunity_carries_one_mtu():
    link = Link(make_trace(5, 8, 20))
    for name in "ab":
        link.arrive(1, 1504, name)
    assert times(link.advance(7)) == [5]
    assert times(link.advance(8)) == [8]


def test_an_opportunity_carries_several_small_packets():
    link = Link(make_trace(5, 20))
    for size_bytes in (700, 700, 104):
        link.arrive(1, size_bytes)
    assert times(link.advance(5)) == [5, 5, 5]


def test_a_packet_is_sent_in_pieces_and_leaves_with_its_last_byte():
    link = Link(make_trace(5, 6, 20))
    link.arrive(1, 1000, "first")
    link.arrive(1, 1000, "second")  # 504 bytes fit behind the first, 496 wait for the next opportunity
    assert tags(link.advance(5)) == ["first"]
    assert link.backlog_bytes == 496
    assert tags(link.advance(6)) == ["second"]
    assert link.backlog_bytes == 0


def test_unused_opportunities_are_lost():
    link = Link(make_trace(1, 2, 3, 10))
    link.arrive(3, 1504)
    assert times(link.advance(10)) == [10]


@pytest.mark.parametrize("keep_log", [False, True])
def test_an_arrival_cannot_use_an_opportunity_of_its_own_millisecond(keep_log):
    link = Link(make_trace(5, 9), keep_log=keep_log)
    link.arrive(5, 1504)
    assert link.advance(8) == []
    assert times(link.advance(9)) == [9]


def test_the_trace_wraps_at_its_last_line():
    # lines 0, 3, 10: lap k fires at 10k, 10k + 3, 10k + 10, so both ends of a lap fire at its seam
    link = Link(make_trace(0, 3, 10))
    for _ in range(5):
        link.arrive(4, 1504)
    assert times(link.advance(25)) == [10, 10, 13, 20, 20]


def test_idle_laps_are_skipped_without_changing_the_schedule():
    trace = make_trace(0, 3, 10)
    logged, quiet = Link(trace, keep_log=True), Link(trace)
    for now_ms in (0, 3, 10, 57, 60, 1_000_000, 1_000_003):
        for link in (logged, quiet):
            link.arrive(now_ms, 1504)
        assert times(logged.advance(now_ms + 2)) == times(quiet.advance(now_ms + 2))
        assert logged.next_busy_ms == quiet.next_busy_ms


def test_droptail_counts_packets_and_bytes_but_not_the_packet_in_transit():
    link = Link(make_trace(5, 100), create_queue("droptail", limit_packets=2), keep_log=True)
    link.arrive(1, 1000, "a")
    link.arrive(1, 1000, "b")
    link.arrive(1, 1000, "refused")
    link.arrive(5, 1000, "c")  # "a" has left and "b" is partly sent: the queue is empty
    link.arrive(6, 1000, "d")
    link.arrive(6, 1000, "refused too")
    assert tags(link.advance(300)) == ["b", "c", "d"]  # "a" left during the arrival of "c"
    assert link.log[:7] == ["1 + 1000", "1 + 1000", "1 + 1000", "1 d 1 1000", "5 # 1504", "5 - 1000 4", "5 + 1000"]

    bytes_queue = create_queue("droptail", limit_bytes=2000)
    assert bytes_queue.enqueue(Packet(1500)) == []
    assert len(bytes_queue.enqueue(Packet(501))) == 1
    assert bytes_queue.enqueue(Packet(500)) == []
    assert bytes_queue.size_bytes == 2000


def test_drophead_drops_the_oldest_as_often_as_needed():
    link = Link(make_trace(50), create_queue("drophead", limit_bytes=1504), keep_log=True)
    for name, size_bytes in (("a", 500), ("b", 500), ("c", 1504)):
        link.arrive(1, size_bytes, name)
    assert link.log[-1] == "1 d 2 1000"
    assert tags(link.advance(50)) == ["c"]


def test_infinite_queue_keeps_order():
    link = Link(make_trace(1))
    for number in range(500):
        link.arrive(0, 1504, number)
    assert tags(link.advance(500)) == list(range(500))


def test_wrong_use_is_refused():
    link = Link(make_trace(5))
    for size_bytes in (0, 1505):
        with pytest.raises(LinkError, match="1 to 1504"):
            link.arrive(0, size_bytes)
    link.advance(9)
    with pytest.raises(LinkError, match="backwards"):
        link.advance(8)
    with pytest.raises(LinkError, match="known queues: infinite, droptail, drophead, codel, pie"):
        create_queue("fifo")
    with pytest.raises(LinkError, match="takes no limits"):
        create_queue("infinite", limit_packets=1)
    with pytest.raises(LinkError, match="at least one"):
        create_queue("droptail")
