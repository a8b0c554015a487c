"""A metric: how far pixels are off, on average."""

import numpy as np


class MeanAbsoluteError:
    """Mean absolute difference of samples, in code values from 0 to 255."""

    name = "mae"
    title = "MAE"
    higher_is_better = False
    minimum_side = 1
    digits = 2

    def __init__(self, *, device="cpu"):
        """A metric with a network would put it on the device."""

    def __call__(self, reference, distorted):
        """Return the error of each frame, float64 [T], of two uint8 [T, H, W, 3] stacks."""
        return np.abs(reference.astype(np.int16) - distorted).mean(axis=(1, 2, 3))
