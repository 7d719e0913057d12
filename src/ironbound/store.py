"""Results on disk: one SQLite file per query, written shard by shard, each in one transaction."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch

from ironbound.cascade_types import ShardResult
from ironbound.errors import StoreBusyError, StoreError, StoreMismatchError

Shard = tuple[int, int]
"""First example of a shard, and the one after its last."""

_SHARDS = "CREATE TABLE IF NOT EXISTS shards (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, seconds TEXT NOT NULL)"
_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


class _Result(Protocol):
    """The results of a shard: a dataclass that has a length and says what its stages took."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seconds(self) -> Mapping[str, float]: ...

    def __len__(self) -> int: ...


Result = TypeVar("Result", bound=_Result)


@dataclass(frozen=True)
class Layout(Generic[Result]):
    """How results of one kind are laid out in the table `examples`.

    Attributes:
        format: name and version of the kind; a store of another one is refused.
        columns: SQL types of the columns beside the example's number, by their names.
        rows: what the columns hold, a tuple per example of a shard.
        result: a shard's results from its first example, its columns and its seconds.
    """

    format: str
    columns: Mapping[str, str]
    rows: Callable[[Result], list[tuple[Any, ...]]]
    result: Callable[[int, Sequence[tuple[Any, ...]], dict[str, float]], Result]


def _certified_rows(result: ShardResult) -> list[tuple[Any, ...]]:
    points = [result.adversarial.get(at) for at in range(len(result))]
    return list(
        zip(
            result.labels.tolist(),
            result.predictions.tolist(),
            result.status,
            result.method,
            result.arithmetic,
            map(pack, result.margins),
            (None if point is None else pack(point) for point in points),
            strict=True,
        )
    )


def _certified(start: int, columns: Sequence[tuple[Any, ...]], seconds: dict[str, float]) -> ShardResult:
    labels, predictions, status, method, arithmetic, margins, points = columns
    return ShardResult(
        status=status,
        method=method,
        arithmetic=arithmetic,
        labels=torch.tensor(labels),
        predictions=torch.tensor(predictions),
        margins=torch.stack([unpack(margin) for margin in margins]),
        adversarial={at: unpack(point) for at, point in enumerate(points) if point is not None},
        seconds=seconds,
    )


CERTIFICATION = Layout(
    "ironbound-store/2",
    {
        "label": "INTEGER NOT NULL",
        "prediction": "INTEGER NOT NULL",
        "status": "TEXT NOT NULL",
        "method": "TEXT NOT NULL",
        "arithmetic": "TEXT NOT NULL",
        "margins": "BLOB NOT NULL",
        "adversarial": "BLOB",
    },
    _certified_rows,
    _certified,
)


class Store(Generic[Result]):
    """The results of one query, in a file that one process writes at a time.

    Tables: `shards` (which ranges are finished), `examples` (a row each, with the columns of the layout; tensors are
    .npy bytes), `meta` (the format and the query as JSON).

    The lock is SQLite's own, held while the store is open; the system releases it when the process ends, or is killed.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, layout: Layout[Result]) -> None:
        self.path, self.layout = path, layout
        self._connection = connection

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        query: Mapping[str, Any],
        layout: Layout[Result] = CERTIFICATION,
    ) -> Store[Result]:
        """Opens the store of a query, or makes it.

        Args:
            path: of the file; its folder exists.
            query: everything that the results depend on, as plain data.
            layout: of the results; those of `certify` unless others are named.

        Returns:
            The store, to be closed, or used in a `with` statement.

        Raises:
            StoreBusyError: another process has it open.
            StoreMismatchError: it holds the results of another query; the message names the first difference.
            StoreError: it cannot be made, read or written, or is something else.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise StoreError(f"{path.parent} is not a folder; make it, or name the store elsewhere.")
        if path.is_dir():
            raise StoreError(f"{path} is a folder; name a file for the store.")
        connection: sqlite3.Connection | None = None
        try:
            with _translated(path):
                connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN EXCLUSIVE")
                _prepare(path, connection, layout, json.loads(json.dumps(query)))
                connection.execute("COMMIT")
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return cls(path, connection, layout)

    def finished(self) -> set[Shard]:
        """The shards whose results are on disk."""
        with _translated(self.path):
            return set(self._connection.execute("SELECT start, stop FROM shards"))

    def put(self, shard: Shard, result: Result) -> None:
        """Writes a shard's results: all of them, or on any failure none.

        Args:
            shard: its range.
            result: its results.

        Raises:
            StoreError: the shard is finished already, or the disk is full.
        """
        start, stop = shard
        if stop - start != len(result):
            raise StoreError(f"shard {start} to {stop} needs {stop - start} results, got {len(result)}.")
        rows = [(start + at, *row) for at, row in enumerate(self.layout.rows(result))]
        insert = f"INSERT INTO examples VALUES ({', '.join('?' * (1 + len(self.layout.columns)))})"
        with _translated(self.path):
            self._connection.execute("BEGIN")
            try:
                self._connection.executemany(insert, rows)
                self._connection.execute(
                    "INSERT INTO shards VALUES (?, ?, ?)", (start, stop, json.dumps(dict(result.seconds)))
                )
                self._connection.execute("COMMIT")
            except BaseException:  # an interrupt too: a half-written shard must not stay open
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def results(self) -> dict[Shard, Result]:
        """Reads everything that is finished.

        Returns:
            The finished shards with their results, in order.

        Raises:
            StoreError: the file is damaged.
        """
        with _translated(self.path):
            shards = self._connection.execute("SELECT start, stop, seconds FROM shards ORDER BY start").fetchall()
            return {(start, stop): self._shard(start, stop, json.loads(seconds)) for start, stop, seconds in shards}

    def _shard(self, start: int, stop: int, seconds: dict[str, float]) -> Result:
        columns = ", ".join(self.layout.columns)
        query = f"SELECT {columns} FROM examples WHERE number >= ? AND number < ? ORDER BY number"
        rows = self._connection.execute(query, (start, stop)).fetchall()
        if len(rows) != stop - start:
            raise StoreError(
                f"{self.path} is damaged: shard {start} to {stop} has {len(rows)} rows; move the file away."
            )
        return self.layout.result(start, list(zip(*rows, strict=True)), seconds)

    def close(self) -> None:
        """Gives the file free for others."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finished_examples(path: str | os.PathLike[str]) -> int:
    """Counts the examples whose results are in a store, of whatever query.

    Args:
        path: of the file.

    Returns:
        The number.

    Raises:
        StoreError: it cannot be read.
    """
    path = Path(path)
    with _translated(path), closing(sqlite3.connect(path, timeout=0.0)) as connection:
        (count,) = connection.execute("SELECT coalesce(sum(stop - start), 0) FROM shards").fetchone()
    return count


def _prepare(path: Path, connection: sqlite3.Connection, layout: Layout, query: dict[str, Any]) -> None:
    """Makes the tables, or checks that they are those of this query."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "meta" not in tables:
        raise StoreError(f"{path} is a database of something else; name another file for the store.")
    connection.execute(_META)
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if not meta:
        columns = ", ".join(f"{name} {kind}" for name, kind in layout.columns.items())
        connection.execute(_SHARDS)
        connection.execute(f"CREATE TABLE IF NOT EXISTS examples (number INTEGER PRIMARY KEY, {columns})")
        rows = [("format", layout.format), ("query", json.dumps(query))]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        return
    if meta.get("format") != layout.format:
        raise StoreError(
            f"{path} has the format {meta.get('format')!r}, not {layout.format!r}; name another file for the store."
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise StoreError(f"{path} is damaged; move it away, and the run starts again.")
    _compare(path, json.loads(meta["query"]), query)


def _compare(path: Path, stored: dict[str, Any], query: dict[str, Any]) -> None:
    have, want = dict(_flat(stored)), dict(_flat(query))
    for key in [*want, *(key for key in have if key not in want)]:
        if have.get(key) != want.get(key):
            raise StoreMismatchError(
                f"{path} holds the results of another query: {key} is {have.get(key)!r} there and "
                f"{want.get(key)!r} here; name another file for the store."
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def pack(tensor: torch.Tensor) -> bytes:
    """A tensor as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, tensor.detach().cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> torch.Tensor:
    """The tensor of `pack`."""
    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))


@contextmanager
def _translated(path: Path) -> Generator[None, None, None]:
    """Turns what SQLite and the system raise into one sentence that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, EOFError) as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise StoreBusyError(
                f"another process writes to {path}; wait until it ends, or name another file."
            ) from error
        if "full" in text or "disk I/O" in text or isinstance(error, OSError):
            raise StoreError(
                f"{path} cannot be written ({text}); free space on its disk and run the same command again: "
                "finished results are kept."
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise StoreError(f"{path} cannot be opened for writing ({text}); check its permissions.") from error
        raise StoreError(
            f"{path} is damaged, or is not a store ({text}); move it away, and the run starts again."
        ) from error
