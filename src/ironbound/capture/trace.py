"""What a trace is, whoever made it: the calls of a network in order, its input and its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

BATCH = "batch"


@dataclass(frozen=True)
class Described:
    """What is known of a traced tensor.

    Attributes:
        shape: extents, `BATCH` where one is the number of examples.
        dtype: of its elements.
        device: where it lies.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls of a network, as nodes of `torch.fx` whose meta["val"] describes the result: see `Walk`.

    Attributes:
        nodes: in order.
        source: the placeholder of the network's input.
        tensors: each other placeholder, its tensor, and whether the module owns it (else it is a number in the code).
        output: the node that is the network's output.
    """

    nodes: list[fx.Node]
    source: fx.Node
    tensors: list[tuple[fx.Node, Tensor, bool]]
    output: fx.Node
