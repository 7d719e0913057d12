"""`radius`: the largest ε that is certified for each example, and the smallest at which an attack succeeds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.attacks.logits import chunk_size, logits_at, margins_at, step_up
from ironbound.bounding import Arithmetic
from ironbound.bounding.api import margins, prepared
from ironbound.cascade import COARSE, FINE
from ironbound.cascade_types import AttackOptions
from ironbound.claims import PROVED, check_arithmetic, proving, rounding_of, unproved
from ironbound.classifier import described, labels_of, open_classifier
from ironbound.errors import InputError, SoundnessError
from ironbound.graph import Graph
from ironbound.network import Network
from ironbound.radius_attack import nearest_adversarial
from ironbound.radius_result import Radius, joined, layout
from ironbound.radius_search import LARGEST, Search
from ironbound.regions import Region, ball
from ironbound.sharding import in_shards
from ironbound.store import Shard, Store

_DUALS = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}

Progress = Callable[[int, int, Mapping[str, int]], None]
"""Called with the number of examples done, of all examples, and of the done ones by what is known of them."""


@dataclass(frozen=True)
class _Query:
    """What is asked of every example."""

    method: str
    tolerance: float
    attack: AttackOptions | None
    memory: int | None
    arithmetic: Arithmetic | None


def radius(
    model: nn.Module | Graph,
    x: Tensor,
    norm: str = "linf",
    method: str = "dual",
    labels: Tensor | None = None,
    *,
    clip: Sequence[float] | None = None,
    attack: AttackOptions | None = AttackOptions(steps=20),  # noqa: B008
    tolerance: float = 1e-4,
    store: str | os.PathLike[str] | None = None,
    shard: int = 256,
    progress: Progress | None = None,
    memory: int | None = None,
    arithmetic: Arithmetic | None = "real",
) -> Radius:
    """The largest certified ε of each example, by a safeguarded Newton method on its worst margin.

    A few examples of each shard are solved first; from them the others learn where to begin, which is why another
    shard length may change a radius, within the tolerance. The margins at exactly the ε that is returned are computed
    in float64 and are proofs, as those of `ironbound.certify`: their rounding is subtracted (docs/arithmetic.md). With
    `arithmetic=None` they are above a guard instead, and the result says so.

    Source: Wong & Kolter (2018), ICML, equation (17) and section 4.2.

    Args:
        model: a classifier in evaluation mode, or its graph.
        x: [n, *shape], float32 or float64, on any device; shards move to the network's.
        norm: "linf", "l2" or "l1".
        method: a name as for `ironbound.margins`.
        labels: int64 [n]; None takes each prediction.
        clip: (low, high) that every input element is limited to, or None.
        attack: PGD's options, or None for no attack.
        tolerance: relative; how far the certified ε may lie below the one at which the method fails, as its last
            evaluations show it: between two evaluations, or by their slope.
        store: file for the results, written shard by shard; the same call on the same file goes on where an earlier
            one was stopped.
        shard: number of examples solved at a time, and written at a time.
        progress: called after every shard.
        memory: bytes that a method may take, see `ironbound.margins`.
        arithmetic: what is proved at the radius, "real" or "float32", or None for "lp", "milp" and "split", whose
            rounding has no bound; see `ironbound.certify`.

    Returns:
        The radii.

    Raises:
        InputError: an argument does not fit.
        LabelError: labels do not fit.
        CaptureError: the network cannot be captured, or has no bound of its rounding.
        StoreError: the store cannot be used; the finished shards stay in it.
        SoundnessError: a certificate and a run of the network contradict each other.
    """
    region = ball(norm, x, 0.0, clip)
    query = _Query(method, tolerance, attack, memory, arithmetic)
    _check_options(region, query, shard)
    network = open_classifier(model, region)
    device = network.example.device
    prepared(network.graph, region[:1].to(device), method)
    if arithmetic is not None and proving(network, method, arithmetic) is None:
        raise InputError(
            f"radii by {method!r} of this network have no bound of their rounding: they are no proofs. "
            "Choose another method, or ask for none with arithmetic=None (--arithmetic none)."
        )
    given = labels_of(network, region, labels)
    settings: dict[str, Any] = {"method": method, "tolerance": tolerance, "arithmetic": arithmetic}
    settings |= described(network, region, given, attack, shard)
    kept = {"certified": 0, "misclassified": 0}
    report = progress or (lambda done, total, counts: None)

    def work(key: Shard) -> Radius:
        chosen = slice(*key)
        own = None if given is None else given[chosen].to(device)
        return _shard(network, region[chosen].to(device), own, query, key[0])

    def seen(parts: list[Radius]) -> None:
        for part in parts:
            kept["misclassified"] += (wrong := int((part.labels != part.predictions).sum()))
            kept["certified"] += len(part) - wrong
        report(sum(kept.values()), len(x), kept)

    with nullcontext() if store is None else Store.open(store, settings, layout(region.center.cpu())) as results:
        parts = in_shards(work, len(x), shard, device, results, seen)
    return joined(parts, settings)


def _check_options(region: Region, query: _Query, shard: int) -> None:
    if not 1e-7 <= query.tolerance < 1:
        raise InputError(f"tolerance must lie between 1e-7 and 1, got {query.tolerance}.")
    if len(region) == 0:
        raise InputError("there is no example to certify.")
    if region.dtype not in (torch.float32, torch.float64):
        raise InputError(f"inputs must be float32 or float64, not {region.dtype}; convert them with .float().")
    if shard < 1:
        raise InputError(f"shard must be at least 1, got {shard}.")
    check_arithmetic(query.arithmetic, (query.method,), region)
    attack = query.attack
    if attack is not None and attack.name != "pgd":
        raise InputError(f"attack {attack.name!r} has no smallest radius; choose pgd or None.")
    if attack is not None and (attack.steps < 1 or attack.restarts < 1):
        raise InputError(f"steps and restarts must be at least 1, got {attack.steps} and {attack.restarts}.")


@torch.no_grad()
def _shard(network: Network, region: Region, given: Tensor | None, query: _Query, first: int) -> Radius:
    """The radii of a shard whose first example has the number `first`; a pure function of its arguments."""
    seconds = {"prediction": 0.0, "bounds": 0.0, "attack": 0.0}
    x = region.center
    with _timed(seconds, "prediction"):
        own = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        logits = logits_at(network.model, x, own, chunk_size(region))
    predictions = logits.argmax(1)
    labels = predictions if given is None else given
    correct = predictions == labels
    margin = _Margin(network, region, labels, 1 + logits.abs().amax(1).double(), query)
    clean = margins_at(logits, labels).double()
    certified = torch.zeros_like(clean)
    evaluations = torch.zeros_like(labels)
    with _timed(seconds, "bounds"):
        rough = _first_order(network, region, labels, clean)
        index = torch.nonzero(correct & (clean > margin.guard)).squeeze(1)
        search = Search(margin.at(index), (clean - margin.guard)[index], rough[index], query.tolerance)
        search.run()
        certified[index], evaluations[index] = search.low, search.evaluations
    attacked = torch.where(correct, torch.inf, 0.0).double()
    points = x.clone()
    index = torch.nonzero(correct).squeeze(1)
    if query.attack is not None and len(index):
        with _timed(seconds, "attack"):
            options = replace(query.attack, seed=query.attack.seed + first)
            start = torch.minimum(rough, torch.where(certified > 0, 1.6 * certified, rough))[index]
            attacked[index], points[index] = nearest_adversarial(
                network.model, region[index], labels[index], certified[index], start, options
            )
    _check(certified, attacked, first)
    found = (part.cpu() for part in (certified, attacked, points, evaluations, labels, predictions))
    arithmetic = np.where(certified.cpu().numpy() > 0, margin.claim(), "")
    return Radius(*found, arithmetic=arithmetic, seconds=seconds)


class _Margin:
    """The least margin of examples at radii of their own: in the final arithmetic a proof, else above its guard.

    Args:
        network: the classifier.
        region: the examples.
        labels: int64 [n].
        scale: 1 + max |logit|, float64 [n].
        query: the method, and what it shall prove.
    """

    def __init__(self, network: Network, region: Region, labels: Tensor, scale: Tensor, query: _Query) -> None:
        self.network, self.region, self.labels, self.query = network, region, labels, query
        self.exact = proving(network, query.method, query.arithmetic)
        double = network.double if region.dtype == torch.float32 else None
        self.finest = network if double is None else double
        # as for `certify`; the float32 search is checked in float64
        self.guard = (COARSE if self.finest.example.dtype == torch.float32 else FINE) * scale

    def claim(self) -> str:
        """What the final values above 0 hold for: the weakest of them, if they are of several kinds."""
        if self.exact is not None:
            return PROVED[self.query.arithmetic or "real"]
        return unproved(self.query.method, self.finest.example.dtype)

    def at(self, chosen: Tensor) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """The function that is searched, of some of the examples, int64 [chosen]."""

        def evaluate(index: Tensor, eps: Tensor, final: bool) -> Tensor:
            index = chosen[index]
            if final and self.exact is not None:
                return self._least(self.exact, index, eps, rounding_of(self.query.method, self.query.arithmetic))
            return self._least(self.finest if final else self.network, index, eps, None) - self.guard[index]

        return evaluate

    def _least(self, network: Network, index: Tensor, eps: Tensor, arithmetic: Arithmetic | None) -> Tensor:
        dtype, query, labels = network.example.dtype, self.query, self.labels[index]
        region = ball(self.region.norm, self.region.center[index].to(dtype), eps.to(dtype), self.region.clip)
        found = margins(
            network.graph, region, labels, query.method, memory=query.memory, arithmetic=arithmetic
        ).double()
        worst = found.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
        return torch.where(torch.isfinite(found).all(1), worst, -torch.inf)  # NaN and overflow prove nothing


def _first_order(network: Network, region: Region, labels: Tensor, clean: Tensor) -> Tensor:
    """Where the margin would vanish if it were linear, [n]."""
    x = region.center
    steep = []
    for part, own in zip(x.split(chunk_size(region)), labels.split(chunk_size(region)), strict=True):

        def rise(logits: Tensor, own: Tensor = own) -> Tensor:
            return -margins_at(logits, own)

        _, gradient = step_up(network.graph, part, own, rise)
        steep.append(torch.linalg.vector_norm(gradient.flatten(1).double(), _DUALS[region.norm], dim=1))
    guess = clean.clamp(min=0) / torch.cat(steep)
    spread = 1 + x.abs().max().double()
    return torch.where(torch.isfinite(guess) & (guess > 0), guess, spread).clamp(1e-9, LARGEST)


def _check(certified: Tensor, attacked: Tensor, first: int) -> None:
    bad = torch.nonzero(certified > attacked * (1 + 1e-6))
    if len(bad):
        example = int(bad[0])
        raise SoundnessError(
            f"example {first + example} is certified up to {certified[example]:g}, but the network changes its answer "
            f"at a distance of {attacked[example]:g}; nothing of this run is certified: please report it."
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Generator[None, None, None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start
