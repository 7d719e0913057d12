"""The methods through the command line: a trained two-layer network, its certificates and its radii."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ironbound as ib
from ironbound.cli.app import app
from ironbound.training import Artefact

EPS = 0.05
FAR = 0.24  # where some are proved and some are not
RECIPE = f"""
model = {{factory = "FOLDER/made.py:network"}}
data = {{name = "FOLDER/data.npz"}}
region = {{eps = {EPS}}}
loss = {{name = "sdp-hinge", eps = {{kind = "linear", from = 0, to = {EPS}, end = 2}}}}
evaluation = {{methods = ["sdp"], examples = 10, every = 0}}
run = {{epochs = 12, batch_size = 20, device = "cpu"}}
optimizer = {{lr = 1e-2}}
"""
MADE = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
"""


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, made by the command, with its data beside it."""
    place = tmp_path_factory.mktemp("sdp")
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    centers = np.tile(np.eye(3), 2) * 0.6 + 0.2
    inputs = (centers[labels] + 0.12 * generator.standard_normal((120, 6))).astype(np.float32)
    np.savez(place / "data.npz", x=inputs, y=labels)
    (place / "made.py").write_text(MADE)
    (place / "recipe.toml").write_text(RECIPE.replace("FOLDER", str(place)))
    call("train", str(place / "recipe.toml"), "--out", str(place / "run"), "--quiet")
    return place


@pytest.mark.parametrize("method", ["sdp", "sdp-chord"])
def test_certify(folder: Path, method: str) -> None:
    more = ["--methods", method, "--eps", str(FAR), "--data", str(folder / "data.npz"), "--json", "--quiet"]
    found = json.loads(call("certify", str(folder / "run"), *more))
    model = Artefact.open(folder / "run").network()
    stored = np.load(folder / "data.npz")
    x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    margins = ib.margins(model, ib.LinfBall(x, FAR), y, method).scatter(1, y[:, None], torch.inf)
    proved = int((margins > 0).all(1).sum())
    assert 10 < proved < 110  # else this network tests nothing
    assert found["summary"]["status"]["certified"] == proved


def test_radius(folder: Path) -> None:
    more = ["--method", "sdp", "--data", str(folder / "data.npz"), "--limit", "5", "--json", "--quiet"]
    found = json.loads(call("radius", str(folder / "run"), *more))
    model = Artefact.open(folder / "run").network()
    stored = np.load(folder / "data.npz")
    x, y = torch.from_numpy(stored["x"][:5]), torch.from_numpy(stored["y"][:5])
    logits = model(x).detach().double()
    own = torch.nn.functional.one_hot(y, 3).bool()
    speed = ib.sdp(model, x).matrix()[y]
    exact = ((logits.gather(1, y[:, None]) - logits) / speed).masked_fill(own, torch.inf).amin(1).clamp(min=0)
    assert exact.max() > 0.1
    assert found["examples"]["certified"] == pytest.approx(exact.tolist(), rel=0.03, abs=1e-6)
