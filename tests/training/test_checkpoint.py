"""Checkpoints and run folders: stopped anywhere and gone on, the result is the same bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ironbound
from ironbound.data import load
from ironbound.errors import InputError, TrainingError, WeightsError
from ironbound.models import build
from ironbound.training import Artefact, Recipe, TrainingRecord, checkpoint, train
from ironbound.training.artefact import RunFolder, network
from ironbound.training.health import Health

SOURCE = Path(ironbound.__file__).parent.parent


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)).eval()


def points(count: int = 70) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


MIXED = Recipe(
    data={"validation": 0.15},
    region={"eps": 0.05, "clip": [0, 1]},
    loss={"name": "pgd", "steps": 2},
    sampling={"easy": "skip", "threshold": 1.2},
    optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0},
    run={"epochs": 3, "batch_size": 16, "checkpoint_every": 0.25, "collapse_epochs": 0},
    evaluation={"methods": [], "attack_steps": 2},
    stage=[{"name": "first"}, {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}}],
)


class Stop(Exception):
    pass


def run(folder: Path, stop: int | None = None, recipe: Recipe = MIXED) -> tuple[nn.Module, TrainingRecord]:
    """Trains, but stops after so many steps of this process."""
    count = 0

    def on_step(_: object) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise Stop

    model = mlp()
    state = torch.get_rng_state()
    try:
        return model, train(model, *points(), recipe, folder=folder, on_step=on_step)
    finally:
        assert torch.equal(torch.get_rng_state(), state)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, TrainingRecord, Path]:
    """A run that was never stopped; dropout, batch norm, attacks and skipping all draw random numbers."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return *run(folder), folder


@pytest.mark.parametrize("stops", [[1], [2], [3], [4], [7], [11], [12], [13], [3, 3, 3, 3], [9, 2, 5]], ids=str)
def test_a_run_that_was_stopped_ends_as_if_it_had_not(whole, tmp_path: Path, stops: list[int]) -> None:
    model, record, _ = whole
    for stop in stops:
        with pytest.raises(Stop):
            run(tmp_path / "run", stop)
    again, other = run(tmp_path / "run")
    assert same(model, again) and record == other
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 6


def test_without_a_folder_the_result_is_the_same(whole) -> None:
    model = mlp()
    assert train(model, *points(), MIXED) == whole[1] and same(model, whole[0])


def test_a_finished_run_holds_everything_and_is_not_overwritten(whole) -> None:
    model, record, folder = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.csv",
        "metrics.jsonl",
        "recipe.toml",
        "run.json",
        "weights.pth",
    ]
    state = torch.load(folder / "weights.pth", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    artefact = Artefact.open(folder)
    assert artefact.recipe == MIXED
    facts = artefact.facts
    assert facts["status"] == "finished" and facts["epochs"] == 5 and facts["seed"] == 0
    assert facts["versions"]["torch"] == torch.__version__ and len(facts["data"]["sha256"]) == 64
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [epoch.loss for epoch in record.epochs]
    assert [row["stage"] for row in rows] == ["first"] * 3 + ["2"] * 2 and "clean" in rows[0]
    with pytest.raises(InputError, match="finished run"):
        run(folder)


def test_another_recipe_other_data_or_other_files_in_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, 5)
    with pytest.raises(InputError, match=r"another recipe \(run.seed is 1, there 0\)"):
        run(tmp_path, recipe=MIXED.override("run.seed=1"))
    x, labels = points()
    with pytest.raises(InputError, match="other data"):
        train(mlp(), 0.9 * x, labels, MIXED, folder=tmp_path)
    run(tmp_path, recipe=MIXED.override("title=the same but for its title"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(InputError, match="other files"):
        run(tmp_path / "mine")
    with pytest.raises(TrainingError, match="cannot be made"):
        run(tmp_path / "mine" / "thesis.tex" / "run")


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, MIXED, {}).locked(), pytest.raises(TrainingError, match="another process"):
        run(tmp_path)
    run(tmp_path)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_text(path, "old")

    def fails(file) -> None:
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(TrainingError, match="disk full"):
        checkpoint.write_whole(path, fails)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_damaged_or_evil_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        run(tmp_path / "run", 5)
    path = tmp_path / "run" / "checkpoint.pth"
    content = path.read_bytes()
    for bad in (b"", content[: len(content) // 2], pickle.dumps(Evil())):
        path.write_bytes(bad)
        with pytest.raises(TrainingError, match="cannot be read"):
            run(tmp_path / "run")
    torch.save({"format": "other"}, path)
    with pytest.raises(TrainingError, match="this version"):
        run(tmp_path / "run")
    assert not (tmp_path / "owned").exists()


def test_generators_are_restored() -> None:
    with checkpoint.isolated_rng(3):
        state = checkpoint.rng_state()
        one = (torch.rand(2).tolist(), random.random())
        checkpoint.set_rng_state(state)
        assert one == (torch.rand(2).tolist(), random.random())


def test_a_failure_says_where_good_weights_are(tmp_path: Path) -> None:
    x, labels = points()
    recipe = Recipe(optimizer={"lr": 1.0, "schedule": {"kind": "stepped", "values": [1e-3, 1e38], "at": [2]}})
    with pytest.raises(TrainingError, match=r"last good epoch \(2\) are in .*weights.pth"):
        train(mlp(), x, labels, recipe, folder=tmp_path)
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    with pytest.raises(TrainingError, match="no folder was given"):
        train(mlp(), x, labels, recipe)


def test_weights_of_a_collapsing_network_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: from the third epoch on the network looks collapsed, after the fourth it counts as such."""

    def check(self: Health, *_: object) -> str | None:
        self._steps += 1
        self._constant = max(0, self._steps - 2)
        return "planted" if self._steps == 4 else None

    monkeypatch.setattr(Health, "check", check)
    recipe = Recipe(run={"epochs": 9})
    with pytest.raises(TrainingError, match=r"collapsed by epoch 4: planted.* last good epoch \(2\)"):
        train(mlp(), *points(), recipe, folder=tmp_path)
    monkeypatch.undo()
    model = mlp()
    train(model, *points(), recipe.override("run.epochs=2"))
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_tensorboard_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(mlp(), *points(), Recipe(run={"epochs": 1, "tensorboard": True}), folder=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_an_artefact_builds_its_network_again(tmp_path: Path) -> None:
    data = load("digits", "train", limit=100)
    recipe = Recipe(
        model={"name": "digits", "mean": [0.3], "std": [0.5], "initialisation": "ibp"}, run={"epochs": 1, "seed": 4}
    )
    model = network(recipe.model, 4)
    train(model, data.inputs, data.labels, recipe, folder=tmp_path / "run")
    again = Artefact.open(tmp_path / "run").network()
    assert torch.equal(model(data.inputs), again(data.inputs))
    inner = build("digits").eval()
    inner.load_state_dict({name[2:]: value for name, value in model.state_dict().items() if name.startswith("1.")})
    torch.save(inner.state_dict(), tmp_path / "bare.pth")
    for source in (tmp_path / "run", tmp_path / "run" / "weights.pth", tmp_path / "bare.pth"):
        start = network(recipe.override(f"model.weights={json.dumps(str(source))}").model)
        assert torch.equal(model(data.inputs), start(data.inputs)), source
    with pytest.raises(WeightsError, match="not fit"):
        network(Recipe(model={"name": "mlp-2x100", "mean": [0.3], "std": [0.5], "weights": str(source)}).model)
    torch.testing.assert_close(again(data.inputs), inner((data.inputs - 0.3) / 0.5))
    assert same(network(recipe.model, 4), network(recipe.model, 4))
    assert not same(network(recipe.model, 4), network(recipe.model, 5))
    with pytest.raises(InputError, match="no run folder"):
        Artefact.open(tmp_path)
    with pytest.raises(InputError, match="names no network"):
        network(Recipe().model)
    (tmp_path / "run" / "weights.pth").unlink()
    with pytest.raises(WeightsError, match="no epoch"):
        Artefact.open(tmp_path / "run").network()


KILLED = """
[model]
name = "digits"
[data]
name = "digits"
limit = 600
validation = 0.1
[region]
eps = 0.02
[loss]
name = "pgd"
steps = 3
[run]
epochs = 3
batch_size = 20
threads = 1
checkpoint_every = 0.1
[evaluation]
examples = 20
attack_steps = 3
[[stage]]
[[stage]]
loss = {name = "interval", eps = {kind = "smooth", from = 0, to = 0.02, start = 1, end = 3}, kappa = 0.5}
sampling = {easy = "skip"}
epochs = 4
"""


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each tensor that is not the same, bit for bit."""
    return {
        name: (one[name] - other[name]).abs().max().item() for name in one if not torch.equal(one[name], other[name])
    }


@pytest.mark.slow
def test_kill_9_at_a_random_moment_and_the_same_command_again(tmp_path: Path) -> None:
    path, folder = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(KILLED)
    command = [sys.executable, "-m", "ironbound", "train", str(path), "--out", str(folder), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    kills, moment = 0, random.Random()
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        mark = (folder / "checkpoint.pth").stat().st_mtime_ns if kills else None
        while process.poll() is None:
            now = (folder / "checkpoint.pth").stat().st_mtime_ns if (folder / "checkpoint.pth").exists() else None
            if now != mark:
                break
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if kills < 2 and "finished run" in done.stderr:
        pytest.skip("the machine was too fast: the run ended before it was killed")
    assert done.returncode == 0, done.stderr
    recipe = Recipe.read(path)
    data = load("digits", "train", limit=600)
    models = [network(recipe.model, recipe.run.seed) for _ in range(2)]
    record, _ = [train(model, data.inputs, data.labels, recipe) for model in models]
    state, (here, again) = torch.load(folder / "weights.pth", weights_only=True), [m.state_dict() for m in models]
    assert _differences(here, again) == {}, "this process does not repeat itself"
    assert _differences(here, state) == {}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [epoch.loss for epoch in record.epochs]
