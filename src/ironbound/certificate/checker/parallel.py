"""Checking on several processes."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from .checking import Checker
from .claims import File

CHUNK = 32  # certificates handed out at a time
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_HERE: dict[str, Checker] = {}


def check_file(checker: Checker, file: File, jobs: int) -> dict[int, str | None]:
    """The answers of `Checker.check_file`, by several processes with one thread each.

    Args:
        checker: of the network and the data.
        file: the certificates.
        jobs: number of processes.

    Returns:
        For every input None, or why its claim is refused.
    """
    chunks = [file.certificates[first : first + CHUNK] for first in range(0, len(file.certificates), CHUNK)]
    jobs = min(jobs, len(chunks))
    if jobs <= 1:
        return checker.check_file(file)
    checker.belongs(file)
    query = file.norm, file.mode, file.clip, file.common
    kept = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # the products are small: threads would only wait for each other
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _start, (checker,)) as pool:
            parts = pool.map(_answers, chunks, [query] * len(chunks))
            return {index: answer for part in parts for index, answer in part.items()}
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start(checker: Checker) -> None:
    _HERE["checker"] = checker


def _answers(chunk, query) -> dict[int, str | None]:
    return {one.index: _HERE["checker"].check(one, *query) for one in chunk}
