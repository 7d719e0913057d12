"""Emits ONNX nodes one call at a time; numbers are float64 where nothing else is said."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 9


class Program:
    """A growing list of ONNX nodes and constants; values are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._held: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._narrow: dict[str, str] | None = None

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        from onnx import helper

        output = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def split(self, value: str, sizes: list[int]) -> list[str]:
        """Cuts [rows, sum of sizes] along its last axis."""
        from onnx import helper

        if len(sizes) == 1:
            return [value]
        outputs = [f"split_{len(self._nodes)}_{part}" for part in range(len(sizes))]
        self._nodes.append(helper.make_node("Split", [value, self.hold(np.array(sizes))], outputs, axis=1))
        return outputs

    def parts(self, value: str, count: int) -> list[str]:
        """Cuts the rows into equally many for each part."""
        from onnx import helper

        outputs = [f"part_{len(self._nodes)}_{part}" for part in range(count)]
        self._nodes.append(helper.make_node("Split", [value], outputs, axis=0, num_outputs=count))
        return outputs

    def hold(self, array: np.ndarray | float) -> str:
        """A constant, float64 or int64; equal ones are held once."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array.astype(np.int64 if array.dtype.kind in "iu" else np.float64))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._held:
            self._held[key] = f"constant_{len(self._held)}"
            self._constants[self._held[key]] = array
        name = self._held[key]
        return name if array.dtype == np.int64 or self._narrow is None else self._narrowed(name)

    def _narrowed(self, name: str) -> str:
        assert self._narrow is not None
        if name not in self._narrow:
            self._narrow[name] = self.op("Cast", name, to=1)
        return self._narrow[name]

    @contextmanager
    def float32(self) -> Generator[None, None, None]:
        """Numbers are held, and `cast` to, float32 meanwhile: twice as fast, for what need not be exact."""
        self._narrow = {}
        yield
        self._narrow = None

    def cast(self, value: str) -> str:
        """A value in the kind of number that is computed with just now."""
        return self.op("Cast", value, to=11 if self._narrow is None else 1)

    def gather(self, value: str, index: str | np.ndarray, axis: int = 0) -> str:
        """Picks lines along an axis."""
        return self.op("Gather", value, index if isinstance(index, str) else self.hold(index), axis=axis)

    def reshape(self, value: str, *shape: int) -> str:
        """Another shape; one extent may be -1."""
        return self.op("Reshape", value, self.hold(np.array(shape)))

    def total(self, value: str, axis: int, kind: str = "ReduceSum") -> str:
        """A reduction over one axis, which goes."""
        return self.op(kind, value, self.hold(np.array([axis])), keepdims=0)

    def with_zero(self, value: str) -> str:
        """[rows, positions, channels] with one more position, which holds zeros."""
        return self.op("Pad", value, self.hold(np.array([0, 0, 0, 0, 1, 0])))

    def batch_shape(self, value: str, *rest: int) -> str:
        """The shape [length of `value`, *rest] as a tensor."""
        length = self.op("Shape", value, start=0, end=1)
        return self.op("Concat", length, self.hold(np.array(rest)), axis=0)

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        """The program.

        Args:
            inputs: value infos of its inputs.
            outputs: value infos of its outputs.

        Returns:
            An ONNX model; numbers that float32 holds exactly are stored so, and widened when the model is loaded.
        """
        from onnx import helper, numpy_helper

        stored, widened = [], []
        for name, array in self._constants.items():
            narrow = (
                array.astype(np.float32) if array.dtype == np.float64 and np.abs(array).max(initial=0) < 1e38 else None
            )
            if narrow is not None and array.size > 1 and (narrow.astype(np.float64) == array).all():
                stored.append(numpy_helper.from_array(narrow, f"{name}_narrow"))
                widened.append(helper.make_node("Cast", [f"{name}_narrow"], [name], to=11))
            else:
                stored.append(numpy_helper.from_array(array, name))
        graph = helper.make_graph(widened + self._nodes, "guard", inputs, outputs, stored)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, producer_name="ironbound", opset_imports=[opset], ir_version=IR_VERSION)
