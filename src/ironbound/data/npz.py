"""User data in NumPy's `.npz`: inputs under `x`, `inputs` or `images`, labels under `y` or `labels`.

A file may hold both splits: then each key is preceded by the split, `test_x`, `test_y`. Class names may stand under
`classes`.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ironbound.data.content import Content
from ironbound.errors import DataError, UnsafeFileError

_INPUTS = ("x", "inputs", "images")
_LABELS = ("y", "labels")


def arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read inputs, labels and class names; objects are never unpickled.

    Args:
        path: the file.
        split: "train" or "test"; keys without a split serve for both.

    Returns:
        Inputs [n, *shape], labels [n], and the class names or ().

    Raises:
        DataError: the file is missing, empty, damaged, lacks a key, or its labels do not fit its inputs.
        UnsafeFileError: it holds pickled objects.
    """
    try:
        with path.open("rb") as file:  # opened here, so that it is closed even where NumPy stumbles over the content
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array; save inputs and labels together by np.savez.")
            inputs = stored[_key(stored.files, _INPUTS, split, path)]
            labels = stored[_key(stored.files, _LABELS, split, path)]
            classes = stored["classes"] if "classes" in stored.files else np.empty(0, str)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise UnsafeFileError(
                f"{path} holds pickled objects, which could run code; save plain arrays only."
            ) from error
        raise DataError(f"{path} cannot be read as a .npz file of plain arrays ({error}); save it again.") from error
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: labels must be one integer per input; they are {labels.dtype} {list(labels.shape)}.")
    if inputs.ndim < 2 or len(inputs) != len(labels):
        raise DataError(f"{path}: inputs {list(inputs.shape)} do not fit {len(labels)} labels.")
    return inputs, labels, tuple(str(name) for name in classes.reshape(-1))


def load(path: Path, split: str) -> Content:
    """Read a user's file.

    Args:
        path: the `.npz`.
        split: "train" or "test".

    Returns:
        Floating inputs as they stand; bytes are pixels, divided by 255, with a note.

    Raises:
        DataError: the file cannot be read, or its inputs are neither floats nor bytes.
    """
    inputs, labels, classes = arrays(path, split)
    if not classes:
        classes = tuple(str(index) for index in range(int(labels.max(initial=0)) + 1))
    if inputs.dtype == np.uint8:
        return Content(inputs, labels, classes, scale=255.0, notes=("bytes were read as pixels and divided by 255",))
    if inputs.dtype.kind != "f":
        raise DataError(
            f"{path}: inputs must be floats, or uint8 pixels; they are {inputs.dtype}: convert them to the units of ε."
        )
    return Content(inputs, labels, classes)


def _key(stored: list[str], names: tuple[str, ...], split: str, path: Path) -> str:
    wanted = [*(f"{split}_{name}" for name in names), *names]
    found = next((key for key in wanted if key in stored), None)
    if found is None:
        raise DataError(f"{path} needs one of the keys {', '.join(wanted)}; it has {', '.join(stored) or 'none'}.")
    return found
