"""The papers' bounds written down again with dense matrices, one example at a time, to compare with; ReLU chains only.

Nothing here is shared with the package: a network is a list of matrices, a region a list of supports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Layers = list[tuple[Tensor, Tensor]]
Bounds = list[tuple[Tensor, Tensor]]


def dense_layers(model: nn.Sequential, shape: tuple[int, ...]) -> Layers:
    """Weights and biases (W_i, b_i) with z_{i+1} = W_i relu(z_i) + b_i, from Jacobians between the ReLUs."""
    layers: Layers = []
    block: list[nn.Module] = []
    for module in [*model, None]:
        if module is not None and not isinstance(module, nn.ReLU):
            block.append(module)
            continue
        run = nn.Sequential(*block)
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        constant = run(zero).detach()
        jacobian = torch.autograd.functional.jacobian(run, zero).detach()
        layers.append((jacobian.reshape(constant.numel(), -1), constant.flatten()))
        shape, block = tuple(constant.shape[1:]), []
    return layers


@dataclass(frozen=True, eq=False)
class Set:
    """{middle + d : ||d / radius||_p <= 1} with the dual exponent q of p."""

    middle: Tensor
    radius: Tensor
    dual: float


@dataclass(frozen=True, eq=False)
class Input:
    """The inputs of one example: sets that contain it, and the box around it."""

    sets: list[Set]
    lower: Tensor
    upper: Tensor

    def highest(self, direction: Tensor) -> Tensor:
        """For each row v of `direction` the least upper bound of v · x that one of the sets gives."""
        found = [
            direction @ part.middle + torch.linalg.vector_norm(direction * part.radius, part.dual, dim=-1)
            for part in self.sets
        ]
        return torch.stack(found).amin(0)


def ball(norm: str, x: Tensor, eps: Tensor, clip: tuple[float, float] | None) -> Input:
    """A norm ball around one flat example, clipped (a clipped l2 or l1 ball: the better of the ball and the box)."""
    lower, upper = x - eps, x + eps
    if clip is not None:
        lower, upper = lower.clamp(min=clip[0]), upper.clamp(max=clip[1])
    box = Set((lower + upper) / 2, (upper - lower) / 2, 1)
    round_ball = Set(x, eps, {"linf": 1, "l2": 2, "l1": float("inf")}[norm])
    if norm == "linf":
        return Input([box], lower, upper)
    return Input([round_ball] if clip is None else [round_ball, box], lower, upper)


# --- Wong & Kolter (2018) --------------------------------------------------------------------------------------------


def dual_objective(layers: Layers, region: Input, bounds: Bounds, c: Tensor) -> Tensor:
    """J(x, g(c)) of Theorem 1 with alpha = u / (u - l): lower bounds of c · z_k, one per row of c."""
    nu = -c
    total = torch.zeros(len(c), dtype=c.dtype)
    for place in range(len(layers) - 1, 0, -1):
        weight, bias = layers[place]
        total = total - nu @ bias
        nu_hat = nu @ weight
        low, high = bounds[place - 1]
        is_open = (low < 0) & (high > 0)
        slope = torch.where(is_open, high / torch.where(is_open, high - low, 1.0), (low >= 0).to(low))
        nu = nu_hat * slope
        total = total + (torch.where(is_open, low, 0.0) * nu.clamp(min=0)).sum(1)
    weight, bias = layers[0]
    return total - nu @ bias - region.highest(nu @ weight)


def dual_bounds(layers: Layers, region: Input, meet_interval: bool = False) -> Bounds:
    """Bounds of every z_i, the last one included, each by Theorem 1 with c = I and c = -I."""
    bounds: Bounds = []
    inner = interval_bounds(layers, region)
    for place in range(len(layers)):
        eye = torch.eye(len(layers[place][1]), dtype=torch.float64)
        low = dual_objective(layers[: place + 1], region, bounds, eye)
        high = -dual_objective(layers[: place + 1], region, bounds, -eye)
        if meet_interval and place < len(layers) - 1:
            low, high = torch.maximum(low, inner[place][0]), torch.minimum(high, inner[place][1])
        bounds.append((low, high))
    return bounds


# --- interval arithmetic ---------------------------------------------------------------------------------------------


def interval_bounds(layers: Layers, region: Input) -> Bounds:
    """Naive layer-wise bounds; the first layer sees an l2 ball itself, and otherwise the box."""
    bounds: Bounds = []
    low, high = region.lower, region.upper
    for place, (weight, bias) in enumerate(layers):
        if place == 0 and len(region.sets) == 1 and region.sets[0].dual == 2:
            upper, lower = region.highest(weight), -region.highest(-weight)
        else:
            upper = weight.clamp(min=0) @ high + weight.clamp(max=0) @ low
            lower = weight.clamp(min=0) @ low + weight.clamp(max=0) @ high
        bounds.append((lower + bias, upper + bias))
        low, high = (end.clamp(min=0) for end in bounds[-1])
    return bounds


def interval_functional(layers: Layers, bounds: Bounds, c: Tensor) -> Tensor:
    """Lower bound of c · z_k with the last layer merged into c."""
    weight, bias = layers[-1]
    merged = c @ weight
    low, high = (end.clamp(min=0) for end in bounds[len(layers) - 2])
    return merged.clamp(min=0) @ low + merged.clamp(max=0) @ high + c @ bias


# --- CROWN (Zhang et al. 2018) ---------------------------------------------------------------------------------------


def crown_objective(layers: Layers, region: Input, bounds: Bounds, c: Tensor) -> Tensor:
    """Lower bounds of c · z_k: open neurons have the chord above, and below the slope 1 where u > -l, else 0."""
    total = torch.zeros(len(c), dtype=c.dtype)
    for place in range(len(layers) - 1, 0, -1):
        weight, bias = layers[place]
        total, c = total + c @ bias, c @ weight
        low, high = bounds[place - 1]
        is_open = (low < 0) & (high > 0)
        alive = (low >= 0).to(low)
        chord = torch.where(is_open, high / torch.where(is_open, high - low, 1.0), alive)
        below = torch.where(is_open, (high > -low).to(low), alive)
        total = total + (c.clamp(max=0) * torch.where(is_open, -chord * low, 0.0)).sum(1)
        c = c.clamp(min=0) * below + c.clamp(max=0) * chord
    weight, bias = layers[0]
    return total + c @ bias - region.highest(-c @ weight)


def crown_bounds(layers: Layers, region: Input, walk: bool) -> Bounds:
    """Bounds of every z_i: walks for what intervals leave open ("crown"), or the intervals ("crown-ibp")."""
    bounds: Bounds = []
    inner = interval_bounds(layers, region)
    for place in range(len(layers)):
        low, high = inner[place]
        if walk or place == len(layers) - 1:
            eye = torch.eye(len(low), dtype=torch.float64)
            below = crown_objective(layers[: place + 1], region, bounds, eye)
            above = -crown_objective(layers[: place + 1], region, bounds, -eye)
            is_open = (low < 0) & (high > 0) if place < len(layers) - 1 else torch.ones_like(low, dtype=torch.bool)
            low, high = torch.where(is_open, below, low), torch.where(is_open, above, high)
        bounds.append((low, high))
    return bounds


def objective(method: str, layers: Layers, region: Input) -> tuple[Bounds, Callable[[Tensor], Tensor]]:
    """A method's bounds of every z_i, and its lower bound of functionals of z_k."""
    if method == "interval":
        bounds = interval_bounds(layers, region)
        return bounds, lambda c: interval_functional(layers, bounds, c)
    if method in ("dual", "dual+interval"):
        bounds = dual_bounds(layers, region, method != "dual")
        return bounds, lambda c: dual_objective(layers, region, bounds, c)
    bounds = crown_bounds(layers, region, method == "crown")
    return bounds, lambda c: crown_objective(layers, region, bounds, c)
