"""How fast functionals of a network's output can change per unit of ε: solved once for each network's weights."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import torch
from torch import Tensor

from ironbound.semidefinite.network import TwoLayer
from ironbound.semidefinite.pairwise import whole_range
from ironbound.semidefinite.problems import linear_reach, problems
from ironbound.semidefinite.slopes import slope_range
from ironbound.semidefinite.solving import Effort, solved

EFFORT = Effort(gap=1e-4, steps=75)
_NETWORKS = 8  # kept, the latest used
_kept: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
_lock = threading.Lock()


def speeds(network: TwoLayer, rows: Tensor) -> Tensor:
    """Bounds L of functionals g with |g logits(x') - g logits(x)| <= L ε whenever ||x' - x||_inf <= ε.

    A network is known by the content of its weights, so changed weights are solved anew, and a float64 copy of a
    float32 network is not.

    Args:
        network: a linear classifier or two layers.
        rows: functionals, float64 [n, outputs].

    Returns:
        float64 [n], upper bounds in exact arithmetic.
    """
    radius = torch.ones_like(network.hidden.weight[0])
    if network.activation is None:
        return linear_reach(network, rows, radius)
    # g and -g move equally far: the first entry that is not 0 decides which of the two is solved (+ 0: no -0)
    leading = rows.gather(1, (rows != 0).int().argmax(1, keepdim=True))
    unique, place = torch.unique(torch.where(leading < 0, -rows, rows) + 0.0, dim=0, return_inverse=True)
    keys = [row.numpy().tobytes() for row in unique]
    with _lock:
        known = _of(network)
        missing = [index for index, key in enumerate(keys) if key not in known]
        if missing:
            found = solved(problems(network, unique[missing], whole_range(network), radius), EFFORT).dual
            known.update((keys[index], bound) for index, bound in zip(missing, found.tolist(), strict=True))
        bounds = torch.tensor([known[key] for key in keys], dtype=torch.float64)
    return bounds[place]


def _of(network: TwoLayer) -> dict[bytes, float]:
    """What is known of a network."""
    assert network.output is not None and network.activation is not None
    digest = hashlib.sha256(repr((slope_range(network.activation), *_roundings(network))).encode())
    for weight in (network.hidden.weight, network.output.weight):
        digest.update(repr(tuple(weight.shape)).encode())
        digest.update(weight.contiguous().numpy().tobytes())
    key = digest.digest()
    known = _kept.setdefault(key, {})
    _kept.move_to_end(key)
    while len(_kept) > _NETWORKS:
        _kept.popitem(last=False)
    return known


def _roundings(network: TwoLayer) -> tuple[int, int]:
    assert network.output is not None
    return network.hidden.roundings, network.output.roundings
