"""Bounds of a network's output over a region: intervals, the dual network, CROWN, CROWN-IBP."""

from ironbound.bounding.api import Bounds, bounds, check_labels, margins
from ironbound.bounding.methods import EXACT, METHODS, find_method

__all__ = ["EXACT", "METHODS", "Bounds", "bounds", "check_labels", "find_method", "margins"]
