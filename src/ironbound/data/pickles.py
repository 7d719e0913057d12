"""Read pickled arrays without running code.

A pickle is a program: it names callables and calls them. This reader replaces the few names that a pickled NumPy array
needs by functions of its own and refuses all others, so that nothing outside this file is ever called. The functions
are made afresh for every file, so that a pickle that writes attributes to them changes nothing that outlives it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ironbound.errors import DataError, UnsafeFileError


def loads(content: bytes, where: Path) -> Any:
    """Unpickle built-in containers, numbers, strings and NumPy arrays of numbers.

    Args:
        content: the pickle.
        where: the file, for the message.

    Returns:
        The object; strings of Python 2 come back as bytes.

    Raises:
        UnsafeFileError: the pickle names anything else, which could run code.
        DataError: it is cut short or not a pickle.
    """
    try:
        return _ArrayUnpickler(content, where).load()
    except DataError:
        raise
    except Exception as error:  # a malformed pickle fails in many ways: all mean that the file is damaged
        raise DataError(f"{where} is not a whole pickle of arrays ({type(error).__name__}); get it again.") from error


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, where: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._where = where
        self._allowed = _safe_callables()

    def find_class(self, module_name: str, global_name: str, /) -> Callable[..., Any]:
        # numpy.core became numpy._core in NumPy 2
        allowed = self._allowed.get((module_name.replace("numpy._core", "numpy.core"), global_name))
        if allowed is None:
            raise UnsafeFileError(
                f"{self._where} is a pickle that asks for {module_name}.{global_name}, which could run code; "
                "it was not loaded: get the file from its official place."
            )
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafeFileError(f"{self._where} is a pickle that refers to objects outside itself; it was not loaded.")


def _safe_callables() -> dict[tuple[str, str], Callable[..., Any]]:
    def reconstruct(*_: Any) -> np.ndarray:
        return np.empty(0, np.uint8)  # the array's own __setstate__ then sets shape, dtype and values

    def ndarray(*_: Any) -> None:
        raise ValueError("an array is called by name")

    def dtype(code: Any, *_: Any) -> np.dtype:
        made = np.dtype(code.decode() if isinstance(code, bytes) else code)
        if made.kind not in "biuf":
            raise ValueError(f"an array of {made}, not of numbers")
        return np.dtype(made, copy=True)  # its state is set next; the shared one must not change

    def frombuffer(buffer: Any, kind: np.dtype, shape: Any, order: str, *_: Any) -> np.ndarray:
        return np.frombuffer(buffer, kind).reshape(shape, order=order)  # type: ignore[call-overload]

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise ValueError(f"bytes written as {encoding}")
        return text.encode("latin1")

    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): encode,
    }
