"""Requests and responses over one persistent connection in virtual time: the interface, and the choice of model.

Two fidelities answer behind one interface: `packet` simulates every packet, `fluid` computes the same timeline in
closed form on the trace's cumulative capacity. docs/emulation.md states what both model and how far they differ.
"""

from __future__ import annotations

import math
from typing import Protocol

from emulator.config import LinkConfig
from emulator.errors import TransportError
from emulator.fluid import FluidTransport
from emulator.packet import PacketTransport
from emulator.transfer import Download, Transfer
from traces import Trace


class Transport(Protocol):
    """One persistent HTTP/1.1 connection, one request at a time."""

    def begin(self, size_bytes: int, request_s: float) -> Download:
        """Start to fetch an object; the download tells how it goes on, and may be cancelled on the way.

        Left alone it is the same transfer as `request` makes without a deadline. The next request may be made from its
        `finish_s` on, or from the time of its cancellation.

        Raises:
            TransportError: as `request`.
        """

    def request(self, size_bytes: int, request_s: float, deadline_s: float = math.inf) -> Transfer:
        """Fetch an object of `size_bytes`, asked for at `request_s`; give up at `deadline_s`.

        The first request opens the connection. A transfer cut at its deadline closes it, as HTTP/1.1 must, so the next
        request opens another one; what the server had sent by then still takes its turn on the link.

        Raises:
            TransportError: a negative size, a request before the last one's end, or a deadline before the request.
        """


def create_transport(trace: Trace, config: LinkConfig | None = None, *, uplink: Trace | None = None) -> Transport:
    """Build the transport that `config.model` names, over a downlink that plays `trace`.

    Args:
        trace: the downlink's opportunities.
        config: the rest of the network; defaults as in LinkConfig.
        uplink: opportunities of the uplink, which then carries requests and acknowledgements through an unlimited
            queue; without it the uplink only delays. Packet model only.
    """
    config = LinkConfig() if config is None else config
    if config.model == "packet":
        return PacketTransport(trace, config, uplink=uplink)
    if uplink is not None:
        raise TransportError("model fluid has no uplink trace; use model packet")
    return FluidTransport(trace, config)
