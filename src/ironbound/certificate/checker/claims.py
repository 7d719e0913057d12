"""The file of certificates as plain bytes."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass

from .layers import need

HEADER = struct.Struct("<8sI32s32sBBddII")  # magic, version, network, data, norm, mode, clip, length of common, records
RECORD = struct.Struct("<IHBBddI")  # index, class, subject, payload type, eps, margin, payload length
MAGIC, VERSION = b"IRONCERT", 1
NORMS, MODES = ("linf", "l2", "l1", "box"), ("real", "float32")
LABEL, PREDICTION, PROPERTY = range(3)
NONE, SLOPES, TREE, SDP, BOXES = range(5)
FILE_LIMIT = 1 << 28  # bytes


@dataclass(frozen=True)
class Certificate:
    """A claim: all over the region around input `index`, `label` beats each other class by more than `margin`.

    With the subject PROPERTY: all over the box of clause `index`, one of its rows is above `margin`.
    """

    index: int
    label: int
    subject: int
    kind: int
    eps: float
    margin: float
    payload: bytes = b""

    def __post_init__(self):
        need(self.subject <= PROPERTY and self.kind <= BOXES, "a record has an unknown subject or payload")
        need(0 <= self.eps < math.inf and 0 <= self.margin < math.inf, "eps and margin must be finite and at least 0")
        fits = self.eps == self.label == 0 and self.kind != SDP if self.subject == PROPERTY else self.kind != BOXES
        need(fits, "a record's subject does not go with its radius, class or payload")
        need(self.kind in (SLOPES, TREE, BOXES) or not self.payload, "a record of this type has no payload of its own")


@dataclass(frozen=True)
class File:
    """What the certificates of a file have in common; the clip's ends are NaN where inputs are not limited."""

    network: bytes
    data: bytes
    norm: str
    mode: str
    clip: tuple[float, float]
    certificates: list[Certificate]
    common: bytes = b""

    def pack(self) -> bytes:
        """The file's bytes."""
        norm, mode = NORMS.index(self.norm), MODES.index(self.mode)
        ends = *self.clip, len(self.common), len(self.certificates)
        parts = [HEADER.pack(MAGIC, VERSION, self.network, self.data, norm, mode, *ends), self.common]
        for one in self.certificates:
            fields = one.index, one.label, one.subject, one.kind, one.eps, one.margin, len(one.payload)
            parts += [RECORD.pack(*fields), one.payload]
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes) -> File:
        """Reads bytes; refuses what `pack` does not write."""
        need(len(data) >= HEADER.size, "the file is cut short")
        magic, version, net, inputs, norm, mode, low, high, length, count = HEADER.unpack_from(data)
        need((magic, version) == (MAGIC, VERSION), f"these are no certificates of version {VERSION}")
        need(norm < len(NORMS) and mode < len(MODES), "the norm or the execution mode is not known")
        need(math.isnan(low) and math.isnan(high) or -math.inf < low < high < math.inf, "the clip is no range")
        common, at = data[HEADER.size : HEADER.size + length], HEADER.size + length
        need(at + count * RECORD.size <= len(data), "the file is cut short")
        found = []
        for _ in range(count):
            need(at + RECORD.size <= len(data), "a record is cut short")
            index, label, subject, kind, eps, margin, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            need(at + length <= len(data), "a payload is cut short")
            found.append(Certificate(index, label, subject, kind, eps, margin, data[at : at + length]))
            at += length
        need(at == len(data), "bytes follow the last record")
        indices = [one.index for one in found]
        need(all(a < b for a, b in zip(indices, indices[1:], strict=False)), "the records are not in order")
        return cls(net, inputs, NORMS[norm], MODES[mode], (low, high), found, common)

    @classmethod
    def read(cls, path) -> File:
        """Reads a file, no larger than the limit."""
        need(os.path.getsize(path) <= FILE_LIMIT, f"{path} is larger than {FILE_LIMIT >> 20} MiB")
        with open(path, "rb") as file:
            return cls.unpack(file.read(FILE_LIMIT + 1))
