"""Certificates of properties: what `verify` proves, as files that the stand-alone checker accepts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ironbound.certificate.box_tree import box_tree
from ironbound.certificate.checker import Certificate, Checker, File
from ironbound.certificate.checker.claims import BOXES, NONE, PROPERTY, SLOPES, TREE
from ironbound.certificate.checker.layers import SIZE_LIMIT
from ironbound.certificate.checker.properties import Box
from ironbound.certificate.finding import SLACK
from ironbound.certificate.network_file import Arrays, network_arrays, save_arrays
from ironbound.certificate.payloads import NOISE, payload_of
from ironbound.certificate.writing import NAMES, Written, known_records, save_file
from ironbound.errors import InputError
from ironbound.exact.query import FEW, SOME
from ironbound.graph import Graph
from ironbound.spec import Property

SEARCH = 0.65  # share of the time for finding a payload; the rest is for checking it
_NO_CLIP = (float("nan"), float("nan"))


def property_arrays(prop: Property, shape: tuple[int, ...]) -> Arrays:
    """A property as the arrays of a data file.

    Args:
        prop: the property; its clauses are numbered case after case.
        shape: of an input of the network.

    Returns:
        The arrays by name; `docs/certificates.md` describes them.

    Raises:
        InputError: the shape has another number of elements, or the constraints are too large to be written densely.
    """
    if int(np.prod(shape)) != prop.inputs:
        raise InputError(f"the property has {prop.inputs} inputs, which the shape {list(shape)} does not fit")
    numbered = [(number, clause) for number, case in enumerate(prop.cases) for clause in case.clauses]
    rows = sum(len(clause.constraints) for _, clause in numbered)
    reads = any(clause.reads_inputs for _, clause in numbered)
    if rows * max(prop.outputs, prop.inputs if reads else 0) > SIZE_LIMIT:
        raise InputError(f"the property has {rows} constraints: too many for a file of certificates")
    matrices = [clause.matrices(prop.inputs, prop.outputs) for _, clause in numbered]
    left = [np.zeros((0, prop.inputs)), *(a for a, _, _ in matrices)] if reads else []
    right = [np.zeros((0, prop.outputs)), *(b for _, b, _ in matrices)]
    counts = [len(clause.constraints) for _, clause in numbered]
    boxes = {name: [getattr(case, name) for case in prop.cases] for name in ("lower", "upper")}
    return {
        **{name: np.array(ends, "<f8").reshape(-1, *shape) for name, ends in boxes.items()},
        "outputs": np.concatenate(right),
        **({"inputs": np.concatenate(left)} if reads else {}),
        "bounds": np.concatenate([np.zeros(0), *(bound for _, _, bound in matrices)]),
        "clause": np.repeat(np.arange(len(counts)), counts).astype("<i8"),
        "case": np.array([number for number, _ in numbered], "<i8"),
    }


class PropertyCertificates:
    """Certificates of one property in one folder; everything that could refuse is asked before the search.

    Args:
        model: the network, in evaluation mode.
        prop: the property.
        shape: of an input.
        folder: for the three files; made where it is absent.
        mode: "real" for real arithmetic, or "float32" for the network as executed.

    Raises:
        InputError: network and property do not fit each other, or the network is not in float32 for that mode.
        UnsupportedOperatorError: the checker has no rule for a layer of the network.
        CertificateError: the folder holds certificates of something else.
    """

    def __init__(
        self,
        model: nn.Module | Graph,
        prop: Property,
        shape: tuple[int, ...],
        folder: str | os.PathLike[str],
        mode: str = "real",
    ) -> None:
        self.folder, self._mode = Path(folder), mode
        self._data = property_arrays(prop, shape)
        self._arrays = network_arrays(model, torch.zeros(1, *shape, dtype=_dtype(model)))
        self._checker = Checker(self._arrays, self._data)
        if mode == "float32" and not self._checker.single:
            raise InputError("the network is not in float32: nothing can be said of how it is executed")
        assert self._checker.property is not None
        self._property = self._checker.property
        self._file = File(self._checker.network_hash, self._checker.data_hash, "box", mode, _NO_CLIP, [])
        self._known = known_records(self.folder / NAMES[2], self._file)

    def write(self, seconds: float) -> Written:
        """Finds certificates of the clauses, and writes what the checker accepts: none, or the file whole.

        Args:
            seconds: for all of them.

        Returns:
            What was written; `open` are the clauses without a certificate.
        """
        end, count = time.monotonic() + seconds, len(self._property.case)
        found, left = [], []
        for number in range(count):
            left_over = end - time.monotonic()
            share = time.monotonic() + left_over / (count - number)
            one = self._proved(number, share) if left_over > 0 else None
            found += [] if one is None else [one]
            left += [number] if one is None else []
        path = self.folder / NAMES[2]
        if found or not count:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in zip(NAMES[:2], (self._arrays, self._data), strict=True):
                save_arrays(content, self.folder / name)
            save_file(path, replace(self._file, certificates=found))
        return Written(self.folder, tuple(found), tuple(left), path.stat().st_size if found or not count else 0)

    def _proved(self, number: int, end: float) -> Certificate | None:
        """The first candidate that the checker accepts, with its margin; None where there is none in time."""
        bare = Certificate(number, 0, PROPERTY, NONE, 0.0, 0.0)
        known = self._known.get(bare)
        if known is not None and self._checker.check(known, "box", self._mode, _NO_CLIP) is None:
            return known
        if self._property.empty(number):
            return bare
        if not (self._property.clause == number).any():
            return None  # a clause without constraints always holds
        for one in self._candidates(bare, end):
            least = float(self._property.least(one, self._mode))
            claim = replace(one, margin=max(0.0, least - SLACK * (1 + least)))
            if least > claim.margin:
                return claim
        return None

    def _candidates(self, bare: Certificate, end: float) -> Iterator[Certificate]:
        """The same claim with payload after payload, the shortest first."""
        yield bare
        low, high = self._property.ends(bare.index, "real")
        varied = int((low < high).sum())
        yield from self._of_rows(replace(bare, kind=SLOPES), end, 1 if varied <= FEW else None)
        if varied <= SOME:
            left = SEARCH * (end - time.monotonic()) * (1.0 if varied <= FEW else 0.5)
            tree = box_tree(self._property, bare.index, self._mode, time.monotonic() + left)
            if tree is not None:
                yield replace(bare, kind=BOXES, payload=tree)
        if varied > FEW:
            yield from self._of_rows(replace(bare, kind=TREE), end)

    def _of_rows(self, bare: Certificate, end: float, count: int | None = None) -> Iterator[Certificate]:
        """Slopes or trees of ReLUs for one row of the clause after the other, the best `count` of them."""
        _, rows, base = self._property.rows(bare.index)
        with np.errstate(all="ignore"):
            box = Box(self._checker.a, *self._property.ends(bare.index, self._mode))
            analysis = self._property.analysis(bare.index, box, self._mode, True)
            best = analysis.output(rows, base)
            short = -base
            if self._mode == "float32":
                real = self._property.analysis(bare.index, box, "real", True).output(rows, base)
                short = short + NOISE * (real - best)
        order = np.argsort(-np.nan_to_num(best, nan=-np.inf)).tolist()[:count]
        for place, row in enumerate(order):
            left = SEARCH * (end - time.monotonic()) / (len(order) - place)
            payload = payload_of(analysis, rows, bare.kind, {row: float(short[row])}, left) if left > 0 else None
            if payload is not None:
                yield replace(bare, payload=payload)


def _dtype(model: nn.Module | Graph) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
