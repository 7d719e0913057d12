"""Networks and inputs as npz files of plain arrays: read without unpickling, hashed, turned into nodes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile

import numpy as np

from . import layers
from .layers import CertificateError, Node, need

ARRAY_LIMIT = 1 << 31  # bytes


def arrays_of(path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name: nothing is unpickled, sizes are checked before memory is taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            need(sum(member.file_size for member in members) <= ARRAY_LIMIT, f"{path} unpacks to too much")
            names = [member.filename.removesuffix(".npy") for member in members]
            need(len(set(names)) == len(names), f"{path} names an array twice")
            return {name: array_of(archive.read(member)) for name, member in zip(names, members, strict=True)}
    except (OSError, CertificateError):
        raise
    except Exception as error:
        raise CertificateError(f"{path} is no npz file of plain arrays: {error!r}") from error


def array_of(data: bytes) -> np.ndarray:
    """The array in the bytes of an npy file."""
    file = io.BytesIO(data)
    need(np.lib.format.read_magic(file) == (1, 0), "the version of an array is not 1.0")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    need(dtype.str in ("<f2", "<f4", "<f8", "<i8", "|u1") and not by_columns, f"arrays of {dtype} are not read")
    need(math.prod(shape) * dtype.itemsize == len(data) - file.tell(), "an array is not as large as its header says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def digest(arrays) -> bytes:
    """SHA-256 over names, types, shapes and bytes of arrays, in the order of their names."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        state.update(f"{name} {arrays[name].dtype.str} {list(arrays[name].shape)}\n".encode())
        state.update(np.ascontiguousarray(arrays[name]).tobytes())
    return state.digest()


LAYERS = {
    "linear": layers.linear,
    "conv": layers.conv,
    "batch_norm": layers.batch_norm,
    "scale": layers.scale,
    "mean": layers.mean,
    "sum": layers.weighted_sum,
}


def network(arrays, arithmetic):
    """The nodes that the arrays of a network file describe; a reshape is its source under another shape."""
    text = json.loads(arrays["network"].tobytes())
    need(text["format"] == "ironbound-network/1", "the format of the network is not known")
    shapes, place, nodes = [text["shape"]], [0], [Node("input", [], math.prod(text["shape"]))]
    for number, entry in enumerate(text["nodes"], 1):
        options = {key: value for key, value in entry.items() if key not in ("op", "in")}
        need(all(0 <= i < number for i in entry["in"]), "a node reads one that does not come before it")
        need(len(entry["in"]) == 1 or entry["op"] in ("sum", "mean") and entry["in"], "a node reads too many or none")
        for key, value in options.items():
            if isinstance(value, str):
                need(arrays[value].dtype.kind == ("i" if key == "index" else "f"), f"{value} is of a wrong type")
                options[key] = arrays[value] if key == "index" else arithmetic.exact(arrays[value])
        inputs, reads = [place[i] for i in entry["in"]], [shapes[i] for i in entry["in"]]
        if entry["op"] == "reshape":
            node, shape = None, options["shape"]
            need(math.prod(shape) == math.prod(reads[0]), "a reshape changes the number of elements")
        elif entry["op"] == "relu":
            node, shape = Node("relu", inputs, nodes[inputs[0]].size), reads[0]
        else:
            node, shape = LAYERS[entry["op"]](inputs, reads, **options)
        need(all(type(extent) is int and extent > 0 for extent in shape), f"a {entry['op']} has an impossible shape")
        place.append(inputs[0] if node is None else len(nodes))
        shapes.append(shape)
        nodes += [] if node is None else [node]
    need(place[-1] == len(nodes) - 1, "the last node is not the output")
    return nodes
