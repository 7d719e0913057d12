"""UCI HAR: the official text layout and the raw windows, which are told apart in the notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ironbound.data import load
from ironbound.errors import DataError


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (5, 561))


@pytest.fixture
def official(tmp_path: Path, features: np.ndarray) -> Path:
    place = tmp_path / "UCI HAR Dataset" / "test"
    place.mkdir(parents=True)
    np.savetxt(place / "X_test.txt", features, fmt=" %.8e")
    np.savetxt(place / "y_test.txt", [1, 6, 2, 3, 5], fmt="%d")
    return tmp_path


def test_official_layout(official: Path, features: np.ndarray) -> None:
    data = load("har", root=official)
    np.testing.assert_allclose(data.inputs.numpy(), features, atol=1e-6)
    assert data.labels.tolist() == [0, 5, 1, 2, 4]
    assert data.classes[0] == "walking"
    assert data.classes[5] == "laying"
    assert data.notes == ()
    assert load("har", root=official / "UCI HAR Dataset").digest == data.digest


def test_windows_are_marked_as_not_the_features(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).normal(size=(3, 9, 128)).astype(np.float16)
    labels = np.array([0, 5, 2], np.uint8)
    np.savez(tmp_path / "har_windows.npz", test_x=windows, test_y=labels, train_x=windows[:1], train_y=labels[:1])
    data = load("har", root=tmp_path)
    np.testing.assert_array_equal(data.inputs.numpy(), windows.astype(np.float32))
    assert "not the 561 features" in data.notes[0]
    assert len(load("har", "train", root=tmp_path)) == 1


def test_the_official_features_are_preferred(official: Path) -> None:
    np.savez(official / "har_windows.npz", test_x=np.zeros((1, 9, 128), np.float16), test_y=np.zeros(1, np.uint8))
    assert load("har", root=official).shape == (561,)


def test_windows_of_another_shape_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "har_windows.npz", test_x=np.zeros((1, 9, 64)), test_y=np.zeros(1, np.int64))
    with pytest.raises(DataError, match="9 x 128"):
        load("har", root=tmp_path)


def test_absent_data_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="name the folder"):
        load("har", root=tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IRONBOUND_DATA", raising=False)
    with pytest.raises(DataError, match="not downloaded automatically"):
        load("har")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("X_test.txt", "", "empty"),
        ("X_test.txt", "\n  \n", "no rows"),
        ("X_test.txt", "1 2 3\n", "561 columns"),
        ("X_test.txt", " ".join(["0"] * 561) + "\n" + " ".join(["0"] * 300), "not a whole table"),
        ("X_test.txt", " ".join(["a"] * 561), "not a whole table"),
        ("X_test.txt", "\n".join([" ".join(["nan"] * 561)] * 5), "NaN"),
        ("X_test.txt", " ".join(["0"] * 561), "do not fit"),
        ("y_test.txt", "1\n2\n3\n4\n7\n", "labels 1 … 6"),
        ("y_test.txt", "1\n2\n3\n4\n1.5\n", "labels 1 … 6"),
    ],
)
def test_malformed_tables_are_refused(official: Path, name: str, content: str, sentence: str) -> None:
    (official / "UCI HAR Dataset" / "test" / name).write_text(content)
    with pytest.raises(DataError, match=sentence):
        load("har", root=official)


def test_missing_labels_are_named(official: Path) -> None:
    (official / "UCI HAR Dataset" / "test" / "y_test.txt").unlink()
    with pytest.raises(DataError, match=r"y_test\.txt"):
        load("har", root=official)


@pytest.mark.shared
def test_shared_windows(shared: Path) -> None:
    data = load("har", root=shared / "data" / "har-raw")
    assert len(data) == 2947
    assert data.shape == (9, 128)
