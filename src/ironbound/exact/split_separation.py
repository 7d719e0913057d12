"""Cuts for ReLUs and their like: upper bounds of an output by all that the neuron reads, not by their sum alone.

Let y = max(0, w) with w = a v + b, every v_i between bounds, so that a_i v_i lies between p_i and q_i, and w between l
and u. For d in [0, 1] the neuron's output is at most each of

    u d,    w - l (1 - d),    sum over I of (a_i v_i - p_i (1 - d)) + sum over the others of q_i d + b d

for any set I: at d = 1 where w >= 0, at d = 0 where w <= 0. A mixture of them is linear in d; its slope in d, where
positive, is paid once, which leaves a bound without d. The mixture that is lowest at a point is found by bisection on
d. That of u d and w - l (1 - d) alone is the chord.

Source: Anderson et al. (2020), "Strong mixed-integer programming formulations for trained neural networks",
proposition 12; in a dual bound: Zhang et al. (2022), "General cutting planes for bound-propagation-based neural
network verification".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.exact.query import Budget
from ironbound.exact.split_ascent import Climb, Pace
from ironbound.exact.split_bounds import Multipliers
from ironbound.exact.split_columns import is_open
from ironbound.exact.split_cuts import BYTES, Cuts, Shares
from ironbound.exact.split_pool import Batch
from ironbound.exact.split_relaxation import Relaxation

_PACE = Pace(iterations=30, slope=0.1, beta=0.25, last=0.4, cut=0.5)
_UNUSED = 1e-5  # share of the mean coefficient of a neuron's output up to which a cut's multiplier counts as 0
_BISECTIONS = 16
_SLACK = 1e-12  # of the size of a cut's terms, for rounding


@dataclass(frozen=True, eq=False)
class _Neurons:
    """Neurons as max(0, a v + b), up to the line on the left of their kink.

    Attributes:
        coefficients: a, [neurons, input elements + columns].
        constant: b, [neurons].
        least, most: of each term, [neurons, input elements + columns]; infinite where what is read has no bounds.
        low, high: of a v + b, [neurons].
    """

    coefficients: Tensor
    constant: Tensor
    least: Tensor
    most: Tensor
    low: Tensor
    high: Tensor


def _neurons(net: Relaxation, which: Tensor) -> _Neurons:
    step, rise = net.lower[1][which], net.lower[3][which]
    a = step.unsqueeze(1) * torch.cat([net.input[which], _reads(net, which)], 1)
    ends = torch.stack(_box(net)).unsqueeze(1) * a
    ends = torch.where(a == 0, 0.0, ends)
    return _Neurons(
        a,
        step * net.constant[which] + rise,
        ends.amin(0),
        ends.amax(0),
        step * net.low[which] + rise,
        step * net.high[which] + rise,
    )


def _reads(net: Relaxation, which: Tensor) -> Tensor:
    """What neurons read of the neurons below them, [neurons, columns]."""
    found = net.constant.new_zeros((len(which), net.width))
    for columns, above in zip(net.levels, net.above, strict=True):
        higher = torch.nonzero(which >= columns.stop).squeeze(1)
        found[higher, columns] = above[which[higher] - columns.stop]
    return found


def _box(net: Relaxation) -> tuple[Tensor, Tensor]:
    """Bounds of the input elements and of the neurons' outputs, each [input elements + columns]."""
    size = net.input.shape[1]
    x_low, x_high = net.constant.new_full((size,), -torch.inf), net.constant.new_full((size,), torch.inf)
    for _, radius, middle in net.sets:  # every ball lies in the box of its radius
        x_low, x_high = torch.maximum(x_low, (middle - radius)[0]), torch.minimum(x_high, (middle + radius)[0])
    slope, step, height, rise = net.lower
    at = torch.stack([net.low, net.high, net.knot])
    values = slope * at + height + (step * at + rise).clamp(min=0)
    low = torch.where(net.splittable, values.amin(0), -torch.inf)
    high = torch.where(net.splittable, values[:2].amax(0), torch.inf)
    return torch.cat([x_low, low]), torch.cat([x_high, high])


def cuts_of(net: Relaxation, shares: Shares) -> Cuts:
    """The cuts that shares give with the bounds of a network.

    Args:
        net: the relaxed network, in float64.
        shares: what the cuts are made of; any numbers that are not negative with high + low <= 1, and shares of terms
            of at most the rest.

    Returns:
        Valid cuts.
    """
    which, size = shares.column, net.input.shape[1]
    one = _neurons(net, which)
    at_high, at_low = (part.to(net.constant).clamp(0, 1) for part in (shares.high, shares.low))
    rest = (1 - at_high - at_low).clamp(min=0).unsqueeze(1)
    theta = torch.minimum(torch.cat([shares.input, shares.parts], 1).to(rest).clamp(min=0), rest)
    theta = torch.where(one.coefficients == 0, 0.0, theta)
    least = torch.where(theta > 0, theta * one.least, 0.0)
    most = torch.where(rest > theta, (rest - theta) * one.most, 0.0)
    slope = (least + most).sum(1) + rest.squeeze(1) * one.constant + at_high * one.high + at_low * one.low
    rows = (theta + at_low.unsqueeze(1)) * one.coefficients
    constant = at_low * (one.constant - one.low) - least.sum(1) + slope.clamp(min=0)
    constant = constant + _SLACK * (least.abs() + most.abs()).sum(1)
    left, height = net.lower[0][which], net.lower[2][which]
    input_, parts = -rows[:, :size] - left.unsqueeze(1) * net.input[which], -rows[:, size:]
    parts -= left.unsqueeze(1) * _reads(net, which)
    parts[torch.arange(len(which)), which] += 1.0
    constant = -constant - left * net.constant[which] - height
    return Cuts(shares, parts, input_, constant, net.place[which], net.place, net.input_place)


def separated(net: Relaxation, point: Tensor, out: Tensor, price: Tensor, count: int) -> Shares:
    """The cuts that a point of the relaxed network breaks most.

    Args:
        net: the relaxed network.
        point: an input, [input elements].
        out: outputs of the neurons, [columns].
        price: what an output is worth, [columns]: the coefficient with which the bound asks for its upper bound.
        count: most cuts.

    Returns:
        What they are made of, those first that the point breaks most, times the price.
    """
    z = net.constant + net.input @ point
    for columns, above in zip(net.levels, net.above, strict=True):
        if columns.stop < net.width:
            z[columns.stop :] += above @ out[columns]
    slope, step, height, rise = net.lower
    room = price * (out - (slope * z + height + (step * z + rise).clamp(min=0)))
    room = torch.where(is_open(net) & (price > 0), room, 0.0)
    which = torch.topk(room, min(count, net.width)).indices
    which = which[room[which] > 0]
    one = _neurons(net, which)
    finite = torch.isfinite(one.least).all(1) & torch.isfinite(one.most).all(1)
    if not bool(finite.all()):
        which = which[finite]
        one = _neurons(net, which)
    shares = _lowest(one, which, torch.cat([point, out]), step[which] * z[which] + rise[which], net.input.shape[1])
    cuts = cuts_of(net, shares)
    broken = (cuts.input @ point + cuts.parts @ out + cuts.constant) * price[which]
    order = torch.argsort(broken, descending=True)
    chord = shares.high + shares.low > 1 - 1e-6
    return shares.take(order[(broken > 0)[order] & ~chord[order]])


def _lowest(one: _Neurons, which: Tensor, v: Tensor, w: Tensor, size: int) -> Shares:
    """The mixture that bounds each neuron lowest at a point.

    Args:
        one: the neurons.
        which: their columns, int64 [neurons].
        v: what they read, [input elements + columns].
        w: their sums, [neurons].
        size: input elements.

    Returns:
        Its shares.
    """
    term = one.coefficients * v
    width = one.most - one.least
    ratio = torch.where(width > 0, (term - one.least) / width, 2.0)
    over, swing = term - one.least, one.least - one.most
    begin, full = w * 0, one.most.sum(1) + one.constant
    lo, hi = begin.clone(), begin + 1

    def lowest(d: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the three is lowest at d, and its slope, each [neurons]."""
        inside = ratio < d.unsqueeze(1)
        slopes = torch.stack([one.high, one.low, full + (swing * inside).sum(1)])
        starts = torch.stack([begin, w - one.low, (over * inside).sum(1)])
        kind = (starts + slopes * d).argmin(0)
        return kind, slopes.gather(0, kind.unsqueeze(0))[0]

    for _ in range(_BISECTIONS):
        d = (lo + hi) / 2
        up = lowest(d)[1] >= 0
        lo, hi = torch.where(up, d, lo), torch.where(up, hi, d)
    (left, rising), (right, falling) = lowest(lo), lowest(hi)
    rising, falling = rising.clamp(min=0), (-falling).clamp(min=0)
    share = torch.where(rising + falling > 0, falling / (rising + falling), 0.5)
    high = torch.where(left == 0, share, 0.0)
    low = torch.where(right == 1, 1 - share, 0.0)
    theta = (left == 2).unsqueeze(1) * share.unsqueeze(1) * (ratio < lo.unsqueeze(1))
    theta = theta + (right == 2).unsqueeze(1) * (1 - share).unsqueeze(1) * (ratio < hi.unsqueeze(1))
    # a side that is not of the kind expected there (at the ends of [0, 1]) is left out: any shares are valid
    return Shares(which, *(part.float() for part in (high, low, theta[:, :size], theta[:, size:])))


@dataclass(frozen=True)
class Cutting:
    """How cuts are looked for.

    Attributes:
        rounds: most rounds.
        each: most new cuts of a subproblem in a round.
        memory: bytes that the cuts may take.
        gain: share of what a bound lacks that a round must make good to be followed by another.
    """

    rounds: int = 8
    each: int = 300
    memory: int = 1 << 28
    gain: float = 0.02


@dataclass(frozen=True, eq=False)
class _Mean:
    """Averages over the second half of an ascent, which come near a solution of the relaxed network.

    Attributes:
        point: inputs, [n, input elements].
        out: outputs of the neurons, [n, columns].
        price: what the bound would gain by lower outputs, [n, columns]; below 0 by higher ones.
    """

    point: Tensor
    out: Tensor
    price: Tensor


def with_cuts(net: Relaxation, start: Batch, effort: Cutting, budget: Budget) -> tuple[Relaxation, Batch]:
    """Adds cuts that the relaxation of some open subproblems breaks, round by round; new ones of no use are dropped.

    Args:
        net: the relaxed network in float64.
        start: the subproblems, in float32.
        effort: how many.
        budget: when to end.

    Returns:
        The network with its cuts and the new ones after them; and the subproblems, from where their ascents ended, with
        the bounds that they had.
    """
    at, clause, old = start.at, start.clause, len(net.cuts)
    floor = torch.full_like(start.lower, -torch.inf)
    most = effort.memory // (BYTES * (net.input.shape[1] + net.width))
    each = min(effort.each, most // 2)  # while they are made they take twice the place
    for round_ in range(effort.rounds + 1):
        climb, mean = _climbed(net.to(torch.float32), at, clause)
        at, value = climb.kept, climb.value.double()
        used = _used(climb)
        used[:old] = True
        guard = net.rows.guard[clause]
        useful = ~torch.isfinite(floor) | (value - floor > effort.gain * (guard - floor))
        left = torch.nonzero((value <= guard) & useful).squeeze(1)
        if round_ == effort.rounds or len(left) == 0 or budget.left() <= 0:
            break
        found = [separated(net, mean.point[k], mean.out[k], mean.price[k], each) for k in left.tolist()]
        fresh = Shares.join(found).take(slice(max(0, most - int(used.sum()))))
        if len(fresh) == 0:
            break
        floor = value
        net = replace(net, cuts=net.cuts.take(used).joined(cuts_of(net, fresh)))
        at = replace(at, cuts=torch.cat([at.cuts[:, used], at.cuts.new_zeros((len(clause), len(fresh)))], 1))
    net, at = replace(net, cuts=net.cuts.take(used)), replace(at, cuts=at.cuts[:, used])
    return net, Batch(start.lower, clause, at)  # what the ascents found is float32, no bound


def _climbed(net: Relaxation, at: Multipliers, clause: Tensor) -> tuple[Climb, _Mean]:
    """An ascent of every subproblem, and the averages of its second half."""
    climb = Climb(net, at, clause)
    total: list[Tensor] = []
    for count in range(1, _PACE.iterations + 1):
        cuts = climb.at.cuts
        found, slopes = climb.step(count, _PACE)
        if 2 * count > _PACE.iterations:
            whole = found.met.index_add(1, net.cuts.shares.column, cuts, alpha=-1)
            now = [slopes.point, slopes.out, torch.where(at.signs == 0, -whole, 0.0)]
            total = [a + b for a, b in zip(total, now, strict=True)] if total else now
    climb.look()
    number = _PACE.iterations - _PACE.iterations // 2
    return climb, _Mean(*(part.double() / number for part in total))


def _used(climb: Climb) -> Tensor:
    """Which cuts some subproblem's bound uses, bool [cuts]."""
    assert climb.scale is not None
    return (climb.kept.cuts > _UNUSED * climb.scale.mean()).any(0)
