"""Handwritten digits that come with scikit-learn: 1 797 images of 8 x 8 pixels with values 0 … 16. No download."""

from __future__ import annotations

from typing import Any

import numpy as np

from ironbound.data.catalogue import DIGITS
from ironbound.data.content import Content

_EVERY = 5


def load(split: str) -> Content:
    """Read one split. Every fifth image (index 0, 5, 10, …) is for testing: 360 images, and 1 437 for training.

    The same people wrote both parts, so the test error says nothing about new writers.

    Args:
        split: "train" or "test".

    Returns:
        Inputs [n, 1, 8, 8] to be divided by 16, and labels [n].
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    testing = np.arange(len(bunch.target)) % _EVERY == 0
    chosen = testing if split == "test" else ~testing
    return Content(bunch.images[chosen][:, None], bunch.target[chosen], DIGITS, scale=16.0)
