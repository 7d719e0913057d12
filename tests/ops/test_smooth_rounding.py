"""Lines of smooth activations against 60 digits: never inside, at ends, at stationary points and between."""

from __future__ import annotations

import pytest
import torch
from mpmath import diff, mp, mpf
from torch import Tensor

from bounding.precise import smooth
from ironbound.bounding.rounding import _outside
from ironbound.ops.operator import Lines
from ironbound.ops.smooth import GELU, LIBRARY, Gated, Sigmoid, SiLU, Smooth, Tanh

OPERATORS = {"sigmoid": Sigmoid(), "tanh": Tanh(), "gelu": GELU(), "gelu-tanh": GELU("tanh"), "silu": SiLU()}
GATED = {name: operator for name, operator in OPERATORS.items() if isinstance(operator, Gated)}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
Ends = tuple[Tensor, Tensor]


def pairs(count: int, dtype: torch.dtype, seed: int = 8) -> Ends:
    """Ends of intervals of every width around every place: across inflections, denormal, of one point, huge."""
    generator = torch.Generator().manual_seed(seed)

    def power(low: float, high: float, size: int) -> Tensor:
        return 10 ** (low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64))

    place = torch.randn(count, generator=generator, dtype=torch.float64) * power(-6, 2.7, count)
    lower, upper = [place], [place + power(-14, 3, count)]
    bends = torch.tensor([operator.bend for operator in GATED.values()], dtype=torch.float64)
    across = torch.cat([bends, -bends, torch.zeros(3, dtype=torch.float64)])
    across = across[torch.arange(count // 3) % len(across)]
    lower.append(across - power(-14, 1, len(across)))
    upper.append(across + power(-14, 1, len(across)))
    special = [0.0, 5e-324, 1e-310, -1e-39, 1e-20, 0.5, -2.0, 30.0, -30.0, 88.8, -88.8, -104.0, 709.5, -709.9, -746.0]
    ends = torch.tensor([*special, 700.0, -700.0], dtype=torch.float64)
    first, second = torch.meshgrid(ends, ends, indexing="ij")
    low, high = (torch.cat([*part, end.flatten()]).to(dtype) for part, end in ((lower, first), (upper, second)))
    return torch.minimum(low, high), torch.maximum(low, high)


def relaxations(operator: Smooth, ends: Ends) -> list[tuple[Lines, Tensor]]:
    """Lines of both kinds with the room that they get, and the enclosure of the value as lines."""
    flat = torch.zeros_like(ends[0])
    low, high = operator.enclosure(*ends, flat)
    found = [(Lines(flat, low, flat, high), flat)]
    for lines in (operator.parallel_lines(*ends), operator.adaptive_lines(*ends)):
        found.append((lines, _outside(operator, ends, lines) * (1 + torch.finfo(flat.dtype).eps)))
    return found


def strays(operator: Smooth, ends: Ends) -> int:
    """How often the function is outside its lines, at the ends, between, and where lines touch it or nearly so."""
    lower, upper = ends
    found = relaxations(operator, ends)
    places = [lower, upper, lower + (upper - lower) / 2]
    for slope in (found[0][0].lower_slope, found[1][0].lower_slope, found[2][0].lower_slope, found[2][0].upper_slope):
        places += [point.clamp(lower, upper) for point in operator.stationary(slope)]
    outside = 0
    with mp.workdps(60):
        for row in range(len(lower)):
            numbers = [
                [mpf(part[row].item()) for part in (lines.lower_slope, low, lines.upper_slope, lines.upper_intercept)]
                + [mpf(room[row].item())]
                for lines, room in found
                if (low := lines.lower_intercept) is not None
            ]
            for z in {place[row].item() for place in places}:
                value = smooth(operator, mpf(z))
                outside += sum(not (a * z + s - r <= value <= b * z + t + r) for a, s, b, t, r in numbers)
    return outside


@every_operator
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_nothing_is_outside_the_lines(operator: Smooth, dtype: torch.dtype) -> None:
    assert strays(operator, pairs(2400, dtype)) == 0


@every_operator
def test_lines_lose_next_to_nothing(operator: Smooth) -> None:
    ends = pairs(4000, torch.float64)
    wide = torch.maximum(ends[0].abs(), ends[1].abs())
    little = 2e-14 * (1 + wide) * (operator.growth(ends[1]) if isinstance(operator, SiLU) else 1)
    little = little + (wide > 29) * (5e-12 if isinstance(operator, Gated) else 0)  # farther out no point is sought
    for _, room in relaxations(operator, ends)[1:]:
        assert (room <= little).all()
    low, high = operator.enclosure(*ends, torch.zeros_like(wide))
    plain = operator.interval(*ends)
    assert (low <= plain[0]).all() and (high >= plain[1]).all()
    assert ((plain[0] - low).clamp(min=0) + (high - plain[1]).clamp(min=0) <= little).all()


@every_operator
def test_points_that_are_not_quite_stationary_cost_room(operator: Smooth, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line trusts them: moved by 1e-4 they only widen; without what pays for that, lines are inside."""
    ends = pairs(300, torch.float64)
    honest = type(operator).stationary
    pieces = operator.pieces

    def moved(self: Smooth, slope: Tensor) -> list[Tensor]:
        points = zip(honest(self, slope), pieces, strict=True)
        return [(point + 1e-4).clamp(left, right) for point, (left, right, _) in points]

    def planted() -> int:
        """Lines through the wrong points; the function is asked at the right ones."""
        monkeypatch.setattr(type(operator), "stationary", moved)
        found = relaxations(operator, ends)
        monkeypatch.setattr(type(operator), "stationary", honest)
        with monkeypatch.context() as patch:
            patch.setattr(f"{__name__}.relaxations", lambda *arguments: found)
            return strays(operator, ends)

    assert planted() == 0
    monkeypatch.setattr(Smooth, "_fall", lambda self, at, slope, sign, low, high: torch.zeros_like(at))
    assert planted() > 0


def test_the_error_of_the_library_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of float32 in place of those of float64: more than is paid for."""

    class Coarse(Sigmoid):
        def forward(self, *inputs: Tensor) -> Tensor:
            return torch.sigmoid(inputs[0].float()).double()

    low, high = pairs(300, torch.float64)
    ends = low.clamp(-60, 60), high.clamp(-60, 60)  # beyond, float32 flushes
    assert strays(Coarse(), ends) > 0
    monkeypatch.setattr("ironbound.ops.smooth.LIBRARY", LIBRARY * 2.0**40)
    assert strays(Coarse(), ends) == 0


@every_operator
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_library_is_as_good_as_is_assumed(operator: Smooth, dtype: torch.dtype) -> None:
    """With half of the room to spare, here; and so are the derivatives."""
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([1e-30, 1e-8, 1e-3, 1.0, 3.0, 30.0, 300.0]).repeat_interleave(250)
    x = (torch.randn(len(scales), generator=generator, dtype=torch.float64) * scales).to(dtype)
    info = torch.finfo(dtype)
    unit, floor = info.eps / 2, 4 * info.tiny**0.5
    size, growth = operator.size(x).double(), operator.growth(x) * torch.ones_like(x).double()
    values, slopes = operator.forward(x).double(), operator.derivative(x).double()
    with mp.workdps(60):
        for at, z in enumerate(x.double().tolist()):
            off = abs(smooth(operator, mpf(z)) - mpf(values[at].item()))
            assert off <= LIBRARY / 2 * unit * size[at].item() + floor
            rise = diff(lambda point: smooth(operator, point), mpf(z), h=mpf(10) ** -20)
            assert abs(rise - mpf(slopes[at].item())) <= 2 * LIBRARY * unit * growth[at].item() + floor + 1e-19


@pytest.mark.parametrize("operator", GATED.values(), ids=GATED)
def test_bends_are_where_curvature_changes_its_sign(operator: Gated) -> None:
    with mp.workdps(60):

        def curvature(z: float) -> mpf:
            return diff(lambda point: smooth(operator, point), mpf(z), 2, h=mpf(10) ** -15)

        assert curvature(operator.bend - 1e-9) > 0 > curvature(operator.bend + 1e-9)
        assert curvature(1e-9 - operator.bend) > 0 > curvature(-1e-9 - operator.bend)
        assert all(curvature(operator.bend * share) > 0 for share in (-0.9, -0.3, 0.0, 0.5, 0.99))
        assert all(curvature(operator.bend * share) < 0 for share in (-6.0, -2.0, -1.01, 1.01, 3.0, 5.0))


@every_operator
def test_nan_stays_nan(operator: Smooth) -> None:
    ends = torch.tensor([torch.nan, 0.0, 0.0, torch.nan]), torch.tensor([1.0, torch.nan, 1.0, torch.nan])
    for slope in (torch.zeros(4), torch.tensor([0.1, 0.1, torch.nan, 0.1])):
        low, high = operator.enclosure(ends[0].double(), ends[1].double(), slope.double())
        broken = torch.isnan(ends[0] + ends[1] + slope)
        assert torch.isnan(low[broken]).all() and torch.isnan(high[broken]).all()
        assert torch.isfinite(low[~broken]).all()
    lines = operator.adaptive_lines(ends[0].double(), ends[1].double())
    assert torch.isnan(_outside(operator, (ends[0].double(), ends[1].double()), lines))[[0, 1, 3]].all()
