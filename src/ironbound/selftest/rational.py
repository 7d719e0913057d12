"""The certificate checker against rational arithmetic: a two-layer network in fractions, and claims that are false."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.certificate.checker import Certificate, Checker
from ironbound.certificate.checker.claims import NONE, PREDICTION
from ironbound.certificate.network_file import network_arrays
from ironbound.selftest.networks import mlp, points

EPS = 0.125  # a binary fraction, so that every side has the same radius
CLOSE = Fraction(1, 10**9)

Exact = list[list[Fraction]]


def checker() -> Iterator[str | None]:
    """What the checker proves is true in rational arithmetic, and no more than rounding below the dual bound there."""
    for seed in range(6):
        model, x = mlp(30 + seed, (3, 5, 3)), points(30 + seed, 2, 3)
        judge = Checker(network_arrays(model, x), {"x": x.numpy()})
        for index, point in enumerate(x):
            yield from _one(judge, model, index, point)


def _one(judge: Checker, model: nn.Sequential, index: int, point: Tensor) -> Iterator[str | None]:
    query = "linf", "real", (np.nan, np.nan)
    label = int(model(point[None]).argmax())
    claim = Certificate(index, label, PREDICTION, NONE, EPS, 0.0)
    proved = [Fraction(float(value)) for value in judge.margins(claim, *query)]
    dual, seen = _dual(model, point, label), _seen(model, point, label)
    for k in range(len(proved)):
        if k != label:
            yield f"class {k}: a corner of the region refutes what is proved" if proved[k] > seen[k] else None
            yield f"class {k}: the checker is below the dual bound" if proved[k] < dual[k] - CLOSE else None
    least = float(min(value for k, value in enumerate(proved) if k != label))
    lies = (replace(claim, margin=max(0.0, float(min(v for k, v in enumerate(seen) if k != label))) + 1e-3),)
    lies += (replace(claim, label=(label + 1) % len(proved)), replace(claim, eps=100.0))
    for lie in lies:
        yield None if judge.check(lie, *query) is not None else "a false claim is accepted"
    if least > 1e-6:
        yield judge.check(replace(claim, margin=least / 2), *query)


def _fractions(tensor: Tensor) -> list:
    values = tensor.detach().tolist()
    return [[Fraction(value) for value in row] if isinstance(row, list) else Fraction(row) for row in values]


def _layers(model: nn.Sequential) -> list[tuple[Exact, list[Fraction]]]:
    return [(_fractions(layer.weight), _fractions(layer.bias)) for layer in model if isinstance(layer, nn.Linear)]


def _product(weight: Exact, bias: list[Fraction], values: list[Fraction]) -> list[Fraction]:
    return [sum((w * v for w, v in zip(row, values, strict=True)), b) for row, b in zip(weight, bias, strict=True)]


def _dual(model: nn.Sequential, point: Tensor, label: int) -> list[Fraction]:
    """Algorithm 1 of Wong & Kolter (2018) for two layers, in fractions: margins [classes]."""
    (w1, b1), (w2, b2) = _layers(model)
    x, eps = _fractions(point), Fraction(EPS)
    middle = _product(w1, b1, x)
    reach = [eps * sum(abs(w) for w in row) for row in w1]
    found = []
    for k in range(len(w2)):
        total, down = b2[label] - b2[k], [Fraction(0)] * len(x)
        for j, (z, r) in enumerate(zip(middle, reach, strict=True)):
            low, high, c = z - r, z + r, w2[label][j] - w2[k][j]
            slope = Fraction(high > 0) if low >= 0 or high <= 0 else high / (high - low)
            total += c * slope * b1[j] + (min(c, Fraction(0)) * -slope * low if low < 0 < high else 0)
            down = [d + c * slope * w for d, w in zip(down, w1[j], strict=True)]
        inside = sum((d * v for d, v in zip(down, x, strict=True)), Fraction(0))
        found.append(total + inside - eps * sum(abs(d) for d in down))
    return found


def _seen(model: nn.Sequential, point: Tensor, label: int) -> list[Fraction]:
    """The least margins at the corners of the box, in fractions."""
    (w1, b1), (w2, b2) = _layers(model)
    x, eps = _fractions(point), Fraction(EPS)
    least: list[Fraction] | None = None
    for signs in torch.cartesian_prod(*[torch.tensor([-1, 1])] * len(x)).tolist():
        corner = [v + sign * eps for v, sign in zip(x, signs, strict=True)]
        logits = _product(w2, b2, [max(z, Fraction(0)) for z in _product(w1, b1, corner)])
        margins = [logits[label] - logit for logit in logits]
        least = margins if least is None else [min(a, b) for a, b in zip(least, margins, strict=True)]
    assert least is not None
    return least
