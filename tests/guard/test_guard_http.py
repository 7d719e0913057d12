"""The HTTP example as a user runs it: a server process, and requests over a socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ironbound as ib
from ironbound.training.artefact import save_weights

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("http") / "digits.pth"
    save_weights(ib.models.build("digits"), weights)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples" / "guard_http"), "app:app"]
    env = {**os.environ, "GUARD_WEIGHTS": str(weights), "GUARD_EPS": "0.001", "GUARD_LATENCY": "30"}
    env["PYTHONPATH"] = str(ROOT / "src")
    with subprocess.Popen([*command, "--port", str(port), "--log-level", "warning"], env=env) as process:
        try:
            wait(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(process: subprocess.Popen, port: int) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the server ended"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not listen")


def post(server: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{server}/predict", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_answers(server: str) -> None:
    x = torch.rand(3, 1, 8, 8)
    x[1, 0, 0, 0] = 1.5
    status, said = post(server, {"inputs": x.tolist()})
    assert status == 200 and len(said) == 3
    assert said[1]["answer"] == "flagged" and said[1]["reason"] == "outside clip" and said[1]["margin"] is None
    assert {entry["answer"] for entry in said} <= {"flagged", "cannot be adversarial"}
    assert any(entry["answer"] == "cannot be adversarial" and entry["margin"] > 0 for entry in said)


def test_what_does_not_fit_is_refused(server: str) -> None:
    for inputs in ([[0.0] * 8], [[[[0.0] * 7] * 8]], [[0.0], [0.0, 1.0]], "nothing", [["a"]]):
        status, _ = post(server, {"inputs": inputs})
        assert status == 422
    status, said = post(server, {"inputs": [[[[float("nan")] * 8] * 8]]})
    assert status == 422 or said[0]["answer"] == "flagged"


def test_the_promise(server: str) -> None:
    with urllib.request.urlopen(f"{server}/promise", timeout=60) as reply:
        said = json.load(reply)
    assert said == {"eps": 0.001, "norm": "linf", "clip": [0.0, 1.0], "latency": 30.0}
