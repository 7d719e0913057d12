"""Signs that training has failed: a loss that is no number, a network that has collapsed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ironbound.errors import TrainingError

_CHECKED = 512  # training examples on which a constant answer shows
_STEPS = 100  # steps before a verdict: a fresh network may answer everything alike


def require_finite(value: float, gradients: list[Tensor], when: str, last_good: str) -> None:
    """Stops at a loss or gradient that is NaN or infinite, before the weights change.

    Args:
        value: the loss.
        gradients: of the parameters.
        when: such as "epoch 3".
        last_good: where good weights are.

    Raises:
        TrainingError: it is no number.
    """
    if not math.isfinite(value):
        raise TrainingError(f"the loss is {value} in {when}; lower lr, or let ε grow more slowly; {last_good}")
    if gradients and not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
        raise TrainingError(
            f"a gradient is not finite in {when}; lower lr, set optimizer.clip_norm, or let ε grow more slowly; "
            f"{last_good}"
        )


class Health:
    """Watches for collapse: after the ramp, several epochs in a row with the same answer for everything, or stuck.

    Stuck is a loss that is not below log(classes), the loss of a network that says nothing, and no longer falls.

    Args:
        patience: epochs in a row before training stops; 0: never.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._constant, self._stuck, self._steps = 0, 0, 0
        self._before = math.inf

    @property
    def suspicious(self) -> bool:
        """Whether the last epoch showed a sign of collapse."""
        return self._constant > 0 or self._stuck > 0

    def check(self, model: nn.Module, inputs: Tensor, labels: Tensor, epoch: tuple[float, int, bool]) -> str | None:
        """Looks at the network after an epoch.

        Args:
            model: the network in evaluation mode.
            inputs: training inputs.
            labels: training labels.
            epoch: its mean loss, its steps, and whether ε stood still during all of it.

        Returns:
            What is wrong, or None.
        """
        loss, steps, settled = epoch
        if not settled:
            self._constant, self._stuck, self._steps, self._before = 0, 0, 0, math.inf
            return None
        self._steps += steps
        with torch.no_grad():
            logits = model(inputs[:_CHECKED])
        constant = len(logits.argmax(1).unique()) == 1 and len(labels[:_CHECKED].unique()) > 1
        stuck = loss >= math.log(logits.shape[1]) and loss > 0.999 * self._before
        self._before = loss
        self._constant, self._stuck = self._constant + 1 if constant else 0, self._stuck + 1 if stuck else 0
        if not self._patience or self._steps < _STEPS:
            return None
        if self._constant >= self._patience:
            return f"the network gives the same answer for everything since {self._constant} epochs"
        if self._stuck >= self._patience:
            return f"the loss stays at {loss:.3g}, not below that of guessing, since {self._stuck} epochs"
        return None

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        vars(self).update(state)
