"""Capture of a PyTorch module through `torch.export`, with the batch size free and the parameters live."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ironbound.capture.cache import Cache
from ironbound.capture.check import check_examples, check_graph, probes, run
from ironbound.capture.source import error_source
from ironbound.capture.walk import Walk
from ironbound.errors import CaptureError, InputError, TrainingModeError
from ironbound.graph import Graph

CACHE = Cache()


def capture(model: nn.Module | Graph, example: Tensor) -> Graph:
    """Turns a network into a graph of operators with rules.

    The result holds for every batch size. Its operators hold the module's own parameters and buffers, so that gradients
    reach them and their changes are seen. A second capture of an unchanged module is a look-up.

    Args:
        model: a feed-forward module in evaluation mode, or a graph, which is returned as it is.
        example: [batch, *shape], for shape, dtype and device; its values are used to compare graph and module.

    Returns:
        The graph.

    Raises:
        InputError: the example is not a floating-point batch, or the module rejects it.
        UnsupportedOperatorError: an operator or an attribute that no rule reads; the message names the user's line.
        TrainingModeError: the module or a part of it is in training mode.
        BatchMixingError: an output depends on other examples of the batch.
        CaptureError: the module cannot be exported (control flow that depends on data, a fixed batch size), is not
            deterministic, or does not return one floating-point tensor [batch, *out].
    """
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() < 1:
        raise InputError("the example must be a floating-point tensor of shape [batch, *shape].")
    shape = tuple(example.shape[1:])
    if isinstance(model, Graph):
        if model.input_shape != shape:
            raise InputError(f"the graph reads inputs of shape {list(model.input_shape)}, not {list(shape)}.")
        return model
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module or a Graph, not {type(model).__name__}.")
    _check_mode(model)
    key = cache_key(example)
    graph = CACHE.find(model, key)
    if graph is None:
        graph, folded = _captured(model, example.detach())
        CACHE.keep(model, key, graph, folded)
    return graph


def cache_key(example: Tensor) -> tuple[object, ...]:
    """What of an example a capture depends on: shape without the batch axis, dtype, device."""
    return (tuple(example.shape[1:]), example.dtype, example.device)


def _captured(model: nn.Module, example: Tensor) -> tuple[Graph, list[Tensor]]:
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _silence(), torch.inference_mode(False):
        points = probes(example)
        values = run(model, points)
        program = _exported(model, points)
        graph, folded = _translated(model, program, points)
        check_examples(model, points, values)
        check_graph(graph, points, values)
    return graph, folded


def _check_mode(model: nn.Module) -> None:
    if isinstance(model, torch.fx.GraphModule):
        return  # an exported program: its mode is part of its operators, where it is checked
    exported = [module for module in model.modules() if isinstance(module, torch.fx.GraphModule)]
    exempt = {id(part) for module in exported for part in module.modules()}
    for name, module in model.named_modules():
        if module.training and id(module) not in exempt:
            where = f"the layer {name!r} ({type(module).__name__})" if name else "the network"
            raise TrainingModeError(f"{where} is in training mode; call model.eval() first.")


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


def _translated(model: nn.Module, program: ExportedProgram, points: Tensor) -> tuple[Graph, list[Tensor]]:
    changed = [spec.target for spec in program.graph_signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION]
    if changed:
        raise CaptureError(f"the network changes its buffer {changed[0]!r} when it runs; it must not.")
    nodes = list(program.graph.nodes)
    placeholders = {node.name: node for node in nodes if node.op == "placeholder"}
    specs = [(placeholders[spec.arg.name], spec) for spec in program.graph_signature.input_specs]
    (source,) = (node for node, spec in specs if spec.kind == InputKind.USER_INPUT)
    walk = Walk(source, points)
    for node, spec in specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            walk.bind(node, *_tensor(model, program, str(spec.target)))
        elif node is not source:
            raise CaptureError(f"the network reads something that is not a tensor: {spec.target} ({spec.kind.name}).")
    walk.run(nodes)
    (output,) = next(node for node in nodes if node.op == "output").args[0]
    return walk.graph(output), walk.folded


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


@contextlib.contextmanager
def _silence() -> Generator[None, None, None]:
    """Keeps the warnings, log lines and printed programs of torch.export from the user, who gets typed errors."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
