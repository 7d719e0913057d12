"""Subproblems with nothing left to split, solved by a linear program over the input.

The program's answer is a hint: its multipliers are put into the dual bound, its point is run through the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironbound.exact.split_bounds import Multipliers, fixed, walk
from ironbound.exact.split_relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Leaf:
    """A subproblem in which the network is linear.

    Attributes:
        value: a bound by the dual, of one element.
        at: what gives it.
        point: an input that comes nearest to a counterexample, [1, input elements].
    """

    value: Tensor
    at: Multipliers
    point: Tensor


def solved(net: Relaxation, at: Multipliers, clause: int) -> Leaf | None:
    """The least value of the clause's largest row, or, where the splits contradict each other, a proof of that.

    Args:
        net: the relaxed network of a region that is a box or the intersection of boxes and l1 balls.
        at: one subproblem, with every open neuron split.
        clause: its number.

    Returns:
        The bound of its multipliers, or None where the program does not apply or fails.
    """
    if bool((at.signs == 0).any()) or any(dual == 2 for dual, _, _ in net.sets):
        return None
    rows = torch.nonzero(net.rows.clause == clause).squeeze(1)
    matrix, constant = _linear(net, at.signs, rows)
    found = _program(net, matrix, constant, len(rows))
    weight = torch.zeros_like(at.weight)
    weight[0, rows] = 1 / len(rows)
    scales = (1.0,)
    if found is None:  # the splits contradict each other: any multiple of what shows it may be added
        found = _program(net, matrix[len(rows) :], constant[len(rows) :], len(matrix) - len(rows))
        scales = (1.0, 1e2, 1e4, 1e6)
    elif bool(found[1][: len(rows)].sum() > 0):
        share = found[1][: len(rows)].clamp(min=0)
        weight[0, rows] = share / share.sum()
    if found is None:
        return None
    point, dual = found
    beta = dual[-net.width :].clamp(min=0)
    best: Leaf | None = None
    for scale in scales:
        better = Multipliers(at.signs, at.t, (scale * beta).unsqueeze(0), weight, torch.zeros_like(at.cuts))
        value = walk(net, fixed(net, at.signs), better).value
        if bool(torch.isfinite(value).all()) and (best is None or bool(value > best.value)):
            best = Leaf(value, better, point.unsqueeze(0))
    return best


def _linear(net: Relaxation, signs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and broken splits as functions of the input: coefficients [rows + columns, input elements], constants."""
    lines = fixed(net, signs)
    slope, height = lines.lower[0][0], lines.lower[2][0]
    z, z_constant = net.input.clone(), net.constant.clone()
    out, out_constant = torch.empty_like(z), torch.empty_like(z_constant)
    for columns, above in zip(net.levels, net.above, strict=True):
        out[columns] = slope[columns].unsqueeze(1) * z[columns]
        out_constant[columns] = slope[columns] * z_constant[columns] + height[columns]
        if len(above):
            z[columns.stop :] += above @ out[columns]
            z_constant[columns.stop :] += above @ out_constant[columns]
    parts = net.rows.parts[rows]
    margin, start = parts @ out + net.rows.input[rows], parts @ out_constant + net.rows.constant[rows]
    sign = signs[0]
    return (
        torch.cat([margin, -sign.unsqueeze(1) * z]),
        torch.cat([start, -sign * (z_constant - net.knot)]),
    )


def _program(net: Relaxation, matrix: Tensor, constant: Tensor, rows: int) -> tuple[Tensor, Tensor] | None:
    """Min s with matrix @ x + constant at most s in the first rows and at most 0 in the others, x in the region.

    Returns:
        The input and the multipliers, or None where there is no such input.
    """
    from scipy.optimize import linprog  # slow to import, and seldom needed

    count, size = matrix.shape
    if not (bool(torch.isfinite(matrix).all()) and bool(torch.isfinite(constant).all())):
        return None
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    extra: list[tuple[np.ndarray, np.ndarray]] = []
    for dual, radius, middle in net.sets:
        r, m = (part.double().expand(1, size)[0].cpu().numpy() for part in (radius, middle))
        low, high = np.maximum(low, m - r), np.minimum(high, m + r)
        if dual != 1:
            extra.append((r, m))
    width = size + len(extra) * size + 1
    left = np.zeros((count, width))
    left[:, :size], left[:rows, -1] = matrix.double().cpu().numpy(), -1.0
    above, right = [left], [-constant.double().cpu().numpy()]
    for number, (r, m) in enumerate(extra):  # |x - m| <= u, sum of u / r <= 1
        first = size * (1 + number)
        for sign in (1.0, -1.0):
            block = np.zeros((size, width))
            block[:, :size], block[:, first : first + size] = sign * np.eye(size), -np.eye(size)
            above.append(block)
            right.append(sign * m)
        total = np.zeros((1, width))
        total[0, first : first + size] = np.where(r > 0, 1 / np.where(r > 0, r, 1.0), 0.0)
        above.append(total)
        right.append(np.ones(1))
    bounds = [*zip(low, high, strict=True), *[(0, None)] * (width - size - 1), (None, None)]
    goal = np.zeros(width)
    goal[-1] = 1.0
    result = linprog(goal, A_ub=np.concatenate(above), b_ub=np.concatenate(right), bounds=bounds, method="highs")
    if result.status != 0:
        return None
    dual = -result.ineqlin.marginals[:count]
    like = net.constant
    return torch.as_tensor(result.x[:size]).to(like), torch.as_tensor(dual).to(like)
