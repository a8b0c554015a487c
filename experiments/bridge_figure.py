"""The bridge's figure: each download's time in virtual time against the same download in real time."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.paper import PAGE_IN, SERIES_COLORS, add_caption, paper_style, shared_legend
from experiments.series import CODEC_TITLES

_MARKERS = {"packet": "o", "fluid": "x"}


def bridge_figure(downloads: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """Draw one row per codec: virtual against real download times, and both over the session."""
    with paper_style():
        figure, axes = plt.subplots(
            len(downloads), 2, figsize=(PAGE_IN, 1.9 * len(downloads) + 0.6), squeeze=False, layout="constrained",
            gridspec_kw={"width_ratios": (1, 1.8)},
        )  # fmt: skip
        for (against, over), (codec, table) in zip(axes, downloads.items(), strict=True):
            title = CODEC_TITLES[codec]
            times = table[["real_s", *(f"{model}_s" for model in _MARKERS)]].to_numpy(dtype=float)
            low, high = (float(times.min()) / 1.2, float(times.max()) * 1.2) if len(times) else (0.1, 1.0)
            against.plot([low, high], [low, high], color="0.6", linewidth=0.6)
            request_s, real_s = table["request_s"], table["real_s"]
            over.hlines(real_s, request_s, request_s + real_s, color="0.3", linewidth=1.0, label="real time")
            for (model, marker), colour in zip(_MARKERS.items(), SERIES_COLORS, strict=False):
                style = {"marker": marker, "markersize": 2.5, "linestyle": "none", "color": colour, "label": model}
                against.plot(table["real_s"], table[f"{model}_s"], **style)
                over.plot(table["request_s"], table[f"{model}_s"], **style)
            against.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
            for axis in (against.xaxis, against.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
            against.set(xlabel="Download in real time [s]", ylabel="in virtual time [s]", title=title)
            over.set(xlabel="Time since the session began [s]", ylabel="Download time [s]", title=title)
            over.set_ylim(0, 1.1 * float(np.max(times, initial=0.1)))
        shared_legend(figure, axes)
        add_caption(figure, label, PAGE_IN)
    return figure
