"""Exact answers of tiny ReLU chains by linear programs: all patterns of active neurons and the triangle relaxation."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from scipy.optimize import linprog

from laws.writeup import Bounds, Input, Layers

Rows = list[tuple[np.ndarray, float]]


def _input_rows(region: Input) -> tuple[int, Rows]:
    """Extra variables and inequalities a · v <= b of an l1 ball: |x_i - middle_i| <= t_i, sum t_i / radius_i <= 1."""
    part = region.sets[0]
    size = len(region.lower)
    if part.dual == 1:
        return 0, []
    assert part.dual == float("inf")
    rows: Rows = []
    for place in range(size):
        for sign in (1.0, -1.0):
            row = np.zeros(2 * size)
            row[place], row[size + place] = sign, -1.0
            rows.append((row, sign * float(part.middle[place])))
    row = np.zeros(2 * size)
    row[size:] = 1 / part.radius.numpy()
    return size, [*rows, (row, 1.0)]


def _solve(
    objective: np.ndarray, constant: float, rows: Rows, limits: list[tuple[float | None, float | None]]
) -> float:
    matrix = np.stack([row for row, _ in rows]) if rows else None
    right = np.array([end for _, end in rows]) if rows else None
    result = linprog(objective, A_ub=matrix, b_ub=right, bounds=limits, method="highs")
    if result.status == 2:
        return float("inf")
    assert result.status == 0, result.message
    return float(result.fun) + constant


def exact_minimum(layers: Layers, region: Input, outer: Bounds, c: torch.Tensor) -> float:
    """The least value of c · z_k over the region: the least of the programs of all patterns.

    Args:
        layers: (W_i, b_i), float64.
        region: a box or an l1 ball.
        outer: sound bounds of every z_i; a neuron that they close has one state only.
        c: the functional.
    """
    extra, base = _input_rows(region)
    size = len(region.lower)
    limits = [(float(a), float(b)) for a, b in zip(region.lower, region.upper, strict=True)]
    limits += [(0.0, None)] * extra
    choices = [
        [(1,) if low >= 0 else (0,) if high <= 0 else (0, 1) for low, high in zip(*ends, strict=True)]
        for ends in outer[: len(layers) - 1]
    ]
    best = float("inf")
    for pattern in product(*(choice for layer in choices for choice in layer)):
        matrix, constant = np.eye(size, size + extra), np.zeros(size)
        rows, start = list(base), 0
        for place, (weight, bias) in enumerate(layers):
            matrix, constant = weight.numpy() @ matrix, weight.numpy() @ constant + bias.numpy()
            if place == len(layers) - 1:
                break
            active = np.array(pattern[start : start + len(bias)], dtype=float)
            start += len(bias)
            sign = 1 - 2 * active  # active: -z <= 0; else z <= 0
            rows += [(sign[i] * matrix[i], -sign[i] * constant[i]) for i in range(len(bias))]
            matrix, constant = active[:, None] * matrix, active * constant
        direction = c.numpy()
        best = min(best, _solve(direction @ matrix, float(direction @ constant), rows, limits))
    return best


def triangle_minimum(layers: Layers, region: Input, bounds: Bounds, c: torch.Tensor) -> float:
    """The least value of c · z_k over the triangle relaxation with given bounds, (4) of Wong & Kolter (2018)."""
    extra, base = _input_rows(region)
    size = len(region.lower)
    width = size + extra + sum(len(bias) for _, bias in layers[:-1])
    limits: list[tuple[float | None, float | None]] = [
        (float(a), float(b)) for a, b in zip(region.lower, region.upper, strict=True)
    ]
    limits += [(0.0, None)] * (width - size)
    rows: Rows = [(np.concatenate([row, np.zeros(width - len(row))]), end) for row, end in base]
    matrix, constant, start = np.eye(size, width), np.zeros(size), size + extra
    for place, (weight, bias) in enumerate(layers):
        matrix, constant = weight.numpy() @ matrix, weight.numpy() @ constant + bias.numpy()
        if place == len(layers) - 1:
            break
        relu = np.eye(width)[start : start + len(bias)]
        for i, (low, high) in enumerate(zip(*(end.tolist() for end in bounds[place]), strict=True)):
            if high <= 0:
                rows.append((relu[i], 0.0))
                continue
            rows.append((matrix[i] - relu[i], -constant[i]))
            chord = 1.0 if low >= 0 else high / (high - low)
            rows.append((relu[i] - chord * matrix[i], chord * (constant[i] - min(low, 0.0))))
        matrix, constant, start = relu, np.zeros(len(bias)), start + len(bias)
    direction = c.numpy()
    return _solve(direction @ matrix, float(direction @ constant), rows, limits)
