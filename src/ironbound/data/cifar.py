"""CIFAR-10 in its official layout: pickled batches of bytes, 3 x 32 x 32 in channel order."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ironbound.data.catalogue import Entry, File
from ironbound.data.content import Content
from ironbound.data.dataset import DataWarning
from ironbound.data.files import is_official, read
from ironbound.data.pickles import loads
from ironbound.errors import DataError

_BATCH = 10_000
_SHAPE = (3, 32, 32)


def load(entry: Entry, found: list[tuple[File, Path]], split: str, verify: bool) -> Content:
    """Read the batches of one split that are there.

    Args:
        entry: the catalogue's data set.
        found: the batches with their paths.
        split: "train" or "test".
        verify: compare each batch with the official hash; a difference is noted, not refused.

    Returns:
        uint8 inputs [n, 3, 32, 32] to be divided by 255, and labels [n]. What is missing or differs
        is a note and a warning.

    Raises:
        DataError: a batch is truncated or malformed.
        UnsafeFileError: a batch is a pickle that would run code.
    """
    notes = []
    if len(found) < len(entry.files[split]):
        notes.append(f"only {len(found)} of the {len(entry.files[split])} {split} batches are there")
    inputs, labels = [], []
    for file, path in found:
        content = read(path)
        batch_inputs, batch_labels = _batch(loads(content, path), path)
        if verify and not is_official(content, file):
            notes.append(
                f"{file.name} is not the official file: {len(batch_labels)} of {_BATCH} images, "
                "order and content unverified"
            )
        inputs.append(batch_inputs)
        labels.append(batch_labels)
    if notes:
        warnings.warn(f"CIFAR-10 {split}: {'; '.join(notes)}.", DataWarning, stacklevel=4)
    if not verify:
        notes.append("the files were not compared with the official hashes")
    return Content(np.concatenate(inputs), np.concatenate(labels), entry.classes, scale=255.0, notes=tuple(notes))


def _batch(batch: object, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, dict):
        raise DataError(f"{path} is not a CIFAR-10 batch: it holds a {type(batch).__name__} instead of a dict.")
    values = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, raw_labels = values.get("data"), values.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{path} is not a CIFAR-10 batch: 'data' must be bytes [n, 3072].")
    if not isinstance(raw_labels, (list, np.ndarray)) or len(raw_labels) != len(data):
        raise DataError(f"{path} is not a CIFAR-10 batch: 'labels' must be one number for each of {len(data)} images.")
    labels = np.asarray(raw_labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path} is not a CIFAR-10 batch: its labels are not integers.")
    return data.reshape(-1, *_SHAPE), labels
