"""Runs a benchmark: each instance of a list in a process of its own, results kept as they come."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ironbound
from ironbound.instances_store import InstanceResult, InstanceStore
from ironbound.spec.instances import Instance, read_instances

GRACE = 10.0  # seconds that a process may outstay its limit before it is killed
DECIDED = ("sat", "unsat")


@dataclass(frozen=True)
class RunOptions:
    """How a benchmark is run.

    Attributes:
        cap: most seconds per instance; the list's limit where it is smaller.
        only: words; only instances whose "network property" holds one of them. Empty: all.
        memory: bytes, passed on.
        threads: passed on; None leaves the choice to torch.
        seed: passed on.
    """

    cap: float | None = None
    only: tuple[str, ...] = ()
    memory: int | None = None
    threads: int | None = None
    seed: int = 0


def run_instances(
    path: Path,
    options: RunOptions,
    folder: Path | None = None,
    progress: Callable[[InstanceResult, int, int], None] | None = None,
) -> list[InstanceResult]:
    """Decides the instances of a list; with a folder, those that it holds already are not run again.

    A process of its own per instance costs the start of Python and torch each time, as in the competition; a crash, or
    memory that runs out, costs one instance. An instance that ends in an error is tried again by the next run.

    Args:
        path: instances.csv.
        options: how.
        folder: for the results, or None to keep nothing.
        progress: called after each instance with its result, and how many of all chosen ones are done.

    Returns:
        The results of the chosen instances, in the list's order.

    Raises:
        DataError: the list cannot be read.
        StoreError: the results cannot be written.
    """
    chosen = {
        number: instance
        for number, instance in enumerate(read_instances(path))
        if not options.only or any(word in _title(instance) for word in options.only)
    }
    with nullcontext() if folder is None else InstanceStore(folder, _query(path, options)) as store:
        results = {} if store is None else {n: found for n, found in store.results().items() if n in chosen}
        for number, instance in chosen.items():
            if number not in results:
                results[number] = _decide(number, instance, options)
                if store is not None and results[number].verdict != "error":
                    store.put(results[number])
                if progress is not None:
                    progress(results[number], len(results), len(chosen))
    return [results[number] for number in sorted(results)]


def _title(instance: Instance) -> str:
    return f"{instance.network.name} {instance.property.name}"


def _query(path: Path, options: RunOptions) -> dict[str, Any]:
    """What the results depend on."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "instances_sha256": content,
        "cap": options.cap,
        "memory": options.memory,
        "threads": options.threads,
        "seed": options.seed,
        "ironbound": ironbound.__version__,
    }


def _decide(number: int, instance: Instance, options: RunOptions) -> InstanceResult:
    limit = instance.timeout if options.cap is None else min(instance.timeout, options.cap)
    command = [sys.executable, "-m", "ironbound", "verify", str(instance.network), str(instance.property), "--json"]
    command += ["--timeout", repr(limit), "--seed", str(options.seed)]
    for name, value in (("--memory", options.memory), ("--threads", options.threads)):
        command += [] if value is None else [name, str(value)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + GRACE, check=False)
    except subprocess.TimeoutExpired:
        details: dict[str, Any] = {"why": f"its process did not end within {limit + GRACE:g} s and was killed"}
        verdict = "timeout"
    else:
        verdict, details = _read(done)
    names = instance.network.name, instance.property.name
    return InstanceResult(number, *names, limit, verdict, time.monotonic() - start, details)


def _read(done: subprocess.CompletedProcess[str]) -> tuple[str, dict[str, Any]]:
    """The verdict that a process printed, or why there is none."""
    try:
        details = json.loads(done.stdout)
        return details["verdict"], details
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return "error", {"why": lines[-1] if lines else f"its process ended with code {done.returncode}"}
