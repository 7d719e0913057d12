"""The module that an ONNX file becomes."""

from __future__ import annotations

import os
import re

from torch import Tensor, nn

from ironbound.capture.onnx.planning import Plan
from ironbound.capture.onnx.reading import File, read_file
from ironbound.capture.record import straight_line


@straight_line
class OnnxNetwork(nn.Module):
    """An ONNX network: one step per node, run in the file's order on a batch of any size.

    Attributes:
        input_shape: shape of an input example; its elements in row-major order are X_0, X_1, … of a VNNLIB property.
        output_shape: shape of an output example.
        steps: the nodes by name; `state_dict()` holds their weights as `steps.<node>.weight`.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __init__(self, file: File) -> None:
        super().__init__()
        plan = Plan(file)
        self._input = file.input
        self._output = plan.run()
        self.input_shape = file.shape
        self.output_shape = plan.shapes[self._output][1:]
        self.steps = nn.ModuleDict()
        for name, step in plan.steps:
            self.steps[_free(self.steps, name)] = step

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network.

        Args:
            x: [batch, *input_shape].

        Returns:
            [batch, *output_shape].
        """
        values = {self._input: x}
        for step in self.steps.values():
            values.update(step(values))
        return values[self._output]


def load(path: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> OnnxNetwork:
    """Open an ONNX file as a PyTorch module in evaluation mode.

    Weights become parameters; nothing is executed but the operators that have a rule. The first axis of the network's
    input is the batch: of size 1 or open in the file, free in the module.

    Args:
        path: a .onnx file, also compressed by gzip.
        input_shape: shape of an input without the batch axis, for files that leave extents open.

    Returns:
        The network, in float32 (float64 where the file is).

    Raises:
        WeightsError: the file is missing, truncated or malformed, or its external data is.
        UnsupportedOperatorError: an operator, or an attribute of one, that no rule reads; the message names the node.
        CaptureError: several inputs or outputs, open shapes, a fixed batch size, nodes that do not fit their inputs.
    """
    return OnnxNetwork(read_file(path, input_shape)).eval()


def _free(steps: nn.ModuleDict, name: str) -> str:
    """A name like the node's that a module may have and no other step has."""
    base = re.sub(r"\W+", "_", name).strip("_") or "node"
    name, count = base, 2
    while name in steps or hasattr(steps, name):
        name, count = f"{base}_{count}", count + 1
    return name


__all__ = ["OnnxNetwork", "load"]
