"""The smallest perturbation against a grid of the plane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironbound.errors import InputError, LabelError
from ironbound.exact.smallest import minimal_perturbation


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    for tensor in model.parameters():
        tensor.data.mul_(2)
    return model


@pytest.mark.parametrize("clip", [None, (-1.0, 3.5)])
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_no_point_of_a_grid_is_nearer_and_some_are_nearly_as_near(norm: str, clip) -> None:
    finite = 0
    for seed in (1, 2):
        model = _model(seed)
        x = torch.rand(3, 2, dtype=torch.float64)
        found = minimal_perturbation(model, x, norm=norm, clip=clip)
        low, high = clip or (-4.0, 5.0)
        axis = torch.linspace(low, high, 901, dtype=torch.float64)
        step = float(axis[1] - axis[0])
        grid = torch.cartesian_prod(axis, axis)
        answers = model(grid).argmax(1)
        for i in range(len(x)):
            distance = torch.linalg.vector_norm(grid - x[i], float("inf") if norm == "linf" else 1, dim=1)
            wrong = distance[answers != found.labels[i]]
            if not torch.isfinite(found.upper[i]):
                assert len(wrong) == 0 or clip is None
                continue
            finite += 1
            assert found.certified[i] <= found.lower[i] <= found.upper[i]
            assert float(wrong.min()) >= float(found.lower[i]) - 1e-9
            assert float(wrong.min()) <= float(found.upper[i]) + 2 * step * (2 if norm == "l1" else 1) + 0.02
            assert bool(found.closed()[i])
            assert bool(model(found.points[i : i + 1]).argmax(1) != found.labels[i])
            moved = torch.linalg.vector_norm(found.points[i] - x[i], float("inf") if norm == "linf" else 1)
            assert float(moved) == pytest.approx(float(found.upper[i]), rel=1e-9)
            if clip:
                assert bool((found.points[i] >= clip[0]).all() and (found.points[i] <= clip[1]).all())
    assert finite >= 3


def test_stopped_searches_keep_the_bracket_and_misclassified_examples_need_nothing() -> None:
    model = _model(1)
    x = torch.rand(2, 2, dtype=torch.float64)
    full, short = minimal_perturbation(model, x), minimal_perturbation(model, x, seconds=0.0)
    assert bool((short.lower <= full.upper).all() and (short.certified <= short.lower).all())
    assert bool((short.upper >= full.lower).all()) and not bool(short.closed().all())
    wrong = minimal_perturbation(model, x, labels=(model(x).argmax(1) + 1) % 3)
    assert wrong.upper.tolist() == [0.0, 0.0] and wrong.lower.tolist() == [0.0, 0.0]
    assert len(wrong) == 2


def test_what_does_not_fit_is_refused() -> None:
    model, x = _model(1), torch.rand(1, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="flat sides"):
        minimal_perturbation(model, x, norm="l2")
    with pytest.raises(InputError, match="norm"):
        minimal_perturbation(model, x, norm="l7")
    with pytest.raises(LabelError):
        minimal_perturbation(model, x, labels=torch.tensor([7]))
