"""Packets that the relay reads and writes, byte by byte."""

import socket
import struct

import pytest

from emulator.relay import Flow, concerns_relay, name_server, parse_flow, udp_packet, udp_payload

CLIENT, SERVER = ("100.64.0.2", 40_000), ("192.0.2.9", 443)


def tcp_packet(flags):
    addresses = socket.inet_aton(CLIENT[0]) + socket.inet_aton(SERVER[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + addresses
    return header + struct.pack("!HHIIBBHHH", CLIENT[1], SERVER[1], 1, 0, 0x50, flags, 1000, 0, 0)


@pytest.mark.parametrize(
    ("flags", "concerns"), [(0x02, True), (0xC2, True), (0x12, False), (0x10, False), (0x04, False)]
)
def test_only_the_first_packet_of_a_connection_concerns_the_relay(flags, concerns):
    assert concerns_relay(tcp_packet(flags)) is concerns
    assert parse_flow(tcp_packet(flags)) == Flow(CLIENT, SERVER)


def test_a_datagram_survives_the_round_trip():
    packet = udp_packet(CLIENT, SERVER, b"payload")
    assert concerns_relay(packet)
    assert parse_flow(packet) == Flow(CLIENT, SERVER)
    assert udp_payload(packet) == b"payload"
    words = sum(struct.unpack("!10H", packet[:20]))
    assert (words & 0xFFFF) + (words >> 16) == 0xFFFF  # RFC 791: the header sums to all ones, checksum included


def test_fragments_and_foreign_packets():
    fragment = bytearray(udp_packet(CLIENT, SERVER, b"payload"))
    fragment[6] = 0x20  # more fragments follow
    assert udp_payload(bytes(fragment)) is None
    assert not concerns_relay(b"")
    assert not concerns_relay(b"\x60" + bytes(60))  # IPv6
    assert not concerns_relay(tcp_packet(0x02)[:28])  # cut within the TCP header


def test_the_first_ipv4_name_server_counts(tmp_path):
    path = tmp_path / "resolv.conf"
    assert name_server(path) is None
    path.write_text("# nameserver 1.1.1.1\nsearch example\nnameserver\nnameserver fd00::1\nnameserver 9.9.9.9 # x\n")
    assert name_server(path) == "9.9.9.9"
