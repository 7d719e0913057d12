"""SVHN, cropped digits: a MATLAB file with `X` [32, 32, 3, n] and `y` [n, 1], where the digit 0 has the label 10."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from ironbound.data.catalogue import Entry, File
from ironbound.data.content import Content
from ironbound.data.dataset import DataWarning
from ironbound.data.files import is_official, read
from ironbound.errors import DataError


def load(entry: Entry, found: list[tuple[File, Path]], split: str, verify: bool) -> Content:
    """Read one split.

    Args:
        entry: the catalogue's data set.
        found: the file with its path.
        split: "train" or "test".
        verify: compare with the official hash; a difference is noted, not refused.

    Returns:
        uint8 inputs [n, 3, 32, 32] to be divided by 255, and labels [n] with 10 read as 0.

    Raises:
        DataError: the file is truncated, or not of this form.
    """
    file, path = found[0]
    content = read(path)
    values = _matlab(content, path)
    images, labels = values.get("X"), values.get("y")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path} is not an SVHN file: 'X' must be bytes [32, 32, 3, n].")
    images = images.reshape(32, 32, 3, -1)  # MATLAB drops a last axis of size 1
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.size != images.shape[3]:
        raise DataError(f"{path} is not an SVHN file: 'y' must be one integer for each of {images.shape[3]} images.")
    labels = labels.reshape(-1).astype(np.int64)
    if labels.min(initial=1) < 1 or labels.max(initial=1) > 10:
        raise DataError(f"{path} is not an SVHN file: its labels must lie in 1 … 10.")
    notes: tuple[str, ...] = ()
    if not verify:
        notes = ("the file was not compared with the official hash",)
    elif not is_official(content, file):
        notes = (f"{file.name} is not the official file: {len(labels)} images, order and content unverified",)
        warnings.warn(f"SVHN {split}: {notes[0]}.", DataWarning, stacklevel=4)
    return Content(images.transpose(3, 2, 0, 1), labels % 10, entry.classes, scale=255.0, notes=notes)


def _matlab(content: bytes, path: Path) -> dict[str, object]:
    from scipy.io import loadmat

    try:
        return loadmat(io.BytesIO(content), variable_names=["X", "y"])
    except Exception as error:  # scipy's reader has no error type of its own
        raise DataError(
            f"{path} is not a whole MATLAB 5 file ({type(error).__name__}: {error}); get it again."
        ) from error
