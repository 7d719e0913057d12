"""From the nodes of a file to steps: what is constant is computed once, the rest becomes one step per node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ironbound.capture.onnx import elementwise, layers, pooling, shapes
from ironbound.capture.onnx.operation import Function, Operation, title
from ironbound.capture.onnx.reading import STANDARD, File, from_numpy
from ironbound.capture.onnx.step import Step
from ironbound.errors import CaptureError, IronboundError, UnsupportedOperatorError, WeightsError

if TYPE_CHECKING:
    import onnx

RULES: dict[str, Callable[[Operation], Function | None]] = {
    **layers.RULES,
    **elementwise.RULES,
    **shapes.RULES,
    **pooling.RULES,
}

_ADVICE = {
    "Softmax": "export the network without it: bounds are on the logits, and softmax keeps their order",
    "LogSoftmax": "export the network without it: bounds are on the logits, and log-softmax keeps their order",
    "ArgMax": "export the network without it: bounds are on the logits",
}
_NOT_FIXED = {"If", "Loop", "Scan", "Bernoulli", "Multinomial"}  # and Random*: never computed ahead


class Plan:
    """Walks over the nodes once.

    Attributes:
        steps: in order, with the name of each node.
        shapes: of all values that depend on the input, for one example (batch axis 1 included).
    """

    def __init__(self, file: File) -> None:
        self.steps: list[tuple[str, Step]] = []
        self.shapes: dict[str, tuple[int, ...]] = {file.input: (1, *file.shape)}
        self._file = file
        self._constants = dict(file.constants)
        self._aliases: dict[str, str] = {}
        self._weights: dict[str, torch.nn.Parameter] = {}

    def run(self) -> str:
        """Visits all nodes that the output reads.

        Returns:
            The name of the value that is the output.

        Raises:
            UnsupportedOperatorError: a node that no rule reads.
            CaptureError: a node that does not fit its inputs, or an output that does not depend on the input.
            WeightsError: a node that reads what nothing defines.
        """
        needed = {self._file.output}
        live = []
        for node in reversed(self._file.nodes):
            if needed & set(node.output):
                live.append(node)
                needed.update(node.input)
        for node in reversed(live):
            self._visit(node)
        output = self._actual(self._file.output)
        if output in self._constants:
            raise CaptureError("the output of the network does not depend on its input.")
        if output not in self.shapes:
            raise WeightsError(f"the output {output!r} is computed by no node; the file is malformed, export it again.")
        return output

    def _actual(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _visit(self, node: onnx.NodeProto) -> None:
        names = [self._actual(name) for name in node.input]
        for name in names:
            if name and name not in self.shapes and name not in self._constants:
                raise WeightsError(
                    f"{title(node)} reads {name!r}, which nothing before it computes; the file is malformed."
                )
        for name in node.output:
            if name and (name in self.shapes or name in self._constants or name in self._aliases):
                raise WeightsError(f"{title(node)} computes {name!r} a second time; the file is malformed.")
        if node.domain not in STANDARD:
            raise UnsupportedOperatorError(f"{title(node)} is refused; its domain {node.domain!r} is not supported.")
        if node.op_type in ("Shape", "Size") and names and names[0] in self.shapes:
            # exact for one example, and an example's value never depends on how many others there are
            value = torch.zeros((), dtype=self._file.dtype).expand(self.shapes[names[0]])  # takes no memory
            self._constants[node.output[0]] = self._computed(node, {node.input[0]: value})[0]
        elif not any(name in self.shapes for name in names):
            values = {name: self._constants[actual] for name, actual in zip(node.input, names, strict=True) if actual}
            self._constants.update(
                (name, value) for name, value in zip(node.output, self._computed(node, values), strict=True) if name
            )
        else:
            self._add(node, names)

    def _computed(self, node: onnx.NodeProto, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The results of a node whose inputs are constant, by the reference implementation."""
        from onnx import ValueInfoProto, helper
        from onnx.reference import ReferenceEvaluator

        if node.op_type in _NOT_FIXED or node.op_type.startswith("Random"):
            raise UnsupportedOperatorError(f"{title(node)} is refused; the network must be a fixed function.")
        try:
            graph = helper.make_graph(
                [node],
                "constant",
                [ValueInfoProto(name=name) for name in inputs],
                [ValueInfoProto(name=name) for name in node.output if name],
            )
            opset = helper.make_opsetid("", self._file.opset)
            evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset]))
            results = evaluator.run(None, {name: value.detach().numpy() for name, value in inputs.items()})
            found = iter(from_numpy(result) for result in results)  # type: ignore[union-attr]
            return [next(found) if name else torch.empty(0) for name in node.output]
        except Exception as error:  # the reference implementation raises what it meets
            raise UnsupportedOperatorError(
                f"{title(node)} is refused; its constant result cannot be computed ({type(error).__name__}: {error})."
            ) from error

    def _add(self, node: onnx.NodeProto, names: list[str]) -> None:
        rule = RULES.get(node.op_type)
        if rule is None:
            advice = _ADVICE.get(node.op_type, "no rule reads it")
            raise UnsupportedOperatorError(f"{title(node)} is refused; {advice}.")
        while names and not names[-1]:
            names.pop()
        operands = [self._operand(name) for name in names]
        op = Operation(node, self._file.opset, operands, self._file.dtype)
        try:
            function = rule(op)
        except IronboundError:
            raise
        except Exception as error:  # an attribute or a constant of another type or size than the standard's
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CaptureError(f"{title(node)} has inputs or attributes that do not fit: {reason}") from error
        op.finish()
        if function is None:  # the node hands on its first input
            if node.output[0]:
                self._aliases[node.output[0]] = names[0]
            return
        step = self._step(op, names, function)
        self._check(node, step)
        self.steps.append((node.name or node.output[0], step))

    def _operand(self, name: str) -> Tensor | tuple[int, ...] | None:
        if not name:
            return None
        return self.shapes[name] if name in self.shapes else self._constants[name]

    def _step(self, op: Operation, names: list[str], function: Function) -> Step:
        step = Step(function, [name for name in op.node.output])
        for place in op.arguments():
            if op.dynamic(place):
                step.read(names[place])
                continue
            tensor = op.constant(place)
            if tensor.dtype != self._file.dtype:
                op.refuse(f"its input {place + 1} is of type {tensor.dtype}, not {self._file.dtype} as the network")
            step.hold(op.role(place), self._weight(names[place], op.role(place)))
        for name, tensor in op.kept.items():
            step.hold(name, torch.nn.Parameter(tensor) if name == "constant" else tensor)
        return step

    def _weight(self, name: str, role: str) -> Tensor:
        """A constant as a parameter, one and the same for all nodes that read it; statistics stay plain tensors."""
        if role in ("mean", "variance"):
            return self._constants[name]
        if name not in self._weights:
            self._weights[name] = torch.nn.Parameter(self._constants[name])
        return self._weights[name]

    def _check(self, node: onnx.NodeProto, step: Step) -> None:
        """Runs the step on one and on two zeros: both must fit, and the batch must stay in front."""
        found: list[list[tuple[int, ...]]] = []
        for batch in (1, 2):
            inputs = {
                # meta tensors would do without the arithmetic, but their kernels import torch.compile: a second
                name: torch.zeros((batch, *self.shapes[name][1:]), dtype=self._file.dtype)
                for name in step.sources()
            }
            try:
                with torch.no_grad():
                    results = step(inputs)
            except Exception as error:  # torch raises what it meets where shapes do not fit
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise CaptureError(f"{title(node)} does not fit its inputs: {reason}") from error
            found.append([tuple(value.shape) for value in results.values()])
        for one, two in zip(*found, strict=True):
            if not one or one[0] != 1 or two != (2, *one[1:]):
                raise CaptureError(
                    f"{title(node)} does not keep the batch axis in front: one example gives the shape {list(one)}, "
                    f"two give {list(two)}."
                )
        outputs = [name for name in node.output if name]
        if len(outputs) != len(found[0]):
            raise UnsupportedOperatorError(f"{title(node)} is refused; its output {outputs[-1]!r} is not supported.")
        self.shapes.update(zip(outputs, found[0], strict=True))
