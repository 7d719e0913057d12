"""One traced call as a builder sees it: arguments by name, each read or refused, and the way to add nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from ironbound.capture.source import innermost_layer, node_source
from ironbound.errors import BatchMixingError, TrainingModeError, UnsupportedOperatorError
from ironbound.graph import Node
from ironbound.ops.affine import Structural
from ironbound.ops.operator import Operator


@dataclass(frozen=True)
class Value:
    """A node of the graph under construction.

    Attributes:
        index: its place in the graph.
        shape: its shape without the batch axis.
    """

    index: int
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes, the batch axis included."""
        return len(self.shape) + 1


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the network's input.

    Attributes:
        tensor: the module's own tensor, a view of it, or a value computed once.
        origins: the module's tensors that it was made from.
    """

    tensor: Tensor
    origins: tuple[Tensor, ...] = ()


class Symbolic:
    """A number that depends on the batch size; shapes are read from the trace, so nothing needs its value."""


Result = Value | list[Value | None]


class Call:
    """A traced call of one aten operator.

    Attributes:
        node: the traced node.
        operator: canonical name of the operator, such as "aten.relu.default".
        shape: shape of the result without the batch axis.
        shapes: shapes of the parts, where the result is a list of tensors.
        several: whether other results than the first exist (indices, statistics), for which there is no rule.
    """

    def __init__(self, node: fx.Node, operator: str, arguments: dict[str, Any], nodes: list[Node]) -> None:
        self.node = node
        self.operator = operator
        self.shape: tuple[int, ...] = ()
        self.shapes: list[tuple[int, ...]] = []
        self.several = False
        self._arguments = arguments
        self._unread = set(arguments)
        self._nodes = nodes

    # --- reading arguments ---------------------------------------------------------------------------------------

    def read(self, name: str) -> Any:
        """The argument as it is: a Value, a Constant, Symbolic, a plain Python value, or a list of such."""
        self._unread.discard(name)
        return self._arguments[name]

    def has(self, name: str) -> bool:
        """Whether the operator has an argument of that name."""
        return name in self._arguments

    def skip(self, *names: str) -> None:
        """Marks arguments as read whose content cannot change the result (its shape is known from the trace)."""
        self._unread.difference_update(names)

    def plain(self, name: str) -> Any:
        """A plain Python argument: number, string, list of numbers, None."""
        value = self.read(name)
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Value | Constant | Symbolic):
                self.refuse(f"its argument {name!r} must be fixed, not computed from the input or the batch size")
        return value

    def value(self, name: str) -> Value:
        """An argument that depends on the network's input."""
        value = self.read(name)
        if not isinstance(value, Value):
            self.refuse(f"its argument {name!r} must depend on the network's input")
        return value

    def constant(self, name: str) -> Tensor:
        """A constant tensor argument."""
        value = self.read(name)
        if not isinstance(value, Constant):
            self.refuse(f"its argument {name!r} must be a constant, not a value that depends on the input")
        return value.tensor

    def optional_constant(self, name: str) -> Tensor | None:
        """A constant tensor argument, or None."""
        if self._arguments[name] is None:
            self._unread.discard(name)
            return None
        return self.constant(name)

    def sizes(self, name: str, count: int) -> tuple[int, ...]:
        """A list of `count` whole numbers; one number stands for all."""
        value = self.plain(name)
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        return tuple(value) * count if len(value) == 1 else tuple(value)

    def axis(self, name: str, rank: int, use: str = "works along") -> int:
        """An axis argument, counted from the front with the batch axis as 0, which is refused."""
        return self.proper_axis(self.plain(name), rank, use)

    def axes(self, name: str, rank: int, use: str = "works along") -> list[int]:
        """A list of axes; none of them may be the batch axis. None or an empty list means all axes."""
        value = self.plain(name)
        value = [value] if isinstance(value, int) else value
        return [self.proper_axis(axis, rank, use) for axis in (value or range(rank))]

    def proper_axis(self, axis: int, rank: int, use: str = "works along") -> int:
        """Counts an axis from the front and refuses the batch axis."""
        axis = axis + rank if axis < 0 else axis
        if axis == 0 and use == "moves":
            self.refuse("it moves the batch axis")
        if axis == 0:
            self.mixes(f"it {use} the batch axis")
        return axis

    def finish(self) -> None:
        """Refuses arguments that no rule has read and that are not at their default.

        Raises:
            UnsupportedOperatorError: there is one.
        """
        schema = getattr(self.node.target, "_schema", None)
        defaults = {argument.name: argument.default_value for argument in schema.arguments} if schema else {}
        for name in sorted(self._unread):
            value = self._arguments[name]
            if isinstance(value, Value | Constant | Symbolic) or value != defaults.get(name):
                self.refuse(f"its argument {name}={value!r} is not supported")

    # --- building ------------------------------------------------------------------------------------------------

    def emit(self, operator: Operator, *inputs: Value, shape: tuple[int, ...] | None = None) -> Value:
        """Adds a node.

        Args:
            operator: its rule.
            inputs: what it reads.
            shape: shape of its value without the batch axis; by default that of the call's result.

        Returns:
            The new value.
        """
        shape = self.shape if shape is None else shape
        index = len(self._nodes)
        self._nodes.append(
            Node(self._name(), operator, tuple(value.index for value in inputs), tuple(shape), node_source(self.node))
        )
        return Value(index, tuple(shape))

    def structural(
        self, function: Callable[..., Tensor], label: str, *inputs: Value, shape: tuple[int, ...] | None = None
    ) -> Value:
        """Adds an affine node whose matrix has no negative entry (see `emit`)."""
        return self.emit(Structural(function, label), *inputs, shape=shape)

    def expand(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Broadcasts a value to a shape of the same rank; adds nothing where it has that shape already."""
        if value.shape == shape:
            return value
        if len(value.shape) != len(shape):
            self.mixes("it broadcasts along a new axis in front of the batch axis")
        return self.structural(lambda x: x.expand(len(x), *shape), f"expand{shape}", value, shape=shape)

    def _name(self) -> str:
        path, kind = innermost_layer(self.node)
        parts = (path,) if path and kind.startswith("torch.nn.") else (path, self.node.name)
        base = ".".join(part for part in parts if part)
        taken = {node.name for node in self._nodes}
        name, count = base, 2
        while name in taken:
            name, count = f"{base}:{count}", count + 1
        return name

    # --- refusing ------------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> NoReturn:
        """Raises an UnsupportedOperatorError that names the operator, the reason and the user's line."""
        raise UnsupportedOperatorError(f"the operator {self.operator!r} is refused{_at(self.node)}; {reason}.")

    def mixes(self, reason: str) -> NoReturn:
        """Raises a BatchMixingError that names the operator, the reason and the user's line."""
        raise BatchMixingError(
            f"the operator {self.operator!r} is refused{_at(self.node)}; {reason}, "
            "and the examples of a batch must not mix."
        )

    def in_training(self, reason: str) -> NoReturn:
        """Raises a TrainingModeError that names the layer or the user's line."""
        raise TrainingModeError(
            f"the operator {self.operator!r} is in training mode{_at(self.node)}: {reason}; "
            "call model.eval(), and pass training=self.training where a function takes it."
        )


def _at(node: fx.Node) -> str:
    source = node_source(node)
    return f" at {source}" if source else ""


def plain_number(value: Any) -> bool:
    """Whether a value is a real Python number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def scalar(number: float) -> Tensor:
    """A number as a tensor that takes the dtype and device of whatever it meets."""
    return torch.tensor(float(number), dtype=torch.float64, device="cpu")
