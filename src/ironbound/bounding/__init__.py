"""Bounds of a network's output over a region: intervals, the dual network, CROWN, CROWN-IBP."""

from ironbound.bounding.api import Bounds, bounds, check_labels, margins
from ironbound.bounding.methods import EXACT, METHODS, bounds_rounding, find_method
from ironbound.bounding.rounding import Arithmetic

__all__ = [
    "EXACT",
    "METHODS",
    "Arithmetic",
    "Bounds",
    "bounds",
    "bounds_rounding",
    "check_labels",
    "find_method",
    "margins",
]
