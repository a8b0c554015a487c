"""Network traces: formats, vendored measurements, synthetic ones; when a link may send one MTU.

Light: numpy only. `catalogue` is the module that lists and loads the vendored traces.
"""

from traces import catalogue
from traces.config import TraceConfig, check_trace_name, load_trace
from traces.errors import TraceError
from traces.formats import read_trace, write_cooked, write_mahimahi, write_sabre
from traces.trace import MTU_BYTES, Trace

__all__ = [
    "MTU_BYTES",
    "Trace",
    "TraceConfig",
    "TraceError",
    "catalogue",
    "check_trace_name",
    "load_trace",
    "read_trace",
    "write_cooked",
    "write_mahimahi",
    "write_sabre",
]
