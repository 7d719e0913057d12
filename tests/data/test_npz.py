"""User data as `.npz`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ironbound.data import load
from ironbound.errors import DataError, UnsafeFileError

VALUES = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
NUMBERS = np.array([0, 2, 1, 2])


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("inputs", ["x", "inputs", "images", "test_x"])
@pytest.mark.parametrize("labels", ["y", "labels", "test_labels"])
def test_every_key_is_understood(tmp_path: Path, inputs: str, labels: str) -> None:
    data = load(save(tmp_path, **{inputs: VALUES, labels: NUMBERS}))
    np.testing.assert_array_equal(data.inputs.numpy(), VALUES)
    assert data.labels.tolist() == NUMBERS.tolist()
    assert (data.name, data.classes, data.notes) == ("mine", ("0", "1", "2"), ())


def test_splits_are_told_apart(tmp_path: Path) -> None:
    path = save(tmp_path, train_x=VALUES, train_y=NUMBERS, test_x=VALUES[:1], test_y=NUMBERS[:1])
    assert (len(load(path, "train")), len(load(path, "test"))) == (4, 1)


def test_floats_keep_their_units_and_bytes_become_pixels(tmp_path: Path) -> None:
    floats = load(save(tmp_path, x=VALUES.astype(np.float64) * 300, y=NUMBERS))
    np.testing.assert_allclose(floats.inputs.numpy(), VALUES * 300, rtol=1e-6)
    pixels = load(save(tmp_path, x=np.array([[0, 255], [51, 102]], np.uint8), y=NUMBERS[:2]))
    np.testing.assert_allclose(pixels.inputs.numpy(), [[0, 1], [0.2, 0.4]], rtol=1e-6)
    assert "divided by 255" in pixels.notes[0]


def test_class_names_and_a_root(tmp_path: Path) -> None:
    save(tmp_path, x=VALUES, y=NUMBERS, classes=np.array(["cat", "dog", "owl"]))
    assert load("mine.npz", root=tmp_path).classes == ("cat", "dog", "owl")


def spoiled(value: float) -> np.ndarray:
    values = VALUES.copy()
    values[1, 2] = value
    return values


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"x": spoiled(np.nan), "y": NUMBERS}, "first is number 1"),
    "infinity": ({"x": spoiled(np.inf), "y": NUMBERS}, "infinity"),
    "beyond float32": ({"x": np.full((4, 3), 1e300), "y": NUMBERS}, "infinity"),
    "integers": ({"x": NUMBERS[:, None], "y": NUMBERS}, "floats, or uint8"),
    "complex": ({"x": VALUES + 1j, "y": NUMBERS}, "floats, or uint8"),
    "count": ({"x": VALUES[:3], "y": NUMBERS}, "do not fit"),
    "no batch": ({"x": VALUES[:, 0], "y": NUMBERS}, "do not fit"),
    "float labels": ({"x": VALUES, "y": NUMBERS / 2}, "one integer per input"),
    "one-hot labels": ({"x": VALUES, "y": np.eye(4, dtype=int)}, "one integer per input"),
    "negative label": ({"x": VALUES, "y": NUMBERS - 1}, "labels must lie in"),
    "label beyond": ({"x": VALUES, "y": NUMBERS, "classes": np.array(["cat", "dog"])}, "labels must lie in 0 … 1"),
    "no labels": ({"x": VALUES}, "needs one of the keys test_y"),
    "no inputs": ({"z": VALUES, "y": NUMBERS}, "it has z, y"),
    "no examples": ({"x": VALUES[:0], "y": NUMBERS[:0]}, "no examples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    arrays, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence) as caught:
        load(save(tmp_path, **arrays))
    assert "mine.npz" in str(caught.value)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.array([{}, []], dtype=object), y=NUMBERS[:2])
    with pytest.raises(UnsafeFileError, match="could run code"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not a zip", pickle.dumps([1])])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.npz"):
        load(tmp_path / "mine.npz")


def test_truncated_and_missing_files_and_single_arrays_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=VALUES, y=NUMBERS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="save it again"):
        load(path)
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "absent.npz")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, VALUES)
    with pytest.raises(DataError, match="single array"):
        load(tmp_path / "single.npz")
