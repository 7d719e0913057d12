"""`ironbound selftest`."""

from __future__ import annotations

import json as encoding
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ironbound.cli import options as given
from ironbound.cli.session import FAILED, exit_codes

if TYPE_CHECKING:
    from ironbound.selftest.running import Result


def selftest(json: given.Json = False, quiet: given.Quiet = False) -> None:
    """Check on this machine that proofs are proofs: attacks, enumeration, NaN, rational arithmetic, under two minutes.

    Exit code 0: every check passed. 1: one found something, which is a defect of Ironbound or of this machine.

    Raises:
        Exit: with that code.
    """
    with exit_codes():
        start = time.monotonic()
        found = _run(quiet or json)
        failed = sum(bool(result.failures) for result in found)
        seconds = round(time.monotonic() - start, 1)
        if json:
            typer.echo(encoding.dumps(_report(found, failed, seconds)))
        else:
            _print(found, failed, seconds)
    if failed:
        raise typer.Exit(FAILED)


def _run(quiet: bool) -> list[Result]:
    import sys

    import torch
    from rich.console import Console
    from rich.progress import track

    from ironbound.selftest.running import count, results

    off = quiet or not sys.stderr.isatty()
    console, threads = Console(stderr=True), torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only lose time to a second thread
    try:
        return list(track(results(), "checking", total=count(), console=console, transient=True, disable=off))
    finally:
        torch.set_num_threads(threads)


def _report(found: list[Result], failed: int, seconds: float) -> dict:
    import torch

    import ironbound

    return {
        "format": "ironbound-selftest/1",
        "passed": not failed,
        "checks": [{**asdict(result), "seconds": round(result.seconds, 3)} for result in found],
        "seconds": seconds,
        "versions": {"ironbound": ironbound.__version__, "torch": str(torch.__version__)},
    }


def _print(found: list[Result], failed: int, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "of", "cases", "result")
    for check in dict.fromkeys(result.check for result in found):
        of = [result for result in found if result.check == check]
        failures = sum(len(result.failures) for result in of)
        outcome = f"[red]{failures} failed[/red]" if failures else "ok"
        table.add_row(check, ", ".join(result.subject for result in of), str(sum(r.cases for r in of)), outcome)
    Console().print(table)
    for result in found:
        for failure in result.failures:
            typer.echo(f"FAILED {result.subject}, {result.check}: {failure}")
    verdict = f"{failed} of {len(found)} checks failed: do not rely on this installation" if failed else "all passed"
    typer.echo(f"{len(found)} checks in {seconds} s: {verdict}.")
