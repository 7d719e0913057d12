"""SVHN: a small MATLAB file in its layout."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from ironbound.data import DataWarning, catalogue, load
from ironbound.errors import DataError


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    path = folder / "test_32x32.mat"
    savemat(path, {"X": images, "y": labels}, do_compression=True)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)


LABELS = np.array([[1], [10], [9], [10]], np.uint8)


def test_axes_are_moved_and_ten_is_zero(tmp_path: Path, images: np.ndarray) -> None:
    write(tmp_path, images, LABELS)
    with pytest.warns(DataWarning, match="not the official file"):
        data = load("svhn", root=tmp_path)
    assert data.shape == (3, 32, 32)
    assert data.labels.tolist() == [1, 0, 9, 0]
    assert "4 images" in data.notes[0]
    for row, column, channel, image in [(0, 1, 2, 3), (31, 0, 0, 1), (5, 7, 1, 2)]:
        expected = images[row, column, channel, image] / 255
        assert float(data.inputs[image, channel, row, column]) == pytest.approx(expected, abs=1e-7)


def test_the_official_file_has_no_notes(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path, images, LABELS).read_bytes()
    file = replace(catalogue.SVHN.files["test"][0], hash=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(catalogue.ENTRIES, "svhn", replace(catalogue.SVHN, files={"test": (file,)}))
    assert load("svhn", root=tmp_path).notes == ()


def test_one_image_keeps_its_axis(tmp_path: Path, images: np.ndarray) -> None:
    write(tmp_path, images[..., 0], LABELS[:1])
    assert load("svhn", root=tmp_path, verify=False).inputs.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("keep", [0, 50, 200, -100])
def test_truncated_files_are_refused(tmp_path: Path, images: np.ndarray, keep: int) -> None:
    path = write(tmp_path, images, LABELS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"test_32x32\.mat"):
        load("svhn", root=tmp_path, verify=False)


@pytest.mark.parametrize("case", ["floats", "shape", "count", "zero", "eleven", "float labels", "no labels"])
def test_other_contents_are_refused(tmp_path: Path, images: np.ndarray, case: str) -> None:
    labels = LABELS.copy()
    contents: dict[str, dict[str, np.ndarray]] = {
        "floats": {"X": images / 255, "y": labels},
        "shape": {"X": images.transpose(3, 0, 1, 2), "y": labels},
        "count": {"X": images, "y": labels[:3]},
        "zero": {"X": images, "y": labels % 10},
        "eleven": {"X": images, "y": labels + 1},
        "float labels": {"X": images, "y": labels.astype(float)},
        "no labels": {"X": images},
    }
    savemat(tmp_path / "test_32x32.mat", contents[case])
    with pytest.raises(DataError, match="not an SVHN file"):
        load("svhn", root=tmp_path, verify=False)
