"""The 2-D examples: points as the papers draw them, and recorded runs with zero certified error."""

from __future__ import annotations

import json

import pytest
import torch

from experiments.toy_2d import toy_2d
from ironbound.training.losses import robust


@pytest.mark.parametrize("problem", toy_2d.PROBLEMS, ids=lambda problem: problem.name)
def test_points_are_far_apart(problem: toy_2d.Problem) -> None:
    x, labels = toy_2d.points(problem, 3)
    assert x.shape == (problem.points, 2) and ((x >= 0) & (x <= 1)).all()
    apart = (x[:, None] - x).abs().amax(2) + torch.eye(len(x))
    assert apart.min() >= problem.distance >= 2 * problem.eps  # so that boxes do not overlap
    assert set(labels.tolist()) == {0, 1}
    assert torch.equal(x, toy_2d.points(problem, 3)[0]) and not torch.equal(x, toy_2d.points(problem, 4)[0])


def test_training_stops_at_zero_certified_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_2d, "RAMP", 20)
    x, labels = torch.tensor([[0.2, 0.2], [0.8, 0.8]]), torch.tensor([0, 1])
    model = toy_2d.network(0)
    assert toy_2d.fit(model, x, labels, 0.1, robust, 500) < 500
    assert toy_2d.judge(model, x, labels, 0.1)[0] == {"misclassified": 0, "attacked": 0, "not_proved": 0}


@pytest.mark.parametrize("problem", toy_2d.PROBLEMS, ids=lambda problem: problem.name)
def test_recorded_runs_have_zero_certified_error(problem: toy_2d.Problem) -> None:
    record = json.loads((toy_2d.HERE / f"{problem.name}.json").read_text(encoding="utf-8"))
    assert record["problem"] == {
        "name": problem.name, "points": problem.points, "distance": problem.distance, "eps": problem.eps
    }  # fmt: skip
    assert len({run["seed"] for run in record["runs"]}) >= 3
    for run in record["runs"]:
        assert run["robust"]["not_proved"] == 0
        assert run["standard"]["attacked"] > 0
    assert (toy_2d.HERE / f"{problem.name}.png").is_file()
