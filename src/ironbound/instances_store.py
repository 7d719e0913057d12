"""Verdicts of a benchmark on disk: one SQLite file, one transaction per instance."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ironbound.errors import StoreBusyError, StoreError, StoreMismatchError

NAME = "verdicts.sqlite"
_FORMAT = "ironbound-verdicts/1"


@dataclass(frozen=True)
class InstanceResult:
    """What became of one instance.

    Attributes:
        number: its line in the list, from 0.
        network, property: names of its files.
        limit: seconds that it was given.
        verdict: "sat", "unsat", "unknown", "timeout", or "error".
        seconds: wall clock of its process, start-up included.
        details: what the process printed as JSON; for "error" the message.
    """

    number: int
    network: str
    property: str
    limit: float
    verdict: str
    seconds: float
    details: Mapping[str, Any]


class InstanceStore:
    """The results of one run in a folder, that one process writes at a time.

    Args:
        folder: is made if it is not there.
        query: what the results depend on, as plain data.

    Raises:
        StoreBusyError: another process writes to it.
        StoreMismatchError: it holds the results of another list, or of other options.
        StoreError: it cannot be made, read or written.
    """

    def __init__(self, folder: Path, query: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=0.0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path} cannot be made ({error}); name another folder.") from error
        try:
            self._prepare(json.dumps({"format": _FORMAT, **query}, sort_keys=True))
        except sqlite3.Error as error:
            self._connection.close()
            raise self._explained(error) from error
        except StoreMismatchError:
            self._connection.close()
            raise

    def _prepare(self, query: str) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA synchronous = FULL")
        run("BEGIN EXCLUSIVE")
        run("CREATE TABLE IF NOT EXISTS meta (query TEXT NOT NULL)")
        run(
            "CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY, network TEXT, property TEXT, seconds_limit"
            " REAL, verdict TEXT NOT NULL, seconds REAL NOT NULL, details TEXT NOT NULL)"
        )
        stored = run("SELECT query FROM meta").fetchone()
        if stored is None:
            run("INSERT INTO meta VALUES (?)", (query,))
        elif stored[0] != query:
            have, want = json.loads(stored[0]), json.loads(query)
            key = next(key for key in sorted({*have, *want}) if have.get(key) != want.get(key))
            raise StoreMismatchError(
                f"{self.path} holds the results of another run: {key} is {have.get(key)!r} there and "
                f"{want.get(key)!r} here; name another folder."
            )
        run("COMMIT")

    def put(self, result: InstanceResult) -> None:
        """Writes one result, durably.

        Args:
            result: of an instance that has none yet.

        Raises:
            StoreError: it cannot be written.
        """
        details = json.dumps(dict(result.details))
        row = (result.number, result.network, result.property, result.limit, result.verdict, result.seconds, details)
        try:
            self._connection.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def results(self) -> dict[int, InstanceResult]:
        """All results by the instance's number."""
        try:
            rows = self._connection.execute("SELECT * FROM results ORDER BY number").fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return {
            number: InstanceResult(number, network, prop, limit, verdict, seconds, json.loads(details))
            for number, network, prop, limit, verdict, seconds, details in rows
        }

    def _explained(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if "locked" in text or "busy" in text:
            return StoreBusyError(f"another process writes to {self.path}; wait until it ends, or name another folder.")
        return StoreError(
            f"{self.path} cannot be used ({text}); free space on its disk, or move it away if it is damaged."
        )

    def close(self) -> None:
        """Gives the file free for others."""
        self._connection.close()

    def __enter__(self) -> InstanceStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
