"""The dual bound of many subproblems at once, and its gradient in every multiplier.

A neuron that is split is linear on its side of the kink; its multiplier beta >= 0 holds the relaxed network to that
side and joins the coefficient of the neuron's input before the walk goes on down.

Source: Wang et al. (2021), "Beta-CROWN", theorem 3.1, in the dual network of Wong & Kolter (2017), arXiv v1, (22).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import lowest
from ironbound.exact.split_relaxation import Relaxation


@dataclass(frozen=True, eq=False)
class Multipliers:
    """What a bound is computed from, whatever the values: any t in [0, 1] and beta, weight, cuts >= 0 give a bound.

    Attributes:
        signs: 1 where a neuron's input is at least its kink, -1 where at most, 0 where it is not split, [n, columns].
        t: slopes of the neurons that are not split, [n, columns].
        beta: multipliers of the splits, [n, columns]; what stands at other neurons is not read.
        weight: shares of the clause's rows, [n, rows], with the sum 1 over the clause and 0 elsewhere.
        cuts: multipliers of the cuts, [n, cuts].
    """

    signs: Tensor
    t: Tensor
    beta: Tensor
    weight: Tensor
    cuts: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of them, in order."""
        return self.signs, self.t, self.beta, self.weight, self.cuts

    def to(self, dtype: torch.dtype) -> Multipliers:
        """The same numbers in another floating point type."""
        return Multipliers(*(part.to(dtype) for part in self.parts()))

    def take(self, index: Tensor) -> Multipliers:
        """Some of the subproblems."""
        return Multipliers(*(part[index] for part in self.parts()))


@dataclass(frozen=True, eq=False)
class Fixed:
    """What does not change over an ascent: the lines of each subproblem.

    Attributes:
        signs: of the splits, [n, columns].
        lower, upper: lines (slope, slope step, intercept, intercept step), each [n, columns].
    """

    signs: Tensor
    lower: tuple[Tensor, Tensor, Tensor, Tensor]
    upper: tuple[Tensor, Tensor, Tensor, Tensor]


def fixed(net: Relaxation, signs: Tensor) -> Fixed:
    """The lines that subproblems leave: a neuron that is split has one line, on its side of the kink."""
    split = signs != 0
    side = (signs > 0).to(signs.dtype)
    low, up = net.lower, net.upper
    slope, height = low[0] + side * low[1], low[2] + side * low[3]
    lower = (
        torch.where(split, slope, low[0]),
        torch.where(split, 0.0, low[1]),
        torch.where(split, height, low[2]),
        torch.where(split, 0.0, low[3]),
    )
    upper = (
        torch.where(split, slope, up[0]),
        torch.where(split, 0.0, up[1]),
        torch.where(split, height, up[2]),
        torch.where(split, 0.0, up[3]),
    )
    return Fixed(signs, lower, upper)


@dataclass(frozen=True, eq=False)
class Walk:
    """A walk down to the input.

    Attributes:
        value: lower bounds, [n].
        met: coefficients of the neurons' outputs, [n, columns].
        slope, height: the line that each neuron took, [n, columns].
        reads: coefficients of the input, [n, input elements].
    """

    value: Tensor
    met: Tensor
    slope: Tensor
    height: Tensor
    reads: Tensor


def walk(net: Relaxation, lines: Fixed, at: Multipliers) -> Walk:
    """Lower bounds of subproblems.

    Args:
        net: the relaxed network.
        lines: of the subproblems.
        at: multipliers.

    Returns:
        The bounds, and what the gradient needs.
    """
    low, up = lines.lower, lines.upper
    lower_slope, upper_slope = torch.addcmul(low[0], at.t, low[1]), torch.addcmul(up[0], at.t, up[1])
    met = at.weight @ net.rows.parts
    if len(net.cuts):
        met = net.cuts.parts_map.adjoint(met, at.cuts)
    nu = -lines.signs * at.beta
    slope = torch.empty_like(met)
    for columns, above in zip(net.levels[::-1], net.maps[::-1], strict=True):
        c = met[:, columns]
        if columns.stop < net.width:
            c = met[:, columns] = above.adjoint(c, nu[:, columns.stop :])
        slope[:, columns] = torch.where(c > 0, lower_slope[:, columns], upper_slope[:, columns])
        nu[:, columns].addcmul_(slope[:, columns], c)
    height = torch.where(met > 0, torch.addcmul(low[2], at.t, low[3]), torch.addcmul(up[2], at.t, up[3]))
    value = at.weight @ net.rows.constant + (met * height).sum(1) + nu @ net.constant
    value = value + (lines.signs * at.beta) @ net.knot
    c = net.input_map.adjoint(at.weight @ net.rows.input, nu)
    if len(net.cuts):
        value = value + at.cuts @ net.cuts.constant
        c = net.cuts.input_map.adjoint(c, at.cuts)
    return Walk(value + _least(net.sets, c), met, slope, height, c)


def _least(sets: tuple[tuple[float, Tensor, Tensor], ...], c: Tensor) -> Tensor:
    """The value of `lowest` alone, for sets of one example: [n] of functionals [n, input elements]."""
    found = []
    for dual, radius, middle in sets:
        length = torch.linalg.vector_norm(c * radius, dual, dim=-1) if c.shape[-1] else c.sum(-1)
        found.append((c * middle).sum(-1) - length)
    return torch.stack(found).amax(0)


def points(net: Relaxation, at: Multipliers) -> Tensor:
    """The inputs where the bounds of subproblems are taken, [n, input elements]."""
    return lowest(net.sets, walk(net, fixed(net, at.signs), at).reads)[1]


def confirmed(net: Relaxation, at: Multipliers) -> Tensor:
    """Bounds computed again in float64, so that sums of large terms leave no rounding of their own.

    Args:
        net: the relaxed network in float64.
        at: multipliers, in any floating point type.

    Returns:
        Bounds, float64 [n]; -inf where one is not finite.
    """
    weight = at.weight.double()
    exact = Multipliers(
        at.signs.double(), at.t.double(), at.beta.double(), weight / weight.sum(1, keepdim=True), at.cuts.double()
    )
    value = walk(net, fixed(net, exact.signs), exact).value
    return torch.where(torch.isfinite(value), value, -torch.inf)


@dataclass(frozen=True, eq=False)
class Slopes:
    """The gradient of the bounds: in t, beta and the shares of the rows; and the relaxed network at the point.

    Attributes:
        t, beta: [n, columns].
        weight: [n, rows]: the rows' values in the relaxed network.
        cuts: [n, cuts]: likewise, above 0 where the point breaks a cut.
        reached: inputs of the neurons in the relaxed network, [n, columns].
        out: their outputs, [n, columns].
        point: the input, [n, input elements].
    """

    t: Tensor
    beta: Tensor
    weight: Tensor
    cuts: Tensor
    reached: Tensor
    out: Tensor
    point: Tensor


def gradient(net: Relaxation, lines: Fixed, found: Walk) -> Slopes:
    """The derivatives, by the relaxed network run forward from the input where the bound is taken.

    Args:
        net: the relaxed network.
        lines: of the subproblems.
        found: the walk.

    Returns:
        The gradient.
    """
    point = lowest(net.sets, found.reads)[1]
    z = net.input_map.forward(net.constant, point)
    out = torch.empty_like(z)
    for columns, above in zip(net.levels, net.maps, strict=True):
        out[:, columns] = torch.addcmul(found.height[:, columns], found.slope[:, columns], z[:, columns])
        if columns.stop < net.width:
            z[:, columns.stop :] = above.forward(z[:, columns.stop :], out[:, columns])
    low, up = lines.lower, lines.upper
    positive = found.met > 0
    t = found.met * torch.where(positive, torch.addcmul(low[3], low[1], z), torch.addcmul(up[3], up[1], z))
    rows = net.rows.constant + out @ net.rows.parts.T + point @ net.rows.input.T
    cuts = net.cuts.values(point, out)
    return Slopes(t, lines.signs * (net.knot - z), rows, cuts, z, out, point)
