"""The value that every loader returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ironbound.errors import InputError, LabelError


class DataWarning(UserWarning):
    """The data are usable, but are not exactly the official ones; the same sentence stands in `Dataset.notes`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs with labels, in the units that ε is stated in.

    Args:
        name: the name of the data set, as a report prints it.
        split: "train" or "test"; user data may have any other word.
        inputs: float32 [n, *shape]; pixels lie in [0, 1]. Nothing is normalised.
        labels: int64 [n], each in 0 … classes − 1.
        classes: the name of each class; empty where they are not known.
        notes: what a reader of a figure must know, for example that a file is not the official one.
        digest: SHA-256 (hex) of the bytes of the inputs, then of the labels; computed where it is not given.

    Raises:
        InputError: inputs that are not float32, not finite, or do not fit the labels.
        LabelError: labels that are not int64 or not among the classes.
    """

    name: str
    split: str
    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        _check(self.inputs, self.labels, self.classes)
        if not self.digest:
            object.__setattr__(self, "digest", digest(self.inputs, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Dataset:
        """Give the examples that a slice, an index tensor or a boolean mask selects; their digest is their own."""
        if not isinstance(index, (slice, Tensor)):
            raise InputError(f"a Dataset is indexed by a slice, an index tensor or a mask, not by {index!r}.")
        return replace(self, inputs=self.inputs[index], labels=self.labels[index], digest="")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])


def digest(inputs: Tensor, labels: Tensor) -> str:
    """Hash what a result was computed on.

    Args:
        inputs: [n, *shape].
        labels: [n].

    Returns:
        SHA-256, hexadecimal, over the inputs' bytes (C order) followed by the labels' bytes.
    """
    state = hashlib.sha256()
    for tensor in (inputs, labels):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        state.update(array.view(np.uint8).data if array.size else b"")
    return state.hexdigest()


def _check(inputs: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    if inputs.dtype != torch.float32 or inputs.dim() < 2:
        found = f"{inputs.dtype} {list(inputs.shape)}"
        raise InputError(f"inputs must be float32 with a batch axis and at least one more; they are {found}.")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise LabelError(f"labels must be one int64 per input; they are {labels.dtype} {list(labels.shape)}.")
    if len(inputs) != len(labels):
        raise InputError(f"{len(inputs)} inputs do not fit {len(labels)} labels.")
    bad = (~torch.isfinite(inputs.flatten(1))).any(dim=1)
    if bool(bad.any()):
        raise InputError(f"{int(bad.sum())} inputs hold NaN or infinity, the first is number {int(bad.nonzero()[0])}.")
    if len(labels) and (int(labels.min()) < 0 or (classes and int(labels.max()) >= len(classes))):
        allowed = f"0 … {len(classes) - 1}" if classes else "0 and up"
        raise LabelError(f"labels must lie in {allowed}; found {int(labels.min())} … {int(labels.max())}.")
