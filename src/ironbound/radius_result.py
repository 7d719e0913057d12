"""What `radius` returns, and how it lies in a store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ironbound.store import Layout, pack, unpack

FORMAT = "ironbound-radius/1"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_COLUMNS = {
    "label": "INTEGER NOT NULL",
    "prediction": "INTEGER NOT NULL",
    "certified": "REAL NOT NULL",
    "attacked": "REAL NOT NULL",
    "evaluations": "INTEGER NOT NULL",
    "arithmetic": "TEXT NOT NULL",
    "adversarial": "BLOB",
}


@dataclass(frozen=True, eq=False)
class Radius:
    """How far each example is certified, and how far an attack has to go; ε is in the units of the data.

    Attributes:
        certified: a proof, unless `arithmetic` says otherwise: no input within this distance changes the answer; 0 for
            misclassified examples, float64 [n].
        attacked: the distance of a point that changes the answer as the network was run on it; 0 for misclassified
            examples, infinite where no attack found one, float64 [n]. The true radius lies between the two.
        adversarial: those points, [n, *shape]; the example itself where there is none.
        evaluations: of the margins, for each example, int64 [n].
        labels: int64 [n].
        predictions: int64 [n].
        arithmetic: what the proof at `certified` holds for, in the words of `Certification.arithmetic`; "" where the
            radius is 0, [n].
        seconds: spent in "prediction", "bounds" and "attack", threads that ran side by side counted once.
        settings: the query in full: norm, clipping, method, tolerance, attack, versions, hashes of network and data.
    """

    certified: Tensor
    attacked: Tensor
    adversarial: Tensor
    evaluations: Tensor
    labels: Tensor
    predictions: Tensor
    arithmetic: np.ndarray
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.certified)

    def summary(self, eps: Sequence[float] = ()) -> dict[str, Any]:
        """Means, quantiles, and the share of examples certified, and not attacked, up to a few ε.

        Args:
            eps: those ε; none: the median certified radius, and half and twice of it, to two digits.

        Returns:
            "examples", "misclassified"; "certified" and, after an attack, "attacked", each with "mean" and the
            quantiles by their level (of all examples, misclassified ones at 0; an infinite one is None); "arithmetic":
            the number of proofs by what they hold for; "shares": a list of "eps", "certified" and "withstood".
        """
        found: dict[str, Any] = {
            "examples": len(self),
            "misclassified": int((self.labels != self.predictions).sum()),
            "certified": _statistics(self.certified),
            "attacked": _statistics(self.attacked) if self.settings.get("attack") is not None else None,
            "evaluations": float(self.evaluations.double().mean()),
            "arithmetic": dict(Counter(self.arithmetic[self.arithmetic != ""].tolist())),
        }
        middle = float(self.certified.median())
        chosen = eps or sorted({float(f"{share * middle:.2g}") for share in (0.5, 1, 2)})
        found["shares"] = [
            {
                "eps": one,
                "certified": float((self.certified >= one).double().mean()),
                "withstood": float((self.attacked > one).double().mean()),
            }
            for one in chosen
        ]
        return found

    def to_dict(self, eps: Sequence[float] = ()) -> dict[str, Any]:
        """The result as plain data, without the adversarial inputs; `docs/cli.md` describes every key."""
        return {
            "format": FORMAT,
            "summary": self.summary(eps),
            "settings": dict(self.settings),
            "seconds": {stage: round(spent, 3) for stage, spent in self.seconds.items()},
            "examples": {
                "label": self.labels.tolist(),
                "prediction": self.predictions.tolist(),
                "certified": self.certified.tolist(),
                "attacked": [value if np.isfinite(value) else None for value in self.attacked.tolist()],
                "evaluations": self.evaluations.tolist(),
                "arithmetic": self.arithmetic.tolist(),
            },
        }

    def to_json(self, eps: Sequence[float] = ()) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(eps), ensure_ascii=False, allow_nan=False)


def _statistics(values: Tensor) -> dict[str, float | None]:
    ordered = values.sort().values  # a quantile between two infinite values would be NaN
    at = {f"{level:g}": float(ordered[round(level * (len(values) - 1))]) for level in QUANTILES}
    return {name: value if np.isfinite(value) else None for name, value in {"mean": float(values.mean()), **at}.items()}


def layout(x: Tensor) -> Layout[Radius]:
    """How radii lie in a store: points only where an attack found one.

    Args:
        x: the examples, [n, *shape], on the CPU.

    Returns:
        The layout.
    """

    def rows(part: Radius) -> list[tuple[Any, ...]]:
        changed = (part.attacked > 0) & torch.isfinite(part.attacked)
        points = (pack(point) if found else None for point, found in zip(part.adversarial, changed, strict=True))
        numbers = (part.labels, part.predictions, part.certified, part.attacked, part.evaluations)
        return list(zip(*(column.tolist() for column in (*numbers, part.arithmetic)), points, strict=True))

    def result(start: int, columns: Sequence[tuple[Any, ...]], seconds: dict[str, float]) -> Radius:
        labels, predictions, certified, attacked, evaluations, arithmetic, points = columns
        own = x[start : start + len(labels)]
        found = [own[at] if point is None else unpack(point) for at, point in enumerate(points)]
        return Radius(
            certified=torch.tensor(certified, dtype=torch.float64),
            attacked=torch.tensor(attacked, dtype=torch.float64),
            adversarial=torch.stack(found),
            evaluations=torch.tensor(evaluations),
            labels=torch.tensor(labels),
            predictions=torch.tensor(predictions),
            arithmetic=np.array(arithmetic),
            seconds=seconds,
        )

    return Layout("ironbound-radius-store/3", _COLUMNS, rows, result)


def joined(parts: list[Radius], settings: dict[str, Any]) -> Radius:
    """The radii of all shards, in order.

    Args:
        parts: those of each shard, at least one.
        settings: the query in full.

    Returns:
        One result.
    """
    columns = ("certified", "attacked", "adversarial", "evaluations", "labels", "predictions")
    found = [torch.cat([getattr(part, name) for part in parts]) for name in columns]
    seconds = {stage: sum(part.seconds[stage] for part in parts) for stage in parts[0].seconds}
    arithmetic = np.concatenate([part.arithmetic for part in parts])
    return Radius(*found, arithmetic=arithmetic, seconds=seconds, settings=settings)
