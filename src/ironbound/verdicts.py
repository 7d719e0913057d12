"""What `ironbound.verify` answers: one of three types, which never mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ironbound.certificate.checker import Certificate


@dataclass(frozen=True)
class Proved:
    """No input is a counterexample.

    Attributes:
        method: the stage that closed the last case.
        seconds: spent.
        nodes: subproblems bounded by complete search.
        arithmetic: "real arithmetic" (or "as executed in float32", where that was asked for) where the certificates
            below prove every clause, every rounding error paid for; else the dtype of the bounds, which exceed a guard
            against rounding but are not rounded outward.
        certificates: claims that the stand-alone checker has accepted, by number of the clause; none where none were
            asked for.
    """

    method: str
    seconds: float
    nodes: int = 0
    arithmetic: str = "float64"
    certificates: tuple[Certificate, ...] = ()

    word = "unsat"

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        text = f"proved by {self.method} in {self.seconds:.2f} s ({self.arithmetic}, {self.nodes} subproblems"
        return f"{text}, {len(self.certificates)} certificates)" if self.certificates else f"{text})"


@dataclass(frozen=True, eq=False)
class Refuted:
    """A counterexample: the network was run on exactly this input, alone.

    Attributes:
        x: the input, [1, *shape], inside the property's box; float64 where no float32 number lies between the ends of
            an element, and then the network read it rounded to float32.
        y: the network's output there, [1, *output shape].
        method: the stage that found it.
        seconds: spent.
        checked_by: what ran the network: "torch", and "onnxruntime" for an ONNX file where it is installed.
        nodes: subproblems bounded by complete search.
    """

    x: Tensor
    y: Tensor
    method: str
    seconds: float
    checked_by: tuple[str, ...] = ("torch",)
    nodes: int = 0

    word = "sat"

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        who = " and ".join(self.checked_by)
        return f"refuted by {self.method} in {self.seconds:.2f} s (counterexample checked by {who})"

    def __repr__(self) -> str:
        shape = list(self.x.shape)
        return f"Refuted(x={shape}, method={self.method!r}, seconds={self.seconds:.3g}, checked_by={self.checked_by})"


@dataclass(frozen=True)
class Unknown:
    """Neither proved nor refuted.

    Attributes:
        gap: how far the best lower bound of the worst open clause is below what would prove it, in units of the
            constraint; infinite where there is no bound.
        why: "time", "memory", "nodes"; "stuck" where nothing is left to split (a tie within rounding, or bounds that
            are not finite); "unconfirmed" where a counterexample of the bounds' arithmetic is none for the network;
            "rounding" where bounds are above a guard, but the proof with every rounding paid for was not found.
        seconds: spent.
        nodes: subproblems bounded by complete search.
        open: cases that are neither proved nor refuted; for "rounding", clauses.
    """

    gap: float
    why: str
    seconds: float
    nodes: int = 0
    open: int = 1

    def __bool__(self) -> bool:
        return False

    @property
    def word(self) -> str:
        """The competition's word."""
        return "timeout" if self.why == "time" else "unknown"

    def __str__(self) -> str:
        return f"unknown after {self.seconds:.2f} s ({self.why}; {self.open} open, {self.gap:.3g} short of a proof)"


Verdict = Proved | Refuted | Unknown
