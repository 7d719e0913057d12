"""What changes while training goes on. Time is counted in epochs, fractions included."""

from __future__ import annotations


def ramp(time: float, start: float, end: float) -> float:
    """Linear from 0 at `start` to 1 at `end`; without length, a jump at `start`."""
    if time >= end:
        return 1.0
    return max(0.0, (time - start) / (end - start)) if end > start else 0.0


def decay(time: float, start: float, end: float) -> float:
    """1 up to `start`, then linear to 0 at `end`; without length, 1 throughout."""
    return 1.0 if end <= start else 1.0 - ramp(time, start, end)
