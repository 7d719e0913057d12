"""One ONNX node as a rule sees it: inputs and attributes by name, each read or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from ironbound.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    import onnx

Function = Callable[..., Any]

_ROLES = {
    "Conv": ("input", "weight", "bias"),
    "ConvTranspose": ("input", "weight", "bias"),
    "Gemm": ("left", "weight", "bias"),
    "MatMul": ("left", "weight"),
    "BatchNormalization": ("input", "weight", "bias", "mean", "variance"),
    "PRelu": ("input", "slope"),
}


def title(node: onnx.NodeProto) -> str:
    """The operator and the node as error messages name them; a node without a name goes by its first output."""
    name = f"{node.name!r}" if node.name else f"that computes {node.output[0]!r}" if node.output else "without a name"
    return f"the ONNX operator {node.op_type!r} of the node {name}"


class Operation:
    """A node that depends on the network's input.

    Args:
        node: the node.
        opset: version of the standard operator set.
        operands: for each input its value if it is a constant, its shape for one example (batch axis 1 included) if it
            depends on the network's input, or None if it is left out.

    Attributes:
        kept: constants that the function reads after its inputs, by name (see `keep`).
    """

    def __init__(
        self, node: onnx.NodeProto, opset: int, operands: Sequence[Tensor | tuple[int, ...] | None], dtype: torch.dtype
    ) -> None:
        from onnx import helper

        self.node = node
        self.opset = opset
        self.dtype = dtype
        self.kept: dict[str, Tensor] = {}
        self._operands = list(operands)
        self._attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self._unread = set(self._attributes)
        self._plain: set[int] = set()

    # --- inputs --------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of inputs, those left out at the end not counted."""
        return len(self._operands)

    def given(self, place: int) -> bool:
        """Whether the node has this input."""
        return place < len(self._operands) and self._operands[place] is not None

    def dynamic(self, place: int) -> bool:
        """Whether an input depends on the network's input."""
        return self.given(place) and isinstance(self._operands[place], tuple)

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Shape of an input for one example; that of a value starts with its batch axis of size 1."""
        operand = self._operands[place]
        assert operand is not None
        return operand if isinstance(operand, tuple) else tuple(operand.shape)

    def only_first(self) -> None:
        """Refuses the node unless its first input depends on the network's input and all others are constant."""
        if not self.dynamic(0) or any(self.dynamic(place) for place in range(1, self.count)):
            self.refuse("only its first input may depend on the network's input, and must")

    def constant(self, place: int) -> Tensor:
        """A constant input, which stays an argument of the function."""
        operand = self._operands[place] if self.given(place) else None
        if not isinstance(operand, Tensor):
            self.refuse(f"its input {place + 1} must be a constant")
        return operand

    def plain(self, place: int) -> Tensor | None:
        """A constant input that the function does not read, or None where it is left out."""
        self._plain.add(place)
        return self.constant(place) if self.given(place) else None

    def plain_integers(self, place: int, attribute: str | None = None) -> list[int] | None:
        """Whole numbers from a constant input or, as older operator sets have it, from an attribute."""
        if attribute is not None and attribute in self._attributes:
            return self.integers(attribute)
        value = self.plain(place)
        if value is None:
            return None
        if value.is_floating_point():
            self.refuse(f"its input {place + 1} must hold whole numbers")
        return [int(item) for item in value.reshape(-1).tolist()]

    def plain_number(self, place: int, attribute: str) -> float | None:
        """One number from a constant input or, as older operator sets have it, from an attribute."""
        if attribute in self._attributes:
            return self.number(attribute, 0.0)
        value = self.plain(place)
        if value is not None and value.numel() != 1:
            self.refuse(f"its input {place + 1} must be one number")
        return None if value is None else float(value)

    def keep(self, name: str, tensor: Tensor) -> None:
        """Adds a constant that the function reads after its inputs."""
        self.kept[name] = tensor

    def arguments(self) -> list[int]:
        """Places of the inputs that the function reads, in order; the kept constants follow them."""
        return [place for place in range(self.count) if place not in self._plain and self.given(place)]

    def role(self, place: int) -> str:
        """Name of a constant input in the module's state dict."""
        roles = _ROLES.get(self.node.op_type, ())
        return roles[place] if place < len(roles) else f"constant{place}" if self.count > 2 else "constant"

    def value_of(self, place: int) -> Tensor | None:
        """An input's value if it is constant."""
        operand = self._operands[place]
        return operand if isinstance(operand, Tensor) else None

    # --- attributes ----------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute as it is."""
        self._unread.discard(name)
        return self._attributes.get(name, default)

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attribute(name, default))

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.attribute(name, default)
        if not isinstance(value, int):
            self.refuse(f"its attribute {name} must be a whole number")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """An attribute that is a list of whole numbers."""
        value = self.attribute(name, default)
        return None if value is None else [int(item) for item in value]

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attribute(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def axis(self, default: int | None = None, place: int = 0) -> int:
        """The attribute axis, counted from the front."""
        value = self.attribute("axis", default)
        if value is None:
            self.refuse("its attribute axis is missing")
        return self.front(int(value), len(self.shape(place)))

    def front(self, axis: int, rank: int) -> int:
        """Counts an axis from the front."""
        if not -rank <= axis < rank:
            self.refuse(f"its axis {axis} is not one of its input's {rank} axes")
        return axis % rank

    def finish(self) -> None:
        """Refuses attributes that no rule has read."""
        for name in sorted(self._unread):
            self.refuse(f"its attribute {name} = {self._attributes[name]!r} is not supported")

    def refuse(self, reason: str) -> NoReturn:
        """Raises an UnsupportedOperatorError that names the operator, the node and the reason."""
        raise UnsupportedOperatorError(f"{title(self.node)} is refused; {reason}.")


def batch_first(op: Operation, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a result for one example, which must keep the batch axis in front."""
    if not shape or shape[0] != 1:
        op.refuse(f"its result {list(shape)} for one example does not keep a batch axis of size 1 in front")
    return tuple(shape)
