"""`ironbound radius`: its table, JSON, files, what it refuses, and that a killed run resumes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ironbound.cli.app import app
from ironbound.data import load


def arguments(network: str, *more: str) -> list[str]:
    return ["radius", "--factory", network, "--data", "digits", "--limit", "48", "--shard", "8", *more]


def invoke(network: str, *more: str):
    return CliRunner().invoke(app, arguments(network, *more))


def answer(network: str, *more: str) -> dict[str, Any]:
    result = invoke(network, "--json", *more)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    del found["seconds"]
    return found


def test_json_table_and_files_agree(network: str, tmp_path: Path) -> None:
    saved, figure = tmp_path / "radii.npz", tmp_path / "radii.png"
    found = answer(network, "--save", str(saved), "--figure", str(figure), "--at", "0.01,0.1", "--clip", "0,1")
    examples, summary = found["examples"], found["summary"]
    with np.load(saved) as file:
        arrays = dict(file)
    assert arrays["certified"].tolist() == examples["certified"]
    assert arrays["adversarial"].shape == (48, 1, 8, 8)
    certified, attacked = np.array(examples["certified"]), np.array(examples["attacked"], dtype=float)
    assert (certified <= attacked).all() and certified.max() > 0
    assert arrays["arithmetic"].tolist() == examples["arithmetic"]
    assert summary["arithmetic"] == {"real arithmetic": (certified > 0).sum()}
    wrong = np.array(examples["label"]) != np.array(examples["prediction"])
    assert summary["misclassified"] == wrong.sum() > 0
    assert (certified[wrong] == 0).all()
    assert [row["certified"] for row in summary["shares"]] == [(certified >= eps).mean() for eps in (0.01, 0.1)]
    assert summary["certified"]["mean"] == pytest.approx(certified.mean())
    assert found["settings"]["unit"] == "pixels in [0, 1]"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_on_valid_pixels_the_network_is_affine_and_the_radius_has_a_closed_form(network: str) -> None:
    found = answer(network, "--attack", "none", "--detect", "--clip", "0,1")
    data, train = load("digits", "test", limit=48), load("digits", "train")
    means = torch.stack([train.inputs.flatten(1)[train.labels == k].mean(0) for k in range(10)]).double()
    x = data.inputs.flatten(1).double()
    far = torch.cdist(x, means) ** 2
    own = far.argmin(1, keepdim=True)
    low, high = torch.zeros(48, dtype=torch.float64), torch.ones(48, dtype=torch.float64)
    steep = 2 * (means[own[:, 0]][:, None] - means[None])  # of the margin over each class, by pixel
    for _ in range(40):
        eps = (low + high) / 2
        down, up = torch.minimum(x, eps[:, None]), torch.minimum(1 - x, eps[:, None])
        loss = (steep.clamp(min=0) * down[:, None] - steep.clamp(max=0) * up[:, None]).sum(2)
        proved = ((far - far.gather(1, own) - loss).scatter(1, own, torch.inf) > 0).all(1)
        low, high = torch.where(proved, eps, low), torch.where(proved, high, eps)
    certified = torch.tensor(found["examples"]["certified"], dtype=torch.float64)
    torch.testing.assert_close(certified, low, rtol=2e-4, atol=1e-6)
    assert found["summary"]["attacked"] is None
    assert found["examples"]["attacked"] == [None] * 48


def test_the_table_says_what_it_means(network: str) -> None:
    result = invoke(network, "--attack-steps", "5")
    assert result.exit_code == 0, result.stderr
    for words in ("certified (at least)", "attacked (at most)", "median", "misclassified (radius 0)", "PGD (5 steps"):
        assert words in result.stdout


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "nothing"),
        ("--tolerance", "0"),
        ("--norm", "l3"),
        ("--attack", "fgsm"),
        ("--at", "a,b"),
        ("--figure", "radii.nothing"),
        ("--save", "no-such-folder/radii.npz"),
    ],
)
def test_bad_arguments_are_one_sentence(network: str, more: tuple[str, str]) -> None:
    result = invoke(network, "--limit", "8", *more)
    assert result.exit_code == 1
    assert result.stderr.startswith("ironbound: ") and result.stderr.count("\n") == 1


def test_data_or_a_run_folder_is_needed(network: str) -> None:
    assert CliRunner().invoke(app, ["radius", "--factory", network]).exit_code == 2


def test_a_killed_run_resumes_to_the_same_radii(network: str, tmp_path: Path) -> None:
    store = tmp_path / "radii.sqlite"
    more = ("--attack-steps", "3", "--tolerance", "0.01")
    environment = {
        **os.environ,
        "TEST_SLOWNESS": "0.02",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    code = "from ironbound.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments(network, *more, "--store", str(store), "--json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 60
        while finished(store) == 0:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 0 < finished(store) < 6
    resumed = answer(network, *more, "--store", str(store))
    assert finished(store) == 6
    assert resumed == answer(network, *more)
    assert resumed == answer(network, *more, "--store", str(store))
    refused = invoke(network, "--store", str(store))
    assert refused.exit_code == 1 and "another query: tolerance" in refused.stderr
    assert (
        CliRunner().invoke(app, ["certify", *arguments(network)[1:], "--eps", "0.1", "--store", str(store)]).exit_code
        == 1
    )


def finished(store: Path) -> int:
    """Shards on disk; the writer's lock shows only as the size of the file, so that readers look at a copy."""
    if not store.exists():
        return 0
    copy = store.with_suffix(".copy")
    copy.write_bytes(store.read_bytes())
    try:
        with sqlite3.connect(copy) as connection:
            (count,) = connection.execute("SELECT count(*) FROM shards").fetchone()
        connection.close()
    except sqlite3.Error:
        return 0
    return count
