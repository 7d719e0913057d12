"""Runs the self-test check by check, and keeps what each found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ironbound.selftest.checks import EACH, Finding, guard, names, order
from ironbound.selftest.rational import checker

OF_ALL: dict[str, tuple[str, Callable[[], Iterator[Finding]]]] = {
    "all methods": ("order of tightness", order),
    "certificate checker": ("rational arithmetic", checker),
    "guard": ("attacks", guard),
}


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        subject: the method, or the part of Ironbound, that was tried.
        check: what it was compared with.
        cases: number of comparisons.
        failures: a sentence for each that failed.
        seconds: that it took.
    """

    subject: str
    check: str
    cases: int
    failures: tuple[str, ...]
    seconds: float


def count() -> int:
    """Number of checks."""
    return len(names()) * len(EACH) + len(OF_ALL)


def results() -> Iterator[Result]:
    """Runs all checks, one after the other."""
    for method in names():
        for check, run in EACH.items():
            yield _result(method, check, lambda run=run, method=method: run(method))
    for subject, (check, whole) in OF_ALL.items():
        yield _result(subject, check, whole)


def _result(subject: str, check: str, run: Callable[[], Iterator[Finding]]) -> Result:
    start = time.perf_counter()
    findings: list[Finding] = []
    try:
        findings += run()
    except Exception as error:  # whatever breaks on this machine is what the test is for
        findings.append(f"{type(error).__name__}: {error}")
    failures = tuple(finding for finding in findings if finding is not None)
    return Result(subject, check, len(findings), failures, time.perf_counter() - start)
