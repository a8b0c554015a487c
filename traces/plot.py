"""Pictures of traces for `python -m traces plot`; the only module here that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from traces.errors import TraceError
from traces.trace import Trace

# Okabe & Ito, "Color Universal Design": told apart with any colour vision; the dashes tell them apart without any.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SUFFIXES = (".pdf", ".png", ".svg")
_DASHES = ("-", "--", "-.", ":")


def plot_traces(
    traces: Sequence[Trace], path: Path, *, bin_s: float = 1.0, duration_s: float | None = None, log: bool = False
) -> None:
    """Write a figure of each trace's rate over time and of the distribution of its rate, in the format of the suffix.

    Args:
        traces: what to draw.
        path: file to write (.pdf, .png, .svg).
        bin_s: rates are means over this time.
        duration_s: draw this much of each endless trace instead of one lap.
        log: logarithmic rate axes.
    """
    if path.suffix not in _SUFFIXES:
        raise TraceError(f"{path}: found suffix {path.suffix!r}, expected {' or '.join(_SUFFIXES)}")
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    time_axes, cdf_axes = figure.subplots(1, 2, width_ratios=(2, 1))
    for i, trace in enumerate(traces):
        rate_mbps = trace.rate_bps(bin_s, duration_s) / 1e6
        style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)]}
        edges_s = np.arange(rate_mbps.size + 1) * bin_s
        time_axes.stairs(rate_mbps, edges_s, label=trace.name, linewidth=0.8, baseline=None, **style)
        cdf_axes.ecdf(rate_mbps, linewidth=1.0, **style)
    time_axes.set(xlabel="time (s)", ylabel=f"rate (Mbit/s), mean over {bin_s:g} s", xmargin=0)
    cdf_axes.set(xlabel="rate (Mbit/s)", ylabel="fraction of time at or below", ylim=(0, 1))
    if log:
        time_axes.set_yscale("log")
        cdf_axes.set_xscale("log")
    else:
        time_axes.set_ylim(bottom=0)
        cdf_axes.set_xlim(left=0)
    for axes in (time_axes, cdf_axes):
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside upper center", ncols=min(len(traces), 4), fontsize="small", frameon=False)
    try:
        figure.savefig(path, dpi=200, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    except OSError as error:
        raise TraceError(f"{path}: found {(error.strerror or 'an error').lower()}, expected a writable file") from error
