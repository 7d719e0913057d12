"""The runner resumes and skips; the table has the right mean and spread; kept weights certify what is recorded."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import pytest
import torch

import ironbound as ib
from experiments.training import evaluate, rows, run, table
from ironbound.errors import InputError
from ironbound.models import load_weights
from ironbound.training import Artefact, Recipe
from ironbound.training.artefact import network

RECIPE = """
title = "tiny"
model = {name = "digits"}
data = {name = "digits"}
region = {eps = 0.02}
loss = {name = "interval", kappa = 0.5, eps = {kind = "linear", from = 0, to = 0.02, end = 2}}
optimizer = {lr = 1e-2}
run = {epochs = 3, batch_size = 50}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rows.Row:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    monkeypatch.setattr(rows.Row, "path", property(lambda self: path))
    row = rows.Row("tiny", "a table", "tiny", clean=1.0, pgd=2.0, certified=3.0, by="interval")
    monkeypatch.setattr(rows, "by_name", lambda: {"tiny": row})
    monkeypatch.setattr(rows, "read", lambda: [rows.Group("a table", "a note", {"tiny": row})])
    return row


def command(out: Path, *more: str) -> list[str]:
    return ["--only", "tiny", "--limit", "200", "--out", str(out), *more]


@pytest.mark.usefixtures("tiny")
def test_runs_records_and_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run.main(command(out, "--seeds", "0", "1", "--keep-weights")) == 0
    record = json.loads((out / "results" / "tiny-0.json").read_text(encoding="utf-8"))
    found = record["errors"]
    assert found["clean"] <= found["pgd"] <= found["best"] <= min(found["interval"], found["dual"])
    assert record["examples"] == 200 and record["status"] == "finished" and record["limit"] == 200
    assert found["interval"] != found["dual"]  # so that the next lines can tell them apart
    test, model = ib.data.load("digits", limit=200), Artefact.open(out / "runs" / "tiny-0").network()
    for method in ("interval", "dual"):
        alone = ib.certify(model, test.inputs, test.labels, eps=0.02, methods=[method], attack=None).summary()
        assert found[method] == pytest.approx(100 * alone["certified_error_bound"]["fraction"])
    assert len(record["epochs"]) == 3 and record["minutes"]["training"] > 0
    kept = out / "weights" / "tiny-0.pth"
    assert evaluate.sha256(kept) == record["weights_sha256"]
    assert not list((out / "results").glob("*.part"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".pth"}
    capsys.readouterr()
    assert run.main(command(out, "--seeds", "0", "1")) == 0
    assert "is recorded" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_goes_on_where_training_was_stopped(tiny: rows.Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run.main(command(whole, "--seeds", "0")) == 0

    def stop(name: str, seed: int, text: str) -> None:
        if text.startswith("epoch 2"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "say", stop)
        with pytest.raises(KeyboardInterrupt):
            run.main(command(stopped, "--seeds", "0"))
    assert not (stopped / "results").exists()
    assert Artefact.open(stopped / "runs" / "tiny-0").facts["status"] == "running"
    assert run.main(command(stopped, "--seeds", "0")) == 0
    first, second = (json.loads((out / "results" / "tiny-0.json").read_text("utf-8")) for out in (whole, stopped))
    assert first["errors"] == second["errors"] and first["first"] == second["first"]
    ours, theirs = (torch.load(out / "runs" / "tiny-0" / "weights.pth", weights_only=True) for out in (whole, stopped))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_results_of_another_recipe_are_not_overwritten(tiny: rows.Row, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run.main(command(out, "--seeds", "0")) == 0
    result = out / "results" / "tiny-0.json"
    before = result.read_bytes()
    assert run.main(command(out, "--seeds", "0", "--set", "optimizer.lr=1e-3")) == 1
    assert result.read_bytes() == before
    result.unlink()  # the run folder still holds the old run
    with pytest.raises(InputError, match="another recipe"):
        run.perform(tiny, 0, run.options(command(out, "--set", "optimizer.lr=1e-3")))


@pytest.mark.usefixtures("tiny")
def test_a_collapse_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    late = 'optimizer.schedule={kind = "linear", from = 1, to = 1e12, start = 1, end = 1.1}'
    assert run.main(command(out, "--seeds", "0", "--set", late, "run.epochs=2")) == 1
    record = json.loads((out / "results" / "tiny-0.json").read_text(encoding="utf-8"))
    assert record["status"] == "failed" and "errors" not in record
    assert "runs/tiny-0/weights.pth" in record["message"] and str(out) not in record["message"]


def test_trials_are_kept_apart() -> None:
    with pytest.raises(SystemExit):
        run.options(["--limit", "10"])


def _record(seed: int, dual: float) -> dict[str, object]:
    errors = {"clean": 1.0, "pgd": 2.0, "interval": 90.0, "dual": dual, "best": dual - 1}
    return {"row": "tiny", "seed": seed, "limit": None, "status": "finished", "errors": errors,
            "minutes": {"training": 10.0 + seed}, "test_data": {"notes": ["34 images are missing"]}}  # fmt: skip


@pytest.mark.usefixtures("tiny")
def test_table(tmp_path: Path) -> None:
    duals = [4.0, 4.5, 5.6]
    for seed, dual in enumerate(duals):
        run.write(tmp_path / "results" / f"tiny-{seed}.json", _record(seed, dual))
    run.write(tmp_path / "results" / "tiny-3.json", {"row": "tiny", "seed": 3, "limit": None, "status": "failed"})
    run.write(tmp_path / "results" / "tiny-9.json", {**_record(9, 99.0), "limit": 100})
    text = table.table(tmp_path / "results")
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    middle = sum(duals) / 3
    deviation = (sum((dual - middle) ** 2 for dual in duals) / 2) ** 0.5
    assert cells[7] == f"{middle:.2f} ± {deviation:.2f}" == f"{middle:.2f} ± {statistics.stdev(duals):.2f}"
    assert cells[:5] == ["tiny", "0.02", "1 / 2 / 3 (interval)", "0, 1, 2; failed: 3", "1.00 ± 0.00"]
    assert cells[9] == "11.0 ± 1.0"
    assert text.count("34 images are missing") == 1 and "a note" in text


@pytest.mark.usefixtures("tiny")
def test_rows_without_results_are_not_run(tmp_path: Path) -> None:
    line = table.table(tmp_path).splitlines()[-1]
    assert "not run" in line and "±" not in line
    assert table.spread([1.25], 2) == "1.25" and table.spread([]) == ""


def test_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    table.insert(readme, "new")
    table.insert(readme, "newer")
    assert readme.read_text("utf-8") == f"before\n{table.BEGIN}\n\nnewer\n\n{table.END}\nafter\n"


def test_readme_shows_the_recorded_results() -> None:
    assert table.table(rows.HERE / "results") in (rows.HERE / "README.md").read_text(encoding="utf-8")


KEPT = sorted((rows.HERE / "weights").glob("*.pth"))


def test_kept_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in KEPT) <= 5 * 2**20


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_weights_certify_what_is_recorded(path: Path, shared: Path) -> None:
    record = json.loads((rows.HERE / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert evaluate.sha256(path) == record["weights_sha256"]
    recipe: Recipe = rows.by_name()[record["row"]].read()
    name = str(recipe.data.name)
    roots = [Path(root) for root in (shared / "data", os.environ.get("IRONBOUND_DATA")) if root]
    if not any((root / name).is_dir() for root in roots):
        pytest.skip(f"{name} is not in the shared folder; name a folder that holds it by IRONBOUND_DATA")
    data = evaluate.whole_set(name, "test", roots, limit=64)
    model = load_weights(network(recipe.model), path)
    found = evaluate.errors(model, data, recipe.region)["first"]
    for figure, letters in record["first"].items():
        ours, theirs = ([letter == "c" for letter in text[:64]] for text in (found[figure], letters))
        assert ours == theirs, figure
