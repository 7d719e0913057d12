"""Recipes in one line, for runs with one loss and one ramp; and the demo's."""

from __future__ import annotations

import math
from typing import Any

from ironbound.errors import InputError
from ironbound.training.recipe import Recipe

_RUN = ("epochs", "batch_size", "seed", "workers", "threads", "device", "checkpoint_every", "collapse_epochs")


def simple(
    loss: str = "standard",
    eps: float = 0.1,
    epochs: int = 10,
    lr: float = 1e-3,
    ramp: tuple[float, float] = (0, 0),
    kappa: float = 0.5,
    **settings: Any,
) -> Recipe:
    """The recipe of a run with one loss: Adam, the radius grows linearly, then the learning rate falls linearly.

    Args:
        loss: name of the loss.
        eps: final radius, in the units of the inputs; the standard loss ignores it.
        epochs: passes over the training examples.
        lr: Adam's learning rate; from the end of the ramp on it falls linearly to 0.
        ramp: epochs (from, to) in which the radius grows from 0 to eps, and where the loss is "interval" its weight of
            the standard part falls from 1 to `kappa`; before them training is standard. (0, 0): no ramp.
        kappa: final weight of the standard part of the interval loss.
        **settings: norm and clip of the region; batch_size, seed, workers, threads, device, checkpoint_every and
            collapse_epochs of the run; whatever is left is an option of the loss.

    Returns:
        The recipe.

    Raises:
        InputError: a setting does not fit.
    """
    if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= epochs:
        raise InputError(f"ramp must be (from, to) with 0 <= from <= to <= epochs, got {ramp} for {epochs} epochs.")
    if not 0 <= kappa <= 1:
        raise InputError(f"kappa must lie in [0, 1], got {kappa}.")
    if not 0 <= eps < math.inf:
        raise InputError(f"eps must be a finite number >= 0, got {eps}.")
    times = {"start": ramp[0], "end": ramp[1]}
    rise = {"kind": "linear", "from": 0.0, "to": eps, **times}
    fall = {"kind": "linear", "from": 1.0, "to": kappa, **times}
    decay: Any = {"kind": "linear", "from": 1.0, "to": 0.0, "start": ramp[1], "end": epochs}
    region = {"eps": eps, **{name: settings.pop(name) for name in ("norm", "clip") if name in settings}}
    run = {"epochs": epochs, **{name: settings.pop(name) for name in _RUN if name in settings}}
    options = {"kappa": fall, **settings} if loss == "interval" else settings
    return Recipe(
        region=region,
        loss={"name": loss, "eps": rise, **options},
        optimizer={"lr": lr, "schedule": decay if epochs > ramp[1] else 1.0},
        run=run,
    )


def digits_demo() -> Recipe:
    """For `models.build("digits")` on the bundled digits: seconds of training, then intervals certify most images."""
    recipe = simple("interval", eps=0.1, epochs=60, batch_size=48, lr=1e-2, ramp=(2, 30), kappa=0.3)
    return recipe.override("model.name=digits", "data.name=digits", "title=The demo: interval training on digits")
