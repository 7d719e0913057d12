"""`ironbound verify`: the competition's words, benchmarks that resume after a kill, and messages."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from ironbound import instances_run
from ironbound.capture.onnx import save_onnx
from ironbound.cli.app import app
from ironbound.errors import StoreBusyError, StoreMismatchError
from ironbound.instances_run import RunOptions, run_instances
from ironbound.instances_store import NAME, InstanceResult, InstanceStore
from ironbound.report.verdicts import summary
from ironbound.spec import Case, Clause, Constraint, Property, vnnlib_text
from verification_cases import chain

command = import_module("ironbound.cli.verify")  # the package has the function of that name
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def written(folder: Path, name: str, bound: float) -> str:
    """A property file: a counterexample has Y_0 <= bound."""
    clause = Clause((Constraint((), ((0, 1.0),), bound),))
    (folder / name).write_text(vnnlib_text(Property(2, 1, (Case(-np.ones(2), np.ones(2), (clause,)),))))
    return name


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Four instances: unsat, sat, unsat, and a file that is not there."""
    save_onnx(chain(3, 2, 6, 1), tmp_path / "net.onnx", torch.zeros(1, 2))
    names = [written(tmp_path, "a.vnnlib", -50.0), written(tmp_path, "b.vnnlib", 50.0)]
    names += [written(tmp_path, "c.vnnlib", -60.0), "missing.vnnlib"]
    path = tmp_path / "instances.csv"
    path.write_text("".join(f"net.onnx,{name},30\n" for name in names))
    return path


def answer(*arguments: str) -> str:
    """What the program prints on stdout."""
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_unsat_and_sat_with_a_counterexample(benchmark: Path) -> None:
    folder = benchmark.parent
    network = str(folder / "net.onnx")
    assert answer(network, str(folder / "a.vnnlib"), "--timeout", "20") == "unsat\n"
    lines = answer(network, str(folder / "b.vnnlib"), "--timeout", "20").splitlines()
    assert lines[0] == "sat"
    values = dict(line.strip("()").split() for line in lines[1:])
    x = np.array([[float(values["X_0"]), float(values["X_1"])]], dtype=np.float32)
    assert (np.abs(x) <= 1).all()
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    assert y[0, 0] == pytest.approx(float(values["Y_0"]), abs=1e-5)
    assert y[0, 0] <= 50


def test_json(benchmark: Path) -> None:
    folder = benchmark.parent
    found = json.loads(answer(str(folder / "net.onnx"), str(folder / "b.vnnlib"), "--json"))
    assert found["verdict"] == "sat"
    assert found["checked_by"] == ["torch", "onnxruntime"]
    assert found["counterexample"].startswith("((X_0 ")
    found = json.loads(answer(str(folder / "net.onnx"), str(folder / "a.vnnlib"), "--json"))
    assert found["verdict"] == "unsat"
    assert found["arithmetic"] == "float64"


def test_a_host_process_is_never_ended(benchmark: Path, monkeypatch) -> None:
    monkeypatch.setattr(command, "_decided", lambda *arguments: time.sleep(1.0))
    monkeypatch.setattr(command.os, "_exit", lambda code: pytest.fail("the process would have ended"))
    assert answer("a", "b", "--timeout", "0.5") == "timeout\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["net.onnx"], ["a", "b", "--out", "c"], ["a", "b", "--instances", "i"], ["a", "b", "--timeout", "0"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["verify", *arguments]).exit_code == 2


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "no.onnx"), str(tmp_path / "no.vnnlib")])
    assert result.exit_code == 1
    assert "no.vnnlib" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_network_that_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    """The answer comes before the limit, though the search cannot be interrupted."""
    (tmp_path / "slow.py").write_text(
        "import time, sys\n"
        "import ironbound.cli.verify as command\n"
        "command._decided = lambda *arguments: time.sleep(60)\n"
        "from ironbound.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, str(tmp_path / "slow.py"), "verify", "a", "b", "--timeout", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SOURCE}, timeout=50)
    assert done.stdout == "timeout\n"
    assert done.returncode == 0


def test_a_killed_benchmark_resumes(benchmark: Path) -> None:
    out = benchmark.parent / "out"
    command = [sys.executable, "-m", "ironbound", "verify", "--instances", str(benchmark), "--out", str(out), "--json"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    assert first.stderr.readline().startswith("1/4 unsat")
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stderr.close()
    kept = rows(out)
    assert len(kept) == 1
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not second.stderr.startswith("1/4")
    found = json.loads(second.stdout)
    assert [one["verdict"] for one in found["instances"]] == ["unsat", "sat", "unsat", "error"]
    assert found["summary"]["decided"] == 3
    assert "missing.vnnlib" in found["instances"][3]["details"]["why"]
    assert rows(out)[0] == kept[0]
    assert len(rows(out)) == 3  # an error is tried again
    assert len((out / "verdicts.csv").read_text().splitlines()) == 5


def rows(folder: Path) -> list[tuple]:
    """What is on disk."""
    connection = sqlite3.connect(folder / NAME)
    try:
        return connection.execute("SELECT * FROM results ORDER BY number").fetchall()
    finally:
        connection.close()


def fake(number: int, instance, options: RunOptions) -> InstanceResult:
    """An instance that is decided at once."""
    names = instance.network.name, instance.property.name
    return InstanceResult(number, *names, instance.timeout, "unsat", 1.0 + number, {"method": "fake"})


def test_only_and_later_all(benchmark: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instances_run, "_decide", fake)
    out = tmp_path / "out"
    some = run_instances(benchmark, RunOptions(only=("b.vnn",)), out)
    assert [result.number for result in some] == [1]
    seen = []
    every = run_instances(benchmark, RunOptions(), out, lambda result, done, total: seen.append((result.number, total)))
    assert [result.number for result in every] == [0, 1, 2, 3]
    assert seen == [(0, 4), (2, 4), (3, 4)]
    assert summary(every)["unsat"]["max_seconds"] == 4.0


def test_the_limit_is_the_lists_or_the_cap(benchmark: Path, monkeypatch) -> None:
    asked = []

    def run(command, **options):
        asked.append((command, options))
        return subprocess.CompletedProcess(command, 1, "", "ironbound: broken")

    monkeypatch.setattr(instances_run.subprocess, "run", run)
    results = run_instances(benchmark, RunOptions(cap=7.0, memory=5))
    assert {result.limit for result in results} == {7.0}
    assert {result.verdict for result in results} == {"error"}
    assert asked[0][0][-6:] == ["--timeout", "7.0", "--seed", "0", "--memory", "5"]
    run_instances(benchmark, RunOptions(cap=70.0))
    assert "30.0" in asked[-1][0]


def test_a_process_that_does_not_end_is_a_timeout(benchmark: Path, monkeypatch) -> None:
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(instances_run.subprocess, "run", run)
    assert {result.verdict for result in run_instances(benchmark, RunOptions())} == {"timeout"}


def test_a_store_of_another_run_is_refused(benchmark: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instances_run, "_decide", fake)
    run_instances(benchmark, RunOptions(cap=5.0), tmp_path / "out")
    with pytest.raises(StoreMismatchError, match="cap"):
        run_instances(benchmark, RunOptions(cap=6.0), tmp_path / "out")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with InstanceStore(tmp_path, {}), pytest.raises(StoreBusyError):
        InstanceStore(tmp_path, {})
    InstanceStore(tmp_path, {}).close()
