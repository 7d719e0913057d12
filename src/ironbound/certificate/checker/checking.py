"""Whether a certificate's claim is proved."""

from __future__ import annotations

import json

import numpy as np

from .bounds import Analysis, Region
from .claims import LABEL, PROPERTY, SDP, SLOPES, TREE, Certificate, File
from .files import digest, network
from .layers import Arithmetic, CertificateError, need
from .payloads import Improvement
from .properties import Property
from .semidefinite import TwoLayers


class Checker:
    """A network, and the inputs or the property that certificates are about."""

    def __init__(self, arrays, data, arithmetic: Arithmetic | None = None):
        self.a, self.data = arithmetic or Arithmetic(), data
        self.network_hash, self.data_hash = digest(arrays), digest(data)
        self.single = all(array.dtype != np.float64 for array in arrays.values())
        self._two_layers: dict[bytes, TwoLayers] = {}
        try:
            self.nodes = network(arrays, self.a)
            shape = json.loads(arrays["network"].tobytes())["shape"]
            self.property = Property(self.nodes, self.a, shape, data) if "lower" in data else None
            if self.property is None:
                x = data["x"]
                need(self.nodes[-1].size > 1, "the last node is not the output of a classifier")
                need(x.dtype.kind == "f" and [*x.shape[1:]] == shape, "the inputs do not fit the network")
                need(data.get("labels", x).shape[:1] == x.shape[:1], "the labels do not fit the inputs")
        except CertificateError:
            raise
        except Exception as error:  # whatever a malformed description runs into
            raise CertificateError(f"network or data are not well formed: {error!r}") from error

    def analysis(self, one: Certificate, norm, mode, clip, eps=None) -> Analysis:
        """Bounds of every node over the region of a certificate, or over one of another radius."""
        region = Region(self.a, self.data["x"][one.index], norm, one.eps if eps is None else eps, clip)
        return Analysis(self.nodes, self.a, region, mode, sharp=one.kind in (SLOPES, TREE))

    def rows(self, label: int) -> np.ndarray:
        """logit[label] - logit[k] as functionals of the output, exactly: 1, -1, and 0 at the label itself."""
        rows = -np.eye(self.nodes[-1].size, dtype=self.a.dtype)
        rows[:, label] += 1
        return rows

    def margins(self, one: Certificate, norm, mode, clip, common=b"") -> np.ndarray:
        """Proved lower bounds of logit[class] - logit[k] for every k; 0 at the class."""
        with np.errstate(all="ignore"):
            analysis, rows = self.analysis(one, norm, mode, clip), self.rows(one.label)
            best = analysis.output(rows)
            if one.kind in (SLOPES, TREE):
                Improvement(analysis, rows).raise_(one.kind, one.payload, best)
            if one.kind == SDP:
                need(norm == "linf" and self.single, "SDP vectors are about linf balls and float32 networks")
                if common not in self._two_layers:
                    self._two_layers = {common: TwoLayers(self.nodes, self.a, common)}
                center = self.analysis(one, norm, "real", clip, eps=0.0)
                best = np.maximum(best, self._two_layers[common].margins(center, analysis, rows, one.label))
            best[one.label] = 0
            return best

    def check(self, one: Certificate, norm, mode, clip, common=b"") -> str | None:
        """None if the claim is proved, else why not."""
        if mode == "float32" and not self.single:
            return "the network is not in float32"
        if self.property is not None or one.subject == PROPERTY or norm == "box":
            return self._clause(one, norm, mode, clip)
        if one.index >= len(self.data["x"]) or one.label >= self.nodes[-1].size:
            return "there is no such input or class"
        if one.subject == LABEL and ("labels" not in self.data or self.data["labels"][one.index] != one.label):
            return "the data have another label, or none"
        try:
            margins = np.delete(self.margins(one, norm, mode, clip, common), one.label)
        except CertificateError as error:
            return str(error)
        return None if (margins > one.margin).all() else f"only a margin of {margins.min():.4g} is proved"

    def _clause(self, one: Certificate, norm, mode, clip) -> str | None:
        if self.property is None or one.subject != PROPERTY or norm != "box" or not np.isnan(clip).all():
            return "a claim about a property and one about an input do not go together"
        try:
            return self.property.check(one, mode)
        except CertificateError as error:
            return str(error)

    def missing(self, answers: dict[int, str | None]) -> list[int]:
        """The clauses of the property without an accepted certificate: it is proved where there are none."""
        clauses = 0 if self.property is None else len(self.property.case)
        return [number for number in range(clauses) if answers.get(number, "absent") is not None]

    def belongs(self, file: File) -> None:
        """Refuses certificates about another network, or other data."""
        need(file.network == self.network_hash, "the certificates are about another network")
        need(file.data == self.data_hash, "the certificates are about other data")

    def check_file(self, file: File) -> dict[int, str | None]:
        """The answers of `check` by the number of the input."""
        self.belongs(file)
        query = file.norm, file.mode, file.clip, file.common
        return {one.index: self.check(one, *query) for one in file.certificates}
