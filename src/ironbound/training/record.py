"""What training reports while it goes on, and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ironbound.training.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """Errors on the validation split, as shares in [0, 1].

    Attributes:
        examples: how many the attack and the bounds saw.
        clean: of all validation examples, misclassified.
        attacked: misclassified, or an attack changes the answer.
        certified: not proved, by method.
        certified_best: not proved when for each margin the best of the methods counts.
    """

    examples: int
    clean: float
    attacked: float
    certified: Mapping[str, float]
    certified_best: float


@dataclass(frozen=True)
class Epoch:
    """One pass over the training examples.

    Attributes:
        number: from 1, over all stages.
        stage: its name.
        eps: radius at the end of the epoch; 0 with the standard loss.
        lr: learning rate at the end of the epoch.
        options: the numbers among the loss's options at the end of the epoch, and the weights of regularizers.
        loss: mean over the examples, each seen by the weights of its moment; without regularizers.
        error: share of the examples seen that the loss saw as wrong: misclassified (standard), misclassified after the
            attack (pgd), not proved (losses of bounds; misclassified while the radius is 0).
        seen: how many examples took part.
        parts: mean of the terms that the loss names, and of the regularizers.
        evaluation: on the validation split, where there is one and it was due.
        seconds: wall time, evaluation included; no part of comparisons.
    """

    number: int
    stage: str
    eps: float
    lr: float
    options: Mapping[str, float]
    loss: float
    error: float
    seen: int
    parts: Mapping[str, float]
    evaluation: Evaluation | None = None
    seconds: float = field(default=0.0, compare=False)

    def row(self) -> dict[str, Any]:
        """A flat row for the logs."""
        row = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NESTED}
        row |= {f"option.{name}": value for name, value in self.options.items()}
        row |= {f"part.{name}": value for name, value in self.parts.items()}
        if self.evaluation is not None:
            found = self.evaluation
            row |= {"clean": found.clean, "attacked": found.attacked, "certified": found.certified_best}
            row |= {f"certified.{name}": value for name, value in found.certified.items()}
        return row

    def plain(self) -> dict[str, Any]:
        """As plain data, for checkpoints."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Epoch:
        """The reverse of `plain`."""
        found = plain["evaluation"]
        return cls(**{**plain, "evaluation": None if found is None else Evaluation(**found)})


_NESTED = ("options", "parts", "evaluation")


@dataclass(frozen=True)
class Step:
    """One step, for a progress bar.

    Attributes:
        epoch: from 1, over all stages.
        epochs: in all.
        time: epochs done, fractions included.
        loss: of this batch.
    """

    epoch: int
    epochs: int
    time: float
    loss: float


@dataclass(frozen=True)
class TrainingRecord:
    """How training went.

    Attributes:
        recipe: the settings.
        epochs: one entry per epoch.
    """

    recipe: Recipe
    epochs: tuple[Epoch, ...]
