"""Algorithm 1 of Zhu et al. (2020) written down with dense matrices, for one example and one functional; ReLU chains.

Nothing here is shared with the package, nor with `writeup`: maps are pushed forward as the paper prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Zhu:
    """The optimum of problem (C), and both indicators of its gap."""

    margin: Tensor
    delta: Tensor  # of the input
    raised: list[Tensor]  # delta_i, where it is not 0
    lower: list[Tensor]
    upper: list[Tensor]
    before: list[Tensor]  # x*_i
    after: list[Tensor]  # z*_{i+1}
    network: list[Tensor]  # x'_i
    d: Tensor
    r: Tensor


def algorithm_1(layers: Layers, x: Tensor, eps: float, norm: str, c: Tensor) -> Zhu:
    """Bounds, optimal perturbations and regularizers d and r for min c · x_L over the ball."""
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    slopes: list[Tensor] = []
    tops: list[Tensor] = []  # the largest delta_i: -u l / (u - l) on open neurons
    maps: list[Tensor] = []  # W_{i:1}, ..., W_{i:i}
    middle = x
    for place, (weight, bias) in enumerate(layers):
        scaled = weight * slopes[-1] if place else weight
        maps = [scaled @ part for part in maps] + [weight]
        middle = scaled @ middle + bias
        if place == len(layers) - 1:
            break
        reach = eps * torch.linalg.vector_norm(maps[0], dual, dim=1)
        down = sum(((part.clamp(max=0) * top).sum(1) for part, top in zip(maps[1:], tops, strict=True)), 0 * reach)
        up = sum(((part.clamp(min=0) * top).sum(1) for part, top in zip(maps[1:], tops, strict=True)), 0 * reach)
        lower.append(middle - reach + down)
        upper.append(middle + reach + up)
        is_open = (lower[-1] < 0) & (upper[-1] > 0)
        width = torch.where(is_open, upper[-1] - lower[-1], 1.0)
        slopes.append(torch.where(is_open, upper[-1] / width, (lower[-1] >= 0).to(x.dtype)))
        tops.append(torch.where(is_open, -upper[-1] * lower[-1] / width, 0.0))
    rows = [c @ part for part in maps]
    reach = eps * torch.linalg.vector_norm(rows[0], dual)
    deltas = [torch.where(row < 0, top, 0.0) for row, top in zip(rows[1:], tops, strict=True)]
    margin = c @ middle - reach + sum((row @ delta for row, delta in zip(rows[1:], deltas, strict=True)), 0 * reach)
    delta = _steepest(rows[0], eps, norm)
    value, before, after = x + delta, [], []
    for place, (weight, bias) in enumerate(layers[:-1]):  # equation (3)
        before.append(weight @ value + bias)
        value = slopes[place] * before[-1] + deltas[place]
        after.append(value)
    value, network = x + delta, []
    for weight, bias in layers:
        network.append(weight @ value + bias)
        value = network[-1].clamp(min=0)
    far, count = 0 * reach, 0
    for place in range(len(layers) - 1):
        for j in range(len(lower[place])):
            low, high, at = lower[place][j], upper[place][j], network[place][j]
            if low < 0 < high:
                count += 1
                far = far + (at.abs() if deltas[place][j] == 0 else min((at - low).abs(), (at - high).abs()))
    raised = [part > 0 for part in deltas]
    r = far / max(count, 1)
    return Zhu(margin, delta, raised, lower, upper, before, after, network, c @ network[-1] - margin, r)


def _steepest(row: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return eps * (1 - 2 * (row >= 0).to(row.dtype))
    if norm == "l2":
        return -eps * row / torch.linalg.vector_norm(row)
    best = int(row.abs().argmax())
    return -eps * torch.sign(row[best]) * torch.eye(len(row), dtype=row.dtype)[best]
