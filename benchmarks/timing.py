"""Interleaved timing, the speed of a matrix product, and the peak memory of a call."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Call = Callable[[], object]


def seconds(call: Call) -> float:
    """Wall time of one call, with the garbage of earlier calls collected first and none collected inside."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    finally:
        gc.enable()


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Time every call once per round, so that load from outside hits all of them alike.

    Each call runs once before the rounds and is not counted; the order turns by one in each round.

    Args:
        calls: what to time, by name.
        rounds: how often.

    Returns:
        Seconds of each round, by name.
    """
    for call in calls.values():
        call()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(calls[name]))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median and range of the ratios round by round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def matmul_gflops(size: int = 1024, repeats: int = 9) -> float:
    """Speed of a float32 matrix product with the current number of threads, in GFLOP/s (median)."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    times = interleaved({"mm": lambda: torch.mm(left, right, out=out)}, repeats)["mm"]
    return 2 * size**3 / statistics.median(times) / 1e9


def peak_memory_mib(call: Call) -> float:
    """Largest resident memory of the process during a call, in MiB, everything loaded included.

    Returns:
        The largest during the call; where the system cannot reset the mark (only Linux can), since the process began.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        call()
        unit = 2**20 if os.uname().sysname == "Darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    call()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10
