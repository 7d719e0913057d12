"""Capture of a PyTorch module, with the batch size free and the parameters live: a trace, one walk over it, checks."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator

import torch
from torch import Tensor, nn

from ironbound.capture.cache import Cache
from ironbound.capture.check import check_examples, check_graph, probes, run
from ironbound.capture.record import recorded
from ironbound.capture.trace import Trace
from ironbound.capture.walk import Walk
from ironbound.errors import InputError, TrainingModeError
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
        graph, folded = _translated(recorded(model, points) or _exported(model, points), points)
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


def _exported(model: nn.Module, points: Tensor) -> Trace:
    from ironbound.capture.program import exported  # takes a second to import, and not every network needs it

    return exported(model, points)


def _translated(trace: Trace, points: Tensor) -> tuple[Graph, list[Tensor]]:
    walk = Walk(trace.source, points)
    for node, tensor, owned in trace.tensors:
        walk.bind(node, tensor, owned)
    walk.run(trace.nodes)
    return walk.graph(trace.output), walk.folded


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
