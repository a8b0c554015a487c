"""What `oracle` is told: when an object would arrive that is asked for at a given time, from the trace itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from abr.oracle import FinishTimes
from emulator import LinkConfig
from traces import MTU_BYTES, Trace


def link_future(trace: Trace, config: LinkConfig) -> FinishTimes:
    """Return the arrival times of last bytes over an idle link that plays `trace`, for arrays of requests.

    The packets of object and header leave with the opportunities after the request has reached the link, and arrive one
    delay later; but slow start from the initial window takes its round trips, however fast the link. Losses, what the
    connection's window has grown to and the handshake are not foreseen.
    """
    share = config.packet_bytes / MTU_BYTES
    delay_s = config.delay_ms / 1000

    def finish_s(sizes: NDArray[np.int64], request_s: NDArray[np.float64]) -> NDArray[np.float64]:
        packets = np.ceil((sizes + config.response_header_bytes) / config.mss_bytes)
        free = np.asarray(trace.count_until((request_s + delay_s) * 1000))
        last = free + np.ceil(packets * share).astype(np.int64) - 1
        link_s = np.asarray(trace.opportunity_ms(last)) / 1000 + delay_s
        rounds = np.ceil(np.log2(packets / config.initial_window_packets + 1))
        return np.maximum(link_s, request_s + np.maximum(rounds, 1) * 2 * delay_s)

    return finish_s
