"""Any torch `Dataset` of (input, label) pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ironbound.data.dataset import Dataset
from ironbound.errors import InputError, LabelError


def from_torch(
    dataset: Any, name: str = "user data", split: str = "test", classes: tuple[str, ...] = (), limit: int | None = None
) -> Dataset:
    """Read a torch data set of fixed size into memory.

    Args:
        dataset: anything with a length and `dataset[i] -> (input, label)`; inputs are floating tensors of one shape.
        name: name for reports.
        split: split for reports.
        classes: names of the classes; by default those the data set states, else the numbers up to the largest label.
        limit: read only the first examples.

    Returns:
        The data, as float32 inputs and int64 labels.

    Raises:
        InputError: no examples, inputs that are not floating tensors, or of different shapes, or NaN.
        LabelError: labels that are not whole numbers from 0.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; it is {limit}.")
    try:
        total = len(dataset)
    except TypeError as error:
        raise InputError("the data set has no length; collect its (input, label) pairs into a list first.") from error
    count = total if limit is None else min(limit, total)
    if count == 0:
        raise InputError("the data set is empty.")
    inputs, labels = zip(*(_pair(dataset[index], index) for index in range(count)), strict=True)
    shapes = {tuple(each.shape) for each in inputs}
    if len(shapes) > 1:
        listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
        raise InputError(f"inputs must have one shape; found {listed}.")
    stacked, numbers = torch.stack(inputs).to(torch.float32), torch.tensor(labels, dtype=torch.int64)
    known = classes or tuple(str(each) for each in getattr(dataset, "classes", ()))
    known = known or tuple(str(index) for index in range(max(int(numbers.max()), 0) + 1))
    notes = (f"the first {count} of {total} examples",) if count < total else ()
    return Dataset(name, split, stacked, numbers, known, notes)


def _pair(pair: Any, index: int) -> tuple[Tensor, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"example {index} must be a pair (input, label); it is a {type(pair).__name__}.")
    value, label = pair
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"input {index} must be a floating tensor, in the units that ε is in; it is {kind}.")
    number = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    try:
        whole = int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise LabelError(f"label {index} must be a whole number; it is {label!r}.") from error
    if whole != number:
        raise LabelError(f"label {index} must be a whole number; it is {label!r}.")
    return value.detach().cpu(), whole
