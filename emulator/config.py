"""What is known of the network beside its trace: the bottleneck's queue, the delay, the loss, and the TCP over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emulator.errors import TransportError
from emulator.queues import QUEUE_NAMES
from traces import MTU_BYTES

MODELS = ("fluid", "packet")
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
        queue: the bottleneck's queue: `droptail`, `drophead` (packet model only) or `infinite` (ignores both limits).
        queue_packets: queue limit in packets; 0 = not set.
        queue_bytes: queue limit in bytes, TUN headers included as in Mahimahi; 0 = not set.
        loss: probability that a downlink packet is lost before it reaches the bottleneck, independently of others.
        seed: of the losses.
        mss_bytes: payload of a full packet; with 56 bytes of headers the default fills a 1504-byte opportunity.
        initial_window_packets: RFC 6928.
        idle_restart: after an idle time above the retransmission timeout the window falls back to the initial window
            (RFC 5681, section 4.1; Linux: net.ipv4.tcp_slow_start_after_idle).
        min_rto_ms: least allowance over the smoothed round-trip time in the retransmission timeout (Linux: 200 ms).
        initial_rto_ms: timeout before the first round-trip sample (RFC 6298, section 2.1).
        handshake_rtts: round trips before the first request of a connection: 1 = TCP, 2 = TCP and TLS 1.3.
        request_bytes: payload of a request; takes uplink capacity only where an uplink trace is given.
        response_header_bytes: HTTP response header before each body; takes downlink capacity, is not part of the body.
    """

    model: str = "fluid"
    delay_ms: float = 20.0
    queue: str = "droptail"
    queue_packets: int = 256
    queue_bytes: int = 0
    loss: float = 0.0
    seed: int = 0
    mss_bytes: int = 1448
    initial_window_packets: int = 10
    idle_restart: bool = True
    min_rto_ms: float = 200.0
    initial_rto_ms: float = 1000.0
    handshake_rtts: int = 1
    request_bytes: int = 300
    response_header_bytes: int = 250

    def __post_init__(self) -> None:
        _check_name("model", self.model, MODELS)
        _check_name("queue", self.queue, QUEUE_NAMES)
        largest_mss = MTU_BYTES - HEADER_BYTES
        _check_range("delay_ms", self.delay_ms, 0, 60_000)
        _check_range("loss", self.loss, 0, 0.5)
        _check_range("mss_bytes", self.mss_bytes, 1, largest_mss)
        _check_range("initial_window_packets", self.initial_window_packets, 1, 1_000_000)
        _check_range("min_rto_ms", self.min_rto_ms, 1, MAX_RTO_MS)
        _check_range("initial_rto_ms", self.initial_rto_ms, 1, MAX_RTO_MS)
        _check_range("handshake_rtts", self.handshake_rtts, 0, 100)
        _check_range("request_bytes", self.request_bytes, 1, largest_mss)
        _check_range("response_header_bytes", self.response_header_bytes, 1, 1_000_000)
        _check_range("queue_packets", self.queue_packets, 0, math.inf)
        _check_range("queue_bytes", self.queue_bytes, 0, math.inf)
        if self.queue != "infinite":
            if self.queue_packets == self.queue_bytes == 0:
                raise TransportError(f"queue {self.queue}: neither queue_packets nor queue_bytes is set")
            if 0 < self.queue_bytes < self.packet_bytes:
                raise TransportError(f"queue_bytes {self.queue_bytes}; one packet already takes {self.packet_bytes}")

    @property
    def packet_bytes(self) -> int:
        """Size of a full packet as the link counts it."""
        return self.mss_bytes + HEADER_BYTES

    @property
    def delay_us(self) -> int:
        """One-way delay in whole microseconds, the resolution of both models."""
        return round(self.delay_ms * 1000)


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise TransportError(f"unknown {field} {value!r}; known: {', '.join(known)}")


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise TransportError(f"{field} is {value}; expected {low} to {high}")
