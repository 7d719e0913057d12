"""The files: certificates, networks and inputs as plain bytes, and whether a certificate's claim is proved."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

from .bounds import Analysis, Region
from .layers import Arithmetic, CertificateError, Rows, need, network

HEADER = struct.Struct("<8sI32s32sBBddI")  # magic, version, network, data, norm, mode, clip low and high, records
RECORD = struct.Struct("<IHBBddI")  # index, class, subject, payload type, eps, margin, payload length
MAGIC, VERSION = b"IRONCERT", 1
NORMS, MODES = ("linf", "l2", "l1"), ("real", "float32")
LABEL, PREDICTION = range(2)
NONE, SLOPES, TREE, SDP = range(4)
FILE_LIMIT, ARRAY_LIMIT = 1 << 28, 1 << 31  # bytes
STEPS_LIMIT = 1 << 20  # nodes of a split tree


@dataclass(frozen=True)
class Certificate:
    """A claim: all over the region around input `index`, `label` beats each other class by more than `margin`."""

    index: int
    label: int
    subject: int
    kind: int
    eps: float
    margin: float
    payload: bytes = b""

    def __post_init__(self):
        need(self.subject <= PREDICTION and self.kind <= SDP, "a record has an unknown subject or payload")
        need(0 <= self.eps < math.inf and 0 <= self.margin < math.inf, "eps and margin must be finite and at least 0")
        need(self.kind != NONE or not self.payload, "a payload without a type")


@dataclass(frozen=True)
class File:
    """What the certificates of a file have in common; the clip's ends are NaN where inputs are not limited."""

    network: bytes
    data: bytes
    norm: str
    mode: str
    clip: tuple[float, float]
    certificates: list[Certificate]

    def pack(self) -> bytes:
        """The file's bytes."""
        norm, mode = NORMS.index(self.norm), MODES.index(self.mode)
        count = len(self.certificates)
        parts = [HEADER.pack(MAGIC, VERSION, self.network, self.data, norm, mode, *self.clip, count)]
        for one in self.certificates:
            fields = one.index, one.label, one.subject, one.kind, one.eps, one.margin, len(one.payload)
            parts += [RECORD.pack(*fields), one.payload]
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes) -> File:
        """Reads bytes; refuses what `pack` does not write."""
        need(len(data) >= HEADER.size, "the file is cut short")
        magic, version, net, inputs, norm, mode, low, high, count = HEADER.unpack_from(data)
        need((magic, version) == (MAGIC, VERSION), f"these are no certificates of version {VERSION}")
        need(norm < len(NORMS) and mode < len(MODES), "the norm or the execution mode is not known")
        need(math.isnan(low) and math.isnan(high) or -math.inf < low < high < math.inf, "the clip is no range")
        at, found = HEADER.size, []
        need(count * RECORD.size <= len(data) - at, "records are cut short")
        for _ in range(count):
            need(at + RECORD.size <= len(data), "a record is cut short")
            index, label, subject, kind, eps, margin, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            need(at + length <= len(data), "a payload is cut short")
            found.append(Certificate(index, label, subject, kind, eps, margin, data[at : at + length]))
            at += length
        need(at == len(data), "bytes follow the last record")
        need(
            all(a.index < b.index for a, b in zip(found, found[1:], strict=False)),
            "the records are not ordered by their inputs",
        )
        return cls(net, inputs, NORMS[norm], MODES[mode], (low, high), found)

    @classmethod
    def read(cls, path) -> File:
        """Reads a file, no larger than the limit."""
        need(os.path.getsize(path) <= FILE_LIMIT, f"{path} is larger than {FILE_LIMIT >> 20} MiB")
        with open(path, "rb") as file:
            return cls.unpack(file.read(FILE_LIMIT + 1))


class Payload:
    """Numbers in a row of bytes, never read past the end."""

    def __init__(self, data: bytes):
        self.data = data

    def take(self, dtype, count):
        """The next numbers."""
        length = np.dtype(dtype).itemsize * int(count)
        need(length <= len(self.data), "a payload is cut short")
        found, self.data = np.frombuffer(self.data[:length], dtype), self.data[length:]
        return found

    def one(self, dtype):
        """The next number."""
        return int(self.take(dtype, 1)[0])

    def neurons(self, nodes):
        """Neurons of ReLUs: (node, flat indices) for each node named."""
        found = []
        for _ in range(self.one("<u2")):
            node, count = self.one("<u4"), self.one("<u4")
            need(node < len(nodes) and nodes[node].kind == "relu", "a payload speaks of a node that is no ReLU")
            index = self.take("<u4", count)
            need(
                (index < nodes[node].size).all() and (np.diff(index.astype(np.int64)) > 0).all(), "neurons out of order"
            )
            found.append((node, index))
        return found


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


class Checker:
    """A network and the inputs that certificates are about."""

    def __init__(self, arrays, data, arithmetic: Arithmetic | None = None):
        self.a, self.data = arithmetic or Arithmetic(), data
        self.network_hash, self.data_hash = digest(arrays), digest(data)
        self.single = all(array.dtype != np.float64 for array in arrays.values())
        try:
            self.nodes = network(arrays, self.a)
            shape = json.loads(arrays["network"].tobytes())["shape"]
            need(data["x"].dtype.kind == "f" and [*data["x"].shape[1:]] == shape, "the inputs do not fit the network")
            need(data.get("labels", data["x"]).shape[:1] == data["x"].shape[:1], "the labels do not fit the inputs")
        except CertificateError:
            raise
        except Exception as error:  # whatever a malformed description runs into
            raise CertificateError(f"network or data are not well formed: {error!r}") from error

    def margins(self, one: Certificate, norm, mode, clip) -> np.ndarray:
        """Proved lower bounds of logit[class] - logit[k] for every k; 0 at the class."""
        with np.errstate(all="ignore"):
            region = Region(self.a, self.data["x"][one.index], norm, one.eps, clip)
            analysis = Analysis(self.nodes, self.a, region, mode, sharp=one.kind != NONE)
            classes = self.nodes[-1].size
            rows = -np.eye(classes, dtype=self.a.dtype)
            rows[:, one.label] += 1  # exact: 1, -1, and 0 at the class itself
            lines = analysis.lines, analysis.with_slopes()
            best = np.maximum(*(analysis.walk(len(self.nodes) - 1, Rows(rows), line)[0] for line in lines))
            if one.kind == SLOPES:
                self._with_slopes(analysis, rows, one.payload, best)
            if one.kind == TREE:
                self._with_trees(analysis, rows, one.payload, best)
            best[one.label] = 0
            return best

    def _with_slopes(self, analysis, rows, payload, best):
        """Raises margins by lower slopes for some targets: u16 shares of neurons, target by target."""
        data = Payload(payload)
        targets = data.take("<u2", data.one("<u2"))
        need(len(set(targets.tolist())) == len(targets), "a payload names a class twice")
        neurons = data.neurons(self.nodes)
        for target in targets:
            need(target < len(rows), "a payload speaks of a class that is none")
            value = analysis.walk(len(self.nodes) - 1, Rows(rows[[target]]), self._lines(analysis, neurons, data))[0]
            best[target] = np.maximum(best[target], value[0])
        need(not data.data, "bytes follow a payload")

    def _lines(self, analysis, neurons, data):
        slopes = {n: line[0].copy() for n, line in analysis.with_slopes().items()}
        for node, index in neurons:
            slopes[node][index] = data.take("<u2", len(index)) / self.a.dtype.type(65535)
        return analysis.with_slopes(slopes)

    def _with_trees(self, analysis, rows, payload, best):
        """Raises margins by splits into signs of neurons: a tree in preorder for each target, see docs."""
        data = Payload(payload)
        neurons = data.neurons(self.nodes)
        columns = [(node, int(index)) for node, group in neurons for index in group]
        count = data.one("<u2")
        need(count <= len(rows), "a payload has more trees than there are classes")
        for _ in range(count):
            target = data.one("<u2")
            need(target < len(rows), "a payload speaks of a class that is none")
            lowest, open_sides, steps = math.inf, [{}], 0
            while open_sides:
                signs, steps = open_sides.pop(), steps + 1
                need(steps <= STEPS_LIMIT, "a tree is too large")
                column = data.one("<u2")
                if column < len(columns):  # a split: first the side where the neuron's input is at least 0
                    need(column not in signs, "a tree splits a neuron twice")
                    open_sides += [{**signs, column: -1}, {**signs, column: 1}]
                else:
                    need(column == 0xFFFF, "a tree splits a neuron that it does not name")
                    lowest = min(lowest, self._leaf(analysis, rows[[target]], columns, signs, neurons, data))
            best[target] = np.maximum(best[target], lowest)
        need(not data.data, "bytes follow a payload")

    def _leaf(self, analysis, row, columns, signs, neurons, data):
        """A lower bound over the inputs where the split neurons have the signs; infinity where there are none."""
        lines = {n: tuple(part.copy() for part in line) for n, line in self._lines(analysis, neurons, data).items()}
        holds = {n: np.zeros(self.nodes[n].size, self.a.dtype) for n in lines}
        for column, sign in signs.items():
            (node, index), source = columns[column], self.nodes[columns[column][0]].inputs[0]
            if (analysis.high[source][index] if sign > 0 else -analysis.low[source][index]) < 0:
                data.take("<f4", len(signs))
                return math.inf
        for (column, sign), beta in zip(signs.items(), data.take("<f4", len(signs)), strict=True):
            node, index = columns[column]
            need(beta >= 0, "a multiplier is negative")
            for part, value in zip(lines[node], (sign > 0, sign > 0, 0), strict=True):
                part[index] = value
            holds[node][index] = -sign * self.a.exact(beta)
        return self.a.dtype.type(analysis.walk(len(self.nodes) - 1, Rows(row), lines, holds=holds)[0][0])

    def check(self, one: Certificate, norm, mode, clip) -> str | None:
        """None if the claim is proved, else why not."""
        if one.index >= len(self.data["x"]) or one.label >= self.nodes[-1].size:
            return "there is no such input or class"
        if one.subject == LABEL and ("labels" not in self.data or self.data["labels"][one.index] != one.label):
            return "the data have another label, or none"
        if mode == "float32" and not self.single:
            return "the network is not in float32"
        if one.kind == SDP:
            return "SDP certificates cannot be checked yet"
        try:
            margins = np.delete(self.margins(one, norm, mode, clip), one.label)
        except CertificateError as error:
            return str(error)
        return None if (margins > one.margin).all() else f"only a margin of {margins.min():.4g} is proved"

    def check_file(self, file: File) -> dict[int, str | None]:
        """The answers of `check` by the number of the input."""
        need(file.network == self.network_hash, "the certificates are about another network")
        need(file.data == self.data_hash, "the certificates are about other data")
        return {one.index: self.check(one, file.norm, file.mode, file.clip) for one in file.certificates}
