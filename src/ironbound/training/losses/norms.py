"""Penalties on the norms of the weights: the baselines that the semidefinite certificate was compared with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.graph import Node
from ironbound.ops.affine import Convolution, Linear, TransposedConvolution
from ironbound.regions import Region
from ironbound.training.losses.loss import as_used

Weighted = Linear | Convolution | TransposedConvolution


def spectral_norm(model: nn.Module, region: Region, labels: Tensor, iterations: int = 20) -> Tensor:
    """Sum of the spectral norms of all linear and convolutional layers.

    The norm of a convolution is that of the matrix which it applies to images of its input's size, zero padding
    included, not that of its reshaped kernel. Power iteration from a fixed random start approaches it from below;
    the gradient is that of |W v| at the vector v found, which at convergence is the norm's.

    Source: Raghunathan et al., "Certified defenses against adversarial examples" (2018), equation (17), and the
    objective of Spe-NN in section 6, there for two layers and one difference of output rows.

    Args:
        model: the network.
        region: only the shape of its examples counts.
        labels: not used; regularizers are called alike.
        iterations: of the power method, each one application of W and of its transpose.

    Returns:
        Scalar, differentiable in the weights.

    Raises:
        InputError: the network has no such layer, or iterations is below 1.
    """
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, got {iterations}")
    total = region.center.new_zeros(())
    for layer, shape in _layers(model, region):
        total = total + largest_singular_value(layer, shape, region.center, iterations)
    return total


def frobenius_norm(model: nn.Module, region: Region, labels: Tensor) -> Tensor:
    """Sum of the Frobenius norms of the matrices that all linear and convolutional layers apply.

    A weight of a convolution counts once for every place where it meets the image.

    Source: Raghunathan et al., "Certified defenses against adversarial examples" (2018), equation (18), and the
    objective of Fro-NN in section 6, there for two layers and one difference of output rows.

    Args:
        model: the network.
        region: only the shape of its examples counts.
        labels: not used; regularizers are called alike.

    Returns:
        Scalar, differentiable in the weights.

    Raises:
        InputError: the network has no such layer.
    """
    total = region.center.new_zeros(())
    for layer, shape in _layers(model, region):
        square = replace(layer, weight=layer.weight**2, bias=None)
        # |W|² summed over all outputs; the norm of the square roots has the gradient 0 where all weights are 0
        total = total + _root(square.forward(region.center.new_ones((1, *shape))).sum())
    return total


def largest_singular_value(layer: Weighted, shape: tuple[int, ...], like: Tensor, iterations: int) -> Tensor:
    """The largest singular value of a layer's linear part, from below.

    Args:
        layer: the operator.
        shape: of its input, without the batch axis.
        like: a tensor whose dtype and device are used.
        iterations: of the power method.

    Returns:
        Scalar, differentiable in the layer's weight.
    """
    linear = replace(layer, bias=None)
    start = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = start.to(like)
    with torch.no_grad():
        vector = vector / vector.norm()
        for _ in range(iterations):
            (back,) = linear.adjoint(linear.forward(vector), (shape,))
            length = back.norm()
            if not bool(length > 0):
                break
            vector = back / length
    return torch.linalg.vector_norm(linear.forward(vector))


def _root(square: Tensor) -> Tensor:
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, 1.0, square).sqrt())


def _layers(model: nn.Module, region: Region) -> list[tuple[Weighted, tuple[int, ...]]]:
    """The layers with a weight matrix, in order, each with the shape of its input."""
    with as_used(model, region):
        graph = capture(model, region.center)

    def source(node: Node) -> tuple[int, ...]:
        return graph.nodes[node.inputs[0]].shape

    found = [(node.operator, source(node)) for node in graph.nodes if isinstance(node.operator, Weighted)]
    if not found:
        raise InputError("the network has no linear or convolutional layer whose norm could be penalised")
    return found
