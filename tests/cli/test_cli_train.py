"""`ironbound train`: recipes, overrides, the short form, run folders that certify and attack take, what is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ironbound.cli.app import app
from ironbound.cli.train import _Bar
from ironbound.training import Epoch, Evaluation, Recipe, Step

runner = CliRunner()

TEXT = """
[model]
name = "digits"
[data]
name = "digits"
limit = 300
validation = 0.1
[region]
eps = 0.02
norm = "l2"
clip = [0, 1]
[loss]
name = "interval"
eps = {kind = "linear", from = 0, to = 0.02, start = 1, end = 2}
kappa = 0.5
[run]
epochs = 2
batch_size = 50
[evaluation]
examples = 10
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "recipe.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(recipe: Path) -> Path:
    """A trained run."""
    folder = recipe.parent / "run"
    result = runner.invoke(app, ["train", str(recipe), "--out", str(folder), "--set", "optimizer.lr=0.01"])
    assert result.exit_code == 0, result.stderr
    assert re.search(r"epoch 2/2: ε 0.01\d*, loss [\d.]+, clean [\d.]+ %, certified [\d.]+ %", result.stderr)
    assert f"ironbound certify {folder}" in result.stdout
    return folder


def found(*arguments: str) -> dict:
    result = runner.invoke(app, [*arguments, "--json", "--limit", "30"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_overrides_reach_the_recipe_of_the_run(folder: Path) -> None:
    assert Recipe.read(folder / "recipe.toml").optimizer.lr == 0.01


def test_certify_takes_a_run_folder_as_it_is(folder: Path) -> None:
    settings = found("certify", str(folder))["settings"]
    assert (settings["eps"], settings["norm"], settings["clip"]) == (pytest.approx(0.02), "l2", [0, 1])
    assert settings["data"]["name"] == "digits" and settings["data"]["split"] == "test"
    assert str(folder / "weights.pth") in settings["network"]
    assert found("certify", "--weights", str(folder))["examples"] == found("certify", str(folder))["examples"]
    by_hand = ["--arch", "digits", "--weights", str(folder / "weights.pth"), "--data", "digits", "--eps", "0.02"]
    whole = found("certify", *by_hand, "--norm", "l2", "--clip", "0,1")
    assert whole["settings"]["network_sha256"] == settings["network_sha256"]
    assert whole["examples"] == found("certify", str(folder))["examples"]


def test_options_override_the_run_folder(folder: Path) -> None:
    settings = found("certify", str(folder), "--eps", "0.01", "--norm", "linf", "--clip", "-1,2")["settings"]
    assert (settings["eps"], settings["norm"], settings["clip"]) == (pytest.approx(0.01), "linf", [-1, 2])
    assert found("certify", str(folder), "--split", "train")["settings"]["data"]["split"] == "train"


def test_attack_takes_a_run_folder(folder: Path) -> None:
    assert found("attack", str(folder))["settings"]["norm"] == "l2"


def test_a_finished_run_is_not_overwritten(recipe: Path, folder: Path) -> None:
    result = runner.invoke(app, ["train", str(recipe), "--out", str(folder), "--set", "optimizer.lr=0.01"])
    assert result.exit_code == 1 and "finished run" in result.stderr and result.stdout == ""


def test_the_short_form_writes_weights_that_certify_reads(network: str, tmp_path: Path) -> None:
    factory = network.replace(":make", ":linear")
    states = []
    for name in ("one", "again"):
        arguments = ["train", "--factory", factory, "--data", "digits", "--out", str(tmp_path / name), "--eps", "0.02"]
        result = runner.invoke(app, [*arguments, "--epochs", "2", "--lr", "0.02"])
        assert result.exit_code == 0, result.stderr
        assert "epoch 2/2" in result.stderr
        states.append(torch.load(tmp_path / name / "weights.pth", weights_only=True))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    summary = found("certify", str(tmp_path / "one"))["summary"]
    assert summary["certified_error_bound"]["fraction"] < 0.6


def test_training_goes_on_from_weights_and_run_folders(folder: Path, tmp_path: Path) -> None:
    for number, start in enumerate((folder, folder / "weights.pth")):
        out = tmp_path / str(number)
        arguments = ["train", "--arch", "digits", "--weights", str(start), "--data", "digits", "--limit", "50"]
        short = ["--loss", "standard", "--epochs", "1", "--lr", "1e-9", "--out", str(out)]
        result = runner.invoke(app, [*arguments, *short])
        assert result.exit_code == 0, result.stderr
        one, other = torch.load(folder / "weights.pth"), torch.load(out / "weights.pth")
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "digits", "--data", "digits"], "--out FOLDER"),
        (["--arch", "digits", "--out", "run"], "names no data"),
        (["--data", "digits", "--out", "run"], "names no network"),
        (["--arch", "digits", "--data", "digits", "--out", "file/run"], "cannot be made"),
        (["--arch", "digits", "--data", "digits", "--out", "run", "--set", "run.sed=1"], "did you mean 'seed'"),
        (["--arch", "digits", "--data", "digits", "--out", "run", "--set", "seed"], "section.field=value"),
        (["--arch", "digits", "--data", "digits", "--out", "run", "--loss", "hinges"], "'hinges' is not known"),
        (["--arch", "digits", "--data", "digits", "--out", "run", "--ramp", "1"], "--ramp must be two numbers"),
        (["--arch", "digits", "--data", "digits", "--out", "run", "--set", "run.device=toaster"], "toaster"),
        (["absent.toml", "--out", "run"], "cannot be read"),
    ],
    ids=str,
)
def test_an_error_is_one_sentence_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    result = runner.invoke(app, ["train", *arguments])
    assert result.exit_code == 1 and words in result.stderr and result.stderr.count("\n") == 1
    assert "epoch" not in result.stderr.replace("run.epochs", "") and not (tmp_path / "run" / "weights.pth").exists()


@pytest.mark.parametrize("arguments", [["certify"], ["certify", "--eps", "0.1"], ["attack", "--data", "digits"]])
def test_without_a_run_folder_data_and_radius_are_needed(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2 and "--data, --eps" in result.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["certify", str(tmp_path)])
    assert result.exit_code == 1 and "no run folder" in result.stderr
    result = runner.invoke(app, ["certify", str(tmp_path), "--weights", "net.pth"])
    assert result.exit_code == 1 and "not both" in result.stderr


def test_explain_prints_the_reference() -> None:
    result = runner.invoke(app, ["train", "--explain"])
    assert result.exit_code == 0
    for word in ("[optimizer]", "checkpoint_every", "mtl-ibp", "alpha", '{kind = "smooth"}'):
        assert word in result.stdout


def test_the_bar_shows_loss_clean_and_certified_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    with _Bar(False, 3) as bar:
        bar.epoch(Epoch(1, "1", 0.1, 1e-3, {}, 0.5, 0.25, 10, {}, Evaluation(10, 0.1, 0.2, {}, 0.3)))
        bar.step(Step(2, 3, 1.5, 0.125))
        shown = bar._bar.get_renderable()
        console = Console(width=120, force_terminal=False, color_system=None, record=True, file=io.StringIO())
        console.print(shown)
        text = console.export_text()
    assert "epoch 2/3" in text and "loss 0.1250, clean 10.00 %, certified 30.00 %" in text
