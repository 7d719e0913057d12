"""Checkpoints: files that are whole or not there, read without running code."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ironbound.errors import TrainingError

FORMAT = "ironbound-checkpoint/1"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that at any moment, also of a power cut, the old or the new content is there as a whole.

    Args:
        path: of the file.
        write: fills the open file.

    Raises:
        TrainingError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        with contextlib.suppress(OSError):  # a folder cannot be opened on every system
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name is on the disk, too
            finally:
                os.close(folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise TrainingError(f"{path} cannot be written: {str(error).splitlines()[0]}.") from error


def write_text(path: Path, text: str) -> None:
    """Writes text, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain data."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    write_whole(path, lambda file: file.write(content.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; no code of it runs.

    Args:
        path: of the file.

    Returns:
        What was saved.

    Raises:
        TrainingError: it is no whole checkpoint of this version.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of strange pickles, which are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(f"the checkpoint {path} cannot be read ({type(error).__name__}); begin again.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path} is no checkpoint of this version ({FORMAT}); begin again in a new folder.")
    return state


def rng_state() -> dict[str, Any]:
    """The state of every global generator: torch's, NumPy's and Python's (a network of yours may draw from any)."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), following],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """The reverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))


@contextmanager
def isolated_rng(seed: int) -> Generator[None, None, None]:
    """Seeds the global generators, and restores them at the end.

    Args:
        seed: of all of them.

    Yields:
        Nothing.
    """
    before = rng_state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_rng_state(before)
