"""Runs, studies over many traces and controllers, figures, and the training of what is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(path: Path | str) -> pd.DataFrame:
    """Return the sessions of a study that `python -m experiments.sweep` made; see `experiments.dataset.SCHEMA`."""
    from experiments import dataset  # pandas, late: every command imports this package

    return dataset.load(path)
