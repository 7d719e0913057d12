"""The one function that users call: a name, or the path of an `.npz`, to a `Dataset`."""

from __future__ import annotations

import os
from pathlib import Path

from ironbound.data import cifar, digits, files, har, idx, npz, svhn
from ironbound.data.catalogue import ENTRIES
from ironbound.data.content import Content, assemble
from ironbound.data.dataset import Dataset
from ironbound.errors import InputError

_READERS = {"mnist": idx.load, "fashion-mnist": idx.load, "cifar10": cifar.load, "svhn": svhn.load}
_SPLITS = ("train", "test")


def names() -> tuple[str, ...]:
    """List the data sets that `load` knows by name.

    Returns:
        The names.
    """
    return ("digits", *ENTRIES, "har")


def load(
    name: str | os.PathLike[str],
    split: str = "test",
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    verify: bool = True,
) -> Dataset:
    """Load a data set in its own units; nothing is normalised.

    Args:
        name: one of `names()`, or the path of an `.npz` file.
        split: "train" or "test".
        root: folder with the official files, itself or in a sub-folder of the data set's name. Without it: the folder
            in the environment variable IRONBOUND_DATA, then the per-user cache, then a download; both are verified.
        limit: keep only the first examples.
        verify: compare MNIST and Fashion-MNIST with the official hashes, and refuse other content; for CIFAR-10 and
            SVHN a difference in local files is a warning and a note. Downloads are verified in any case.

    Returns:
        The data set; `notes` says where it is not the official one.

    Raises:
        InputError: an unknown name or split, or a limit below 1.
        DataError: files are missing, empty, truncated or malformed (HashMismatchError, UnsafeFileError: see there).
    """
    if split not in _SPLITS:
        raise InputError(f"split must be 'train' or 'test'; it is {split!r}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; it is {limit}.")
    if os.fspath(name).lower().endswith(".npz"):
        path = Path(root) / name if root is not None else Path(name)
        return assemble(npz.load(path, split), path.stem, split, limit, str(path))
    known = os.fspath(name).lower().replace("_", "-")
    if known not in names():
        listed = ", ".join(names())
        raise InputError(f"unknown data set {os.fspath(name)!r}; known are {listed}, and the path of an .npz file.")
    content, where = _content(known, split, root, verify)
    return assemble(content, known, split, limit, where)


def _content(name: str, split: str, root: str | os.PathLike[str] | None, verify: bool) -> tuple[Content, str]:
    if name == "digits":
        return digits.load(split), "scikit-learn's digits"
    if name == "har":
        path = har.find(root, split)
        return har.load(path, split), str(path)
    entry = ENTRIES[name]
    found, from_cache = files.find(entry, split, root)
    return _READERS[name](entry, found, split, verify or from_cache), str(found[0][1].parent)
