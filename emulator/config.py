"""What is known of the network beside its trace: the bottleneck's queue, the delay, the loss, and the TCP over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from emulator.congestion import CONTROL_NAMES
from emulator.errors import TransportError
from emulator.queues import COMPAT_NAMES, QUEUE_NAMES, PacketQueue, create_queue
from traces import MTU_BYTES

MODELS = ("fluid", "packet")
HANDSHAKES = {"tcp": 1, "tls13": 2, "tls12": 3, "tfo": 0, "quic": 1, "0rtt": 0, "none": 0}
"""Round trips before the first request: TCP alone, with TLS 1.3 (RFC 8446) or 1.2, with Fast Open (RFC 7413); QUIC (RFC
9000, TLS included); early data of a resumed session (RFC 8446, section 2.3); a connection that is already open."""
HEADER_BYTES = 20 + 20 + 12 + 4  # IPv4, TCP, TCP timestamps, and the TUN header that Mahimahi counts
CONTROL_BYTES = 20 + 40 + 4  # a handshake packet: IPv4, TCP with options, TUN header
MAX_RTO_MS = 60_000  # RFC 6298, section 2.5
NEVER_US = 1 << 62  # a time that does not come


@dataclass
class LinkConfig:
    """The network between server and client: a bottleneck that plays a trace, and the TCP connection over it.

    Attributes:
        model: `fluid` (closed form) or `packet` (every packet simulated).
        delay_ms: one-way propagation delay, in each direction; the base round-trip time is twice this.
        queue: the bottleneck's queue: `droptail`, `infinite` (ignores both limits); in the packet model also
            `drophead`, `codel` and `pie`.
        queue_packets: queue limit in packets; 0 = not set.
        queue_bytes: queue limit in bytes, TUN headers included as in Mahimahi; 0 = not set.
        codel_target_ms: of `codel`: acceptable standing queue delay (RFC 8289, section 4.4).
        codel_interval_ms: of `codel`: about a worst-case round trip (RFC 8289, section 4.3).
        pie_reference_ms: of `pie`: queue delay to hold (RFC 8033, section 4.2).
        pie_burst_ms: of `pie`: how long a burst passes undropped (RFC 8033, section 4.2).
        compat: `mahimahi` gives `drophead` and `codel` the defects they have there; `none` does not.
        loss: probability that a downlink packet is lost before it reaches the bottleneck, independently of others.
        uplink_loss: likewise of an uplink packet before it leaves the client's side (packet model only).
        on_s: mean of the exponential times in which the downlink passes packets (mm-onoff; packet model only).
        off_s: mean of those in which it drops every packet that reaches it; 0 = it is always on.
        seed: of the losses, of the times on and off, and of `pie`.
        mss_bytes: payload of a full packet; with 56 bytes of headers the default fills a 1504-byte opportunity.
        congestion_control: `cubic` (RFC 9438, the default of Linux, macOS and Windows) or `reno` (NewReno, RFC 5681).
        initial_window_packets: RFC 6928.
        receive_window_bytes: how far the server may send ahead of what has arrived without a gap; 0 = unlimited. Linux
            lets a receiver grow to half of 6 MiB (net.ipv4.tcp_rmem).
        ack_every: packets per acknowledgement (2: RFC 5681, section 4.2); 1 = none is delayed.
        ack_delay_ms: longest delay of an acknowledgement (Linux: 40 ms).
        quick_acks: packets at the start of a connection that are acknowledged at once (Linux: 16).
        connections: parallel connections; each fetches an equal part of an object (packet model only).
        idle_restart: after an idle time above the retransmission timeout the window falls back to the initial window
            (RFC 5681, section 4.1; Linux: net.ipv4.tcp_slow_start_after_idle).
        min_rto_ms: least allowance over the smoothed round-trip time in the retransmission timeout (Linux: 200 ms).
        initial_rto_ms: timeout before the first round-trip sample (RFC 6298, section 2.1).
        handshake: what opens a connection, a name of HANDSHAKES.
        handshake_rtts: round trips before the first request of a connection; -1 = what `handshake` takes.
        request_bytes: payload of a request; takes uplink capacity only where an uplink trace is given.
        response_header_bytes: HTTP response header before each body; takes downlink capacity, is not part of the body.
    """

    model: str = "fluid"
    delay_ms: float = 20.0
    queue: str = "droptail"
    queue_packets: int = 256
    queue_bytes: int = 0
    codel_target_ms: int = 5
    codel_interval_ms: int = 100
    pie_reference_ms: int = 15
    pie_burst_ms: int = 150
    compat: str = "none"
    loss: float = 0.0
    uplink_loss: float = 0.0
    on_s: float = 1.0
    off_s: float = 0.0
    seed: int = 0
    mss_bytes: int = 1448
    congestion_control: str = "cubic"
    initial_window_packets: int = 10
    receive_window_bytes: int = 3_145_728
    ack_every: int = 2
    ack_delay_ms: float = 40.0
    quick_acks: int = 16
    connections: int = 1
    idle_restart: bool = True
    min_rto_ms: float = 200.0
    initial_rto_ms: float = 1000.0
    handshake: str = "tcp"
    handshake_rtts: int = -1
    request_bytes: int = 300
    response_header_bytes: int = 250

    def __post_init__(self) -> None:
        _check_name("model", self.model, MODELS)
        _check_name("queue", self.queue, QUEUE_NAMES)
        _check_name("compat", self.compat, COMPAT_NAMES)
        _check_name("congestion_control", self.congestion_control, CONTROL_NAMES)
        _check_name("handshake", self.handshake, tuple(HANDSHAKES))
        largest_mss = MTU_BYTES - HEADER_BYTES
        _check_range("delay_ms", self.delay_ms, 0, 60_000)
        _check_range("loss", self.loss, 0, 0.5)
        _check_range("uplink_loss", self.uplink_loss, 0, 0.5)
        _check_range("on_s", self.on_s, 0.001, 1e6)
        _check_range("off_s", self.off_s, 0, 1e6)
        for name in ("codel_target_ms", "codel_interval_ms", "pie_reference_ms", "pie_burst_ms"):
            _check_range(name, getattr(self, name), 1, 60_000)
        _check_range("ack_every", self.ack_every, 1, 1000)
        _check_range("ack_delay_ms", self.ack_delay_ms, 0, 500)  # RFC 9293, section 3.8.6.3
        _check_range("quick_acks", self.quick_acks, 0, math.inf)
        _check_range("connections", self.connections, 1, 64)
        _check_range("receive_window_bytes", self.receive_window_bytes, 0, math.inf)
        if 0 < self.receive_window_bytes < 2 * self.mss_bytes:
            raise TransportError(
                f"receive_window_bytes {self.receive_window_bytes}; two packets take {2 * self.mss_bytes}"
            )
        _check_range("mss_bytes", self.mss_bytes, 1, largest_mss)
        _check_range("initial_window_packets", self.initial_window_packets, 1, 1_000_000)
        _check_range("min_rto_ms", self.min_rto_ms, 1, MAX_RTO_MS)
        _check_range("initial_rto_ms", self.initial_rto_ms, 1, MAX_RTO_MS)
        _check_range("handshake_rtts", self.handshake_rtts, -1, 100)
        _check_range("request_bytes", self.request_bytes, 1, largest_mss)
        _check_range("response_header_bytes", self.response_header_bytes, 1, 1_000_000)
        _check_range("queue_packets", self.queue_packets, 0, math.inf)
        _check_range("queue_bytes", self.queue_bytes, 0, math.inf)
        if self.queue != "infinite":
            if self.queue_packets == self.queue_bytes == 0:
                raise TransportError(f"queue {self.queue}: neither queue_packets nor queue_bytes is set")
            if 0 < self.queue_bytes < self.packet_bytes:
                raise TransportError(f"queue_bytes {self.queue_bytes}; one packet already takes {self.packet_bytes}")

    def create_queue(self) -> PacketQueue:
        """Build the bottleneck's queue, empty."""
        limited = self.queue != "infinite"
        return create_queue(
            self.queue,
            limit_packets=self.queue_packets if limited else 0,
            limit_bytes=self.queue_bytes if limited else 0,
            target_ms=self.codel_target_ms,
            interval_ms=self.codel_interval_ms,
            reference_ms=self.pie_reference_ms,
            burst_ms=self.pie_burst_ms,
            compat=self.compat,
            seed=self.seed,
        )

    @property
    def packet_bytes(self) -> int:
        """Size of a full packet as the link counts it."""
        return self.mss_bytes + HEADER_BYTES

    @property
    def opening_rtts(self) -> int:
        """Round trips before the first request of a connection."""
        return HANDSHAKES[self.handshake] if self.handshake_rtts < 0 else self.handshake_rtts

    @property
    def ack_delay_us(self) -> int:
        """Longest delay of an acknowledgement in whole microseconds."""
        return round(self.ack_delay_ms * 1000)

    @property
    def delay_us(self) -> int:
        """One-way delay in whole microseconds, the resolution of both models."""
        return round(self.delay_ms * 1000)


def parse_settings(texts: Sequence[str], *, taken: Sequence[str] = ()) -> dict[str, Any]:
    """Read `key=value` texts as fields of LinkConfig, all but those `taken` by options of their own."""
    known: dict[str, Any] = {field.name: type(field.default) for field in fields(LinkConfig) if field.name not in taken}
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in known or not equals:
            raise TransportError(f"link setting {text!r}; expected KEY=VALUE, KEY one of {', '.join(known)}")
        try:
            settings[key] = _BOOLS[value.lower()] if known[key] is bool else known[key](value)
        except (ValueError, KeyError):
            raise TransportError(f"link setting {text!r}; expected a value of type {known[key].__name__}") from None
    return settings


_BOOLS = {"true": True, "false": False}


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise TransportError(f"unknown {field} {value!r}; known: {', '.join(known)}")


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise TransportError(f"{field} is {value}; expected {low} to {high}")
