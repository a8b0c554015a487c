"""Downloads under way: their progress, their end, and giving them up."""

import math

import numpy as np
import pytest

from emulator import MODELS, LinkConfig, Transport, TransportError, create_transport
from traces import Trace, load_trace

TWELVE_MBPS = Trace(name="12", opportunities_ms=np.array([1], dtype=np.int64), period_ms=1)  # one MTU per ms
both = pytest.mark.parametrize("model", MODELS)


def make(model: str, trace: Trace = TWELVE_MBPS, **settings: object) -> Transport:
    return create_transport(trace, LinkConfig(model=model, **settings))  # type: ignore[arg-type]


@both
def test_progress_by_hand(model):
    """5 kB with 250 bytes of header are packets of 1448, 1448, 1448 and 906 bytes, at 82, 83, 84 and 85 ms."""
    download = make(model).begin(5_000, 0.0)
    assert (download.request_s, download.size_bytes) == (0.0, 5_000)
    assert (download.first_byte_s, download.finish_s) == (0.082, 0.085)
    progress = [download.received_bytes(time_s) for time_s in (0.0, 0.0819, 0.082, 0.083, 0.0839, 0.084, 0.085, 9.0)]
    assert progress == [0, 0, 1198, 2646, 2646, 4094, 5000, 5000]


@both
@pytest.mark.parametrize("settings", [{}, {"loss": 0.05, "seed": 3}, {"queue_packets": 20}])
def test_a_download_left_alone_is_a_request(model, settings):
    trace = load_trace("lte", share=10)
    asked, begun = make(model, trace, **settings), make(model, trace, **settings)
    now_s = 0.0
    for size_bytes in (300_000, 0, 28_000, 1_000_000, 5_000):
        transfer, download = asked.request(size_bytes, now_s), begun.begin(size_bytes, now_s)
        assert (transfer.first_byte_s, transfer.finish_s) == (download.first_byte_s, download.finish_s)
        now_s = transfer.finish_s + 0.4


@both
@pytest.mark.parametrize("settings", [{}, {"loss": 0.05, "seed": 3}, {"queue_packets": 20}])
@pytest.mark.parametrize("cancel_s", [4.0, 4.001, 4.06, 4.5, 5.3])
def test_a_cancelled_download_is_a_request_with_that_deadline(model, settings, cancel_s):
    trace = load_trace("lte", share=10)
    asked, begun = make(model, trace, **settings), make(model, trace, **settings)
    for transport in (asked, begun):
        transport.request(100_000, 0.0)
    download = begun.begin(3_000_000, 4.0)
    expected = download.received_bytes(cancel_s)
    transfer = download.cancel(cancel_s)
    assert transfer == asked.request(3_000_000, 4.0, cancel_s)
    assert not transfer.complete
    assert transfer.received_bytes == expected == download.received_bytes(99.0)
    assert begun.request(50_000, cancel_s) == asked.request(50_000, cancel_s)  # what was sent is in its way


@both
def test_progress_never_falls_and_ends_complete(model):
    download = make(model, load_trace("umts"), loss=0.02, seed=1).begin(400_000, 0.0)
    times_s = np.linspace(0, download.finish_s, 500)
    progress = [download.received_bytes(float(time_s)) for time_s in times_s]
    assert progress == sorted(progress)
    assert progress[-1] == 400_000
    assert len(set(progress)) > 20


@both
def test_cancelling_what_has_arrived_changes_nothing(model):
    transport = make(model)
    transfer = transport.begin(5_000, 0.0).cancel(0.085)
    assert transfer.complete
    assert transfer.finish_s == 0.085
    assert transport.request(0, 1.0).first_byte_s == 1.041  # the connection is still open


@both
def test_misuse_is_refused(model):
    transport = make(model)
    download = transport.begin(50_000, 1.0)
    with pytest.raises(TransportError, match="while the last transfer"):
        transport.begin(1, 1.01)
    with pytest.raises(TransportError, match="no time before 1"):
        download.cancel(0.9)
    with pytest.raises(TransportError, match="no time before 1"):
        download.cancel(math.nan)
    with pytest.raises(TransportError, match="finite"):
        download.received_bytes(math.inf)
    download.cancel(1.05)
    with pytest.raises(TransportError, match=r"it was cancelled at 1\.05 s"):
        download.cancel(1.06)
    second = transport.begin(1, 1.05)
    transport.request(1, second.finish_s)
    with pytest.raises(TransportError, match="another request"):
        second.cancel(1.06)
    with pytest.raises(TransportError, match="0 or more"):
        transport.begin(-1, 9.0)
