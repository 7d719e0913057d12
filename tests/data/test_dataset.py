"""The value type: what it refuses, its digest, and its subsets."""

from __future__ import annotations

import hashlib

import pytest
import torch

from ironbound.data import Dataset
from ironbound.errors import InputError, LabelError


def make(count: int = 6) -> Dataset:
    inputs = torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)
    return Dataset("mine", "test", inputs, torch.arange(count) % 3, ("a", "b", "c"), ("a note",))


def test_digest_is_sha256_of_input_bytes_then_label_bytes() -> None:
    data = make()
    expected = hashlib.sha256(data.inputs.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()
    assert data.digest == expected


def test_digest_does_not_depend_on_memory_layout_but_on_every_value() -> None:
    data = make()
    strided = data.inputs.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert Dataset("mine", "test", strided, data.labels).digest == data.digest
    nudged = data.inputs.clone()
    nudged[3, 1, 1] += 1e-3
    assert Dataset("mine", "test", nudged, data.labels).digest != data.digest
    assert Dataset("mine", "test", data.inputs, data.labels.flip(0)).digest != data.digest


@pytest.mark.parametrize(
    "index", [slice(1, 4), torch.tensor([1, 2, 3]), torch.tensor([False, True, True, True, False, False])]
)
def test_subsets_by_slice_index_and_mask_agree(index: slice | torch.Tensor) -> None:
    data = make()
    part = data[index]
    assert len(part) == 3
    assert part.shape == (2, 2)
    torch.testing.assert_close(part.inputs, data.inputs[1:4])
    assert part.labels.tolist() == [1, 2, 0]
    assert (part.name, part.split, part.classes, part.notes) == ("mine", "test", ("a", "b", "c"), ("a note",))
    assert part.digest == data[1:4].digest != data.digest


def test_an_integer_index_is_refused() -> None:
    with pytest.raises(InputError, match="slice"):
        make()[0]  # type: ignore[index]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_with_their_number(bad: float) -> None:
    inputs = torch.zeros(4, 3)
    inputs[2, 1] = bad
    with pytest.raises(InputError, match="first is number 2"):
        Dataset("mine", "test", inputs, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("inputs", [torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4), torch.zeros(5, 3)])
def test_inputs_of_another_dtype_or_shape_are_refused(inputs: torch.Tensor) -> None:
    with pytest.raises(InputError):
        Dataset("mine", "test", inputs, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, -1]), torch.tensor([0, 2])],
    ids=["float", "two axes", "negative", "beyond the classes"],
)
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(LabelError):
        Dataset("mine", "test", torch.zeros(2, 3), labels, ("a", "b"))
