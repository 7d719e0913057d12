"""What training returns."""

from __future__ import annotations

from dataclasses import dataclass

from ironbound.training.recipes import Recipe


@dataclass(frozen=True)
class Epoch:
    """One pass over the training examples.

    Attributes:
        number: from 1.
        eps: radius at the end of the epoch.
        kappa: weight of the standard loss at the end of the epoch.
        loss: mean over the examples, each seen by the weights of its moment.
        error: share of the examples that the loss saw as wrong: misclassified (standard), misclassified after the
            attack (pgd), or not proved by intervals (interval; misclassified while the radius is 0).
    """

    number: int
    eps: float
    kappa: float
    loss: float
    error: float


@dataclass(frozen=True)
class TrainingRecord:
    """How training went.

    Attributes:
        recipe: the settings.
        epochs: one entry per epoch.
    """

    recipe: Recipe
    epochs: tuple[Epoch, ...]
