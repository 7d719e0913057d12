"""What a reader of one file format hands over, and the step from there to a `Dataset`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ironbound.data.dataset import Dataset
from ironbound.errors import DataError, InputError


@dataclass(frozen=True)
class Content:
    """Arrays as they stand in the files.

    Args:
        inputs: [n, *shape], any real dtype.
        labels: [n], integers from 0.
        classes: names of the classes.
        scale: what the inputs are divided by, 255 for bytes that are pixels.
        notes: see `Dataset.notes`.
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    scale: float = 1.0
    notes: tuple[str, ...] = ()


def assemble(content: Content, name: str, split: str, limit: int | None, where: str) -> Dataset:
    """Turn a file's arrays into a `Dataset`.

    Args:
        content: what the reader found.
        name: name of the data set.
        split: "train" or "test".
        limit: keep only the first examples; None keeps all.
        where: the file or folder, named in the error.

    Returns:
        The data set; a limit that cuts is noted.

    Raises:
        DataError: the file's values cannot be used: NaN, labels outside the classes, no examples.
    """
    total = len(content.labels)
    if total == 0 or len(content.inputs) == 0:
        raise DataError(f"{where} holds no examples; get the file again.")
    notes = content.notes
    if limit is not None and limit < total:
        notes = (*notes, f"the first {limit} of {total} examples")
    inputs, labels = content.inputs[:limit], content.labels[:limit]
    try:
        return Dataset(
            name=name,
            split=split,
            inputs=_scaled(inputs, content.scale),
            labels=torch.from_numpy(labels.astype(np.int64)),
            classes=content.classes,
            notes=notes,
        )
    except InputError as error:
        raise DataError(f"{where} cannot be used: {error}") from error


def _scaled(inputs: np.ndarray, scale: float) -> torch.Tensor:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the Dataset refuses
        values = inputs.astype(np.float32, order="C")  # a copy: never a view of a mapped or shared array
    return torch.from_numpy(values if scale == 1.0 else np.divide(values, np.float32(scale), out=values))
