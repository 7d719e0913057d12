"""The IDX format of MNIST and Fashion-MNIST: two zero bytes, a type code, the number of axes, the sizes, the values."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from ironbound.data.catalogue import Entry, File
from ironbound.data.content import Content
from ironbound.data.files import read, require_official
from ironbound.errors import DataError

_UNSIGNED_BYTE = 0x08
_PIXELS = 28


def parse(content: bytes, axes: int, where: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Args:
        content: decompressed bytes.
        axes: how many axes the file must have: 3 for images, 1 for labels.
        where: the file, for the message.

    Returns:
        uint8 array of the sizes that the header states.

    Raises:
        DataError: another magic number, or more or fewer values than the header states.
    """
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, _UNSIGNED_BYTE, axes)):
        raise DataError(
            f"{where} does not start with the IDX magic number 0x{_UNSIGNED_BYTE:04x}{axes:04x} of "
            f"{'images' if axes == 3 else 'labels'} but with 0x{content[:4].hex()}; is it the right file?"
        )
    if len(content) < start:
        raise DataError(f"{where} is truncated inside its header; get it again.")
    sizes = struct.unpack(f">{axes}I", content[4:start])
    expected = math.prod(sizes)  # Python integers: sizes made up to overflow do not wrap round
    if len(content) - start != expected:
        problem = "truncated" if len(content) - start < expected else "longer than it should be"
        raise DataError(
            f"{where} is {problem}: its header states {' x '.join(map(str, sizes))} = {expected} bytes "
            f"and {len(content) - start} follow; get it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def load(entry: Entry, found: list[tuple[File, Path]], split: str, verify: bool) -> Content:
    """Read images and labels.

    Args:
        entry: the catalogue's data set.
        found: the files with their paths, images first.
        split: "train" or "test".
        verify: refuse content that is not the published one.

    Returns:
        uint8 inputs [n, 1, 28, 28] to be divided by 255, and labels [n].

    Raises:
        DataError: a file is missing or malformed, or images and labels do not fit each other.
        HashMismatchError: a well-formed file with other content than the official one.
    """
    if len(found) < 2:
        missing = next(file.name for file in entry.files[split] if file not in [file for file, _ in found])
        raise DataError(f"{found[0][1].parent} lacks {missing}, which belongs to {found[0][0].name}; add it.")
    (image_file, image_path), (label_file, label_path) = found
    image_bytes, label_bytes = read(image_path), read(label_path)
    images, labels = parse(image_bytes, 3, image_path), parse(label_bytes, 1, label_path)
    if verify:  # after parsing: "truncated" says more than "another hash"
        require_official(image_bytes, image_file, image_path)
        require_official(label_bytes, label_file, label_path)
    if len(images) != len(labels):
        raise DataError(f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels; they do not fit.")
    if images.shape[1:] != (_PIXELS, _PIXELS):
        raise DataError(f"{image_path} has images of {images.shape[1]} x {images.shape[2]} pixels instead of 28 x 28.")
    notes = () if verify else ("the files were not compared with the official hashes",)
    return Content(images[:, None], labels, entry.classes, scale=255.0, notes=notes)
