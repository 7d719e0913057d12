"""UCI HAR: human activity from a phone's sensors, split by subject (Anguita et al. 2013).

Two layouts: the official one, 561 features per window in text files, and `har_windows.npz`, the raw 9 x 128 signals of
the same windows. They are different inputs: a network for one does not fit the other.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ironbound.data.content import Content
from ironbound.data.files import ENVIRONMENT, cache, candidates, read
from ironbound.data.npz import arrays
from ironbound.errors import DataError

CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
FEATURES = 561
WINDOWS = "har_windows.npz"
_PAGE = "https://archive.ics.uci.edu/dataset/240"


def find(root: str | os.PathLike[str] | None, split: str) -> Path:
    """Find the data; the official features are preferred to the raw windows.

    Args:
        root: the user's folder, or None for the environment variable and the cache.
        split: "train" or "test".

    Returns:
        The folder of the split in the official layout, or the path of `har_windows.npz`.

    Raises:
        DataError: neither is there. No verified hash of the archive is known, so it is not downloaded.
    """
    places, given = candidates(root, "har", ("UCI HAR Dataset", "har-raw"))
    places += [] if given else [cache("har"), cache("har") / "UCI HAR Dataset"]
    for place in places:
        if (place / split / f"X_{split}.txt").is_file():
            return place / split
    for place in places:
        if (place / WINDOWS).is_file():
            return place / WINDOWS
    raise DataError(
        f"the HAR data are not {f'in {root}' if given else 'on this machine'} and are not downloaded automatically; "
        f"unpack 'UCI HAR Dataset.zip' from {_PAGE} and name the folder that holds it, or set {ENVIRONMENT}."
    )


def load(path: Path, split: str) -> Content:
    """Read one split in the layout that was found.

    Args:
        path: what `find` returned.
        split: "train" or "test".

    Returns:
        Inputs [n, 561] in [−1, 1] and labels 0 … 5 (1 … 6 in the files), or the raw windows [n, 9, 128], which the
        notes say.

    Raises:
        DataError: files are missing, truncated or malformed.
    """
    if path.name == WINDOWS:
        inputs, labels, _ = arrays(path, split)
        if inputs.shape[1:] != (9, 128):
            raise DataError(f"{path} must hold windows of 9 x 128 values; they are {list(inputs.shape[1:])}.")
        note = f"raw 9 x 128 signal windows ({inputs.dtype}), not the 561 features of the official data set"
        return Content(inputs, labels, CLASSES, notes=(note,))
    inputs = _table(path / f"X_{split}.txt", FEATURES)
    labels = _table(path / f"y_{split}.txt", 1)[:, 0]
    if len(inputs) != len(labels):
        raise DataError(f"{path} has {len(inputs)} rows of features and {len(labels)} labels; they do not fit.")
    if not np.isin(labels, np.arange(1, 7)).all():
        raise DataError(f"{path / f'y_{split}.txt'} must hold labels 1 … 6 only.")
    return Content(inputs, labels.astype(np.int64) - 1, CLASSES)


def _table(path: Path, columns: int) -> np.ndarray:
    try:
        lines = [line for line in read(path).decode("ascii").splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{path} holds no rows; get it again.")
        values = np.loadtxt(lines, dtype=np.float64, ndmin=2)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is not a whole table of numbers ({error}); get it again.") from error
    if values.shape[1] != columns:
        raise DataError(f"{path} must have {columns} columns; it has {values.shape[1]}.")
    return values
