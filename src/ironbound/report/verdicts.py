"""The table of a benchmark's verdicts on the terminal."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ironbound.instances_store import InstanceResult

VERDICTS = ("unsat", "sat", "unknown", "timeout", "error")


def summary(results: Sequence[InstanceResult]) -> dict[str, Any]:
    """Counts and times by verdict.

    Args:
        results: of a run.

    Returns:
        For each verdict that occurs: count, and median, longest and total seconds; and the number decided.
    """
    found: dict[str, Any] = {"instances": len(results)}
    for verdict in VERDICTS:
        seconds = [result.seconds for result in results if result.verdict == verdict]
        if seconds:
            found[verdict] = {
                "count": len(seconds),
                "median_seconds": statistics.median(seconds),
                "max_seconds": max(seconds),
                "total_seconds": sum(seconds),
            }
    found["decided"] = sum(result.verdict in {"unsat", "sat"} for result in results)
    return found


def print_verdicts(results: Sequence[InstanceResult], console: Console | None = None) -> None:
    """Prints counts and times by verdict, and what stayed open.

    Args:
        results: of a run.
        console: another place to print to.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    totals = summary(results)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("verdict", "instances", "median s", "longest s", "total s"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for verdict in VERDICTS:
        if verdict in totals:
            row = totals[verdict]
            times = (row["median_seconds"], row["max_seconds"], row["total_seconds"])
            table.add_row(verdict, str(row["count"]), *(f"{seconds:.2f}" for seconds in times))
    last = Text(f"{totals['decided']} of {totals['instances']} decided; seconds are those of whole processes")
    console.print(Group(table, *_open(results), last))


def _open(results: Sequence[InstanceResult]) -> list[RenderableType]:
    rows = [result for result in results if result.verdict not in {"unsat", "sat"}]
    if not rows:
        return []
    table = Table(show_edge=False, pad_edge=False)
    for name in ("open", "network", "property", "why"):
        table.add_column(name)
    for result in rows:
        table.add_row(result.verdict, result.network, result.property, str(result.details.get("why", "")))
    return [Text(""), table, Text("")]


def write_csv(results: Sequence[InstanceResult], path: Path) -> None:
    """Writes network, property, limit, verdict and seconds, a line per instance.

    Args:
        results: of a run.
        path: of the file, which is replaced.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("network", "property", "limit", "verdict", "seconds"))
        for result in results:
            lines.writerow((result.network, result.property, result.limit, result.verdict, f"{result.seconds:.3f}"))
