"""Load released weights without executing code, and say exactly what does not fit."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ironbound.errors import WeightsError

Module = TypeVar("Module", bound=nn.Module)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def load_weights(model: Module, path: str | os.PathLike[str]) -> Module:
    """Load a state dict into a network. The file is read with `weights_only`: no code of it runs.

    Understood: a plain state dict, one nested under `state_dict` (also as a list of one, as some releases are), and
    keys that all carry a prefix such as `module.`.

    Args:
        model: the network, changed in place.
        path: `.pt` or `.pth` file.

    Returns:
        The same network, in evaluation mode.

    Raises:
        WeightsError: the file is missing, truncated, holds more than tensors, does not fit the network, or holds NaN.
    """
    state = _state_dict(_read(Path(path)), Path(path))
    expected = model.state_dict()
    state = _without_prefix(state, expected)
    _check(state, expected, Path(path))
    model.load_state_dict(state)
    return model.eval()


def require_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Refuse weights that hold NaN or infinity: nothing proved with them would mean anything.

    Args:
        tensors: name → tensor.
        where: the file or network, for the message.

    Raises:
        WeightsError: names the tensors that are not finite.
    """
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    bad = [name for name, value in floating.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise WeightsError(f"{where} holds NaN or infinity in {', '.join(bad)}; train or export the network again.")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; name the .pt or .pth file that holds the weights.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty; get it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged, and was not loaded because it could run code; "
            "save model.state_dict() alone."
        ) from error
    except Exception as error:  # torch's reader has no error type of its own: bad bytes also end in an IndexError
        raise WeightsError(f"{path} is not a whole file of weights ({type(error).__name__}); get it again.") from error


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        wrapped = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), (Mapping, list, tuple))), None)
        if wrapped is not None:
            return _state_dict(wrapped, path)
        tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors and len(tensors) == len(loaded):
            return tensors
    if isinstance(loaded, (list, tuple)):
        if len(loaded) == 1:
            return _state_dict(loaded[0], path)
        raise WeightsError(f"{path} holds {len(loaded)} networks (a cascade); save the state dict of one of them.")
    raise WeightsError(f"{path} holds no state dict (a mapping from names to tensors); save model.state_dict().")


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip a prefix that all keys share, such as that of `DataParallel`, if the keys then are the expected ones."""
    common = os.path.commonprefix(list(state))
    for end in (index + 1 for index, letter in enumerate(common) if letter == "."):
        stripped = {key[end:]: value for key, value in state.items()}
        if state.keys() != expected.keys() and stripped.keys() == expected.keys():
            return stripped
    return state


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    problems = []
    if missing := [key for key in expected if key not in state]:
        problems.append(f"missing: {', '.join(missing)}")
    if unexpected := [key for key in state if key not in expected]:
        problems.append(f"unexpected: {', '.join(unexpected)}")
    for key in (key for key in expected if key in state):
        found, wanted = state[key], expected[key]
        if found.shape != wanted.shape:
            problems.append(f"{key} is {list(found.shape)} instead of {list(wanted.shape)}")
        elif found.is_floating_point() != wanted.is_floating_point() or found.layout != torch.strided:
            problems.append(f"{key} is {found.dtype}, {found.layout} instead of {wanted.dtype}")
    if problems:
        raise WeightsError(f"{path} does not fit the architecture: {'; '.join(problems)}.")
    require_finite(state, path)
