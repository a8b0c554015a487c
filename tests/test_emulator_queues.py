"""CoDel, PIE and Mahimahi's own queues, against hand-worked timelines and against what they promise."""

import numpy as np
import pytest

from emulator import Link, LinkError, Packet, PacketQueue, create_queue, parse_queue
from traces import Trace

ONE_PER_MS = Trace(name="1", opportunities_ms=np.array([1], dtype=np.int64), period_ms=1)


def fill(queue: PacketQueue, packets: int, arrival_ms: int = 0, size_bytes: int = 1504) -> None:
    for number in range(packets):
        queue.enqueue(Packet(size_bytes, arrival_ms, number))


def drain(queue: PacketQueue, times_ms: list[int]) -> list[object]:
    return [queue.dequeue(now_ms).tag for now_ms in times_ms]


def overload(queue: PacketQueue, *, per_ms: int, until_ms: int, size_bytes: int = 1504) -> Link:
    """Send `per_ms` packets in every ms through a link that can take one, and log it."""
    link = Link(ONE_PER_MS, queue, keep_log=True)
    for now_ms in range(until_ms):
        for _ in range(per_ms):
            link.arrive(now_ms, size_bytes)
    link.advance(until_ms)
    return link


def delays_ms(link: Link, after_ms: int) -> list[int]:
    events = [line.split() for line in link.log]
    return [int(words[3]) for words in events if words[1] == "-" and int(words[0]) > after_ms]


def test_codel_drops_the_offending_packet_and_delivers_the_next():
    """Target 5, interval 100: above target from 10 ms on, so the first drop is due at 110; then 110 + 100/sqrt(1)."""
    queue = create_queue("codel", limit_packets=1000)
    fill(queue, 50)
    assert drain(queue, [4, 10, 109]) == [0, 1, 2]
    assert queue.discarded == []
    assert drain(queue, [110]) == [4]
    assert [packet.tag for packet in queue.discarded] == [3]
    assert drain(queue, [209]) == [5]
    assert drain(queue, [210]) == [7]  # second drop; the next is due at 210 + 100 / sqrt(2) = 280.7
    assert drain(queue, [280, 281]) == [8, 10]  # third; the next at 280.7 + 100 / sqrt(3) = 338.4
    assert drain(queue, [338, 339]) == [11, 13]


def test_mahimahis_codel_delivers_the_offending_packet_and_drops_the_one_behind():
    queue = create_queue("codel", limit_packets=1000, compat="mahimahi")
    fill(queue, 50)
    assert drain(queue, [4, 10, 109]) == [0, 1, 2]
    assert drain(queue, [110]) == [3]  # 4 is gone
    assert drain(queue, [209, 210]) == [5, 6]  # 7 is gone; the next at 210 + trunc(70.7)
    assert drain(queue, [279, 280]) == [8, 9]  # 10 is gone; the next at 280 + trunc(57.7)
    assert drain(queue, [336, 337]) == [11, 12]
    assert queue.discarded == []
    assert len(queue.packets) == 50 - 14


def test_codel_catches_up_on_drops_that_are_overdue():
    queue = create_queue("codel", limit_packets=1000)
    fill(queue, 50)
    drain(queue, [10, 110])  # 1 dropped, 2 sent; next drops at 210, 280.7, 338.4
    assert drain(queue, [300]) == [5]
    assert [packet.tag for packet in queue.discarded] == [1, 3, 4]


@pytest.mark.parametrize("compat", ["none", "mahimahi"])
def test_codel_lets_a_short_queue_be(compat):
    """At most one MTU left after a packet is taken: no drop, and the interval starts again."""
    queue = create_queue("codel", limit_packets=1000, compat=compat)
    fill(queue, 2)
    assert drain(queue, [1000]) == [0]
    fill(queue, 2, arrival_ms=1000)
    assert drain(queue, [1100]) == [1]
    assert drain(queue, [1200, 1300]) == [0, 1]
    assert queue.discarded == []


def test_codel_remembers_a_recent_dropping_state():
    """Left at a count of 4, entered again soon after: it starts with count 3 (4 - 1), not 1."""
    queue = create_queue("codel", limit_packets=1000)
    fill(queue, 100)
    drain(queue, [10, 110, 210, 281, 339])  # count 4
    fill(queue, 200, arrival_ms=339)
    while queue.packets[0].arrival_ms == 0:
        queue.packets.popleft()
        queue.size_bytes -= 1504
    drain(queue, [340])  # below target: leaves the dropping state
    queue.discarded.clear()
    drain(queue, [350, 450])  # above again; the first drop at 450, the next at 450 + 100 / sqrt(3) = 507.7
    assert len(queue.discarded) == 1
    drain(queue, [507])
    assert len(queue.discarded) == 1
    drain(queue, [508])
    assert len(queue.discarded) == 2


def test_codel_logs_its_drops_between_the_opportunity_and_the_departure():
    link = overload(create_queue("codel", limit_packets=10_000), per_ms=2, until_ms=400)
    drops = [place for place, line in enumerate(link.log) if " d " in line]
    assert drops
    now_ms = link.log[drops[0]].split()[0]
    assert link.log[drops[0]] == f"{now_ms} d 1 1504"
    assert link.log[drops[0] - 1] == f"{now_ms} # 1504"
    assert link.log[drops[0] + 1].startswith(f"{now_ms} - 1504 ")


def test_every_packet_of_a_log_is_accounted_for():
    for name in ("droptail", "drophead", "codel", "pie"):
        link = overload(create_queue(name, limit_packets=50), per_ms=3, until_ms=2000)
        events = [line.split() for line in link.log]
        arrived = sum(words[1] == "+" for words in events)
        departed = sum(words[1] == "-" for words in events)
        dropped = sum(int(words[2]) for words in events if words[1] == "d")
        assert arrived == 6000
        assert arrived == departed + dropped + len(link.queue.packets)


def test_pie_holds_the_queue_delay_near_its_reference():
    """10 % overload of the link by small steps for a minute: the standing delay settles around the reference."""
    queue = parse_queue("pie", "packets=2000, qdelay_ref=20, max_burst=75", seed=1)
    link = Link(ONE_PER_MS, queue, keep_log=True)
    for number in range(66_000):
        link.arrive(number * 10 // 11, 1504)
    link.advance(60_000)
    settled = delays_ms(link, 20_000)
    assert 10 <= np.mean(settled) <= 35
    dropped = sum(" d " in line and int(line.split()[0]) > 20_000 for line in link.log)
    assert dropped / 44_000 == pytest.approx(1 / 11, abs=0.01)  # what the link cannot carry, and no more


def test_pie_spares_bursts_short_queues_and_uncongested_links():
    queue = create_queue("pie", limit_packets=1000, reference_ms=20, burst_ms=150)
    link = Link(ONE_PER_MS, queue, keep_log=True)
    for _ in range(120):  # a burst of 120 packets: gone within the allowance
        link.arrive(0, 1504)
    for now_ms in range(200, 3000):
        link.arrive(now_ms, 1504)
    link.advance(3000)
    assert not any(" d " in line for line in link.log)


def test_pie_is_seeded():
    logs = [
        overload(create_queue("pie", limit_packets=500, seed=seed), per_ms=2, until_ms=3000).log for seed in (1, 1, 2)
    ]
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_pie_still_has_a_hard_limit():
    link = overload(create_queue("pie", limit_bytes=20_000, reference_ms=5000), per_ms=2, until_ms=100)
    assert sum(packet.size_bytes for packet in link.queue.packets) <= 20_000
    assert any(" d " in line for line in link.log)


def test_mahimahis_drophead_stops_where_mahimahi_aborts():
    queue = create_queue("drophead", limit_bytes=1600, compat="mahimahi")
    assert [packet.tag for packet in queue.enqueue(Packet(900, 1, "a"))] == []
    assert [packet.tag for packet in queue.enqueue(Packet(800, 1, "b"))] == ["a"]
    queue.enqueue(Packet(700, 1, "c"))
    with pytest.raises(LinkError, match="2 packets must go"):
        queue.enqueue(Packet(1504, 2, "d"))


@pytest.mark.parametrize(
    "arguments",
    [
        "bytes=200000, target=50, interval=500",
        "interval=500 target=50;bytes=200000",
        "bytes=200000target=50interval=500",
    ],
)
def test_queue_arguments_have_free_separators(arguments):
    queue = parse_queue("codel", arguments, compat="mahimahi")
    assert queue.describe() == "codel [bytes=200000]"
    assert (queue.target_ms, queue.interval_ms) == (50, 500)


@pytest.mark.parametrize(
    ("name", "arguments", "compat", "message"),
    [
        ("infinite", "packets=1", "none", "no arguments"),
        ("droptail", "", "none", "at least one"),
        ("droptail", "packets=0", "none", "at least one"),
        ("droptail", "packets=ten", "none", "expected name=digits"),
        ("droptail", "packets=-3", "none", "expected name=digits"),
        ("droptail", "packets", "none", "expected name=digits"),
        ("droptail", "packets=1, packets=2", "none", "at most once"),
        ("droptail", "target=3, packets=2", "none", "packets, bytes at most once"),
        ("codel", "packets=10", "mahimahi", "target, interval missing"),
        ("codel", "packets=10, target=0", "none", "target is 0"),
        ("codel", "target=5, interval=100", "none", "at least one"),
        ("pie", "packets=10, qdelay_ref=20", "mahimahi", "max_burst missing"),
        ("sfq", "packets=10", "none", "known queues: infinite"),
        ("droptail", "packets=10", "ns3", "known: none, mahimahi"),
    ],
)
def test_bad_queue_arguments_are_refused(name, arguments, compat, message):
    with pytest.raises(LinkError, match=message):
        parse_queue(name, arguments, compat=compat)
