"""Rules for operators that work element by element: arithmetic with constants, sums of values, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.capture.onnx.operation import Function, Operation

_NO_LIMIT = 3.4028234e38  # before operator set 11 the largest float32 stands for no limit


def _raised(op: Operation) -> Callable[..., list[Tensor]]:
    """Gives every value the rank of the result: axes come in behind the batch axis, where broadcasting puts them."""
    places = op.arguments()
    rank = max(len(op.shape(place)) for place in places)
    targets = []
    for place in places:
        shape = op.shape(place)
        lower = op.dynamic(place) and len(shape) < rank
        targets.append((*(1,) * (rank - len(shape)), *shape[1:]) if lower else None)

    def align(*tensors: Tensor) -> list[Tensor]:
        return [
            tensor if target is None else tensor.reshape(len(tensor), *target)
            for tensor, target in zip(tensors, targets, strict=True)
        ]

    return align


def _folded(op: Operation, combine: Callable[[Tensor, Tensor], Tensor]) -> Function:
    align = _raised(op)
    return lambda *tensors: reduce(combine, align(*tensors))


def add(op: Operation) -> Function:
    """Add, and Sum of any number of inputs."""
    return _folded(op, torch.add)


def subtract(op: Operation) -> Function:
    """Sub."""
    return _folded(op, torch.sub)


def multiply(op: Operation) -> Function:
    """Mul by a constant."""
    if op.dynamic(0) and op.dynamic(1):
        op.refuse("both factors depend on the network's input; only products with a constant are supported")
    return _folded(op, torch.mul)


def divide(op: Operation) -> Function:
    """Div by a constant."""
    if op.dynamic(1):
        op.refuse("its divisor depends on the network's input; only division by a constant is supported")
    if bool((op.constant(1) == 0).any()):
        op.refuse("it divides by zero")
    return _folded(op, torch.div)


def mean(op: Operation) -> Function:
    """Mean of any number of inputs."""
    count, total = op.count, _folded(op, torch.add)
    return lambda *tensors: total(*tensors) / count


def _extreme(op: Operation, upper: bool) -> Function:
    """Max and Min of any number of inputs; those that are constant tensors are written with ReLU."""
    rank = len(op.shape(_first_value(op)))
    numbers: list[float] = []
    for place in op.arguments():
        value = op.value_of(place)
        if value is not None and value.numel() == 1 and value.dim() <= rank:
            op.plain(place)
            numbers.append(float(value))
    align = _raised(op)
    dynamic = [op.dynamic(place) for place in op.arguments()]

    def run(*tensors: Tensor) -> Tensor:
        tensors = tuple(align(*tensors))
        values = [tensor for tensor, value in zip(tensors, dynamic, strict=True) if value]
        result = reduce(torch.maximum if upper else torch.minimum, values)
        for tensor, value in zip(tensors, dynamic, strict=True):
            if not value:
                result = torch.relu(result - tensor) + tensor if upper else tensor - torch.relu(tensor - result)
        for number in numbers:
            result = result.clamp(min=number) if upper else result.clamp(max=number)
        return result

    return run


def _first_value(op: Operation) -> int:
    return next(place for place in range(op.count) if op.dynamic(place))


def maximum(op: Operation) -> Function:
    """Max."""
    return _extreme(op, upper=True)


def minimum(op: Operation) -> Function:
    """Min."""
    return _extreme(op, upper=False)


def negate(op: Operation) -> Function:
    """Neg."""
    return torch.neg


def relu(op: Operation) -> Function:
    """Relu."""
    return torch.relu


def leaky_relu(op: Operation) -> Function:
    """LeakyRelu."""
    slope = op.number("alpha", 0.01)
    if not math.isfinite(slope):
        op.refuse(f"its slope {slope} must be finite")
    return lambda x: F.leaky_relu(x, slope)


def prelu(op: Operation) -> Function:
    """PRelu: one slope for all is a LeakyRelu, which has tighter bounds; else relu(z) - slope relu(-z)."""
    op.only_first()
    slope = op.constant(1)
    if slope.numel() and bool((slope == slope.reshape(-1)[0]).all()) and slope.dim() <= len(op.shape()):
        op.plain(1)
        number = float(slope.reshape(-1)[0])
        return lambda x: F.leaky_relu(x, number)
    return lambda x, slope: torch.relu(x) - slope * torch.relu(-x)


def clip(op: Operation) -> Function | None:
    """Clip with numbers: attributes before operator set 11, inputs since."""
    low, high = op.plain_number(1, "min"), op.plain_number(2, "max")
    low = None if low is not None and low <= -_NO_LIMIT else low
    high = None if high is not None and high >= _NO_LIMIT else high
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        op.refuse(f"its limits {low} and {high} must be finite, or left out")
    if low is not None and high is not None and low >= high:
        op.refuse(f"its lower limit {low:g} must be below its upper limit {high:g}")
    if low is None and high is None:
        return None
    return lambda x: x.clamp(low, high)


def absolute(op: Operation) -> Function:
    """Abs."""
    return torch.abs


def hard_sigmoid(op: Operation) -> Function:
    """HardSigmoid: min(max(alpha z + beta, 0), 1)."""
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


def sigmoid(op: Operation) -> Function:
    """Sigmoid."""
    return torch.sigmoid


def tanh(op: Operation) -> Function:
    """Tanh."""
    return torch.tanh


def gelu(op: Operation) -> Function:
    """Gelu, exact or by its tanh form."""
    approximate = op.text("approximate", "none")
    if approximate not in ("none", "tanh"):
        op.refuse(f"approximate = {approximate!r} is not supported")
    return lambda x: F.gelu(x, approximate=approximate)


RULES = {
    "Abs": absolute,
    "Add": add,
    "Clip": clip,
    "Div": divide,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "LeakyRelu": leaky_relu,
    "Max": maximum,
    "Mean": mean,
    "Min": minimum,
    "Mul": multiply,
    "Neg": negate,
    "PRelu": prelu,
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Sub": subtract,
    "Sum": add,
    "Tanh": tanh,
}
