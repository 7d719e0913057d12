"""Batch norm in losses on bounds: the statistics of the clean batch, the same for every input of the regions.

In training mode batch norm mixes the examples of a batch, so that no bound holds for one of them alone. Here the
mixing is explicit: the clean batch gives a mean and a variance per channel, and with these as constants the network
treats every example alone. The statistics are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ironbound.capture import capture
from ironbound.capture.substitution import captured_as, constants_of, with_operators
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.ops.affine import BatchNorm
from ironbound.ops.operator import Operator


@dataclass(frozen=True, eq=False)
class BatchStatistics(BatchNorm):
    """Batch norm by given statistics, differentiable in them, which the library's operator is not."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scales and shifts each channel."""
        factor = self._factor(inputs[0])
        shift = -self.mean.reshape(factor.shape) * factor
        if self.bias is not None:
            shift = shift + self.bias.reshape(factor.shape)
        return torch.addcmul(shift, inputs[0], factor)


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norm layers of a network.

    Args:
        model: the network.

    Returns:
        The layers by name; empty where there is none.

    Raises:
        InputError: a layer keeps no running statistics, gathers them across processes, or runs code of its own.
    """
    found: dict[str, _BatchNorm] = {}
    for name, part in model.named_modules():
        if not isinstance(part, _BatchNorm) or isinstance(part, _InstanceNorm):
            continue
        if isinstance(part, nn.SyncBatchNorm):
            raise InputError(f"the layer {name!r} gathers statistics across processes; use plain batch norm")
        if part.running_mean is None or part.running_var is None:
            raise InputError(f"the layer {name!r} keeps no running statistics; build it with track_running_stats=True")
        if isinstance(getattr(vars(part).get("forward"), "__self__", None), BatchStatistics):
            raise InputError("the network is inside batch_statistics already; leave that first")
        if type(part).forward is not _BatchNorm.forward or "forward" in vars(part):
            raise InputError(f"the layer {name!r} runs code of its own; use one of torch's batch norm layers")
        found[name] = part
    return found


@contextmanager
def batch_statistics(model: nn.Module, x: Tensor) -> Generator[None]:
    """Inside, the network is in evaluation mode and its batch norm uses the statistics of `x`, differentiably.

    One pass over `x` gives each layer's mean and (biased) variance and updates its running averages, once, as a pass
    in training mode would. Runs, attacks and bounds inside are those of a network that treats each example alone;
    their gradients flow through the statistics too, also when `backward` is called afterwards. Outside, all modes are
    back and the running averages count again. Without batch norm only the mode changes.

    Source: Wong et al., "Scaling provable adversarial defenses" (2018), and Shi et al., "Fast certified robust
    training with short warmup" (2021), section 3.3.2: shift and scale are computed from unperturbed data.

    Args:
        model: the network; all of its batch norm layers take part, whatever their mode.
        x: the clean batch, [batch, *shape].

    Yields:
        Nothing.

    Raises:
        InputError: a layer cannot be handled (see `batch_norm_layers`), runs more than once or outside the graph, or
            sees a single value per channel, which has no variance; or the network is inside already.
    """
    layers = batch_norm_layers(model)
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        if not layers:
            yield
            return
        graph = capture(model, x)
        if {id(tensor) for tensor in constants_of(model, x)} & {id(b) for b in _averages(layers)}:
            raise InputError("the network computes a constant from batch norm's running statistics; take that out")
        found = _clean_pass(model, x, layers)
        adapted = _adapted(graph, found)
        with captured_as(model, x, adapted):
            yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)
        for part, mode in modes:
            part.training = mode


def _averages(layers: dict[str, _BatchNorm]) -> list[Tensor]:
    both = [(layer.running_mean, layer.running_var) for layer in layers.values()]
    return [buffer for pair in both for buffer in pair if buffer is not None]


def _clean_pass(model: nn.Module, x: Tensor, layers: dict[str, _BatchNorm]) -> dict[_BatchNorm, BatchStatistics]:
    """Runs the network; each batch norm takes the statistics of what it reads and from then on computes with them."""
    found: dict[_BatchNorm, BatchStatistics] = {}

    def first(name: str, layer: _BatchNorm) -> Callable[[Tensor], Tensor]:
        def run(value: Tensor) -> Tensor:
            if layer in found:
                raise InputError(f"the layer {name!r} runs more than once; give each place a layer of its own")
            count = value.numel() // value.shape[1]
            if count < 2:
                raise InputError(f"the layer {name!r} sees one value per channel; use batches of two or more")
            variance, mean = torch.var_mean(value, [0, *range(2, value.dim())], correction=0)
            _update(layer, mean.detach(), variance.detach() * count / (count - 1))
            found[layer] = BatchStatistics(mean, variance, layer.weight, layer.bias, layer.eps)
            return found[layer].forward(value)

        return run

    for name, layer in layers.items():
        vars(layer)["forward"] = first(name, layer)
    model(x)
    for layer in layers.values():
        vars(layer).pop("forward")
        if layer in found:
            vars(layer)["forward"] = found[layer].forward
    return found


def _adapted(graph: Graph, found: dict[_BatchNorm, BatchStatistics]) -> Graph:
    """The graph with the statistics of the batch in place of the running ones."""
    table = {id(layer.running_mean): operator for layer, operator in found.items()}
    used: set[int] = set()

    def change(operator: Operator) -> Operator:
        if not isinstance(operator, BatchNorm) or id(operator.mean) not in table:
            return operator
        used.add(id(operator.mean))
        return table[id(operator.mean)]

    adapted = with_operators(graph, change)
    if used != set(table):
        raise InputError("a batch norm layer that runs does not reach the output; take it out")
    return adapted


@torch.no_grad()
def _update(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves the running averages as a pass in training mode does; the variance is unbiased."""
    assert layer.running_mean is not None and layer.running_var is not None
    share = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        share = 1 / float(layer.num_batches_tracked) if share is None else share
    share = 0.0 if share is None else share
    layer.running_mean.lerp_(mean.to(layer.running_mean), share)
    layer.running_var.lerp_(variance.to(layer.running_var), share)
