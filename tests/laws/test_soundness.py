"""No point of a region violates a bound: random points, corners and ascents, for every method and family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import Case
from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.graph import Graph
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region
from laws.families import FAMILIES

NETWORKS = 10
SAMPLES = 5000  # of each kind, example and network
BATCH = 2
REGIONS = 6  # kinds of region, each on every network
TOLERANCE = 1e-4
# every iterate of an optimised method is a bound: few of them, on few of the networks, serve the law
LAW_METHODS = tuple("alpha:2" if method == "alpha" else method for method in METHODS)
QUICK_METHODS = tuple(method for method in METHODS if not method.startswith("alpha"))


def _reseed(model: nn.Module, gain: float) -> None:
    """New weights in place: the captured graph holds the module's own tensors."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.dim() > 1:
                tensor.normal_(0, gain / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5)


def _region(kind: int, x: Tensor) -> Region:
    if kind == 0:
        return LinfBall(x, 0.15)
    if kind == 1:
        return LinfBall(x, torch.rand_like(x) * 0.4 * (torch.rand_like(x) > 0.2), (-1.0, 1.0))
    if kind == 2:
        return L2Ball(x, torch.tensor([0.2, 0.6]))
    if kind == 3:
        return L2Ball(x, 0.5, (-1.0, 1.0))
    if kind == 4:
        return L1Ball(x, 0.8, (-1.0, 1.0))
    return Box(x - 0.3 * torch.rand_like(x), x + 0.3 * torch.rand_like(x))


def _repeated(region: Region, times: int) -> Region:
    return region[torch.arange(len(region)).repeat_interleave(times)]


def _points(graph: Graph, region: Region, labels: Tensor, generator: torch.Generator) -> Tensor:
    """[batch, points, *shape]: uniform samples, far samples (corners of boxes), and ascents on every margin."""
    many = _repeated(region, SAMPLES)
    lower, upper = many.box()
    corner = torch.where(torch.rand(lower.shape, generator=generator) < 0.5, lower, upper)
    found = [many.sample(generator), many.project(corner)]
    classes = graph.output_shape[0]
    few = _repeated(region, 4 * classes)
    own = labels.repeat_interleave(4 * classes)
    other = torch.arange(classes).repeat(4 * len(labels))
    rows = torch.arange(len(own))
    points = few.sample(generator)
    for step in (0.5, 0.5, 0.25, 0.25, 0.1, 0.1):
        points = points.detach().requires_grad_()
        logits = graph(points)
        (gradient,) = torch.autograd.grad((logits[rows, other] - logits[rows, own]).sum(), points)
        with torch.no_grad():
            points = few.project(points + few.ascent(gradient, step))
        found.append(points)
    return torch.cat([part.detach().unflatten(0, (len(region), -1)) for part in found], 1)


def _values(graph: Graph, points: Tensor) -> list[Tensor]:
    """Every node's values at the points, [batch, points, *shape]."""
    with torch.no_grad():
        values = [points.flatten(0, 1)]
        for node in graph.nodes[1:]:
            values.append(node.operator.forward(*(values[source] for source in node.inputs)))
    return [value.unflatten(0, points.shape[:2]) for value in values]


def _enclosed(low: Tensor, high: Tensor, ends: tuple[Tensor, Tensor], what: str) -> None:
    """Bounds that hold the least and the largest values."""
    least, most = ends
    assert bool((low <= high).all()), f"{what}: crossed"
    slack = TOLERANCE * (1 + torch.maximum(-least, most).amax())
    assert bool((least >= low - slack).all()), f"{what}: below by {(low - least).max().item():g}"
    assert bool((most <= high + slack).all()), f"{what}: above by {(most - high).max().item():g}"


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@pytest.mark.no_cover
def test_no_point_violates_a_bound(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    model = case.model()
    graph = capture(model, case.inputs(BATCH))
    for number in range(NETWORKS):
        methods = QUICK_METHODS if number % 5 else LAW_METHODS
        _reseed(model, 2.0)
        x = 2 * torch.rand(BATCH, *case.shape) - 1
        for kind in range(REGIONS):
            _check(graph, _region(kind, x), torch.randint(case.classes, (BATCH,)), generator, methods)


def _check(graph: Graph, region: Region, labels: Tensor, generator: torch.Generator, methods: tuple[str, ...]) -> None:
    """Compares the methods' bounds over a region with the values at many of its points."""
    place = {node.name: node.inputs[0] for node in graph.nodes[1:]}
    points = _points(graph, region, labels, generator)
    assert bool(_repeated(region, points.shape[1]).contains(points.flatten(0, 1)).all())
    values = _values(graph, points)
    logits = values[-1]
    ends = [(value.amin(1), value.amax(1)) for value in values]
    differences = logits.gather(2, labels.reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)) - logits
    worst = differences.amin(1)
    slack = TOLERANCE * (1 + logits.abs().amax())
    for method in methods:
        with torch.no_grad():
            found = bounds(graph, region, method)
            margin = margins(graph, region, labels, method)
        _enclosed(found.lower, found.upper, ends[-1], f"{method}: output")
        for name, (low, high) in found.layers.items():
            _enclosed(low, high, ends[place[name]], f"{method}: input of {name}")
        assert bool((margin <= worst + slack).all()), f"{method}: margin above by {(margin - worst).max().item():g}"
        if len(region.sets()) > 1 or method not in ("interval", "dual", "dual+interval"):
            continue  # two outputs apart may take another set of an intersection each, or other lines further down
        # one functional is never bounded worse than the two outputs apart
        apart = found.lower.gather(1, labels.unsqueeze(1)) - found.upper
        assert bool((margin >= apart - slack).all()), f"{method}: margin below the difference of bounds"


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@pytest.mark.no_cover
def test_a_region_of_one_point_gives_the_networks_values(case: Case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        value = model(x)
        for region in (LinfBall(x, 0.0), L2Ball(x, 0.0), L1Ball(x, 0.0, (-9.0, 9.0)), Box(x, x)):
            for method in LAW_METHODS:
                found = bounds(model, region, method)
                torch.testing.assert_close(found.lower, value, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(found.upper, value, rtol=1e-9, atol=1e-9)
                expected = value.gather(1, labels.unsqueeze(1)) - value
                torch.testing.assert_close(margins(model, region, labels, method), expected, rtol=1e-9, atol=1e-9)


def test_the_net_catches_a_wrong_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # the check above is worth something: a lower line that is a little too high is found out
    from ironbound.ops.operator import Lines
    from ironbound.ops.piecewise import ReLU

    honest = ReLU.parallel_lines

    def wrong(self: ReLU, lower: Tensor, upper: Tensor) -> Lines:
        lines = honest(self, lower, upper)
        return Lines(lines.lower_slope, lines.lower_intercept, lines.upper_slope, 0.5 * lines.upper_intercept)

    monkeypatch.setattr(ReLU, "parallel_lines", wrong)
    with pytest.raises(AssertionError, match="above|below"):
        test_no_point_violates_a_bound(FAMILIES[0])
