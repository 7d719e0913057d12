"""The restricted unpickler: arrays come back, and nothing a pickle names is ever called."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ironbound.data.pickles import loads
from ironbound.errors import DataError, UnsafeFileError

HERE = Path("some_file")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.dtype(">i2")])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_survive_every_protocol(protocol: int, dtype: Any, order: Any) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    found = loads(pickle.dumps({"data": array, "labels": [1, 2]}, protocol), HERE)
    found = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    np.testing.assert_array_equal(found["data"], array)
    assert (
        found["data"].dtype == pickle.loads(pickle.dumps(array, protocol)).dtype
    )  # NumPy may turn to the native order
    assert found["labels"] == [1, 2]


def test_a_pickle_of_python_2_is_read() -> None:
    # protocol 2 as Python 2 writes it: byte strings, the dtype's name and the array's buffer among them
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x03\x01\x02\xfftb."
    )
    np.testing.assert_array_equal(loads(content, HERE), np.array([1, 2, 255], np.uint8))


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "made_by_the_pickle"
    content = pickle.dumps({"data": Runs(os.mkdir, str(victim))})
    with pytest.raises(UnsafeFileError, match=r"mkdir.*could run code"):
        loads(content, HERE)
    assert not victim.exists()
    pickle.loads(content)  # the same bytes do run in the usual reader: the test tests something
    assert victim.exists()


@pytest.mark.parametrize(
    "function",
    [eval, getattr, np.load, np.memmap, np.zeros, pickle.loads, io.open, type],
    ids=lambda function: function.__name__,
)
def test_other_callables_are_refused(function: Any) -> None:
    with pytest.raises(UnsafeFileError):
        loads(pickle.dumps(Runs(function, "x")), HERE)


@pytest.mark.parametrize("name", [b"cnumpy\nndarray.__class__\n.", b"\x8c\x05numpy\x8c\x0edtype.__init__\x93."])
def test_dotted_names_do_not_reach_attributes(name: bytes) -> None:
    with pytest.raises(UnsafeFileError):
        loads(b"\x80\x04" + name, HERE)


def test_references_outside_the_file_are_refused() -> None:
    with pytest.raises(UnsafeFileError, match="outside itself"):
        loads(b"\x80\x02U\x01aQ.", HERE)


def test_attributes_written_by_a_pickle_do_not_outlive_it() -> None:
    # BUILD with a state dict writes attributes to what is on the stack, here to the stand-in for _reconstruct
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x04evilK\x01sb."
    touched = loads(content, HERE)
    fresh = loads(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", HERE)
    assert touched.__dict__
    assert not fresh.__dict__


def test_shared_dtypes_are_not_changed() -> None:
    before = np.dtype("u2").str
    loads(pickle.dumps(np.zeros(3, ">u2")), HERE)
    assert np.dtype("u2").str == before


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(DataError):
        loads(pickle.dumps(np.array([{}, []], dtype=object)), HERE)


def test_a_huge_array_by_name_is_refused_without_allocating() -> None:
    with pytest.raises(DataError):
        loads(pickle.dumps(Runs(np.ndarray, (2**50,))), HERE)
