"""The commands: exit codes, what stands on stdout and stderr, and that help needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ironbound
from ironbound.cli.app import app
from ironbound.data import load

runner = CliRunner()


def certify(network: str, *arguments: str):
    return runner.invoke(app, ["certify", "--factory", network, "--data", "digits", "--eps", "0.05", *arguments])


def test_help_and_version_import_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from ironbound.cli.app import app
for arguments in (["--help"], ["--version"], ["certify", "--help"], ["demo", "--help"], ["train", "--help"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    print(result.output)
assert not {"torch", "numpy", "sklearn", "pooch", "matplotlib"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    for word in ("certify", "attack", "demo", "train", "130", f"ironbound {ironbound.__version__}", "--methods"):
        assert word in output


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])
def test_help_tells_what_a_command_does_and_no_more(command: str) -> None:
    text = runner.invoke(app, [command, "--help"]).output
    assert f" {command} [OPTIONS]" in text
    assert "Raises:" not in text


def test_without_a_command_the_help_is_shown() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 2
    assert "certify" in result.output


def test_json_is_all_that_stdout_holds(network: str) -> None:
    result = certify(network, "--json", "--clip", "0,1", "--per-class", "--limit", "100")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["settings"]["unit"] == "pixels in [0, 1]"
    assert found["settings"]["clip"] == [0.0, 1.0]
    assert found["settings"]["data"] == {"name": "digits", "split": "test", "range": [0, 100], "notes": []}
    assert found["summary"]["examples"] == 100
    assert len(found["summary"]["per_class"]) == 10
    status = found["summary"]["status"]
    assert min(status["misclassified"], status["falsified"], status["certified"]) > 0  # else this network tests nothing
    with torch.no_grad():
        data = load("digits", "test", limit=100)
        flat = load("digits", "train")
        means = torch.stack([flat.inputs.flatten(1)[flat.labels == k].mean(0) for k in range(10)])
        nearest = torch.cdist(data.inputs.flatten(1), means).argmin(1)
    assert found["examples"]["prediction"] == nearest.tolist()


def test_the_table_names_what_its_numbers_belong_to(network: str) -> None:
    result = certify(
        network, "--range", "100:140", "--methods", "dual", "--norm", "l2", "--attack", "fgsm", "--per-class"
    )
    assert result.exit_code == 0, result.stderr
    words = (
        "digits test, examples 100 to 139 (40)",
        "ε = 0.05 (pixels in [0, 1]), norm l2, not clipped",
        "dual",
        "FGSM",
    )
    for word in (
        *words,
        "clean error",
        "95 % interval",
        "real arithmetic",
        f"torch {torch.__version__}",
        "bounds",
        "seconds",
    ):
        assert word in result.stdout


def test_detection_needs_no_labels(network: str) -> None:
    result = certify(network, "--detect", "--limit", "40", "--json")
    summary = json.loads(result.stdout)["summary"]
    assert summary["detection"]
    assert summary["certified"]["count"] + summary["flagged"]["count"] == 40
    assert "cannot be adversarial" in certify(network, "--detect", "--limit", "40").stdout


def test_attack_finds_and_saves_inputs(network: str, tmp_path: Path) -> None:
    path = tmp_path / "found.npz"
    arguments = ["attack", "--factory", network, "--data", "digits", "--eps", "0.2", "--limit", "60", "--targeted"]
    result = runner.invoke(app, [*arguments, "--restarts", "2", "--json", "--save-adversarial", str(path)])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["settings"]["methods"] == []
    assert found["summary"]["status"]["certified"] == 0
    data = load(path)
    with np.load(path) as stored:
        index = stored["index"]
    assert found["summary"]["status"]["falsified"] == len(data) == len(index) > 0
    originals = load("digits", "test")
    assert ((data.inputs - originals.inputs[index]).abs() <= 0.2 + 1e-6).all()
    assert torch.equal(data.labels, originals.labels[index])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eps", "-1"], "negative"),
        (["--eps", "nan"], "NaN"),
        (["--eps", "1e30"], "huge"),
        (["--norm", "l7"], "l7"),
        (["--methods", "duel"], "duel"),
        (["--attack", "cw"], "cw"),
        (["--clip", "zero"], "--clip must be two numbers"),
        (["--clip", "0.5,1"], "clipping range"),
        (["--range", "5:x"], "--range must be A:B"),
        (["--range", "9:9"], "holds none"),
        (["--range", "0:9", "--limit", "3"], "not both"),
        (["--data", "nothing"], "unknown data set"),
        (["--data", "absent.npz"], "absent.npz"),
        (["--split", "half"], "split"),
        (["--weights", "absent.pth"], "absent.pth"),
        (["--arch", "small"], "not both"),
        (["--store", "/absent/folder/results.sqlite"], "is not a folder"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_1(network: str, arguments: list[str], words: str) -> None:
    result = certify(network, "--limit" if "--range" not in arguments else "--seed", "3", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.startswith("ironbound: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["certify"], ["certify", "--eps", "x", "--data", "digits"], ["prove"], ["certify", "--limit", "0"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2
