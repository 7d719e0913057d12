"""Prints our results beside the published ones as Markdown, and writes them between the markers of the README.

    python -m experiments.training.table

Errors in percent of the test set: mean ± standard deviation over the seeds (n - 1); of one seed, its figure alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.training import rows

FIGURES = ("clean", "pgd", "interval", "dual", "best")
_HEAD = (
    "| row | ε | published: clean / PGD / certified | seeds | clean | PGD | interval | dual | best of all | minutes |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± sample standard deviation.

    Args:
        values: one per seed.
        digits: after the point.

    Returns:
        "1.20 ± 0.10", of one value "1.20", of none "".
    """
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the results on whole data sets.

    Args:
        folder: with the JSON files.

    Returns:
        By row, one per seed in order.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["limit"] is None:
            found.setdefault(record["row"], []).append(record)
    return {name: sorted(records, key=lambda record: record["seed"]) for name, records in found.items()}


def table(folder: Path) -> str:
    """All tables.

    Args:
        folder: with the results.

    Returns:
        Markdown.
    """
    found = results(folder)
    parts = []
    for group in rows.read():
        records = [record for name in group.rows for record in found.get(name, [])]
        notes = [group.note, *_data_notes(records)]
        lines = [line(row, found.get(name, [])) for name, row in group.rows.items()]
        parts.append("\n".join([f"### {group.title}", "", " ".join(filter(None, notes)), "", *_HEAD, *lines]))
    return "\n\n".join(parts)


def line(row: rows.Row, records: list[dict[str, Any]]) -> str:
    """One row of a table.

    Args:
        row: the row.
        records: its results.

    Returns:
        A line of Markdown.
    """
    done = [record for record in records if record["status"] == "finished"]
    failed = [str(record["seed"]) for record in records if record["status"] != "finished"]
    seeds = ", ".join(str(record["seed"]) for record in done)
    if failed:
        seeds += f"{'; ' if seeds else ''}failed: {', '.join(failed)}"
    figures = [spread([record["errors"][name] for record in done]) for name in FIGURES]
    minutes = spread([record["minutes"]["training"] for record in done], 1)
    region = row.read().region
    cells = [row.name, f"{region.eps:.3g}", _published(row), seeds or "not run", *figures, minutes]
    return f"| {' | '.join(cells)} |"


def _data_notes(records: list[dict[str, Any]]) -> list[str]:
    """Where the data are not the official ones."""
    found = [record[part] for record in records for part in ("training_data", "test_data") if part in record]
    return list(dict.fromkeys(f"Ours: {note}." for data in found for note in data.get("notes", [])))


def _published(row: rows.Row) -> str:
    values = (row.clean, row.pgd, row.certified)
    if all(value is None for value in values):
        return "–"
    text = " / ".join("–" if value is None else f"{value:g}" for value in values)
    return f"{text} ({row.by})" if row.by else text


def insert(readme: Path, text: str) -> None:
    """Replaces what stands between the markers of a file.

    Args:
        readme: the file.
        text: the new content.

    Raises:
        SystemExit: it has no markers.
    """
    whole = readme.read_text(encoding="utf-8")
    if BEGIN not in whole or END not in whole:
        raise SystemExit(f"{readme} has no markers {BEGIN} and {END}")
    before, rest = whole.split(BEGIN, 1)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables and writes them into the README.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.HERE / "results")
    parser.add_argument("--readme", type=Path, default=rows.HERE / "README.md")
    chosen = parser.parse_args(arguments)
    text = table(chosen.results)
    print(text)
    insert(chosen.readme, text)


if __name__ == "__main__":
    main()
