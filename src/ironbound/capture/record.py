"""Traces of networks whose code is known to be straight, written down while they run.

`torch.export` proves that a module makes the same calls for all inputs and all batch sizes; it takes a second to start.
A class that says so of itself (`straight_line`) is run twice instead, on two batch sizes: a number or an extent that is
the same in both runs is fixed, one that equals the batch size in both is the batch, and anything else is not read.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Generator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from ironbound.capture.trace import BATCH, Described, Trace

_SIZES = (2, 3)  # not 1, which broadcasts
_STRAIGHT: set[type[nn.Module]] = {nn.ModuleDict}  # a container: it has no code of its own

Kind = TypeVar("Kind", bound=type[nn.Module])


class _UnreadableError(Exception):
    """The calls cannot be told from two runs; `torch.export` is asked instead."""


def straight_line(kind: Kind) -> Kind:
    """Marks a class of modules whose `forward` makes the same calls of torch operators whatever it is given.

    Its control flow reads neither values nor the batch size, and it computes by torch alone. Subclasses are not marked.

    Args:
        kind: the class.

    Returns:
        The class.
    """
    _STRAIGHT.add(kind)
    return kind


def recorded(model: nn.Module, points: Tensor) -> Trace | None:
    """Traces a network by running it.

    Args:
        model: the network.
        points: [batch, *shape].

    Returns:
        The trace; None where the network has other parts than straight ones, or where two runs do not tell it.
    """
    if not _is_straight(model):
        return None
    try:
        first, second = (_Recorder(model, points[:1].expand(size, *points.shape[1:]).clone()) for size in _SIZES)
        _unify(first, second)
    except Exception:  # whatever goes wrong here, torch.export finds and explains it
        return None
    tensors = [(node, tensor, True) for node, tensor in first.tensors.items()]
    return Trace(list(first.graph.nodes), first.source, tensors, first.output)


def _is_straight(model: nn.Module) -> bool:
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    return all(
        type(module) in _STRAIGHT
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and module._compiled_call_impl is None
        for module in model.modules()
    )


class _Recorder(TorchDispatchMode):
    """One run. Without autograd, operators made of others arrive whole, as in an exported program.

    Args:
        model: the network.
        x: its input, [batch, *shape].

    Attributes:
        graph: a node for each call, with its result as meta["val"].
        source: the placeholder of the input.
        tensors: the placeholders of the module's tensors.
        output: the node that is the network's output.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.source = self.graph.placeholder("x")
        self.source.meta["val"] = x
        self.tensors: dict[fx.Node, Tensor] = {}
        self._owned = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._nodes: dict[int, tuple[fx.Node, Tensor]] = {id(x): (self.source, x)}  # a kept tensor keeps its id
        self._modules: list[tuple[str, str]] = []
        with torch.inference_mode(), self._entered(model), self:
            result = model(x)
        self.output = self._read(result)
        self.graph.output((self.output,))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call imports all of torch.compile, only to switch it off

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and writes it down."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise _UnreadableError(f"{func} changes a tensor in place")
        places, named = self._read(args), self._read(kwargs)
        result = func(*args, **kwargs)
        node = self.graph.create_node("call_function", func, places, named, name=func.overloadpacket.__name__)
        node.meta["val"] = result
        if self._modules:
            node.meta["nn_module_stack"] = {"innermost": self._modules[-1]}
        if isinstance(result, Tensor):
            self._nodes[id(result)] = (node, result)
        elif isinstance(result, list | tuple) and all(isinstance(part, Tensor) for part in result):
            for place, part in enumerate(result):
                item = self.graph.create_node("call_function", operator.getitem, (node, place), name="getitem")
                item.meta["val"] = part
                self._nodes[id(part)] = (item, part)
        else:
            raise _UnreadableError(f"{func} returns something that is not a tensor")
        return result

    def _read(self, value: Any) -> Any:
        """Tensors replaced by their nodes."""
        if isinstance(value, Tensor):
            if id(value) not in self._nodes:
                if id(value) not in self._owned:
                    raise _UnreadableError("a tensor comes from elsewhere than the module and its input")
                node = self.graph.placeholder(f"tensor_{len(self.tensors)}")
                self.tensors[node] = value
                self._nodes[id(value)] = (node, value)
            return self._nodes[id(value)][0]
        if isinstance(value, list | tuple):
            return type(value)(self._read(item) for item in value)
        if isinstance(value, dict):
            return {name: self._read(item) for name, item in value.items()}
        return value

    @contextlib.contextmanager
    def _entered(self, model: nn.Module) -> Generator[None, None, None]:
        """Keeps count of which module runs."""
        handles = []
        try:
            for path, module in model.named_modules():
                kind = f"{type(module).__module__}.{type(module).__qualname__}"
                handles.append(module.register_forward_pre_hook(partial(self._enter, (path, kind))))
                handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, place: tuple[str, str], *_: Any) -> None:
        self._modules.append(place)

    def _leave(self, *_: Any) -> None:
        self._modules.pop()


def _unify(first: _Recorder, second: _Recorder) -> None:
    """Writes into the first run what holds for every batch size; the runs must make the same calls."""
    with first.graph.inserting_after(first.source):
        size = first.graph.call_function(torch.ops.aten.sym_size.int, (first.source, 0))
    nodes = [node for node in first.graph.nodes if node is not size]
    same: dict[fx.Node, fx.Node] = {}
    for node, other in zip(nodes, second.graph.nodes, strict=True):
        if (node.op, node.target) != (other.op, other.target) or node.meta.get("nn_module_stack") != other.meta.get(
            "nn_module_stack"
        ):
            raise _UnreadableError("two runs make different calls")
        same[other] = node
        if node in first.tensors:
            if first.tensors[node] is not second.tensors[other]:
                raise _UnreadableError("two runs read different tensors")
        elif node.op != "output":
            node.args = _unified(node.args, other.args, same, size)
            node.kwargs = _unified(node.kwargs, other.kwargs, same, size)
            node.meta["val"] = _described(node.meta["val"], other.meta["val"])
    if same[second.output] is not first.output:
        raise _UnreadableError("two runs return different values")
    size.meta["val"] = _SIZES[0]  # a number, not a tensor: it stands for the batch size


def _unified(one: Any, two: Any, same: dict[fx.Node, fx.Node], size: fx.Node) -> Any:
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return type(one)(_unified(a, b, same, size) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict) and one.keys() == two.keys():
        return {name: _unified(value, two[name], same, size) for name, value in one.items()}
    if isinstance(one, fx.Node):
        if same.get(two) is not one:
            raise _UnreadableError("two runs read different values")
        return one
    if type(one) is type(two) and one == two:
        return one
    if type(one) is int and (one, two) == _SIZES:
        return size
    raise _UnreadableError(f"an argument is {one} in one run and {two} in another")


def _described(one: Any, two: Any) -> Any:
    if isinstance(one, list | tuple):
        return [_described(a, b) for a, b in zip(one, two, strict=True)]
    if (one.dtype, one.device) != (two.dtype, two.device):
        raise _UnreadableError("two runs differ in dtype or device")
    return Described(tuple(_extent(*pair) for pair in zip(one.shape, two.shape, strict=True)), one.dtype, one.device)


def _extent(one: int, two: int) -> int | str:
    if one == two:
        return one
    if (one, two) == _SIZES:
        return BATCH
    raise _UnreadableError(f"an extent is {one} in one run and {two} in another")
