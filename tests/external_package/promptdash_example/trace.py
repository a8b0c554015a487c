"""Traces: a family of modelled links, and the file format of a logger that writes kbit/s, one number a second."""

import numpy as np

from traces import TraceError
from traces.formats import RateSeries
from traces.registry import TraceFamily, TraceFormat

PERIOD_S = 120
DARK_S = 20  # how long a tunnel has no signal
STATIONS_BPS = {"day": 2e6, "night": 8e6}  # fewer people share the cell at night


def subway(member):
    """Return two minutes on the subway: a good link at stations, none in the tunnels between them."""
    time_s = np.arange(PERIOD_S)
    rate_bps = np.where(time_s % 60 < 60 - DARK_S, STATIONS_BPS[member], 0.0)
    return RateSeries(np.arange(PERIOD_S + 1.0), rate_bps).to_trace(f"subway-{member}")


def read_kbps(path):
    """Read a file of one rate in kbit/s per line and second."""
    rates = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rates.append(float(line) * 1e3)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: found {line!r}, expected a rate in kbit/s") from error
    return RateSeries(np.arange(len(rates) + 1.0), np.array(rates)).to_trace(path.name)


SUBWAY = TraceFamily("A subway line, modelled: tunnels without signal", tuple(STATIONS_BPS), subway)
KBPS = TraceFormat("Rates in kbit/s, one line a second", ".kbps", read_kbps)
