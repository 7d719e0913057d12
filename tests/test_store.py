"""The store: transactions, one writer, one query, and what happens when the disk is full or the process dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ironbound.cascade_types import ShardResult
from ironbound.errors import StoreBusyError, StoreError, StoreMismatchError
from ironbound.store import Store, finished_examples

QUERY = {"eps": 0.1, "methods": ["dual"], "versions": {"torch": "2"}}


def make_result(n: int = 4, seed: int = 0) -> ShardResult:
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    margins[0, 1] = torch.nan
    return ShardResult(
        status=("falsified", *("certified",) * (n - 1)),
        method=("pgd", *("dual",) * (n - 1)),
        arithmetic=("float32",) * n,
        labels=torch.randint(0, 3, (n,), generator=generator),
        predictions=torch.randint(0, 3, (n,), generator=generator),
        margins=margins,
        adversarial={0: torch.rand(1, 2, 2, generator=generator)},
        seconds={"prediction": 0.25, "bounds": 1.5, "attack": 0.0},
    )


def same(one: ShardResult, other: ShardResult) -> bool:
    return (
        (one.status, one.method, one.arithmetic, one.seconds)
        == (other.status, other.method, other.arithmetic, other.seconds)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.predictions, other.predictions)
        and torch.allclose(one.margins, other.margins, rtol=0, atol=0, equal_nan=True)
        and one.adversarial.keys() == other.adversarial.keys()
        and all(torch.equal(point, other.adversarial[at]) for at, point in one.adversarial.items())
    )


def run_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as store:
        store.put((4, 8), make_result(seed=1))
        store.put((0, 4), make_result(seed=0))
    with Store.open(path, QUERY) as store:
        results = store.results()
        assert store.finished() == {(0, 4), (4, 8)}
    assert finished_examples(path) == 8
    assert list(results) == [(0, 4), (4, 8)]
    assert same(results[0, 4], make_result(seed=0))
    assert same(results[4, 8], make_result(seed=1))
    assert results[0, 4].margins[0, 1].isnan()


def test_a_shard_is_written_once_and_whole(tmp_path: Path) -> None:
    with Store.open(tmp_path / "results.sqlite", QUERY) as store:
        store.put((0, 4), make_result())
        with pytest.raises(StoreError):
            store.put((0, 4), make_result())
        with pytest.raises(StoreError):
            store.put((2, 6), make_result())  # rows 4 and 5 are new, 2 and 3 are not: none may stay
        with pytest.raises(StoreError, match="needs 3 results"):
            store.put((4, 7), make_result())
        rows = store._connection.execute("SELECT number FROM examples").fetchall()
    assert rows == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({**QUERY, "eps": 0.2}, "eps is 0.1 there and 0.2 here"),
        ({**QUERY, "methods": ["dual", "crown"]}, "methods is"),
        ({**QUERY, "versions": {"torch": "3"}}, "versions.torch is '2' there and '3' here"),
        ({"eps": 0.1, "methods": ["dual"]}, "versions.torch is '2' there and None here"),
    ],
)
def test_another_query_is_refused_by_its_first_difference(tmp_path: Path, query: dict, words: str) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as store:
        store.put((0, 4), make_result())
    with pytest.raises(StoreMismatchError, match=words):
        Store.open(path, query)
    with Store.open(path, QUERY) as store:
        assert store.finished() == {(0, 4)}


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as first:
        first.put((0, 4), make_result())
        with pytest.raises(StoreBusyError, match="another process writes to"):
            Store.open(path, QUERY)
        first.put((4, 8), make_result())
    with Store.open(path, QUERY) as second:
        assert len(second.finished()) == 2


HOLD = """
    import sys, time
    from ironbound.store import Store
    store = Store.open(sys.argv[1], {"eps": 1.0})
    print("open", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_another_process_ends_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with run_python(HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreBusyError):
            Store.open(path, {"eps": 1.0})
        process.send_signal(signal.SIGKILL)
        process.wait()
    Store.open(path, {"eps": 1.0}).close()


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as store:
        store.put((0, 4), make_result())
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match="free space on its disk and run the same command again"):
            store.put((4, 204), make_result(200))
        assert store.finished() == {(0, 4)}
    with Store.open(path, QUERY) as store:
        assert same(store.results()[0, 4], make_result())
        store.put((4, 204), make_result(200))


LIMITED = """
    import resource, sys
    sys.path.insert(0, sys.argv[2])
    from test_store import QUERY, make_result
    from ironbound.errors import StoreError
    from ironbound.store import Store
    store = Store.open(sys.argv[1], QUERY)
    store.put((0, 4), make_result())
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        store.put((4, 504), make_result(500))
    except StoreError as error:
        print(error)
"""


def test_the_system_refusing_to_write_keeps_what_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    output, errors = run_python(LIMITED, path, Path(__file__).parent).communicate(timeout=60)
    assert "free space" in output, errors
    with Store.open(path, QUERY) as store:
        assert store.finished() == {(0, 4)}
        assert same(store.results()[0, 4], make_result())


def test_an_interrupt_inside_a_write_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"

    class Interrupting:
        """A connection whose last statement before COMMIT is hit by Ctrl-C."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def execute(self, statement: str, *arguments: object) -> object:
            if statement.startswith("INSERT INTO shards"):
                raise KeyboardInterrupt
            return self.real.execute(statement, *arguments)

    with Store.open(path, QUERY) as store:
        real = store._connection
        store._connection = Interrupting(real)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            store.put((0, 4), make_result())
        store._connection = real
        store.put((0, 4), make_result())
        assert store.finished() == {(0, 4)}


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but more than a header's worth of text in it\n" * 30)
    with pytest.raises(StoreError, match="is not a store"):
        Store.open(text, QUERY)
    assert text.read_text().startswith("no database")
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (value TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="database of something else"):
        Store.open(foreign, QUERY)
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path, QUERY)
    with pytest.raises(StoreError, match="is not a folder"):
        Store.open(tmp_path / "absent" / "results.sqlite", QUERY)


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as store:
        for start in range(0, 400, 4):
            store.put((start, start + 4), make_result(seed=start))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8192] = os.urandom(8192)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"), Store.open(path, QUERY) as store:
        store.results()


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with Store.open(path, QUERY) as store:
        store._connection.execute("UPDATE meta SET value = 'ironbound-store/99' WHERE key = 'format'")
    with pytest.raises(StoreError, match="ironbound-store/99"):
        Store.open(path, QUERY)
