"""Training by recipes: the solver's vectors are part of a run, stopped anywhere or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.errors import InputError
from ironbound.training import Artefact, Recipe, TrainingRecord, train
from ironbound.training.losses.semidefinite import sdp_hinge, sdp_value, solver_state
from training.training_cases import clusters, network

SOURCE = Path(ib.__file__).parent.parent
RECIPE = Recipe(
    region={"eps": 0.05},
    data={"validation": 0.2},
    loss={"name": "sdp-hinge", "eps": {"kind": "linear", "from": 0, "to": 0.05, "end": 1}},
    evaluation={"methods": ["sdp"], "attack_steps": 2, "examples": 10},
    run={"epochs": 2, "batch_size": 8, "checkpoint_every": 0.25, "collapse_epochs": 0},
    stage=[
        {"name": "hinge"},
        {"name": "value", "loss": {"name": "hinge"}, "regularizer": [{"name": "sdp", "weight": 1e-3, "weigh": True}]},
    ],
)


class Stop(Exception):
    pass


def run(folder: Path | None, stop: int | None = None, model: nn.Module | None = None) -> tuple[Tensor, TrainingRecord]:
    """The weights after a run, which stops after so many steps of this process."""
    count = 0
    model = network() if model is None else model
    torch.manual_seed(0)
    x, labels = clusters(40)

    def on_step(_: object) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise Stop

    record = train(model, x, labels, RECIPE, folder=folder, on_step=on_step)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), record


@pytest.mark.parametrize("stops", [[1], [2], [5], [8], [9], [3, 4, 2]], ids=str)
def test_a_run_that_was_stopped_ends_as_if_it_had_not(tmp_path: Path, stops: list[int]) -> None:
    weights, record = run(None)
    for stop in stops:
        with pytest.raises(Stop):
            run(tmp_path / "run", stop)
    again, other = run(tmp_path / "run")
    assert torch.equal(weights, again) and record == other
    found = record.epochs[-1].evaluation
    assert found is not None and "sdp" in found.certified and "sdp" in record.epochs[-1].parts


def test_a_run_does_not_depend_on_what_the_network_went_through_before() -> None:
    weights, record = run(None)
    model = network()
    torch.manual_seed(3)
    ball = ib.LinfBall(torch.rand(5, 6), 0.1)
    for _ in range(3):
        sdp_value(model, ball, torch.zeros(5, dtype=torch.long), weigh=True)
    again, other = run(None, model=model)
    assert torch.equal(weights, again) and record == other
    assert solver_state(model) is not None


def test_the_steps_are_those_of_the_functions() -> None:
    model, twin = network(), network()
    x, labels = clusters(24)
    recipe = Recipe(
        region={"eps": 0.05}, loss={"name": "sdp-hinge"}, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0},
        run={"epochs": 5, "batch_size": 24, "collapse_epochs": 0},
    )  # fmt: skip
    train(model, x, labels, recipe)
    for _ in range(5):
        gradients = torch.autograd.grad(sdp_hinge(twin, ib.LinfBall(x, 0.05), labels).value, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"loss": {"name": "sdp-hinge"}}, {"loss": {"name": "hinge"}, "regularizer": [{"name": "sdp", "weight": 0.1}]}],
)
def test_a_batch_is_not_cut(changes) -> None:
    recipe = Recipe(run={"workers": 2, "epochs": 1}, **changes)
    with pytest.raises(InputError, match="moves its solver on with each step"):
        train(network(), *clusters(24), recipe)


LONG = """
title = "killed"
model = {name = "two-layer"}
data = {name = "FILE"}
region = {eps = 0.02}
evaluation = {methods = ["sdp"], examples = 4, attack_steps = 1, every = 0}
run = {epochs = 3, batch_size = 16, checkpoint_every = 0.2, device = "cpu", collapse_epochs = 0}
[loss]
name = "sdp-hinge"
rank = 2
"""


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.random((80, 1, 28, 28), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(80) % 10)
    (tmp_path / "recipe.toml").write_text(LONG.replace("FILE", str(tmp_path / "data.npz")))

    def command(folder: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "ironbound",
            "train",
            str(tmp_path / "recipe.toml"),
            "--out",
            str(tmp_path / folder),
        ]

    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    silent = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **silent)
    process = subprocess.Popen(command("killed"), start_new_session=True, **silent)
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint.pth").is_file():
        time.sleep(0.005)
    assert process.poll() is None, "the command ended before its first checkpoint"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command("killed"), check=True, **silent)
    one, other = (torch.load(tmp_path / name / "weights.pth", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    net = Artefact.open(tmp_path / "killed").network()
    assert ib.margins(net, ib.LinfBall(torch.rand(1, 1, 28, 28), 0.02), torch.tensor([3]), "sdp").shape == (1, 10)
