"""How far an affine node can be off in the network's own run in float32."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ironbound.errors import UnsupportedOperatorError
from ironbound.graph import Node
from ironbound.ops.affine import (
    BatchNorm,
    Convolution,
    Linear,
    Reshape,
    Structural,
    TransposedConvolution,
    WeightedSum,
)
from ironbound.ops.operator import Operator

SINGLE = 2.0**-24  # the unit of rounding of float32
_FLUSHED = 2.0**-126  # below this, float32 results may become 0
_PRODUCTS = Linear | Convolution | TransposedConvolution
_DENSE = 1 << 24  # entries of a matrix up to which its non-zeros are counted

_reads: WeakKeyDictionary[Operator, Tensor] = WeakKeyDictionary()


def executed_noise(node: Node, inputs: list[Tensor], constant: Tensor, most: Tensor) -> Tensor:
    """How far an affine node computed in float32 can be from exact: gamma_k · most.

    k counts the inputs of an output that can be other than 0: an exact zero adds no rounding, in any order of sums.

    Args:
        node: affine.
        inputs: the largest magnitudes of what it reads.
        constant: of its constant, [1, *shape].
        most: of its value, [batch, *shape].

    Returns:
        [batch, *shape].

    Raises:
        UnsupportedOperatorError: its sums are too long.
    """
    operator = node.operator
    if isinstance(operator, Reshape):
        return torch.zeros_like(most)
    roundings = torch.as_tensor(_roundings(operator, inputs), dtype=most.dtype, device=most.device) * SINGLE
    if not bool((roundings <= 1 / 8).all()):
        raise UnsupportedOperatorError(f"{node.name}: its sums are too long for a bound of their rounding in float32.")
    factor = roundings / (1 - roundings) * (1 + 2.0**-20)
    largest = sum((part.flatten(1).amax(1) for part in inputs), torch.ones_like(most.flatten(1)[:, 0]))
    terms = node.size + sum(part[0].numel() for part in inputs)
    flushed = (2 * terms * _FLUSHED * largest).reshape(-1, *(1,) * (most.dim() - 1))
    chosen = torch.where(roundings == 0, 0.0, flushed)  # elements that are only moved
    return factor * most + chosen + 2 * SINGLE * constant


def _roundings(operator: Operator, inputs: list[Tensor]) -> Tensor | int:
    if isinstance(operator, _PRODUCTS):
        present = (inputs[0] != 0).to(operator.weight.dtype)
        return replace(operator, weight=torch.ones_like(operator.weight)).magnitude(present) + 2
    if isinstance(operator, BatchNorm):
        return 16
    if isinstance(operator, WeightedSum):
        return 2 * len(operator.factors) + 2
    if isinstance(operator, Structural):
        if operator not in _reads:
            _reads[operator] = _terms_read(operator, [part[:1] for part in inputs])
        return _reads[operator].to(inputs[0].device)
    return 4  # one product or sum, with a constant that may be rounded first


def _terms_read(operator: Structural, inputs: list[Tensor]) -> Tensor:
    """Roundings of each output of a structural operator: 0 where one element is only moved, [1, *shape].

    Its matrix has no negative entry. With row sums of 1, A x² = (A x)² for distinct x means that a row has one entry
    (Jensen's inequality).

    Args:
        operator: the operator.
        inputs: tensors of the shapes that it reads, each [1, *shape].

    Returns:
        float64 [1, *shape].
    """
    numbers, first = [], 1
    for part in inputs:
        numbers.append(torch.arange(first, first + part.numel(), dtype=torch.float64).reshape(part.shape))
        first += part.numel()
    ones, squares = [torch.ones_like(part) for part in numbers], [part**2 for part in numbers]
    total, value, square = operator.magnitude(*ones), operator.magnitude(*numbers), operator.magnitude(*squares)
    moved = ((total == 1) & (square == value**2)) | (total == 0)
    if bool(moved.all()):
        return torch.zeros_like(total)
    count = torch.full_like(total, sum(part.numel() for part in inputs))
    if total.numel() * sum(part.numel() for part in inputs) <= _DENSE:
        unit = torch.eye(total.numel(), dtype=torch.float64).reshape(-1, *total.shape[1:])
        rows = operator.adjoint(unit, tuple(tuple(part.shape[1:]) for part in inputs))
        count = sum(((part != 0).flatten(1).sum(1) for part in rows), torch.zeros(len(unit))).reshape(total.shape)
    return torch.where(moved, 0.0, count + 3)
