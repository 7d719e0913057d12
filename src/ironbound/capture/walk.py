"""One walk over a trace: each traced call is looked up in the table, or refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ironbound.capture import activations, arithmetic, layers, pooling, shapes
from ironbound.capture.call import Call, Constant, Result, Symbolic, Value
from ironbound.capture.source import node_source
from ironbound.capture.trace import Described
from ironbound.errors import CaptureError, UnsupportedOperatorError
from ironbound.graph import Graph, Node
from ironbound.ops.operator import Input

RULES: dict[str, Callable[[Call], Result]] = {
    **layers.RULES,
    **arithmetic.RULES,
    **activations.RULES,
    **pooling.RULES,
    **shapes.RULES,
}

_ADVICE = {
    "softmax": "remove the final softmax: bounds are on the logits, and softmax keeps their order",
    "log_softmax": "remove the final log_softmax: bounds are on the logits, and log_softmax keeps their order",
    "wrap_with_set_grad_enabled": "remove torch.no_grad() and torch.enable_grad() from the forward method",
    "wrap_with_autocast": "remove autocast from the forward method",
    "_weight_norm": "call torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm) first",
}

# operators that may hand on their very input although their signature does not say so
_HANDED_ON = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}


class Walk:
    """Builds a graph from the nodes of a trace.

    Args:
        source: the placeholder of the network's input.
        like: an input [batch, *shape], for its shape, dtype and device.

    Attributes:
        folded: tensors of the module that constants were computed from; a change of their values needs a new capture.
    """

    def __init__(self, source: fx.Node, like: Tensor) -> None:
        self.nodes = [Node("input", Input(), (), tuple(like.shape[1:]), "")]
        self.folded: list[Tensor] = []
        self._batch = str(source.meta["val"].shape[0])  # a symbol, compared as it prints: all that is public of it
        self._like = like
        self._results: dict[fx.Node, Any] = {}
        self._storage: dict[fx.Node, fx.Node] = {}
        self._stale: set[fx.Node] = set()
        self._storage[source] = source
        self._results[source] = Value(0, self.nodes[0].shape)

    def bind(self, node: fx.Node, tensor: Tensor, owned: bool) -> None:
        """Says which tensor a placeholder is, and whether the module owns it (else it is a number in the code)."""
        self._storage[node] = node
        self._results[node] = Constant(tensor, (tensor,) if owned else ())

    def run(self, nodes: list[fx.Node]) -> None:
        """Visits the calls, in order, that the output or a change in place depends on."""
        live = set()
        for node in reversed(nodes):
            if node.op == "output" or node in live or _changes_in_place(node):
                live.add(node)
                live.update(node.all_input_nodes)
        for node in nodes:
            if node.op in ("call_function", "get_attr") and node in live:
                self._visit(node)

    def graph(self, output: fx.Node) -> Graph:
        """The graph of everything that `output` reads."""
        value = self._lookup(output)
        if not isinstance(value, Value):
            raise CaptureError("the output of the network does not depend on its input.")
        needed = {value.index, 0}
        for index in range(value.index, 0, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        place = {old: new for new, old in enumerate(sorted(needed))}
        return Graph(
            tuple(
                Node(node.name, node.operator, tuple(place[i] for i in node.inputs), node.shape, node.source)
                for node in (self.nodes[old] for old in sorted(needed))
            )
        )

    # --- one call ------------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        self._storage[node] = self._storage_of(node)
        if node.op == "get_attr":
            owner = node.graph.owning_module
            found = operator.attrgetter(str(node.target))(owner)
            self._results[node] = Constant(found) if isinstance(found, Tensor) else Symbolic()
            return
        if node.target is operator.getitem:
            self._results[node] = self._item(node)
            return
        if _symbolic(node.meta.get("val")):
            self._results[node] = Symbolic()
            return
        arguments = self._arguments(node)
        dependent = any(isinstance(leaf, Value) for leaf in _leaves(list(arguments.values())))
        if not dependent and isinstance(node.target, torch._ops.OpOverload):
            self._results[node] = self._evaluate(node, arguments)
        else:
            self._results[node] = self._build(node, arguments)
        if _changes_in_place(node):
            self._change(node)

    def _item(self, node: fx.Node) -> Any:
        source, place = node.args
        assert isinstance(source, fx.Node)
        container = self._lookup(source)
        if isinstance(container, Symbolic):
            return container
        found = container[place]
        if found is None:
            raise UnsupportedOperatorError(
                f"the indices or statistics that {source.target} returns are not supported{_at(source)}; "
                "use its first result only."
            )
        return found

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {str(place): self._resolve(value) for place, value in enumerate(node.args)}
        arguments = {}
        for place, argument in enumerate(schema.arguments):
            if place < len(node.args):
                value = node.args[place]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            arguments[argument.name] = self._resolve(value)
        return arguments

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._lookup(value)
        if isinstance(value, list | tuple):
            return [self._resolve(item) for item in value]
        return value

    def _lookup(self, node: fx.Node) -> Any:
        if node in self._stale:
            raise UnsupportedOperatorError(
                f"a tensor is changed in place through one of its views and read again{_at(node)}; "
                "use operators that make a new tensor."
            )
        return self._results[node]

    def _build(self, node: fx.Node, arguments: dict[str, Any]) -> Result:
        name = _canonical_name(node)
        call = Call(node, name, arguments, self.nodes)
        builder = RULES.get(name)
        if builder is None:
            advice = _ADVICE.get(name.split(".")[1] if name.startswith("aten.") else name)
            call.refuse(advice or "no rule reads it: rewrite this line with supported operators")
        value = node.meta.get("val")
        if not isinstance(value, list | tuple):
            call.shape = self._shape(call, value)
        elif len(node.target._schema.returns) > 1:  # type: ignore[union-attr]
            call.several, call.shape = True, self._shape(call, value[0])  # the others, such as indices, have no rule
        else:
            call.shapes = [self._shape(call, item) for item in value]
        result = builder(call)
        call.finish()
        return result

    def _shape(self, call: Call, value: Any) -> tuple[int, ...]:
        """Shape of a traced tensor without the batch axis, which must come first and nowhere else."""
        if not isinstance(value, Tensor | Described):
            call.refuse("it returns something that is not a tensor")
        if value.dtype != self._like.dtype:
            call.refuse(f"it changes the dtype from {self._like.dtype} to {value.dtype}")
        if value.device.type != self._like.device.type:
            call.refuse(f"it moves values from {self._like.device} to {value.device}")
        extents = [str(extent) for extent in value.shape]
        if not extents or extents[0] != self._batch or not all(extent.isdigit() for extent in extents[1:]):
            reason = f"its result of shape [{', '.join(extents)}] does not keep the batch axis {self._batch} in front"
            (call.refuse if self._batch in extents[1:] else call.mixes)(reason)
        return tuple(int(extent) for extent in extents[1:])

    # --- constants -----------------------------------------------------------------------------------------------

    def _evaluate(self, node: fx.Node, arguments: dict[str, Any]) -> Any:
        """Computes what does not depend on the input; a view of a module's tensor stays live, the rest is fixed."""
        constants = [leaf for leaf in _leaves(list(arguments.values())) if isinstance(leaf, Constant)]
        origins = tuple(origin for constant in constants for origin in constant.origins)
        name = _canonical_name(node)
        if any(isinstance(leaf, Symbolic) for leaf in _leaves(list(arguments.values()))):
            raise UnsupportedOperatorError(
                f"{name!r} makes a constant whose shape depends on the batch size{_at(node)}; "
                "give it no batch axis, so that it broadcasts."
            )
        if _changes_in_place(node) and origins and name != "aten.detach.default":
            raise CaptureError(f"the network changes one of its own tensors by {name!r}{_at(node)}; it must not.")
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise UnsupportedOperatorError(
                f"{name!r} draws random numbers{_at(node)}; the network must be a fixed function."
            )
        with torch.inference_mode(False), torch.enable_grad():
            result = node.target(*_unwrapped(node.args, self), **_unwrapped(node.kwargs, self))  # type: ignore[operator]
        if isinstance(result, list | tuple):
            return [self._kept(node, item, origins) for item in result]
        return self._kept(node, result, origins)

    def _kept(self, node: fx.Node, result: Any, origins: tuple[Tensor, ...]) -> Any:
        if not isinstance(result, Tensor):
            return result
        homes = {origin.untyped_storage().data_ptr() for origin in origins}
        if origins and result.untyped_storage().data_ptr() not in homes:
            if any(isinstance(origin, torch.nn.Parameter) for origin in origins):
                advice = (
                    _ADVICE["_weight_norm"] if "norm" in str(node.target) else "precompute it, or train it directly"
                )
                raise UnsupportedOperatorError(
                    f"{_canonical_name(node)!r} computes with parameters alone{_at(node)}; {advice}."
                )
            self.folded.extend(origins)
        return Constant(result, origins)

    # --- changes in place ----------------------------------------------------------------------------------------

    def _storage_of(self, node: fx.Node) -> fx.Node:
        """The node whose memory the result may share."""
        shares = node.target is operator.getitem
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            shares = any(returned.alias_info is not None for returned in schema.returns)
            shares = shares or schema.name.partition("::")[2] in _HANDED_ON
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        return self._storage[source] if shares and source is not None else node

    def _change(self, node: fx.Node) -> None:
        """Gives the changed name its new value; other names of the same memory may not be read any more."""
        target = node.args[0]
        assert isinstance(target, fx.Node)
        home = self._storage[target]
        self._stale.update(other for other, where in self._storage.items() if where is home and other is not node)
        self._stale.discard(target)
        self._results[target] = self._results[node]


def _canonical_name(node: fx.Node) -> str:
    """The operator's name; a variant that works in place has the name of the one that does not."""
    name = str(node.target)
    if _changes_in_place(node) and name.startswith("aten."):
        _, operation, overload = name.split(".")
        return f"aten.{operation.rstrip('_')}.{overload}"
    return name


def _changes_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _unwrapped(value: Any, walk: Walk) -> Any:
    return fx.map_arg(value, lambda node: _tensor(walk._lookup(node)))


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, Constant) else value


def _at(node: fx.Node) -> str:
    source = node_source(node)
    return f" at {source}" if source else ""
