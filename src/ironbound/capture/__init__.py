"""Capture: from a PyTorch module to a `Graph` that holds its live parameters."""

from ironbound.capture.export import capture

__all__ = ["capture"]
