"""What is known of a network while its layers are bounded one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ironbound.bounding.backward import Band, Range
from ironbound.bounding.rounding import Ledger
from ironbound.bounding.shared_maps import ExampleMaps
from ironbound.graph import Graph
from ironbound.regions import Set


@dataclass(frozen=True, eq=False)
class Reached:
    """What is known of one node's value.

    Attributes:
        center: value in the middle of all bands, [batch, *shape].
        radius: largest distance from it, never below the exact one, [batch, *shape].
        ball: (order of the dual norm, radius) while the value is still a ball, else None.
        exact: whether `radius` is the exact one everywhere.
    """

    center: Tensor
    radius: Tensor
    ball: tuple[float, Tensor] | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class ParallelState:
    """The relaxed network for a batch of regions.

    Attributes:
        graph: the network that functionals are carried through: without the channels that the bands close at zero.
        sets: the region's sets, offsets relative to the centre passed forward.
        reached: what is known of each node.
        bands: the relaxation of each relaxed node of `graph`.
        layers: bounds (lower, upper) of the value that each relaxed node reads, by the relaxed node's index.
        radii: largest distance of each relaxed node's value in `graph` from its centre, [batch, *shape].
        shared: maps of narrow layers, by the relaxed node above and whether they carry gradients.
        ledger: the account of rounding, where bounds are moved outward by it.
    """

    graph: Graph
    sets: tuple[Set, ...]
    reached: list[Reached]
    bands: dict[int, Band]
    layers: dict[int, Range]
    radii: dict[int, Tensor] = field(default_factory=dict)
    shared: dict[tuple[int, bool], list[ExampleMaps]] = field(default_factory=dict)
    ledger: Ledger | None = None

    def outward(self, target: int, radius: Tensor, which: Tensor | None = None) -> Tensor:
        """A radius of node `target` with what rounding may have taken from it (see `Ledger.outward`)."""
        return radius if self.ledger is None else self.ledger.outward(target, radius, which)
