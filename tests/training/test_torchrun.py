"""Two processes under torchrun give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ironbound
from ironbound.data import load
from ironbound.training import Recipe, train
from ironbound.training.artefact import network

SOURCE = Path(ironbound.__file__).parent.parent
TEXT = """
[model]
name = "digits"
[data]
name = "digits"
limit = 200
validation = 0.1
[region]
eps = 0.05
clip = [0, 1]
[loss]
name = "interval"
eps = {kind = "linear", from = 0, to = 0.05, start = 1, end = 2}
kappa = 0.5
[sampling]
easy = "skip"
threshold = 3
[run]
epochs = 3
batch_size = 30
threads = 1
checkpoint_every = 0.5
[evaluation]
examples = 15
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    path, folder = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(TEXT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "ironbound", "train", str(path), "--out", str(folder)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 3/3") == 1 and done.stdout.count("trained") == 1  # one process speaks
    recipe = Recipe.read(path)
    data = load("digits", "train", limit=200)
    state = torch.load(folder / "weights.pth", weights_only=True)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["machine"]["processes"] == 2 and facts["status"] == "finished"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for workers in (1, 2):
        model = network(recipe.model, recipe.run.seed)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        record = train(model, data.inputs, data.labels, recipe.override(f"run.workers={workers}"))
        for name, value in model.state_dict().items():
            # the rounding of sums differs, and Adam turns it into steps where gradients are tiny
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-3)
            assert (value - start[name]).abs().max() > 3e-3
            if workers == 2:  # the same parts, on threads instead of processes
                torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        for row, epoch in zip(rows, record.epochs, strict=True):
            assert row["loss"] == pytest.approx(epoch.loss, rel=1e-3)
            assert row["seen"] == pytest.approx(epoch.seen, abs=2)
            assert epoch.evaluation is not None
            assert row["clean"] == pytest.approx(epoch.evaluation.clean, abs=0.06)
            assert row["certified"] == pytest.approx(epoch.evaluation.certified_best, abs=0.07)
