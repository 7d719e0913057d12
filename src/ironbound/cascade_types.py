"""What the cascade is asked, and what it answers for a range of examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironbound.bounding import Arithmetic

STATUSES = ("misclassified", "falsified", "certified", "unknown")


@dataclass(frozen=True)
class AttackOptions:
    """How hard to attack.

    Attributes:
        name: "pgd", or "fgsm" for its one step alone. PGD begins with that step too: it decides the easy examples.
        steps, restarts, targeted: of `ironbound.attacks.pgd`.
        seed: of the random starts.
    """

    name: str = "pgd"
    steps: int = 40
    restarts: int = 1
    targeted: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Cascade:
    """The stages: the attack's single step, each method in turn, and before the first search the rest of the attack.

    Attributes:
        methods: names from `ironbound.bounding.METHODS`, or of `ironbound.exact.search.SEARCHES`.
        attack: None for no attack.
        memory: bytes that a method may take, see `ironbound.margins`.
        budget: seconds that a search may take for an example, or None for no limit.
        arithmetic: what an example must be proved for: "real", or "float32": every run of the network in float32; None:
            margins as computed will do, above a guard.
    """

    methods: tuple[str, ...]
    attack: AttackOptions | None = None
    memory: int | None = None
    budget: float | None = None
    arithmetic: Arithmetic | None = "real"


@dataclass(frozen=True, eq=False)
class ShardResult:
    """What the cascade found for a range of examples; all tensors on the CPU.

    Attributes:
        status: one of `STATUSES` per example.
        method: the stage that closed the example: the method that proved its last class, the attack, or "".
        arithmetic: one of `CLAIMS` per example with all margins above 0 or their guard, the weakest that one of its
            classes needed; else "". Such an example is unknown where that is no proof and a proof was asked for.
        labels, predictions: int64 [n].
        margins: float64 [n, classes], the best lower bound of logit[label] - logit[k]; NaN where none was computed.
        adversarial: the input that changes the answer, [*shape], by the example's position in the shard.
        seconds: spent in "prediction", "bounds" and "attack".
    """

    status: tuple[str, ...]
    method: tuple[str, ...]
    arithmetic: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    margins: Tensor
    adversarial: dict[int, Tensor]
    seconds: dict[str, float]

    def __len__(self) -> int:
        return len(self.status)


def joined(parts: list[ShardResult]) -> ShardResult:
    """Puts the results of consecutive shards together."""
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return ShardResult(
        status=tuple(status for part in parts for status in part.status),
        method=tuple(method for part in parts for method in part.method),
        arithmetic=tuple(arithmetic for part in parts for arithmetic in part.arithmetic),
        labels=torch.cat([part.labels for part in parts]),
        predictions=torch.cat([part.predictions for part in parts]),
        margins=torch.cat([part.margins for part in parts]),
        adversarial={
            start + at: point
            for start, part in zip(starts, parts, strict=False)
            for at, point in part.adversarial.items()
        },
        seconds={stage: sum(part.seconds[stage] for part in parts) for stage in parts[0].seconds},
    )
