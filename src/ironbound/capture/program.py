"""The trace of any PyTorch module through `torch.export`, with the batch size free."""

from __future__ import annotations

import contextlib
import inspect
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ironbound.capture.source import error_source
from ironbound.capture.trace import Trace
from ironbound.errors import CaptureError


def exported(model: nn.Module, points: Tensor) -> Trace:
    """Traces a module.

    Args:
        model: the module.
        points: [batch, *shape].

    Returns:
        Its trace.

    Raises:
        CaptureError: the module cannot be exported, changes its buffers, or reads something that is not a tensor.
    """
    program = _exported(model, points)
    changed = [spec.target for spec in program.graph_signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION]
    if changed:
        raise CaptureError(f"the network changes its buffer {changed[0]!r} when it runs; it must not.")
    nodes = list(program.graph.nodes)
    placeholders = {node.name: node for node in nodes if node.op == "placeholder"}
    specs = [(placeholders[spec.arg.name], spec) for spec in program.graph_signature.input_specs]
    (source,) = (node for node, spec in specs if spec.kind == InputKind.USER_INPUT)
    tensors = []
    for node, spec in specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensors.append((node, *_tensor(model, program, str(spec.target))))
        elif node is not source:
            raise CaptureError(f"the network reads something that is not a tensor: {spec.target} ({spec.kind.name}).")
    (output,) = next(node for node in nodes if node.op == "output").args[0]
    return Trace(nodes, source, tensors, output)


def _exported(model: nn.Module, points: Tensor) -> ExportedProgram:
    try:
        return _export(model, points, strict=False)
    except Exception as error:  # whatever goes wrong in export, the user gets one sentence and their line
        if _fixes_batch(error):
            # len(x) is a plain number to the first tracer; the second one reads byte code and keeps it symbolic
            with contextlib.suppress(Exception):
                return _export(model, points, strict=True)
        raise CaptureError(_explained(error)) from error


def _export(model: nn.Module, points: Tensor, strict: bool) -> ExportedProgram:
    # a slice of the batch axis is compared with the largest integer in older torch, which needs a limit below that
    free: Any = {0: Dim("batch", max=2**31)}
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        free = (free,)  # a wrapper's forward(*args): its one argument is a tuple
    with torch.enable_grad():
        return torch.export.export(model, (points.clone(),), dynamic_shapes=(free,), strict=strict)


def _fixes_batch(error: Exception) -> bool:
    return "specialized" in str(error) or "Constraints violated" in str(error)


def _explained(error: Exception) -> str:
    text = str(error)
    where = error_source(error)
    at = f" at {where}" if where else ""
    if any(sign in text for sign in ("data-dependent", "cannot be converted to Scalar", "unbacked")):
        return (
            f"the network's control flow depends on the values of its input{at}; use the same operators for all inputs."
        )
    if _fixes_batch(error):
        return (
            f"the network works for one batch size only{at}; read the batch size from the input, as x.shape[0], "
            "or export the program with a dynamic batch axis."
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return f"torch.export cannot trace the network{at}: {type(error).__name__}: {reason}"


def _tensor(model: nn.Module, program: ExportedProgram, path: str) -> tuple[Tensor, bool]:
    """The module's own tensor of that name, and whether it is one (else a number written in the code)."""
    try:
        found = operator.attrgetter(path)(model)
    except AttributeError:
        found = program.constants.get(path)
        if isinstance(found, Tensor):
            return found, False
    if not isinstance(found, Tensor):
        raise CaptureError(f"the tensor {path!r} of the exported network is not found in the module.")
    return found, True
