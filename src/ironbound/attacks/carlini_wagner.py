"""Carlini and Wagner's attack, by the library Foolbox, inside a box instead of around the whole range of pixels."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ironbound.attacks.logits import Network, assess, check_labels
from ironbound.attacks.result import Attack
from ironbound.errors import InputError
from ironbound.regions import Box, LinfBall, Region

_BATCH = 500


def carlini_wagner(
    model: Network, region: Region, labels: Tensor, steps: int = 100, constant: float = 1000.0
) -> Attack:
    """Adam on distance² + constant times the margin, in variables whose tanh cannot leave the region's box.

    The library's attack looks for a near input among all pixels in [0, 1]. Here it sees x = lower + u (upper - lower)
    with u in [0, 1], so that whatever it finds lies in the region; near means near the middle of the box. Its
    candidates are projected (rounding), and the network is run on them again.

    Source: Carlini and Wagner, "Towards evaluating the robustness of neural networks" (2017), section VI;
    Rauber et al., "Foolbox" (2017), `L2CarliniWagnerAttack`.

    Args:
        model: the network, any callable from [batch, *shape] to [batch, classes].
        region: an l-infinity ball, with `clip` or without, or a box.
        labels: integers [batch].
        steps: of Adam.
        constant: weight of the margin against the distance.

    Returns:
        One candidate per example; the center where none was found.

    Raises:
        LabelError: labels are not integers, not one per example or not classes of the network.
        InputError: the region is another one, an argument does not fit, or Foolbox is not installed.
    """
    if not isinstance(region, LinfBall | Box):
        raise InputError("the attack of Carlini and Wagner needs an l-infinity ball or a box; use pgd for other balls")
    if steps < 1 or not 0 < constant < float("inf"):
        raise InputError(f"steps must be at least 1 and constant positive, got {steps} and {constant}")
    labels = check_labels(region, labels)
    foolbox = _library()
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=steps, stepsize=0.1, initial_const=constant, abort_early=False
    )
    # the library differentiates by everything that requires it: not by the parameters of a copy
    network = copy.deepcopy(model).requires_grad_(False) if isinstance(model, nn.Module) else model
    points = region.center.clone()
    lower, upper = region.box()
    for rows in torch.arange(len(region), device=labels.device).split(_BATCH):
        inside = _Inside(network, lower[rows], upper[rows] - lower[rows])
        wrapped = foolbox.PyTorchModel(inside.eval(), bounds=(0, 1), device=points.device)
        start = torch.full_like(lower[rows], 0.5)
        _, found, success = attack(wrapped, start, foolbox.Misclassification(labels[rows]), epsilons=None)
        points[rows[success]] = inside.place(found.detach())[success]
    return assess(model, region, region.project(points), labels)


class _Inside(nn.Module):
    """The network as a function of the place in each example's box; batches come whole and in order."""

    def __init__(self, model: Network, lower: Tensor, width: Tensor) -> None:
        super().__init__()
        self._call, self._lower, self._width = [model], lower, width  # a list: modules in it keep their mode

    def place(self, u: Tensor) -> Tensor:
        """From [0, 1] to the box."""
        return self._lower + u * self._width

    def forward(self, u: Tensor) -> Tensor:
        """Run the network."""
        return self._call[0](self.place(u))


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports names that SciPy has moved
            import foolbox
    except ImportError as error:
        raise InputError("the attack of Carlini and Wagner is Foolbox's; install ironbound[attacks]") from error
    return foolbox
