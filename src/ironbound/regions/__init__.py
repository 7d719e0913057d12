"""Input regions: what an attacker may do to each example of a batch. ε is in the units of the data as loaded."""

from ironbound.regions.balls import REGIONS, L1Ball, L2Ball, LinfBall, ball
from ironbound.regions.box import Box
from ironbound.regions.checks import Radius
from ironbound.regions.region import Region, Set

__all__ = ["REGIONS", "Box", "L1Ball", "L2Ball", "LinfBall", "Radius", "Region", "Set", "ball"]
