"""Random projections: an estimate of the dual bound for the price of a few forward passes. Never a bound.

With parallel slopes the radius of a value z is a norm of everything that is injected below it: for a box

    radius(z) = || (eps A_0, gap_1 A_1, gap_2 A_2, ...) ||_1,

where A_i carries node i's band to z. A Cauchy vector is 1-stable: its product with a row is Cauchy again, with the
row's l1 norm as its scale, and the median of the absolute value of that is the scale. So k copies of independent noise,
eps times Cauchy at the input and gap times Cauchy at every band, are pushed forward through the linear network, and
the median over the copies estimates every radius of a layer at once. For an l2 ball the input's share is an l2 norm:
normal noise, and the root mean square over its copies.

Source: Wong, Schmidt, Metzen & Kolter, "Scaling provable adversarial defenses" (2018), section 3.2; the geometric mean:
Li, Hastie & Church, "Nonlinear estimators and tail bounds for dimension reduction in l1" (2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ironbound.bounding.api import check_labels, prepared
from ironbound.bounding.backward import Band, Range, lower_bound
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.lines import LinesState
from ironbound.bounding.memory import DEFAULT_BUDGET, in_chunks
from ironbound.bounding.methods import example_bytes
from ironbound.bounding.perturbation import parallel_lines
from ironbound.bounding.precision import full_precision
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine
from ironbound.regions import Region, Set

Kind = Literal["cauchy", "normal"]
Estimator = Literal["median", "geometric"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated margins. Not a bound: true margins may lie below, and nothing can be certified with them.

    Attributes:
        values: estimates of the dual bound of logit[label] - logit[k], [batch, classes]; differentiable.
        projections: number of random vectors k.
        kind: distribution of the input's noise: "cauchy" (boxes, l-infinity balls) or "normal" (l2 balls).
        estimator: what turned k Cauchy samples into their scale: "median" or "geometric" (mean).
    """

    values: Tensor
    projections: int
    kind: Kind
    estimator: Estimator


def estimate_margins(
    model: nn.Module | Graph,
    region: Region,
    labels: Tensor,
    k: int,
    kind: Kind | None = None,
    generator: torch.Generator | None = None,
    estimator: Estimator = "median",
) -> Estimate:
    """Estimates the margins of the method "dual" with k random vectors per example.

    The bounds of the inner layers are estimated, but for layers that read the input itself, whose bounds are cheap and
    exact; the last step, one functional per class, is the exact backward walk through the relaxation that follows. Both
    the cost and the memory grow with k and not with the number of open neurons.

    Args:
        model: a classifier in evaluation mode with outputs [batch, classes], or its graph.
        region: a box, an l-infinity ball, or an l2 ball without clipping.
        labels: int64 [batch].
        k: number of random vectors; the error of a radius falls like 1 / sqrt(k).
        kind: "cauchy" or "normal"; None: the one that the region needs.
        generator: of the random vectors, on the region's device; None: torch's own.
        estimator: "median" (the paper's), or "geometric": the geometric mean, corrected so that it has no bias.

    Returns:
        The estimates; 0 at k = label.

    Raises:
        InputError, LabelError: arguments do not fit, or no projection estimates this region's norm.
        UnsupportedOperatorError: a relaxation without parallel lines (maximum).
        CaptureError: the network has an operator without a rule, is in training mode, or mixes the examples of a batch.
    """
    graph = prepared(model, region, "dual")
    labels = check_labels(labels, len(region), graph).to(region.center.device)
    eye = torch.eye(graph.output_shape[0], dtype=region.dtype, device=labels.device)
    classes = len(eye)

    def work(piece: slice) -> Tensor:
        state = projected_state(graph, region[piece], k, kind, generator, estimator)
        functionals = eye[labels[piece]].unsqueeze(1) - eye
        example = torch.arange(len(functionals), device=labels.device).repeat_interleave(classes)
        rows = DenseRows(functionals.flatten(0, 1), example, (0, classes))
        return lower_bound(graph, state.lines, state.region, len(graph.nodes) - 1, rows, {}).reshape(-1, classes)

    # the same pieces with and without gradients, so that one seed gives one result
    each = 2 * example_bytes(graph, region.center.element_size()) * max(1, k)
    with full_precision(region.center.device):
        values = in_chunks(work, len(region), max(1, DEFAULT_BUDGET // each))
    own = torch.nn.functional.one_hot(labels, classes).bool()
    return Estimate(values.masked_fill(own, 0.0), k, _kind(region, kind), estimator)


def projected_state(
    graph: Graph,
    region: Region,
    k: int,
    kind: Kind | None = None,
    generator: torch.Generator | None = None,
    estimator: Estimator = "median",
) -> LinesState:
    """The network relaxed by parallel lines on estimated bounds: walks through it give estimates.

    Args:
        graph: the network.
        region: as for `estimate_margins`.
        k: number of random vectors per example.
        kind: as for `estimate_margins`.
        generator: of the random vectors.
        estimator: "median" or "geometric".

    Returns:
        Lines and estimated bounds [batch, *shape] of the value read, of every relaxed node.

    Raises:
        InputError: k, kind or estimator do not fit.
        UnsupportedOperatorError: a relaxation without parallel lines (maximum).
    """
    kind = _kind(region, kind)
    if k < 1 or (estimator == "geometric" and k < 2):
        raise InputError(f"k is the number of random vectors, at least 1 (geometric: 2), got {k}; the papers take 50")
    if estimator not in ("median", "geometric"):
        raise InputError(f"estimator {estimator!r} is not known; choose 'median' or 'geometric'")
    (part,) = region.sets()
    center = region.center if part.offset is None else region.center + part.offset
    draw = _Noise(k, kind, estimator, generator)
    values = [_Value(center, draw.at_input(center, part), part.radius.expand(center.shape), True)]
    layers: dict[int, Range] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        if isinstance(node.operator, Affine):
            values.append(_through_affine(node.operator, [values[source] for source in node.inputs], part.dual))
            continue
        if not isinstance(node.operator, Activation):
            raise UnsupportedOperatorError(f"{node.name}: {type(node.operator).__name__} has no parallel relaxation")
        value = values[node.inputs[0]]
        radius = draw.radius(value.noise) if value.radius is None else value.radius
        low, high = value.center - radius, value.center + radius
        layers[index] = (low, high)
        band = Band.of(node.operator.parallel_lines(low, high))
        noise = draw.inject(value.noise * band.slope.unsqueeze(1), band.gap)
        values.append(_Value(band.slope * value.center + band.middle, noise))
    return parallel_lines(graph, region, layers)


@dataclass(frozen=True, eq=False)
class _Value:
    """A node's centre [batch, *shape] and noise [batch or 1, copies, *shape].

    `radius` [batch, *shape] is the exact one where it is known; `ball` says that the value is still a ball, with the
    radius as its semi-axes.
    """

    center: Tensor
    noise: Tensor
    radius: Tensor | None = None
    ball: bool = False


def _through_affine(operator: Affine, inputs: list[_Value], order: float) -> _Value:
    center = operator.forward(*(value.center for value in inputs))
    zeros = operator.constant(tuple(tuple(value.center.shape[1:]) for value in inputs), center)
    batch = max(len(value.noise) for value in inputs)
    noise = [value.noise.expand(batch, *value.noise.shape[1:]).flatten(0, 1) for value in inputs]
    noise = (operator.forward(*noise) - zeros).unflatten(0, (batch, -1))
    radius = inputs[0].radius
    if len(inputs) > 1 or not inputs[0].ball or radius is None:
        return _Value(center, noise)
    if operator.diagonal():
        return _Value(center, noise, operator.magnitude(radius), True)
    return _Value(center, noise, operator.response(radius, order))


@dataclass(frozen=True, eq=False)
class _Noise:
    """Draws the random vectors, and turns what became of them into radii.

    With kind "normal" there are 2 k copies: the first k carry the input's normal noise, the last k the bands' Cauchy
    noise; with kind "cauchy" the same k carry both.
    """

    k: int
    kind: Kind
    estimator: Estimator
    generator: torch.Generator | None

    def at_input(self, center: Tensor, part: Set) -> Tensor:
        """The region's noise, [batch or 1, copies, *shape]: examples with one radius share it and the first layer."""
        noise = center.new_empty((len(part.radius), self.k, *center.shape[1:]))
        if self.kind == "cauchy":
            return _cauchy(noise, self.generator) * part.radius.unsqueeze(1)
        noise = noise.normal_(generator=self.generator) * part.radius.unsqueeze(1)
        return torch.cat([noise, torch.zeros_like(noise)], 1)

    def inject(self, noise: Tensor, gap: Tensor) -> Tensor:
        """Adds a band's noise where the band is open."""
        opened = torch.nonzero(gap.detach().flatten(1))
        example, neuron = opened[:, 0], opened[:, 1]
        fresh = _cauchy(gap.new_empty((len(opened), self.k)), self.generator)
        fresh = fresh * gap.flatten(1)[example, neuron].unsqueeze(1)
        copies = noise.shape[1]
        # the last k copies of each example
        copy = torch.arange(copies - self.k, copies, device=gap.device)
        row = (example * copies).unsqueeze(1) + copy
        flat = noise.flatten(2).flatten(0, 1)
        return flat.index_put((row, neuron.unsqueeze(1)), fresh, accumulate=True).reshape(noise.shape)

    def radius(self, noise: Tensor) -> Tensor:
        """The estimated radius, [batch, *shape]."""
        if self.kind == "cauchy":
            return self._scale(noise)
        ball = torch.linalg.vector_norm(noise[:, : self.k], dim=1) / math.sqrt(self.k)
        return ball + self._scale(noise[:, self.k :])

    def _scale(self, samples: Tensor) -> Tensor:
        """The scale of k Cauchy samples, axis 1."""
        size = samples.abs()
        if self.estimator == "median":
            half = self.k // 2 + 1
            least = size.topk(half, dim=1, largest=False, sorted=True).values
            return least[:, -1] if self.k % 2 else (least[:, -1] + least[:, -2]) / 2
        # E |x|^(1/k) = scale^(1/k) / cos(pi / 2k)
        smallest = torch.finfo(size.dtype).tiny
        mean = torch.exp(size.clamp(min=smallest).log().mean(1)) * math.cos(math.pi / (2 * self.k)) ** self.k
        return torch.where((size == 0).all(1), 0.0, mean)


def _cauchy(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Cauchy noise in place; the rare sample of infinite size in float32 becomes the largest finite one."""
    limit = torch.finfo(like.dtype).max ** 0.25  # leaves room for the products that follow
    return like.cauchy_(generator=generator).clamp_(-limit, limit)


def _kind(region: Region, kind: Kind | None) -> Kind:
    """The noise that estimates the region's dual norm."""
    orders = [part.dual for part in region.sets()]
    if orders not in ([1], [2]):
        raise InputError(
            "random projections estimate l1 and l2 norms: give a box, an l-infinity ball or an l2 ball without clip; "
            "for other regions compute the exact dual bound"
        )
    needed: Kind = "cauchy" if orders == [1] else "normal"
    if kind is not None and kind != needed:
        raise InputError(f"a region with norm {region.norm!r} needs kind={needed!r}, got {kind!r}")
    return needed
