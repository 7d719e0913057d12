"""Ironbound and its two peers behind one call: margins of a network over an ℓ∞ ball, by a named method.

The peers are not part of this project and not among its dependencies: their checkouts are found on `PYTHONPATH` or in
the folder given to `--peers`, and a peer that cannot be imported is skipped.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import ironbound as ib

PROJECTIONS = 50  # random vectors, the number of the papers
ITERATIONS = 20  # of the ascent over the slopes


class Contestant(Protocol):
    """One side of the comparison, bound to a network and an ε."""

    name: str
    methods: frozenset[str]

    def margins(self, method: str, x: Tensor, labels: Tensor) -> Tensor:
        """Lower bounds [batch, classes] of logit[label] − logit[k] from x [batch, *shape] and labels [batch]."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """The weights that gradients reach, in the order of the network."""
        ...


class Ironbound:
    """This project."""

    name = "ironbound"
    methods = frozenset({"dual", "dual projected", "alpha", "interval", "crown-ibp"})

    def __init__(self, network: nn.Module, eps: float) -> None:
        self.network, self.eps = network, eps

    def margins(self, method: str, x: Tensor, labels: Tensor) -> Tensor:
        """See `Contestant`."""
        if method == "alpha":  # every margin to the end: nothing stops where it is proved
            return ib.alpha_margins(self.network, ib.LinfBall(x, self.eps), labels, ib.Ascent(ITERATIONS)).margins
        if method == "dual projected":
            return ib.estimate_margins(self.network, ib.LinfBall(x, self.eps), labels, PROJECTIONS).values
        return ib.margins(self.network, ib.LinfBall(x, self.eps), labels, method=method)

    def parameters(self) -> list[nn.Parameter]:
        """See `Contestant`."""
        return list(self.network.parameters())


class ConvexAdversarial:
    """The dual network of Wong and Kolter by its authors: exact, and with Cauchy projections and medians."""

    name = "convex_adversarial"
    methods = frozenset({"dual", "dual projected"})

    def __init__(self, network: nn.Module, eps: float) -> None:
        self.network, self.eps = network, eps
        self.package = importlib.import_module("convex_adversarial")

    def margins(self, method: str, x: Tensor, labels: Tensor) -> Tensor:
        """See `Contestant`."""
        options = {"proj": PROJECTIONS, "norm_type": "l1_median"} if method == "dual projected" else {}
        return -self.package.RobustBounds(self.network, self.eps, **options)(x, labels)

    def parameters(self) -> list[nn.Parameter]:
        """See `Contestant`."""
        return list(self.network.parameters())


class AutoLirpa:
    """auto_LiRPA: CROWN with the slopes of the dual network, alpha-CROWN, IBP, CROWN-IBP; convolutions as patches."""

    name = "auto_LiRPA"
    methods = frozenset({"dual", "alpha", "interval", "crown-ibp"})
    _calls: Mapping[str, str] = {
        "dual": "CROWN",
        "alpha": "CROWN-Optimized",
        "interval": "IBP",
        "crown-ibp": "CROWN-IBP",
    }

    def __init__(self, network: nn.Module, eps: float, example: Tensor) -> None:
        self.package = importlib.import_module("auto_LiRPA")
        self.ball = self.package.PerturbationLpNorm(norm=float("inf"), eps=eps)
        patches: dict[str, Any] = {"conv_mode": "patches"}
        # Timed as it comes and is fastest: intermediate bounds met with intervals, which closes a few more neurons.
        # Without that meeting its numbers are those of Algorithm 1.
        same_slope = {**patches, "activation_bound_option": "same-slope"}
        self.modules = {
            "dual": self.package.BoundedModule(network, example, bound_opts=same_slope),
            "crown-ibp": self.package.BoundedModule(network, example, bound_opts=patches),
            "alpha": self.package.BoundedModule(
                network, example, bound_opts={**patches, "optimize_bound_args": {"iteration": ITERATIONS}}
            ),
        }
        self.modules["interval"] = self.modules["crown-ibp"]
        self.exact = self.package.BoundedModule(
            network, example, bound_opts={**same_slope, "sparse_intermediate_bounds_with_ibp": False}
        )

    def margins(self, method: str, x: Tensor, labels: Tensor) -> Tensor:
        """See `Contestant`."""
        return self._margins(self.modules[method], method, x, labels)

    def exact_dual(self, x: Tensor, labels: Tensor) -> Tensor:
        """Algorithm 1's numbers, for the check of agreement only (slower than its default)."""
        return self._margins(self.exact, "dual", x, labels)

    def _margins(self, module: Any, method: str, x: Tensor, labels: Tensor) -> Tensor:
        classes = 10
        one_hot = torch.eye(classes, dtype=x.dtype)[labels]
        others = one_hot == 0
        rows = one_hot.unsqueeze(1) - torch.eye(classes, dtype=x.dtype)
        rows = rows[others].view(len(x), classes - 1, classes)  # the peer's own examples leave the label's zero row out
        lower, _ = module.compute_bounds(
            x=(self.package.BoundedTensor(x, self.ball),), C=rows, method=self._calls[method], bound_upper=False
        )
        return torch.zeros(len(x), classes, dtype=x.dtype).masked_scatter(others, lower)

    def parameters(self) -> list[nn.Parameter]:
        """See `Contestant`."""
        return list(self.modules["dual"].parameters())


def find_peers(folder: Path | None) -> dict[str, str]:
    """Make the peers importable and say which are.

    Args:
        folder: a folder with the peers' checkouts, one subfolder each, or None to rely on `PYTHONPATH`.

    Returns:
        The version of each peer found, by the name of its package.
    """
    if folder is not None:
        sys.path.extend(str(child) for child in sorted(folder.iterdir()) if child.is_dir())
    found = {}
    for name in (ConvexAdversarial.name, AutoLirpa.name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                package = importlib.import_module(name)
        except ImportError as error:
            print(f"skipped: {name} cannot be imported ({error}); put its checkout on PYTHONPATH or give --peers")
            continue
        found[name] = str(getattr(package, "__version__", "unversioned"))
    return found


def field(network: nn.Module, eps: float, example: Tensor, peers: Mapping[str, str]) -> list[Contestant]:
    """Ironbound first, then every peer that was found."""
    contestants: list[Contestant] = [Ironbound(network, eps)]
    if ConvexAdversarial.name in peers:
        contestants.append(ConvexAdversarial(network, eps))
    if AutoLirpa.name in peers:
        contestants.append(AutoLirpa(network, eps, example))
    return contestants
