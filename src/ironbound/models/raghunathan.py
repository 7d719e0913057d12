"""The released two-layer MNIST network of the SDP paper (Raghunathan et al. 2018)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ironbound.errors import WeightsError
from ironbound.models.architectures import build
from ironbound.models.weights import require_finite

# file → (parameter of `two-layer`, shape in the file); the release multiplies from the right, x W1 + B1
_FILES = {
    "W1": ("1.weight", (784, 500)),
    "B1": ("1.bias", (500,)),
    "W2": ("3.weight", (500, 10)),
    "B2": ("3.bias", (10,)),
}


def load_raghunathan(folder: str | os.PathLike[str]) -> nn.Sequential:
    """Build `two-layer` with the released weights: logits = relu(x W1 + B1) W2 + B2.

    Args:
        folder: holds W1.npy (784, 500), B1.npy (500), W2.npy (500, 10) and B2.npy (10).

    Returns:
        Network from [batch, 1, 28, 28] to [batch, 10], in evaluation mode.

    Raises:
        WeightsError: a file is missing, damaged, of another shape, or holds NaN.
    """
    state = {}
    for name, (key, shape) in _FILES.items():
        path = Path(folder) / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise WeightsError(f"{path} cannot be read as an array ({error}); get it again.") from error
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
            raise WeightsError(f"{path} must hold floats of shape {list(shape)}.")
        state[key] = torch.from_numpy(array.T.astype(np.float32, order="C"))
    require_finite(state, folder)
    model = build("two-layer")
    model.load_state_dict(state)
    return model
