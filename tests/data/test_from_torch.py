"""Any torch data set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from ironbound.data import from_torch
from ironbound.errors import InputError, LabelError


class Squares(Dataset[Any]):
    classes = ["even", "odd"]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2, 2), float(index) ** 2, dtype=torch.float64), index % 2


def test_a_data_set_is_read_in_order() -> None:
    data = from_torch(Squares(), name="squares", split="validation")
    assert data.inputs[:, 0, 0].tolist() == [0, 1, 4, 9, 16]
    assert data.inputs.dtype == torch.float32
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert (data.name, data.split, data.classes, data.notes) == ("squares", "validation", ("even", "odd"), ())
    limited = from_torch(Squares(), limit=2)
    assert limited.digest == data[:2].digest
    assert limited.notes == ("the first 2 of 5 examples",)


def test_tensor_labels_and_numbered_classes() -> None:
    data = from_torch(TensorDataset(torch.rand(3, 4), torch.tensor([0, 2, 1])))
    assert data.labels.tolist() == [0, 2, 1]
    assert data.classes == ("0", "1", "2")


X = torch.zeros(2)
REFUSED_INPUTS = {
    "empty": [],
    "no pair": [X],
    "three": [(X, 0, 0)],
    "integer input": [(torch.zeros(2, dtype=torch.uint8), 0)],
    "list input": [([0.0, 1.0], 0)],
    "shapes": [(X, 0), (torch.zeros(3), 1)],
    "NaN": [(X, 0), (X * float("nan"), 1)],
}


@pytest.mark.parametrize("case", REFUSED_INPUTS)
def test_inputs_that_do_not_fit_are_refused(case: str) -> None:
    with pytest.raises(InputError):
        from_torch(REFUSED_INPUTS[case])


@pytest.mark.parametrize("label", [0.5, -1, "cat", None, torch.tensor([0, 1]), float("nan"), float("inf")])
def test_labels_that_do_not_fit_are_refused(label: Any) -> None:
    with pytest.raises(LabelError):
        from_torch([(X, label)])


def test_streams_and_limits_are_refused() -> None:
    with pytest.raises(InputError, match="no length"):
        from_torch(iter([(X, 0)]))
    with pytest.raises(InputError, match="limit"):
        from_torch([(X, 0)], limit=0)
