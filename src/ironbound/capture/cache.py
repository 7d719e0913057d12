"""Graphs of modules that have been captured, valid while the module is made of the same objects in the same state."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ironbound.graph import Graph

_TENSOR_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, eq=False)
class Entry:
    """A graph and the state of the module that it was captured in."""

    stamp: list[Any]
    tensors: list[weakref.ref[Tensor]]
    folded: list[tuple[weakref.ref[Tensor], int]]
    graph: Graph


class Cache:
    """Graphs by module (held weakly) and by the shape, dtype and device of the input."""

    def __init__(self) -> None:
        self._entries: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Entry]] = weakref.WeakKeyDictionary()

    def find(self, model: nn.Module, key: Hashable) -> Graph | None:
        """The graph of an unchanged module, or None."""
        entry = self._entries.get(model, {}).get(key)
        if entry is None or entry.stamp != _stamp(model):
            return None
        tensors = list(_tensors(model))
        if len(tensors) != len(entry.tensors):
            return None
        if any(kept() is not tensor for kept, tensor in zip(entry.tensors, tensors, strict=True)):
            return None
        for kept, version in entry.folded:
            tensor = kept()
            if tensor is None or tensor._version != version:
                return None
        return entry.graph

    def keep(self, model: nn.Module, key: Hashable, graph: Graph, folded: list[Tensor]) -> None:
        """Stores a graph.

        Args:
            model: the module.
            key: shape, dtype and device of the input.
            graph: its graph.
            folded: tensors of the module whose values (not only whose identity) the graph depends on.
        """
        tensors = [weakref.ref(tensor) for tensor in _tensors(model)]
        versions = [(weakref.ref(tensor), tensor._version) for tensor in folded]
        self.restore(model, key, Entry(_stamp(model), tensors, versions, graph))

    def entry(self, model: nn.Module, key: Hashable) -> Entry | None:
        """What is stored for a module, valid or not."""
        return self._entries.get(model, {}).get(key)

    def restore(self, model: nn.Module, key: Hashable, entry: Entry | None) -> None:
        """Puts back what `entry` returned; its validity is checked by `find`, as ever."""
        graphs = self._entries.setdefault(model, {})
        if entry is None:
            graphs.pop(key, None)
        else:
            graphs[key] = entry


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """All tensors that modules hold: parameters, buffers, plain attributes."""
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in table.values() if isinstance(value, Tensor))


def _stamp(model: nn.Module) -> list[Any]:
    """What a capture reads of a module besides its tensors' values, in a form that compares by value."""
    stamp: list[Any] = [tensor_state for tensor in _tensors(model) for tensor_state in _state(tensor)]
    for name, module in model.named_modules():
        stamp.append((name, id(module), type(module)))
        for attribute, value in vars(module).items():
            if attribute not in _TENSOR_TABLES:
                stamp.append((attribute, _comparable(value)))
    return stamp


def _state(tensor: Tensor) -> tuple[Any, ...]:
    # the address tells when `.data` was replaced, which a view made at capture would not see
    return (tensor.shape, tensor.dtype, tensor.device, tensor.data_ptr())


def _comparable(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_comparable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _comparable(item)) for key, item in value.items())
    return id(value)
