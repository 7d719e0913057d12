"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Attack:
    """The worst inputs that an attack found: candidates. Whoever states a verdict runs the network on them again.

    Attributes:
        points: [batch, *shape], each inside its region.
        success: bool [batch], whether the network, run on exactly `points`, prefers another class, ties included.
        margins: [batch], logit[label] minus the largest other logit at `points`: an upper bound of the robust margin.
    """

    points: Tensor
    success: Tensor
    margins: Tensor

    def __len__(self) -> int:
        return len(self.points)
