"""Settings of a training run, and the ones of the demo."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ironbound.errors import InputError
from ironbound.regions import REGIONS

LOSSES = ("interval", "pgd", "standard")


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        loss: "standard", "pgd" or "interval".
        eps: final radius, in the units of the inputs; the standard loss ignores it.
        epochs: passes over the training examples.
        batch_size: examples per step.
        lr: Adam's learning rate; from the end of the ramp on it falls linearly to 0.
        ramp: epochs (from, to) in which the radius grows linearly from 0 to eps, and the weight of the standard loss
            falls from 1 to `kappa`; before them training is standard. (0, 0): no ramp.
        kappa: final weight of the standard loss in the interval loss.
        attack_steps: steps of the attack in the pgd loss.
        norm: "linf", "l2" or "l1".
        clip: range of the inputs that the attacker respects, or None.
        seed: of the order of the examples, the attack's starts and dropout; the global generators are not touched.

    Raises:
        InputError: a setting does not fit.
    """

    loss: str = "standard"
    eps: float = 0.1
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    ramp: tuple[float, float] = (0, 0)
    kappa: float = 0.5
    attack_steps: int = 10
    norm: str = "linf"
    clip: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = {
            f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}": self.loss in LOSSES,
            f"norm must be one of {', '.join(REGIONS)}, got {self.norm!r}": self.norm in REGIONS,
            f"eps must be a finite number >= 0, got {self.eps}": 0 <= self.eps < math.inf,
            f"lr must be a finite number > 0, got {self.lr}": 0 < self.lr < math.inf,
            f"kappa must lie in [0, 1], got {self.kappa}": 0 <= self.kappa <= 1,
            f"ramp must be (from, to) with 0 <= from <= to <= epochs, got {self.ramp} for {self.epochs} epochs": len(
                self.ramp
            )
            == 2
            and 0 <= self.ramp[0] <= self.ramp[1] <= self.epochs,
        }
        for name in ("epochs", "batch_size", "attack_steps"):
            problems[f"{name} must be at least 1, got {getattr(self, name)}"] = getattr(self, name) >= 1
        for message, fine in problems.items():
            if not fine:
                raise InputError(message)


def digits_demo() -> Recipe:
    """For `models.build("digits")` on the bundled digits: seconds of training, then intervals certify most images."""
    return Recipe(loss="interval", eps=0.1, epochs=60, batch_size=48, lr=1e-2, ramp=(2, 30), kappa=0.3)
