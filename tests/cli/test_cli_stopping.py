"""A run that is killed, interrupted or doubled loses nothing that was finished."""

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

from typer.testing import CliRunner

from ironbound.cli.app import app

SLOWNESS = 0.1


def start(*arguments: str, slowness: float = 0.0) -> subprocess.Popen[str]:
    """Starts the program in a process of its own."""
    code = "from ironbound.cli.app import main; main()"
    environment = {
        **os.environ,
        "TEST_SLOWNESS": str(slowness),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def arguments(network: str, store: Path | None) -> list[str]:
    query = ["certify", "--factory", network, "--data", "digits", "--limit", "96", "--eps", "0.05", "--clip", "0,1"]
    kept = [] if store is None else ["--store", str(store)]
    return [*query, "--attack-steps", "5", "--restarts", "2", "--shard", "8", "--json", *kept]


def running(network: str, store: Path) -> subprocess.Popen[str]:
    """A run that has finished some shards, and has some to do."""
    process = start(*arguments(network, store), slowness=SLOWNESS)
    deadline = time.monotonic() + 60
    while not store.exists() or store.stat().st_size < 24_000:  # the empty tables take 20 000 bytes
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def finished(store: Path) -> int:
    with sqlite3.connect(store) as connection:
        (count,) = connection.execute("SELECT count(*) FROM shards").fetchone()
    connection.close()
    return count


def answer(network: str, store: Path | None) -> dict[str, Any]:
    """A whole run, in this process."""
    result = CliRunner().invoke(app, arguments(network, store))
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    del found["seconds"]
    return found


def test_a_killed_run_resumes_to_the_same_table(network: str, tmp_path: Path) -> None:
    store = tmp_path / "results.sqlite"
    with running(network, store) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 0 < finished(store) < 12
    resumed = answer(network, store)
    assert finished(store) == 12
    assert resumed == answer(network, None)


def test_ctrl_c_ends_with_one_sentence_and_keeps_the_results(network: str, tmp_path: Path) -> None:
    store = tmp_path / "results.sqlite"
    with running(network, store) as process:
        process.send_signal(signal.SIGSTOP)  # so that it is not done before the second comes
        second = start(*arguments(network, store))
        _, errors = second.communicate(timeout=60)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        assert second.returncode == 1
        assert errors.startswith("ironbound: another process writes to")
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert errors.startswith("ironbound: interrupted after ")
    assert errors.count("\n") == 1
    done = finished(store)
    assert f"after {8 * done} of 96 examples, which are kept in {store}" in errors
    assert 0 < done < 12
