"""CIFAR-10: small batches in the official pickle layout; partial and unofficial folders load with a warning."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ironbound.data import DataWarning, catalogue, load
from ironbound.errors import DataError


def batch(seed: int, count: int = 4) -> dict[bytes, object]:
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, b"labels": [(seed + i) % 10 for i in range(count)], b"batch_label": b"training batch"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for seed in range(1, 6):
        (place / f"data_batch_{seed}").write_bytes(pickle.dumps(batch(seed), protocol=2))
    (place / "test_batch").write_bytes(pickle.dumps(batch(9), protocol=4))
    return tmp_path


@pytest.fixture
def official(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the small files count as the official ones."""
    place = folder / "cifar-10-batches-py"
    files = {
        split: tuple(replace(file, hash=hashlib.md5((place / file.name).read_bytes()).hexdigest()) for file in listed)
        for split, listed in catalogue.CIFAR10.files.items()
    }
    monkeypatch.setitem(catalogue.ENTRIES, "cifar10", replace(catalogue.CIFAR10, files=files))
    return folder


def test_channels_rows_and_batches_come_in_order(official: Path) -> None:
    data = load("cifar10", "train", root=official)
    assert data.notes == ()
    assert data.shape == (3, 32, 32)
    assert len(data) == 20
    raw = batch(2)[b"data"]
    assert isinstance(raw, np.ndarray)
    # the format: 1 024 red bytes row by row, then green, then blue; image 5 is the second of the second batch
    for channel, row, column in [(0, 0, 1), (1, 5, 0), (2, 31, 31)]:
        expected = raw[1, channel * 1024 + row * 32 + column] / 255
        assert float(data.inputs[5, channel, row, column]) == pytest.approx(expected, abs=1e-7)
    assert data.labels[:8].tolist() == [1, 2, 3, 4, 2, 3, 4, 5]


def test_an_unofficial_file_is_a_warning_and_a_note(folder: Path) -> None:
    with pytest.warns(DataWarning, match="test_batch is not the official file"):
        data = load("cifar10", root=folder)
    assert len(data.notes) == 1
    assert "4 of 10000 images" in data.notes[0]


def test_a_partial_folder_is_a_warning_and_a_note(official: Path) -> None:
    (official / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.warns(DataWarning, match="only 4 of the 5 train batches"):
        data = load("cifar10", "train", root=official)
    assert len(data) == 16
    assert data.notes == ("only 4 of the 5 train batches are there",)


def test_without_verification_this_is_noted(folder: Path) -> None:
    assert load("cifar10", root=folder, verify=False).notes == ("the files were not compared with the official hashes",)


MALFORMED = {
    "not a dict": [1, 2],
    "no data": {b"labels": [1]},
    "floats": {b"data": np.zeros((2, 3072)), b"labels": [0, 1]},
    "other width": {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
    "other count": {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
    "label not a number": {b"data": np.zeros((2, 3072), np.uint8), b"labels": ["a", "b"]},
    "label beyond": {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_batches_are_refused(folder: Path, kind: str) -> None:
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(MALFORMED[kind]))
    with pytest.raises(DataError):
        load("cifar10", root=folder, verify=False)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_batches_are_refused(folder: Path, keep: int) -> None:
    path = folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="empty" if keep == 0 else "not a whole pickle"):
        load("cifar10", root=folder, verify=False)


@pytest.mark.shared
def test_the_shared_partial_folder(shared: Path) -> None:
    with pytest.warns(DataWarning):
        data = load("cifar10", root=shared / "data" / "cifar10", limit=100)
    assert "9966 of 10000" in data.notes[0]
    assert "unverified" in data.notes[0]
    assert data.shape == (3, 32, 32)
