"""Open an ONNX file, compressed or not, and check what must hold before any of its nodes is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ironbound.data.files import read
from ironbound.errors import CaptureError, DataError, UnsupportedOperatorError, WeightsError

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7  # before it, operators broadcast by attributes of their own
STANDARD = ("", "ai.onnx")
_DTYPES = {1: torch.float32, 11: torch.float64}


@dataclass(frozen=True)
class File:
    """The content of an ONNX file.

    Attributes:
        nodes: in the file's order, which is topological.
        constants: the initializers by name.
        opset: version of the standard operator set.
        input: name of the one input.
        output: name of the one output.
        shape: shape of the input, without the batch axis.
        dtype: of the input, float32 or float64.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, Tensor]
    opset: int
    input: str
    output: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_file(path: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> File:
    """Read an ONNX file.

    Args:
        path: a .onnx file, or one compressed by gzip.
        input_shape: shape of an input without the batch axis, for files that leave extents open.

    Returns:
        Its content.

    Raises:
        WeightsError: the file is missing, truncated or malformed, or its external data is.
        CaptureError: it has several inputs or outputs, an open shape, a fixed batch size, or no floating-point input.
        UnsupportedOperatorError: its operator set is unknown.
    """
    path = Path(path)
    model = _inlined(_parsed(path), path)
    opset = _opset(model, path)
    _load_external(model, path)
    constants = _initializers(model.graph, path)
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    for values, kind in ((inputs, "inputs"), (outputs, "outputs")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise CaptureError(f"{path} has {len(values)} {kind} ({names}); a network has one input and one output.")
    shape, dtype = _input_type(inputs[0], path, input_shape)
    return File(list(model.graph.node), constants, opset, inputs[0].name, outputs[0].name, shape, dtype)


def _parsed(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = read(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise WeightsError(f"{path} is no ONNX file, or is truncated ({error}); get it again.") from error
    if not model.HasField("graph") or not model.graph.node or not model.opset_import:
        raise WeightsError(f"{path} holds no network: it has no graph, no node or no operator set; export it again.")
    if not all(isinstance(name, str) for name in _names(model.graph)):  # bytes where they are no UTF-8
        raise WeightsError(f"{path} holds a name that is no text; the file is damaged, get it again.")
    return model


def _names(graph: onnx.GraphProto) -> Iterator[Any]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _inlined(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Puts local functions, as newer exporters write them, in place of their calls."""
    if not model.functions:
        return model
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the library's own errors have no common type
        raise WeightsError(f"{path}: its functions cannot be put in place of their calls ({_first(error)}).") from error


def _opset(model: onnx.ModelProto, path: Path) -> int:
    from onnx.defs import onnx_opset_version

    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    newest = onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        found = ", ".join(map(str, versions)) or "none"
        raise UnsupportedOperatorError(
            f"{path} uses the standard operator set {found}; versions {OLDEST_OPSET} to {newest} are read: export it "
            "with one of them, or install a newer onnx package."
        )
    return versions[0]


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    from onnx import external_data_helper as external

    if not any(external.uses_external_data(tensor) for tensor in model.graph.initializer):
        return
    try:
        external.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # missing, outside the folder, too short: the library's own errors have no common type
        raise WeightsError(
            f"{path} keeps weights in another file that cannot be read ({_first(error)}); put it beside the network."
        ) from error


def _initializers(graph: onnx.GraphProto, path: Path) -> dict[str, Tensor]:
    if graph.sparse_initializer:
        raise WeightsError(f"{path} holds sparse tensors, which are not supported; export it with dense ones.")
    return {tensor.name: tensor_of(tensor, f"{path}: the tensor {tensor.name!r}") for tensor in graph.initializer}


def tensor_of(proto: onnx.TensorProto, what: str) -> Tensor:
    """The content of a stored tensor.

    Args:
        proto: the stored tensor.
        what: its name in error messages.

    Returns:
        A tensor of its own.

    Raises:
        WeightsError: its bytes do not fit its shape, or its type has no equal in PyTorch.
    """
    from onnx import numpy_helper

    try:
        return from_numpy(numpy_helper.to_array(proto))
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{what} cannot be read ({_first(error)}); export the network again.") from error


def from_numpy(array: Any) -> Tensor:
    """A tensor with the content of an array, not sharing its memory."""
    return torch.from_numpy(np.array(array, copy=True))


def _input_type(
    value: onnx.ValueInfoProto, path: Path, given: tuple[int, ...] | None
) -> tuple[tuple[int, ...], torch.dtype]:
    kind = value.type.tensor_type
    name = value.name
    if kind.elem_type not in _DTYPES:
        raise CaptureError(f"{path}: the input {name!r} is not of type float or double; export the network in float32.")
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    labels = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    text = f"[{', '.join(labels)}]"
    if not kind.HasField("shape") and given is not None:
        dims = [-1, *(-1 for _ in given)]
    if len(dims) < 2 or dims[0] > 1:
        raise CaptureError(
            f"{path}: the input {name!r} has the shape {text}; its first axis must be the batch, of size 1 or open: "
            "export the network for one example, with a batch axis."
        )
    if given is not None:
        pairs = list(zip(dims[1:], given, strict=False))
        if len(given) != len(dims) - 1 or any(have > 0 and have != want for have, want in pairs):
            raise CaptureError(f"{path}: the input {name!r} has the shape {text}, which {list(given)} does not fit.")
        dims[1:] = given
    if any(extent < 1 for extent in dims[1:]):
        raise CaptureError(
            f"{path}: the input {name!r} has the shape {text}, open beyond its batch axis; give input_shape."
        )
    return tuple(dims[1:]), _DTYPES[kind.elem_type]


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
