"""Small two-layer networks and independent answers for them: enumeration, an interior-point method, fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.semidefinite.network import TwoLayer, two_layer

Exact = list[list[Fraction]]


def model(
    inputs: int = 4, neurons: int = 6, classes: int = 3, seed: int = 0, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A random network with biases, float32."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, neurons), activation(), nn.Linear(neurons, classes)).eval()


def network(module: nn.Module, inputs: int = 4) -> TwoLayer:
    """A module as matrices."""
    return two_layer(capture(module, torch.zeros(1, inputs)))


def printed_matrix(weight: Tensor, v: Tensor) -> np.ndarray:
    """Equation (8) as printed: "1" is coupled to s by 1^T W^T diag(v)."""
    neurons, inputs = weight.shape
    matrix = np.zeros((1 + inputs + neurons,) * 2)
    coupling = (weight.T * v).numpy()
    matrix[1 : 1 + inputs, 1 + inputs :] = coupling
    matrix[0, 1 + inputs :] = coupling.sum(0)
    return matrix + matrix.T


def right_matrix(weight: Tensor, v: Tensor) -> np.ndarray:
    """The matrix of (7) written out: "1" is coupled to t by W^T v."""
    neurons, inputs = weight.shape
    matrix = np.zeros((1 + inputs + neurons,) * 2)
    coupling = (weight.T * v).numpy()
    matrix[1 : 1 + inputs, 1 + inputs :] = coupling
    matrix[0, 1 : 1 + inputs] = coupling.sum(1)
    return matrix + matrix.T


def largest_gradient(weight: Tensor, v: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> float:
    """The maximum of sum_i r_i |W^T diag(v) s|_i over s in [low, high], by all corners (it is convex in s)."""
    best = 0.0
    for corner in product((0.0, 1.0), repeat=len(v)):
        slopes = low + torch.tensor(corner, dtype=torch.float64) * (high - low)
        best = max(best, float((radius * (weight.T @ (v * slopes)).abs()).sum()))
    return best


def interior_point(matrix: np.ndarray) -> tuple[float, float]:
    """The program max <M, P> with diag P = 1, P positive semidefinite: primal and dual value.

    Source: Helmberg, Rendl, Vanderbei & Wolkowicz, "An interior-point method for semidefinite programming" (1996),
    section 5: their method for max-cut.
    """
    size = len(matrix)
    x, y = np.eye(size), 1.1 * np.abs(matrix).sum(1) + 0.1
    z = np.diag(y) - matrix
    mu = np.trace(z @ x) / (2 * size)
    for _ in range(100):
        if y.sum() - np.trace(matrix @ x) < 1e-9 * (1 + abs(y.sum())):
            break
        inverse = np.linalg.inv(z)
        inverse = (inverse + inverse.T) / 2
        dy = np.linalg.solve(inverse * x, mu * np.diag(inverse) - 1)
        dx = -inverse @ np.diag(dy) @ x + mu * inverse - x
        dx = (dx + dx.T) / 2
        primal_step, dual_step = _step(x, dx), _step(z, np.diag(dy))
        x, y = x + primal_step * dx, y + dual_step * dy
        z = np.diag(y) - matrix
        mu = np.trace(x @ z) / (2 * size) * (0.5 if primal_step + dual_step > 1.8 else 1.0)
    return float(np.trace(matrix @ x)), float(y.sum())


def _step(matrix: np.ndarray, change: np.ndarray) -> float:
    step = 1.0
    while np.linalg.eigvalsh(matrix + step * change)[0] <= 0:
        step *= 0.8
    return step if step == 1.0 else 0.95 * step


def fractions(matrix: Tensor) -> Exact:
    """A matrix without rounding."""
    return [[Fraction(value) for value in row] for row in matrix.double().tolist()]


def is_positive_semidefinite(matrix: Exact) -> bool:
    """By elimination in exact arithmetic."""
    rows = [list(row) for row in matrix]
    for place in range(len(rows)):
        pivot = rows[place][place]
        if pivot < 0 or (pivot == 0 and any(rows[place][place:])):
            return False
        if pivot == 0:
            continue
        for below in range(place + 1, len(rows)):
            share = rows[below][place] / pivot
            if share:
                rows[below] = [one - share * other for one, other in zip(rows[below], rows[place], strict=True)]
    return True
