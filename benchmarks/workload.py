"""What is measured: the networks, the images, and the arithmetic that no method of this kind can avoid."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import ironbound as ib


def images(root: Path | None, limit: int, split: str = "test") -> tuple[Tensor, Tensor]:
    """The first MNIST images [limit, 1, 28, 28] in [0, 1] and their labels [limit]."""
    data = ib.data.load("mnist", split=split, root=root, limit=limit)
    return torch.as_tensor(data.inputs), torch.as_tensor(data.labels)


def briefly_trained(name: str, root: Path | None, eps: float, steps: int, seed: int) -> nn.Module:
    """A network after a short interval training, ε rising over the first two thirds of the steps.

    At its random initialisation a network has nearly every neuron open at ε = 0.1, unlike any that is worth certifying.

    Args:
        name: architecture.
        root: folder of the MNIST files, or None to download them.
        eps: the ℓ∞ radius at the end of the ramp.
        steps: batches of 64 images.
        seed: of the weights and the order of the images.

    Returns:
        The network in evaluation mode; the same numbers on the same machine for the same seed.
    """
    x, labels = images(root, 20_000, split="train")
    torch.manual_seed(seed)
    network = ib.models.build(name)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        batch = torch.randint(len(x), (64,))
        ball = ib.LinfBall(x[batch], eps * min(1.0, 1.5 * step / steps))
        robust = functional.cross_entropy(-ib.margins(network, ball, labels[batch], method="interval"), labels[batch])
        plain = functional.cross_entropy(network(x[batch]), labels[batch])
        optimizer.zero_grad()
        (0.5 * plain + 0.5 * robust).backward()
        optimizer.step()
    return network.eval()


def _layers(network: nn.Module, x: Tensor) -> list[tuple[nn.Module, torch.Size, torch.Size]]:
    """Every linear and convolution layer with the shapes of its input and output, without the batch."""
    seen: list[tuple[nn.Module, torch.Size, torch.Size]] = []
    hooks = [
        layer.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs[0].shape[1:], output.shape[1:])))
        for layer in network.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    with torch.no_grad():
        network(x[:1])
    for hook in hooks:
        hook.remove()
    return seen


def open_neurons(network: nn.Module, x: Tensor, eps: float) -> list[float]:
    """Neurons per image, ReLU layer by ReLU layer, whose sign the dual method leaves open."""
    with torch.no_grad():
        layers = ib.bounds(network, ib.LinfBall(x, eps), method="dual").layers
    return [((lower < 0) & (upper > 0)).sum().item() / len(x) for lower, upper in layers.values()]


def _row_macs(layers: list[tuple[nn.Module, torch.Size, torch.Size]]) -> int:
    """Multiplications that carry a functional of one output neuron of the last layer back to the input, in windows."""
    total, window = 0, 1
    for position, (layer, in_shape, out_shape) in enumerate(reversed(layers)):
        if isinstance(layer, nn.Conv2d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            seen = min(window, out_shape[-1]) if len(out_shape) == 3 else out_shape[-1]
            if position > 0:  # the neuron's own row of the weights is the functional: nothing is multiplied yet
                total += seen**2 * out_shape[0] * kernel**2 * in_shape[0]
            window = (seen - 1) * stride + kernel
        else:
            if position > 0:
                total += math.prod(in_shape) * math.prod(out_shape)
            window = 10**9  # behind a dense layer every neuron is seen
    return total


def dual_floor_flop(network: nn.Module, x: Tensor, eps: float) -> float:
    """Arithmetic per image that the dual bounds need at least, counted by hand, in FLOP.

    What a real method adds: the neurons that are bounded and turn out closed, and every operation that is not a matrix
    product.

    Returns:
        One forward pass of the image, two for interval bounds (centre and radius), a functional carried back to the
        input for each neuron that is truly open, and one for each wrong class.
    """
    layers = _layers(network, x)
    forward = sum(_forward_macs(*layer) for layer in layers)
    opened = open_neurons(network, x, eps)
    back = sum(count * _row_macs(layers[: depth + 1]) for depth, count in enumerate(opened) if depth > 0)
    final = (layers[-1][2][0] - 1) * _row_macs(layers)
    return 2 * (3 * forward + back + final)


def interval_floor_flop(network: nn.Module, x: Tensor) -> float:
    """Arithmetic per image of interval bounds: a pass for the centre and one for the radius, in FLOP."""
    return 2 * 2 * sum(_forward_macs(*layer) for layer in _layers(network, x))


def crown_ibp_floor_flop(network: nn.Module, x: Tensor) -> float:
    """Arithmetic per image of interval bounds and one functional per wrong class carried back to the input, in FLOP."""
    layers = _layers(network, x)
    return interval_floor_flop(network, x) + 2 * (layers[-1][2][0] - 1) * _row_macs(layers)


def _forward_macs(layer: nn.Module, in_shape: torch.Size, out_shape: torch.Size) -> int:
    if isinstance(layer, nn.Conv2d):
        return math.prod(out_shape) * layer.kernel_size[0] * layer.kernel_size[1] * in_shape[0]
    return math.prod(in_shape) * math.prod(out_shape)
