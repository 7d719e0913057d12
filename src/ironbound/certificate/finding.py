"""The shortest certificate that the checker accepts, and proofs done again by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ironbound.certificate.checker import Certificate, Checker
from ironbound.certificate.checker.claims import NONE, PREDICTION, SDP, SLOPES, TREE
from ironbound.certificate.network_file import Arrays
from ironbound.certificate.payloads import Query, payload
from ironbound.regions import L1Ball, L2Ball, LinfBall, Region

SLACK = 1e-7
"""Share of 1 + margin that a claim stays below what is proved here: another BLAS rounds differently."""


class Finder:
    """Tries claims from the shortest on: without a payload, with common vectors, with slopes, with a tree of splits.

    Args:
        checker: of the network and the data.
        query: norm, mode and clip.
        seconds: that the search of a tree may take for an example and class.
    """

    def __init__(self, checker: Checker, query: Query, seconds: float) -> None:
        self.checker, self.query, self.seconds = checker, query, seconds

    def proved(self, bare: Certificate, common: bytes = b"") -> Certificate | None:
        """The certificate with the margin that it proves; None where none is found.

        Args:
            bare: the claim, without payload and margin.
            common: semidefinite vectors of the network, or nothing.

        Returns:
            It, with payload and margin.
        """
        others = np.arange(self.checker.nodes[-1].size) != bare.label
        one, margins = bare, self.checker.margins(bare, *self.query)
        targets = np.flatnonzero(~(margins > 0) & others)
        for kind in (SDP, SLOPES, TREE):
            if bool((margins[others] > 0).all()):
                break
            if kind == SDP:
                better = replace(bare, kind=kind) if common else None
            else:
                better = self._improved(replace(bare, kind=kind), targets)
            if better is not None:
                one, margins = better, self.checker.margins(better, *self.query, common)
        least = float(margins[others].min())
        return replace(one, margin=max(0.0, least - SLACK * (1 + least))) if least > 0 else None

    def _improved(self, one: Certificate, targets: np.ndarray) -> Certificate | None:
        found = payload(self.checker, one, self.query, targets, self.seconds)
        return None if found is None else replace(one, payload=found)


def proved_again(arrays: Arrays, region: Region, labels: list[int], seconds: float) -> list[bool]:
    """Which examples the certificates' checker proves in real arithmetic, every rounding of its own paid for.

    Args:
        arrays: of the network, as `network_arrays` makes them.
        region: the inputs, in float64.
        labels: a class for each.
        seconds: that the search of a tree may take for an example and class.

    Returns:
        One answer for each example; all False for regions that certificates cannot describe.
    """
    if not isinstance(region, LinfBall | L2Ball | L1Ball) or region.eps[0].numel() > 1:
        return [False] * len(labels)
    radii = region.eps.reshape(-1).expand(len(labels)).tolist()
    low, high = region.clip or (np.nan, np.nan)
    checker = Checker(arrays, {"x": region.center.cpu().numpy()})
    finder = Finder(checker, (region.norm, "real", (float(low), float(high))), seconds)
    claims = [
        Certificate(number, label, PREDICTION, NONE, radius, 0.0)
        for number, (label, radius) in enumerate(zip(labels, radii, strict=True))
    ]
    return [finder.proved(claim) is not None for claim in claims]
