"""MNIST and Fashion-MNIST: a writer of the format, written here from its description, is the reader's opposite."""

from __future__ import annotations

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ironbound.data import catalogue, load
from ironbound.errors import DataError, HashMismatchError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: np.ndarray) -> Path:
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / LABELS).write_bytes(idx(np.array([3, 1, 4, 1, 5], np.uint8)))
    return tmp_path


@pytest.fixture
def official(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the small files count as the official ones."""
    contents = (gzip.decompress((folder / f"{IMAGES}.gz").read_bytes()), (folder / LABELS).read_bytes())
    files = tuple(
        replace(file, hash=hashlib.sha256(content).hexdigest())
        for file, content in zip(catalogue.MNIST.files["test"], contents, strict=True)
    )
    entry = replace(catalogue.MNIST, files={"test": files})
    monkeypatch.setitem(catalogue.ENTRIES, "mnist", entry)
    return folder


def test_pixels_are_bytes_over_255_with_a_channel(folder: Path, pixels: np.ndarray) -> None:
    data = load("mnist", root=folder, verify=False)
    assert data.shape == (1, 28, 28)
    assert data.inputs.dtype == torch.float32
    np.testing.assert_array_equal(np.rint(data.inputs.numpy()[:, 0] * 255), pixels)
    assert float(data.inputs.max()) <= 1.0
    assert data.labels.tolist() == [3, 1, 4, 1, 5]
    assert "not compared" in data.notes[0]


def test_another_content_under_an_official_name_is_refused(folder: Path) -> None:
    with pytest.raises(HashMismatchError, match=IMAGES):
        load("mnist", root=folder)


def test_a_recompressed_copy_passes_and_a_changed_pixel_does_not(official: Path, pixels: np.ndarray) -> None:
    path = official / f"{IMAGES}.gz"
    before = path.read_bytes()
    assert load("mnist", root=official).notes == ()
    path.write_bytes(gzip.compress(idx(pixels), compresslevel=1, mtime=12345))
    assert path.read_bytes() != before
    assert load("mnist", root=official).notes == ()
    pixels[0, 0, 0] ^= 1
    path.write_bytes(gzip.compress(idx(pixels)))
    with pytest.raises(HashMismatchError):
        load("mnist", root=official)


def test_wrong_labels_are_refused_by_their_hash_too(official: Path) -> None:
    (official / LABELS).write_bytes(idx(np.array([3, 1, 4, 1, 6], np.uint8)))
    with pytest.raises(HashMismatchError, match=LABELS):
        load("mnist", root=official)


def test_the_limit_keeps_the_first_examples_and_is_noted(official: Path) -> None:
    whole, part = load("mnist", root=official), load("mnist", root=official, limit=2)
    torch.testing.assert_close(part.inputs, whole.inputs[:2])
    assert part.notes == ("the first 2 of 5 examples",)
    assert load("mnist", root=official, limit=99).notes == ()


def test_names_with_dots_are_found(folder: Path) -> None:
    (folder / LABELS).rename(folder / "t10k-labels.idx1-ubyte")
    assert len(load("mnist", root=folder, verify=False)) == 5


def damage_header_magic(content: bytes) -> bytes:
    return b"\x00\x00\x0d\x03" + content[4:]


DAMAGES = {
    "empty": (lambda content: b"", "is empty"),
    "empty gzip": (lambda content: gzip.compress(b""), "is empty"),
    "truncated gzip": (lambda content: gzip.compress(content)[:-40], "truncated or damaged"),
    "flipped gzip": (lambda content: gzip.compress(content)[:-8] + b"12345678", "truncated or damaged"),
    "truncated values": (lambda content: content[:-1], "is truncated"),
    "truncated header": (lambda content: content[:10], "truncated inside its header"),
    "too long": (lambda content: content + b"\x00", "longer than it should be"),
    "floats": (damage_header_magic, "magic number"),
    "labels for images": (lambda content: idx(np.zeros(5, np.uint8)), "magic number"),
    "sizes that overflow": (
        lambda content: content[:4] + struct.pack(">3I", 2**31, 2**31, 4) + content[16:],
        "is truncated",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verify", [True, False])
def test_damaged_images_end_in_one_sentence(official: Path, pixels: np.ndarray, damage: str, verify: bool) -> None:
    change, sentence = DAMAGES[damage]
    (official / f"{IMAGES}.gz").write_bytes(change(idx(pixels)))
    with pytest.raises(DataError, match=sentence) as caught:
        load("mnist", root=official, verify=verify)
    assert IMAGES in str(caught.value)


def test_other_counts_and_sizes_are_refused(folder: Path, pixels: np.ndarray) -> None:
    (folder / LABELS).write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"5 images.*4 labels"):
        load("mnist", root=folder, verify=False)
    (folder / LABELS).write_bytes(idx(np.zeros(5, np.uint8)))
    (folder / f"{IMAGES}.gz").write_bytes(idx(pixels[:, :20]))
    with pytest.raises(DataError, match="instead of 28 x 28"):
        load("mnist", root=folder, verify=False)


def test_labels_outside_the_classes_are_refused(folder: Path) -> None:
    (folder / LABELS).write_bytes(idx(np.array([0, 1, 2, 3, 10], np.uint8)))
    with pytest.raises(DataError, match="labels must lie in 0 … 9"):
        load("mnist", root=folder, verify=False)


def test_no_images_at_all_are_refused(folder: Path, pixels: np.ndarray) -> None:
    (folder / f"{IMAGES}.gz").write_bytes(idx(pixels[:0]))
    (folder / LABELS).write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="no examples"):
        load("mnist", root=folder, verify=False)


def test_a_missing_half_is_named(folder: Path) -> None:
    (folder / LABELS).unlink()
    with pytest.raises(DataError, match=f"lacks {LABELS}"):
        load("mnist", root=folder, verify=False)


@pytest.mark.shared
def test_the_official_files_pass(shared: Path) -> None:
    data = load("mnist", root=shared / "data" / "mnist")
    assert data.notes == ()
    assert data.labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]  # published counts
    with pytest.raises(HashMismatchError):  # the same names, but not Fashion-MNIST's content
        load("fashion-mnist", root=shared / "data" / "mnist")
