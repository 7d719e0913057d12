"""Open the network that a user names: an architecture with weights, an exported program, or a function of their own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ironbound.errors import InputError, IronboundError, WeightsError
from ironbound.models.architectures import build
from ironbound.models.weights import load_weights, require_finite


def open_model(
    arch: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    factory: str | None = None,
    **options: int,
) -> nn.Module:
    """Open a network for the command line.

    Args:
        arch: name of an architecture, see `build`; without weights it is untrained.
        weights: `.pt` or `.pth` state dict for `arch` or `factory`, read without executing code; or, alone, a `.pt2`
            program of `torch.export` or an `.onnx` file (also `.onnx.gz`). Like a factory, a program is code: open only
            programs that you trust; an ONNX file is not.
        factory: `path/module.py:function`; the file is executed, the function is called without arguments and returns
            a network.
        **options: of `arch`, see `build`.

    Returns:
        The network in evaluation mode, with finite weights.

    Raises:
        InputError: no network, or two, are named; or the factory fails.
        WeightsError: the weights cannot be read, do not fit, or hold NaN.
    """
    suffix = _suffix(weights)
    whole = suffix in (".pt2", ".onnx")
    if arch is not None and factory is not None:
        raise InputError("name an architecture or a factory, not both.")
    if whole and (arch is not None or factory is not None):
        raise InputError(f"{weights} is a whole network; name it without an architecture or a factory.")
    if options and arch is None:
        raise InputError(f"the options {', '.join(options)} belong to an architecture; name one.")
    if weights is not None and suffix == ".pt2":
        model = _exported(Path(weights))
    elif weights is not None and suffix == ".onnx":
        from ironbound.capture.onnx import load  # onnx is slow to import

        model = load(weights)
    elif arch is not None:
        model = build(arch, **options)
    elif factory is not None:
        model = _made(factory)
    elif weights is not None:
        raise InputError(f"{weights} holds only weights; name the architecture or the factory that they belong to.")
    else:
        raise InputError(
            "no network is named: give an architecture, a factory (module.py:function), an .onnx or a .pt2 file."
        )
    if weights is not None and not whole:
        load_weights(model, weights)
    require_finite(dict(model.state_dict()), weights or factory or arch)
    return model


def _suffix(weights: str | os.PathLike[str] | None) -> str:
    """The kind of a file by its name, a .gz at its end aside."""
    path = Path(weights) if weights is not None else Path()
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; name the .pt2 program.")
    try:
        with _weights_only():
            model = torch.export.load(path).module()
    except Exception as error:  # torch.export.load has no error type of its own
        kind = type(error).__name__
        raise WeightsError(f"{path} cannot be loaded as a torch.export program ({kind}: {error}).") from error
    for part in model.modules():  # an exported program has no modes: its layers are fixed, and .eval() is refused
        part.training = False
    return model


@contextmanager
def _weights_only() -> Generator[None, None, None]:
    """Keep `torch.export.load` from unpickling objects; it falls back to that for files of unknown content."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _made(factory: str) -> nn.Module:
    file, _, function = factory.rpartition(":")
    path = Path(file)
    if not file or not function.isidentifier() or not path.is_file():
        raise InputError(f"{factory!r} must be path/module.py:function, with a file that exists.")
    make = getattr(_module(path), function, None)
    if not callable(make):
        raise InputError(f"{path} has no function {function!r}.")
    try:
        model: object = make()
    except IronboundError:
        raise
    except Exception as error:
        raise InputError(f"{factory} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory} must return an nn.Module; it returned a {type(model).__name__}.")
    return model.eval()


def _module(path: Path) -> ModuleType:
    name = f"ironbound_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up by name
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import its neighbours, as a script may
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
